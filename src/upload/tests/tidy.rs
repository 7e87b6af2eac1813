//! Orphans and truncation: what may be deleted, and what never is.

use std::sync::Arc;
use std::time::Duration;

use super::hostile::{Fate, Hostile, Request};
use super::rig::{Rig, server};
use crate::format::names;
use crate::model::{Epoch, Generation, Sequence};
use crate::store::faulty::{Fault, Op, Rule};
use crate::store::{Class, Condition, Faulty, Store, StoreError};
use crate::upload::{Cut, Removal, UploadError, claim, remove_orphans, truncate};

const HOUR: Duration = Duration::from_secs(3600);

fn cut(generation: u64, through: u64) -> Cut {
    Cut {
        generation: Generation(generation),
        through: Sequence(through),
        epochs_from: Epoch(u32::MAX),
    }
}

/// A server that uploads everything and dies before its first publish.
async fn dies_before_publishing(rig: &Rig, owner: &str, records: u64) {
    let manifest_name = names::manifest(&rig.machine);
    let store = Hostile::new(&rig.memory, Box::new(|_, _| Fate::Done));
    let context = rig.context(store, 1);
    let claimed = claim(&context, &server(owner)).await.unwrap();
    let plan = move |_: u32, request: Option<&Request>| match request {
        Some(Request::Put(name, ..)) if *name == manifest_name => Fate::LostBefore,
        _ => Fate::Done,
    };
    let context = rig.context(Hostile::new(&rig.memory, Box::new(plan)), 1);
    let run = rig.go_on(&context, claimed, records, |_| ());
    tokio::select! {
        biased;
        _ = run => panic!("it cannot publish"),
        () = async { for _ in 0..2000 { tokio::task::yield_now().await; } } => {}
    }
}

#[tokio::test]
async fn orphans_of_the_dead_go_and_what_is_in_flight_stays() {
    let rig = Rig::new(4);
    dies_before_publishing(&rig, "ps-a", 20).await;
    let dead = rig.deltas().await.len();
    assert!(dead > 3);
    // While the one that made them owns the machine they may be named yet, however old they are.
    rig.clock.advance(10 * HOUR);
    let plain = rig.plain();
    let none = remove_orphans(&plain, Generation(1), HOUR, Removal::Remove).await.unwrap();
    assert_eq!((none.len(), rig.deltas().await.len()), (0, dead));

    // The next owner has its own in flight beside them.
    dies_before_publishing(&rig, "ps-b", 20).await;
    let both = rig.deltas().await.len();
    assert!(both > dead);
    let stale = remove_orphans(&plain, Generation(1), HOUR, Removal::Remove).await.unwrap_err();
    assert_eq!(stale.class(), Class::Fence);
    let before = rig.manifest().await;
    let dry = remove_orphans(&plain, Generation(2), HOUR, Removal::DryRun).await.unwrap();
    assert_eq!((dry.len(), rig.manifest().await), (dead, before));
    assert_eq!(rig.deltas().await.len(), both, "a dry run deletes nothing");
    let young = remove_orphans(&plain, Generation(2), 1000 * HOUR, Removal::Remove).await.unwrap();
    assert_eq!((young.len(), rig.deltas().await.len()), (0, both), "the grace is kept");
    let gone = remove_orphans(&plain, Generation(2), HOUR, Removal::Remove).await.unwrap();
    assert_eq!(gone, dry);
    let left = rig.deltas().await;
    assert_eq!(left.len(), both - dead);
    let generation =
        |row: &crate::store::Listed| names::parse_delta(&rig.machine, &row.name).unwrap().0.0;
    assert!(left.iter().all(|row| generation(row) == 2));
}

#[tokio::test]
async fn nothing_named_is_ever_an_orphan() {
    let rig = Rig::new(5);
    rig.serve(&rig.plain(), "ps-a", 45, |_| ()).await.unwrap();
    let (deltas, pages) = (rig.deltas().await, rig.pages().await);
    assert!(pages.len() > 1);
    rig.clock.advance(10 * HOUR);
    let plain = rig.plain();
    for generation in 1..4 {
        let generation = Generation(generation);
        let gone = remove_orphans(&plain, generation, Duration::ZERO, Removal::Remove).await;
        assert_eq!(gone.unwrap(), []);
        claim(&plain, &server("ps-b")).await.unwrap();
    }
    assert_eq!((rig.deltas().await, rig.pages().await.len()), (deltas, pages.len()));
}

/// Objects of the dead, of the living, and a page that cannot be read: what it may name stays while
/// it is named.
#[tokio::test]
async fn a_page_that_cannot_be_read_hides_the_deltas_in_its_range() {
    for gone in [false, true] {
        let rig = Rig::new(5);
        dies_before_publishing(&rig, "ps-a", 20).await;
        let dead = rig.deltas().await;
        rig.serve(&rig.plain(), "ps-b", 45, |_| ()).await.unwrap();
        let named = rig.deltas().await.len() - dead.len();
        let page = rig.manifest().await.pages[0].clone();
        let name = names::manifest_page(&rig.machine, page.id);
        let (whole, _) = rig.memory.read(&name).await.unwrap();
        let altered = [&whole[..], &[0]].concat().into();
        match gone {
            true => rig.memory.delete(&name, Condition::Always).await.unwrap(),
            false => drop(rig.memory.put(&name, altered, Condition::Always).await.unwrap()),
        }
        let plain = rig.plain();
        let remove = || remove_orphans(&plain, Generation(2), Duration::ZERO, Removal::Remove);
        let removed = remove().await.unwrap();
        let hidden = dead.iter().filter(|row| {
            let (_, first, last, _) = names::parse_delta(&rig.machine, &row.name).unwrap();
            first <= page.last && last >= page.first
        });
        let hidden = hidden.count();
        assert!(hidden > 0 && hidden < dead.len());
        assert_eq!(removed.len(), dead.len() - hidden, "those beside it go");
        assert_eq!(rig.deltas().await.len(), named + hidden);
        // Nothing of what it names is lost: put back, it leads to all of it.
        let broken = rig.memory.read(&name).await;
        rig.memory.put(&name, whole, Condition::Always).await.unwrap();
        assert_eq!(rig.audit().await.len(), named);
        match broken {
            Ok((altered, _)) => drop(rig.memory.put(&name, altered, Condition::Always).await),
            Err(_) => rig.memory.delete(&name, Condition::Always).await.unwrap(),
        }
        // A cut behind it takes its name, and then nothing is hidden any more.
        let done = truncate(&plain, cut(2, page.last.0)).await.unwrap();
        assert_eq!(done.through, page.last);
        assert!(rig.pages().await.iter().all(|row| row.name != name));
        remove().await.unwrap();
        assert_eq!(rig.deltas().await.len(), rig.audit().await.len());
    }
}

/// The owner has written a page and is stopped before the compare-and-swap that names it. Orphans
/// are removed meanwhile, and it goes on: whatever it names then exists.
#[tokio::test]
async fn a_page_in_flight_cannot_be_named_after_it_was_removed() {
    let mut removed = 0;
    for at in 2..200 {
        let rig = Rig::new(6);
        let store = Hostile::stop_at(&rig.memory, at);
        let context = rig.context(Arc::clone(&store) as _, 1);
        let owner = rig.serve(&context, "ps-a", 45, |_| ());
        tokio::pin!(owner);
        let stopped = tokio::select! {
            biased;
            ended = &mut owner => { ended.unwrap(); false }
            () = store.stopped.notified() => true,
        };
        if !stopped {
            assert!(removed > 0, "no page was ever in flight");
            return;
        }
        let plain = rig.plain();
        let gone = remove_orphans(&plain, Generation(1), Duration::ZERO, Removal::Remove).await;
        removed += gone.unwrap().len();
        store.go.notify_one();
        owner.await.unwrap();
        assert_eq!(rig.audit().await.last().unwrap().last.0, 45, "request {at}");
    }
    panic!("the owner never came to its end");
}

#[tokio::test]
async fn truncation_removes_names_first_and_whole_deltas_only() {
    for through in 0..=50 {
        let rig = Rig::new(7);
        rig.serve(&rig.plain(), "ps-a", 45, |_| ()).await.unwrap();
        let before = rig.audit().await;
        let done = truncate(&rig.plain(), cut(1, through)).await.unwrap();
        let manifest = rig.manifest().await;
        assert_eq!(manifest.truncated, done.through);
        assert!(done.through.0 <= through);
        assert_eq!(manifest.published.0, 45);
        let after = rig.audit().await;
        assert_eq!(rig.deltas().await.len(), after.len(), "and their objects are gone");
        assert_eq!(rig.pages().await.len(), manifest.pages.len());
        let kept = before.iter().filter(|entry| entry.last > done.through);
        assert!(kept.eq(after.iter()));
        let epochs = manifest.epochs.iter().map(|epoch| epoch.epoch.0);
        assert!(epochs.eq(if done.through.0 >= 30 { 2..3 } else { 1..3 }));
        // And the stream goes on behind it.
        rig.serve(&rig.plain(), "ps-b", 60, |_| ()).await.unwrap();
        assert_eq!(rig.manifest().await.published.0, 60);
        rig.audit().await;
    }
}

#[tokio::test]
async fn a_fenced_truncation_deletes_nothing() {
    let rig = Rig::new(8);
    rig.serve(&rig.plain(), "ps-a", 45, |_| ()).await.unwrap();
    let before = rig.deltas().await;
    let stale = truncate(&rig.plain(), cut(0, 20)).await.unwrap_err();
    assert!(matches!(stale, UploadError::Fenced { .. }));
    assert_eq!(rig.deltas().await, before);
    // Taken over between any two of its requests.
    let (mut fenced, mut unnamed) = (0, 0);
    for at in 0..40 {
        let rig = Rig::new(8);
        rig.serve(&rig.plain(), "ps-a", 45, |_| ()).await.unwrap();
        let store = Hostile::stop_at(&rig.memory, at);
        let context = rig.context(Arc::clone(&store) as _, 1);
        let cutting = truncate(&context, cut(1, 20));
        tokio::pin!(cutting);
        let stopped = tokio::select! {
            biased;
            _ = &mut cutting => false,
            () = store.stopped.notified() => true,
        };
        if stopped {
            claim(&rig.plain(), &server("ps-b")).await.unwrap();
            let there = rig.deltas().await;
            let names = rig.manifest().await;
            store.go.notify_one();
            let ended = cutting.await;
            assert_eq!(rig.manifest().await, names, "the newer owner's manifest stands");
            if let Err(error) = ended {
                assert_eq!(error.class(), Class::Fence);
                assert_eq!(rig.deltas().await, there, "request {at}");
                fenced += 1;
                unnamed += u32::from(names.truncated > Sequence::ZERO);
            }
        }
        rig.audit().await;
        // Whatever it left is found.
        let plain = rig.plain();
        let generation = rig.manifest().await.generation;
        remove_orphans(&plain, generation, Duration::ZERO, Removal::Remove).await.unwrap();
        let manifest = rig.manifest().await;
        assert_eq!(rig.deltas().await.len(), rig.audit().await.len());
        assert_eq!(rig.pages().await.len(), manifest.pages.len());
    }
    assert!(fenced >= 4, "only {fenced} takeovers came in time");
    assert_eq!(unnamed, 1, "one came between the names and the objects");
}

#[tokio::test]
async fn truncation_beside_the_owner_is_merged() {
    for at in 2..40 {
        let rig = Rig::new(9);
        let store = Hostile::stop_at(&rig.memory, at);
        let context = rig.context(Arc::clone(&store) as _, 1);
        let owner = rig.serve(&context, "ps-a", 45, |_| ());
        tokio::pin!(owner);
        tokio::select! {
            biased;
            _ = &mut owner => return,
            () = store.stopped.notified() => {}
        };
        truncate(&rig.plain(), cut(1, u64::MAX)).await.unwrap();
        store.go.notify_one();
        owner.await.unwrap();
        assert_eq!(rig.manifest().await.published.0, 45);
        rig.audit().await;
    }
}

/// Again and again, as retention does it.
async fn until_done<T>(mut tidy: impl AsyncFnMut() -> Result<T, UploadError>) -> T {
    for _ in 0..1_000 {
        match tidy().await {
            Err(error) if error.class() == Class::Retry => {}
            ended => return ended.unwrap(),
        }
    }
    panic!("it comes to no end");
}

#[tokio::test]
async fn tidying_gives_up_soon_and_goes_on_later() {
    let rig = Rig::new(11);
    rig.serve(&rig.plain(), "ps-a", 45, |_| ()).await.unwrap();
    let faulty = Arc::new(Faulty::new(Arc::clone(&rig.memory) as _));
    let context = rig.context(Arc::clone(&faulty) as _, 1);
    let away = || faulty.add(Rule::on(Op::Delete, Fault::Unreachable).times(1_000));
    away();
    let error = truncate(&context, cut(1, 25)).await.unwrap_err();
    assert_eq!(error.class(), Class::Retry);
    assert!(rig.manifest().await.truncated > Sequence::ZERO, "the names are gone all the same");
    let orphans = || remove_orphans(&context, Generation(1), Duration::ZERO, Removal::Remove);
    assert_eq!(orphans().await.unwrap_err().class(), Class::Retry);
    faulty.heal();
    assert!(!orphans().await.unwrap().is_empty());
    assert_eq!(rig.deltas().await.len(), rig.audit().await.len());
}

#[tokio::test]
async fn faults_do_not_hinder_tidying() {
    for seed in 0..200 {
        let rig = Rig::new(seed);
        dies_before_publishing(&rig, "ps-a", 20).await;
        rig.serve(&rig.plain(), "ps-b", 45, |_| ()).await.unwrap();
        let hostile = Hostile::random(rig.plain(), &rig, seed, 30);
        let context = rig.context(Arc::clone(&hostile) as _, 1);
        until_done(async || truncate(&context, cut(2, 25)).await).await;
        until_done(async || {
            remove_orphans(&context, Generation(2), Duration::ZERO, Removal::Remove).await
        })
        .await;
        hostile.settle().await;
        let plain = rig.plain();
        remove_orphans(&plain, Generation(2), Duration::ZERO, Removal::Remove).await.unwrap();
        let manifest = rig.manifest().await;
        assert!(manifest.truncated.0 > 0);
        assert_eq!(rig.deltas().await.len(), rig.audit().await.len(), "seed {seed}");
        assert_eq!(rig.pages().await.len(), manifest.pages.len());
    }
}

#[tokio::test]
async fn what_is_named_and_missing_is_said() {
    let rig = Rig::new(1);
    rig.serve(&rig.plain(), "ps-a", 20, |_| ()).await.unwrap();
    let row = rig.deltas().await.remove(0);
    rig.memory.delete(&row.name, Condition::Always).await.unwrap();
    let gone = rig.memory.read(&row.name).await.unwrap_err();
    assert!(matches!(gone, StoreError::NotFound { .. }));
    let log = rig.plain().log;
    let entries = log.entries(&rig.manifest().await, Sequence::ZERO).await.unwrap();
    let error = log.open_delta(&entries[0], None).await.unwrap_err();
    assert_eq!(error.class(), Class::Poison);
    assert!(error.to_string().contains(row.name.as_str()), "{error}");
}
