//! Two servers that both believe to own a machine.

use std::sync::Arc;

use super::hostile::Hostile;
use super::rig::{Rig, server};
use crate::store::faulty::{Fault, Faulty, Op, Rule};
use crate::store::{Class, Store};
use crate::upload::{UploadError, claim, give_up};

const RECORDS: u64 = 45;

/// The older is stopped before each of its requests in turn; a newer takes the machine and
/// publishes; the older goes on. Whatever it sends, nothing of it is named after the takeover.
#[tokio::test]
async fn the_older_never_publishes_after_a_takeover() {
    let mut fenced = 0;
    for at in 2..200 {
        let rig = Rig::new(u64::from(at) % 5);
        let store = Hostile::stop_at(&rig.memory, at);
        let context = rig.context(Arc::clone(&store) as _, 1);
        let note = |_| ();
        let older = rig.serve(&context, "ps-a", RECORDS, note);
        tokio::pin!(older);
        let stopped = tokio::select! {
            biased;
            ended = &mut older => { ended.unwrap(); false }
            () = store.stopped.notified() => true,
        };
        if !stopped {
            assert!(fenced > 25, "only {fenced} takeovers were tried");
            return;
        }
        let before = rig.manifest().await;
        let newer = rig.serve(&rig.plain(), "ps-b", 40, |_| ()).await.unwrap();
        let after = rig.audit().await;
        store.go.notify_one();
        let ended = older.await;
        assert_eq!(rig.manifest().await, newer.manifest, "request {at}");
        assert_eq!(rig.audit().await, after);
        match ended {
            Err(stopped) => {
                assert_eq!(stopped.error.class(), Class::Fence);
                let UploadError::Fenced { ours, theirs, their_owner, .. } = &stopped.error else {
                    panic!("{}", stopped.error)
                };
                assert_eq!((ours.0, theirs.0, their_owner), (1, 2, &server("ps-b")));
                // All that it held comes back, in order, to the last record.
                let first = stopped.unpublished.first().unwrap().entry().first;
                assert!(first <= before.published.next());
                let mut end = first.0 - 1;
                for sealed in &stopped.unpublished {
                    assert_eq!(sealed.entry().first.0, end + 1);
                    assert_eq!(sealed.items().len() as u64, sealed.entry().last.0 - end);
                    end = sealed.entry().last.0;
                }
                assert_eq!(end, RECORDS);
                fenced += 1;
            }
            Ok(_) => assert_eq!(before.published.0, RECORDS, "all was published before"),
        }
    }
    panic!("the older never came to its end");
}

/// Two processes of one name that make the very same manifest: only one of them owns it.
#[tokio::test]
async fn two_lives_of_one_server_do_not_share_a_generation() {
    let rig = Rig::new(3);
    claim(&rig.plain(), &server("ps-a")).await.unwrap();
    let store = Hostile::stop_at(&rig.memory, 1); // its read is done, its write waits
    let context = rig.context(Arc::clone(&store) as Arc<dyn Store>, 1);
    let name = server("ps-a");
    let one = claim(&context, &name);
    tokio::pin!(one);
    tokio::select! {
        biased;
        _ = &mut one => panic!("it was to wait"),
        () = store.stopped.notified() => {}
    }
    let other = claim(&rig.plain(), &server("ps-a")).await.unwrap();
    store.go.notify_one();
    let one = one.await.unwrap();
    assert_eq!(other.manifest.generation.0, 2);
    assert_eq!(one.manifest.generation.0, 3);
}

/// The answer to the compare-and-swap is lost, and so is the look at what it did.
#[tokio::test]
async fn a_machine_that_was_given_up_without_an_answer_is_given_up() {
    let rig = Rig::new(3);
    let ours = claim(&rig.plain(), &server("ps-a")).await.unwrap().manifest.generation;
    let faulty = Arc::new(Faulty::new(Arc::clone(&rig.memory) as Arc<dyn Store>));
    faulty.add(Rule::on(Op::Put, Fault::AnswerLost).named("/manifest").times(1));
    faulty.add(Rule::on(Op::Read, Fault::Unreachable).named("/manifest").after(1).times(1));
    let context = rig.context(Arc::clone(&faulty) as Arc<dyn Store>, 1);
    let given = give_up(&context, ours, &server("ps-b")).await.unwrap();
    assert_eq!(given.manifest, rig.manifest().await);
    assert_eq!((given.manifest.generation.0, given.manifest.owner), (2, server("ps-b")));
    assert_eq!(faulty.calls(Op::Put, "/manifest"), 1);
    // Another's is another's.
    claim(&rig.plain(), &server("ps-c")).await.unwrap();
    let late = give_up(&context, ours, &server("ps-b")).await;
    assert!(matches!(late, Err(UploadError::Fenced { .. })), "{late:?}");
}

/// What an owner may take up again from its own log is told by this number alone.
#[tokio::test]
async fn an_ownership_counts_from_the_last_change_of_owner() {
    let rig = Rig::new(3);
    let mut owned_since = Vec::new();
    for name in ["ps-a", "ps-a", "ps-b", "ps-b", "ps-a", "ps-a"] {
        let manifest = claim(&rig.plain(), &server(name)).await.unwrap().manifest;
        owned_since.push((manifest.generation.0, manifest.owned_since.0));
        assert_eq!(manifest, rig.manifest().await);
    }
    assert_eq!(owned_since, [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5)]);
}
