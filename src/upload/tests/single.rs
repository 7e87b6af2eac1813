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
