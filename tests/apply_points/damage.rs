//! Damage in the log: the applier stops before it, says why, and goes on when it is whole again.

use std::sync::Arc;

use bytes::Bytes;
use holdfast::apply::{Applier, ApplyError};
use holdfast::format::manifest::{DeltaEntry, Manifest};
use holdfast::format::names;
use holdfast::model::ObjectName;
use holdfast::store::{Class, Condition, Faulty, Store};
use holdfast::vault::Policy;
use rand::{SeedableRng, rngs::StdRng};

use crate::site::{Site, history, machine, policy};

/// Flips a bit of an object: a second time to restore it.
async fn flip(store: &Arc<Faulty>, name: &ObjectName, at: usize) {
    let (bytes, _) = store.read(name).await.unwrap();
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 4;
    store.delete(name, Condition::Always).await.unwrap();
    store.put(name, Bytes::from(bytes), Condition::Always).await.unwrap();
}

/// Steps until the applier meets what it cannot read.
async fn poisoned(applier: &mut Applier, manifest: &Manifest, policy: &Policy) -> ApplyError {
    loop {
        match applier.step(manifest, policy).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the damage was passed over"),
            Err(error) => return error,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_delta_stops_the_machine_there_until_it_is_whole_again() {
    const HEADER_BYTES: usize = 168;
    const TRAILER_BYTES: usize = 40;
    for seed in 0..10 {
        let mut random = StdRng::seed_from_u64(3_000 + seed);
        let site = Site::of(history(&mut random)).await;
        let manifest = site.manifest().await;
        let every = Policy { snapshot_interval_s: 1, ..policy() };
        let entries = site.log.entries(&manifest, manifest.truncated).await.unwrap();
        // One in the middle, with bytes in it, so that points lie before and behind.
        let middle = entries.len() / 2..entries.len() - 1;
        let damaged = entries[middle].iter().find(|entry| entry.source_bytes > 0).unwrap();
        let DeltaEntry { generation, first, last, id, .. } = *damaged;
        let name = names::delta(&machine(), generation, first, last, id);
        let length = damaged.object_bytes as usize;
        let mut applier = site.applier().await.unwrap();
        for (part, at) in [("frame 0", HEADER_BYTES + 20), ("index", length - TRAILER_BYTES - 8)] {
            flip(&site.faulty, &name, at).await;
            for replaced in [false, true] {
                if replaced {
                    applier = site.applier().await.unwrap(); // a new one is no cleverer
                }
                let error = poisoned(&mut applier, &manifest, &every).await;
                assert_eq!(error.class(), Class::Poison, "{error:?}");
                let points = site.points().await;
                let why = points.quarantine.expect("why it stopped is on record");
                assert!(why.contains(name.as_str()) && why.contains(part), "{part}: {why}");
                assert!(points.applied < first.0, "nothing of it counts as applied");
                let newest = points.snapshots.last().map(|point| point.sequence);
                assert!(newest.is_some_and(|newest| newest < first.0), "later points wait");
                assert_eq!(site.check().await, points.snapshots.len(), "earlier ones are whole");
            }
            flip(&site.faulty, &name, at).await;
        }
        while applier.step(&manifest, &every).await.unwrap().is_some() {}
        let points = site.points().await;
        assert_eq!((points.applied, points.quarantine), (manifest.published.0, None));
        assert_eq!(site.check().await, site.at.len(), "every bookmark became a point");
    }
}
