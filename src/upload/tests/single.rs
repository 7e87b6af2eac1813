//! One rule, one test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;

use super::hostile::{Fate, Hostile, Request};
use super::rig::{Rig, channel, server};
use crate::format::names;
use crate::seal::Sealed;
use crate::store::{Class, Condition, Store};
use crate::upload::{Upload, UploadError, claim};

fn delta_name(rig: &Rig, sealed: &Sealed) -> crate::store::ObjectName {
    let e = sealed.entry();
    names::delta(&rig.machine, e.generation, e.first, e.last, e.id)
}

#[tokio::test]
async fn foreign_content_under_our_name_stops_the_upload() {
    for same_length in [true, false] {
        let rig = Rig::new(1);
        let context = rig.plain();
        let claim = claim(&context, &server("ps-a")).await.unwrap();
        let sealed = rig.sealed(&claim, 10);
        let mut foreign = sealed[1].object().to_vec();
        let middle = foreign.len() / 2;
        foreign[middle] ^= 1;
        if !same_length {
            foreign.pop();
        }
        let name = delta_name(&rig, &sealed[1]);
        let put = rig.memory.put(&name, Bytes::from(foreign), Condition::Absent);
        put.await.unwrap();
        let count = sealed.len();
        let upload = Upload::new(context, claim);
        let mut through = 0;
        let mut receiver = channel(sealed);
        let stopped = upload.run(&mut receiver, |p| through = p.through().0).await.unwrap_err();
        assert!(matches!(stopped.error, UploadError::Foreign { .. }), "{}", stopped.error);
        assert_eq!(stopped.error.class(), Class::Fence);
        let manifest = rig.manifest().await;
        assert_eq!(manifest.published.0, through, "what was published was acknowledged");
        assert_eq!(
            manifest.entries.len() + stopped.unpublished.len() + receiver.len(),
            count,
            "nothing is lost"
        );
        rig.audit().await;
    }
}

#[tokio::test]
async fn our_own_content_under_our_name_is_taken_as_ours() {
    let rig = Rig::new(1);
    let context = rig.plain();
    let claim = claim(&context, &server("ps-a")).await.unwrap();
    let sealed = rig.sealed(&claim, 45);
    for one in &sealed {
        let name = delta_name(&rig, one);
        rig.memory.put(&name, one.object().clone(), Condition::Absent).await.unwrap();
    }
    let mut receiver = channel(sealed);
    let upload = Upload::new(context, claim);
    upload.run(&mut receiver, |_| ()).await.unwrap();
    assert_eq!(rig.audit().await.last().unwrap().last.0, 45);
}

/// The first compare-and-swap never arrives: nothing is acknowledged by it, and the next one names
/// what it would have named.
#[tokio::test]
async fn no_acknowledgement_without_a_name() {
    let rig = Rig::new(2);
    let claim = claim(&rig.plain(), &server("ps-a")).await.unwrap();
    let sealed = rig.sealed(&claim, 10);
    let manifest_name = names::manifest(&rig.machine);
    let puts = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&puts);
    let plan = move |_: u32, request: Option<&Request>| match request {
        Some(Request::Put(name, ..)) if *name == manifest_name => {
            match seen.fetch_add(1, Ordering::Relaxed) {
                0 => Fate::LostBefore,
                _ => Fate::Done,
            }
        }
        _ => Fate::Done,
    };
    let store = Hostile::new(&rig.memory, Box::new(plan));
    let context = rig.context(store, 1);
    let mut receiver = channel(sealed);
    let mut acknowledged = Vec::new();
    let upload = Upload::new(context, claim);
    let sent = Arc::clone(&puts);
    let note = |p: crate::upload::Published| {
        acknowledged.push((p.through().0, p.version(), sent.load(Ordering::Relaxed)));
    };
    upload.run(&mut receiver, note).await.unwrap();
    assert!(acknowledged.iter().all(|(_, version, puts)| *version >= 2 && *puts >= 2));
    assert_eq!(acknowledged.last().unwrap().0, 10);
    assert_eq!(rig.manifest().await.published.0, 10);
}

/// A delta that may not be named where it stands: refused as our own mistake, given back.
#[tokio::test]
async fn a_delta_out_of_place_is_refused_and_given_back() {
    let rig = Rig::new(4);
    let context = rig.plain();
    let first = claim(&context, &server("ps-a")).await.unwrap();
    let old = rig.sealed(&first, 20);
    let second = claim(&context, &server("ps-a")).await.unwrap();
    let mut fresh = rig.sealed(&second, 20);
    let mut other = Rig::new(5).sealed(&second, 20);
    let run = async |sealed: Vec<Sealed>| {
        let now = context.log.manifest().await.unwrap().unwrap();
        let (manifest, etag) = now;
        let count = sealed.len();
        let mut receiver = channel(sealed);
        let upload = Upload::new(context.clone(), crate::upload::Claim { manifest, etag });
        let mut named = 0;
        let ended = upload.run(&mut receiver, |p| named += p.entries().len()).await;
        let stopped = ended.unwrap_err();
        assert_eq!(stopped.error.class(), Class::Bug, "{}", stopped.error);
        assert_eq!(named + stopped.unpublished.len() + receiver.len(), count);
        stopped.error
    };
    assert!(matches!(run(old).await, UploadError::Generation { .. }));
    let gap = fresh.remove(1);
    let (head, tail) = (fresh.remove(0), fresh.remove(0));
    assert!(matches!(run(vec![head, tail]).await, UploadError::Place { .. }));
    assert_eq!(rig.manifest().await.entries.len(), 1, "what stood before the gap is published");
    let again = rig.sealed(&second, 20).remove(0);
    assert!(matches!(run(vec![again]).await, UploadError::Place { .. }));
    let (stranger, doubled) = (other.remove(1), rig.sealed(&second, 20).remove(1));
    assert!(matches!(run(vec![stranger]).await, UploadError::Chain { .. }));
    assert!(matches!(run(vec![doubled, gap]).await, UploadError::Place { .. }));
    rig.audit().await;
}

/// A manifest that went back under a running owner is not built upon.
#[tokio::test]
async fn a_manifest_that_went_back_stops_its_owner() {
    let rig = Rig::new(6);
    let name = names::manifest(&rig.machine);
    let claimed = claim(&rig.plain(), &server("ps-a")).await.unwrap();
    let (early, _) = rig.memory.read(&name).await.unwrap();
    let claimed = rig.go_on(&rig.plain(), claimed, 20, |_| ()).await.unwrap();
    rig.memory.put(&name, early, Condition::Always).await.unwrap();
    let stopped = rig.go_on(&rig.plain(), claimed.clone(), 45, |_| ()).await.unwrap_err();
    assert!(matches!(stopped.error, UploadError::Contradiction { .. }), "{}", stopped.error);
    assert_eq!(stopped.error.class(), Class::Poison);
    assert!(!stopped.unpublished.is_empty());
    rig.memory.delete(&name, Condition::Always).await.unwrap();
    let stopped = rig.go_on(&rig.plain(), claimed, 45, |_| ()).await.unwrap_err();
    assert!(stopped.error.to_string().contains("is gone"), "{}", stopped.error);
}

/// A full store is said at once, waited for, and forgotten when it has room again.
#[tokio::test]
async fn a_full_store_is_trouble_until_it_has_room() {
    let rig = Rig::new(7);
    let metrics = Arc::clone(&rig.metrics);
    let machine = rig.machine.clone();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let plan = move |number: u32, request: Option<&Request>| {
        let trouble = metrics.machine(&machine).trouble.lock().unwrap().clone();
        noted.lock().unwrap().extend(trouble);
        match request {
            Some(_) if number < 30 => Fate::Full,
            _ => Fate::Done,
        }
    };
    let context = rig.context(Hostile::new(&rig.memory, Box::new(plan)), 1);
    rig.serve(&context, "ps-a", 20, |_| ()).await.unwrap();
    let said = seen.lock().unwrap().clone();
    assert!(said.iter().any(|text| text.contains("no space left")), "{said:?}");
    let machine = rig.metrics.machine(&rig.machine);
    assert_eq!(*machine.trouble.lock().unwrap(), None);
    assert!(rig.metrics.pacing.retries() >= 10);
}
