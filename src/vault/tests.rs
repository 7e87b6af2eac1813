use std::sync::Arc;

use super::*;
use crate::clock::System;
use crate::format::names;
use crate::model::{BookmarkId, MachineId, SiteId, Timestamp};
use crate::store::faulty::{Fault, Gate, Op, Rule};
use crate::store::{Class, Condition, Faulty, Memory, Store, StoreError};

fn vault() -> Vault {
    Vault::new(Arc::new(Memory::new(System::clock())), [7; 32])
}

fn machine(name: &str) -> MachineId {
    name.parse().unwrap()
}

fn document(name: &str) -> MachineDocument {
    MachineDocument {
        machine: machine(name),
        created: Timestamp(1),
        data_keys: Vec::new(),
        certificates: Vec::new(),
        policy: Policy::default(),
    }
}

const NOW: Timestamp = Timestamp(1_000_000_000_000);

#[tokio::test]
async fn documents_come_back_and_are_made_once() {
    let vault = vault();
    assert_eq!(vault.machine(&machine("web")).await.unwrap(), None);
    vault.create_machine(&document("web")).await.unwrap();
    vault.create_machine(&document("db")).await.unwrap();
    let again = vault.create_machine(&document("web")).await;
    assert!(matches!(again, Err(VaultError::Exists { .. })));
    let found = vault.machine(&machine("web")).await.unwrap();
    assert_eq!(found, Some(document("web")));
    let all = vault.machines().await.unwrap();
    assert_eq!(all, [machine("db"), machine("web")]);
}

#[tokio::test]
async fn an_altered_or_moved_document_is_named_and_never_used() {
    let vault = vault();
    vault.create_machine(&document("web")).await.unwrap();
    let web = names::machine_document(&machine("web"));
    let (body, _) = vault.store().read(&web).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();

    let put = async |name, text: String| {
        let written = vault.store().put(name, text.into(), Condition::Always);
        written.await.unwrap();
    };
    let db = names::machine_document(&machine("db"));
    put(&db, text.clone()).await;
    let error = vault.machine(&machine("db")).await.unwrap_err();
    assert!(matches!(&error, VaultError::Altered { name } if *name == db.to_string()));

    put(&web, text.replace("\"rpo_warn_s\":60", "\"rpo_warn_s\":61")).await;
    let error = vault.machine(&machine("web")).await.unwrap_err();
    assert!(error.to_string().contains("machines/web/machine"), "{error}");
    assert!(matches!(error, VaultError::Altered { .. }));
    let change = vault.update_machine(&machine("web"), Ok).await;
    assert!(matches!(change, Err(VaultError::Altered { .. })));

    let other_key = Vault::new(Arc::clone(vault.store()), [8; 32]);
    put(&web, text).await;
    vault.machine(&machine("web")).await.unwrap();
    let error = other_key.machine(&machine("web")).await.unwrap_err();
    assert!(matches!(error, VaultError::Altered { .. }));
}

/// A vault whose first `count` writes of `part` wait for each other, so that all of them were
/// decided over the same version.
fn meeting(count: u64, part: &str) -> (Vault, Arc<Faulty>, Gate, Rule) {
    let faulty = Arc::new(Faulty::new(Arc::new(Memory::new(System::clock()))));
    let gate = Gate::new();
    let rule = Rule::on(Op::Put, Fault::Hold(gate.clone())).named(part).times(count);
    let vault = Vault::new(Arc::clone(&faulty) as Arc<dyn Store>, [7; 32]);
    (vault, faulty, gate, rule)
}

#[tokio::test]
async fn a_change_is_made_again_over_what_others_wrote() {
    let (vault, faulty, gate, rule) = meeting(8, "web");
    let web = machine("web");
    vault.create_machine(&document("web")).await.unwrap();
    faulty.add(rule);
    let writers = (1..=8).map(|step| {
        let (vault, web) = (vault.clone(), web.clone());
        tokio::spawn(async move {
            let changed = vault.update_machine(&web, |mut document| {
                document.policy.rpo_warn_s += step;
                Ok(document)
            });
            changed.await.unwrap();
        })
    });
    let writers: Vec<_> = writers.collect();
    gate.arrived(8).await;
    gate.open();
    for writer in writers {
        writer.await.unwrap();
    }
    let document = vault.machine(&web).await.unwrap().unwrap();
    assert_eq!(document.policy.rpo_warn_s, 60 + 36, "no change was lost");
}

#[tokio::test]
async fn a_second_site_is_refused() {
    let vault = vault();
    let (mine, other): (SiteId, SiteId) = ("mine".parse().unwrap(), "other".parse().unwrap());
    let unclaimed = vault.expect_site(&mine).await;
    assert!(matches!(unclaimed, Err(VaultError::Missing { .. })));
    vault.claim_site(&mine, NOW).await.unwrap();
    vault.claim_site(&mine, NOW).await.unwrap();
    let error = vault.claim_site(&other, NOW).await.unwrap_err();
    assert!(matches!(&error, VaultError::OtherSite { found, .. } if *found == mine));
}

#[tokio::test]
async fn a_token_enrols_one_machine_once_and_in_time() {
    let vault = vault();
    let entropy = System::entropy();
    let web = machine("web");
    let expires = NOW.plus_seconds(60);
    let token = vault.create_enrolment_token(&web, expires, entropy.as_ref());
    let token = token.await.unwrap();
    let redeem = async |token: &Token, machine: &MachineId, now| {
        vault.redeem_enrolment_token(token, machine, now).await
    };
    let other = redeem(&token, &machine("db"), NOW).await;
    assert!(matches!(other, Err(TokenError::OtherMachine { .. })));
    let late = redeem(&token, &web, expires).await;
    assert!(matches!(late, Err(TokenError::Expired { .. })));
    let operator = vault.check_operator_token(&token).await;
    assert!(matches!(operator, Err(TokenError::OtherUse)));
    redeem(&token, &web, NOW).await.unwrap();
    let replay = redeem(&token, &web, NOW).await;
    assert!(matches!(replay, Err(TokenError::Used { .. })));
    let foreign = redeem(&Token::random(entropy.as_ref()), &web, NOW).await;
    assert!(matches!(foreign, Err(TokenError::Unknown)));

    let listed = vault.store().list(names::TOKENS).await.unwrap();
    let (body, _) = vault.store().read(&listed[0].name).await.unwrap();
    let stored = String::from_utf8(body.to_vec()).unwrap();
    assert!(!stored.contains(token.reveal()), "only the hash is stored");
    assert!(!format!("{token:?}").contains(token.reveal()));

    vault.remove_expired_tokens(NOW.plus_seconds(3_600)).await.unwrap();
    assert_eq!(vault.store().list(names::TOKENS).await.unwrap().len(), 1);
    vault.remove_expired_tokens(NOW.plus_seconds(100_000)).await.unwrap();
    assert_eq!(vault.store().list(names::TOKENS).await.unwrap().len(), 0);
}

#[tokio::test]
async fn of_many_bearers_of_one_token_one_enrols() {
    let (vault, faulty, gate, rule) = meeting(16, "tokens");
    let web = machine("web");
    let token = vault.create_enrolment_token(&web, NOW.plus_seconds(60), &System);
    let token = token.await.unwrap();
    faulty.add(rule);
    let bearers = (0..16).map(|_| {
        let (vault, web, token) = (vault.clone(), web.clone(), token.clone());
        tokio::spawn(async move { vault.redeem_enrolment_token(&token, &web, NOW).await.is_ok() })
    });
    let bearers: Vec<_> = bearers.collect();
    gate.arrived(16).await;
    gate.open();
    let mut enrolled = 0;
    for bearer in bearers {
        enrolled += u32::from(bearer.await.unwrap());
    }
    assert_eq!(enrolled, 1);
}

#[tokio::test]
async fn a_policy_names_every_rule_that_it_breaks() {
    let vault = vault();
    let web = machine("web");
    vault.create_machine(&document("web")).await.unwrap();
    let step = |age_s, every_s| LadderStep { age_s, every_s };
    let bad = Policy {
        bookmark_interval_s: 0,
        snapshot_interval_s: 59,
        journal_window_s: 58,
        ladder: vec![step(7_200, 60), step(3_600, 0)],
        rpo_warn_s: 0,
        keep_every_write: false,
    };
    let bounds = PolicyBounds::default();
    let refused = vault.update_policy(&web, bad.clone(), bounds).await;
    let Err(VaultError::Policy { violations }) = refused else { panic!("{refused:?}") };
    let fields: Vec<_> = violations.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "bookmark_interval_s",
            "snapshot_interval_s",
            "journal_window_s",
            "rpo_warn_s",
            "ladder[1].age_s",
            "ladder[1].every_s",
        ]
    );
    let kept = vault.machine(&web).await.unwrap().unwrap();
    assert_eq!(kept.policy, Policy::default());
    Policy::default().check(bounds).unwrap();
    let good = Policy { rpo_warn_s: 30, ..Policy::default() };
    let changed = vault.update_policy(&web, good, bounds).await.unwrap();
    assert_eq!(changed.policy.rpo_warn_s, 30);
    let nobody = vault.update_policy(&machine("nobody"), Policy::default(), bounds).await;
    assert!(matches!(nobody, Err(VaultError::Missing { .. })));
}

#[tokio::test]
async fn pins_and_kept_bookmarks() {
    let vault = vault();
    let web = machine("web");
    let pin = PinDocument { sequence: 9, base: 4, expires: NOW };
    vault.write_pin(&web, "mount-1", &pin).await.unwrap();
    vault.write_pin(&web, "mount-1", &pin).await.unwrap();
    assert_eq!(vault.pins(&web).await.unwrap(), [("mount-1".to_owned(), pin)]);
    vault.remove_pin(&web, "mount-1").await.unwrap();
    vault.remove_pin(&web, "mount-1").await.unwrap();
    assert!(vault.pins(&web).await.unwrap().is_empty());

    let bookmark = BookmarkId([3; 16]);
    vault.keep_bookmark(&web, bookmark, true).await.unwrap();
    let document = vault.keep_bookmark(&web, bookmark, true).await.unwrap();
    assert_eq!(document.pinned, [bookmark.to_string()]);
    let document = vault.keep_bookmark(&web, bookmark, false).await.unwrap();
    assert!(document.pinned.is_empty());
}

#[test]
fn every_error_has_its_class() {
    let gone = StoreError::NotFound { store: "s".into(), name: "n".into() };
    let error = VaultError::Store { name: "n".into(), source: gone };
    assert_eq!(error.class(), Class::Reject);
}

/// A vault over a store in which exactly the first matching call fails as told.
fn failing(op: Op, fault: Fault, part: &str) -> Vault {
    let faulty = Faulty::new(Arc::new(Memory::new(System::clock())));
    faulty.add(Rule::on(op, fault).named(part).times(1));
    Vault::new(Arc::new(faulty), [7; 32])
}

#[tokio::test]
async fn a_lost_answer_is_resolved_by_reading_back() {
    for fault in [Fault::AnswerLost, Fault::RequestLost] {
        let vault = failing(Op::Put, fault.clone(), "machines/web/machine");
        vault.create_machine(&document("web")).await.unwrap();
        let again = vault.create_machine(&document("web")).await;
        assert!(matches!(again, Err(VaultError::Exists { .. })), "{fault:?}");
        let found = vault.machine(&machine("web")).await.unwrap();
        assert_eq!(found, Some(document("web")));
    }
    let vault = failing(Op::Delete, Fault::AnswerLost, "pins");
    let web = machine("web");
    let pin = PinDocument { sequence: 1, base: 0, expires: NOW };
    vault.write_pin(&web, "a", &pin).await.unwrap();
    vault.remove_pin(&web, "a").await.unwrap();
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_happens_once() {
    for fault in [Fault::AnswerLost, Fault::RequestLost] {
        let faulty = Arc::new(Faulty::new(Arc::new(Memory::new(System::clock()))));
        let vault = Vault::new(Arc::clone(&faulty) as Arc<dyn Store>, [7; 32]);
        vault.create_machine(&document("web")).await.unwrap();
        faulty.add(Rule::on(Op::Put, fault.clone()).times(1));
        let web = machine("web");
        let changed = vault.update_machine(&web, |mut document| {
            document.policy.rpo_warn_s += 1;
            Ok(document)
        });
        changed.await.unwrap();
        let document = vault.machine(&web).await.unwrap().unwrap();
        assert_eq!(document.policy.rpo_warn_s, 61, "{fault:?}");
    }
}

/// The first bearer's answer is lost before its write; meanwhile the second uses the token at the
/// very same moment. Their documents say the same, and still only one of them may have won.
#[tokio::test]
async fn a_lost_answer_does_not_claim_what_another_wrote() {
    let memory: Arc<dyn Store> = Arc::new(Memory::new(System::clock()));
    let faulty = Arc::new(Faulty::new(Arc::clone(&memory)));
    let (slow, fast) =
        (Vault::new(Arc::clone(&faulty) as Arc<dyn Store>, [7; 32]), Vault::new(memory, [7; 32]));
    let web = machine("web");
    let token = fast.create_enrolment_token(&web, NOW.plus_seconds(60), &System);
    let token = token.await.unwrap();
    let gate = Gate::new();
    faulty.add(Rule::on(Op::Put, Fault::Hold(gate.clone())).times(1));
    let held = {
        let (token, web) = (token.clone(), web.clone());
        tokio::spawn(async move { slow.redeem_enrolment_token(&token, &web, NOW).await })
    };
    gate.arrived(1).await;
    fast.redeem_enrolment_token(&token, &web, NOW).await.unwrap();
    gate.open();
    let late = held.await.unwrap();
    assert!(matches!(late, Err(TokenError::Used { .. })), "{late:?}");
}

#[tokio::test]
async fn a_store_that_never_answers_is_an_error_in_the_end() {
    let faulty = Faulty::new(Arc::new(Memory::new(System::clock())));
    faulty.add(Rule::on(Op::Put, Fault::RequestLost));
    let vault = Vault::new(Arc::new(faulty), [7; 32]);
    let error = vault.create_machine(&document("web")).await.unwrap_err();
    assert_eq!(error.class(), Class::Retry);
}
