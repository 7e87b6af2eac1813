//! Random faults on every conditional request: the log that comes out is the one that would have
//! come out without them.

use std::sync::Arc;

use super::hostile::Hostile;
use super::rig::{Rig, meaning, ranges};
use crate::format::manifest::{DeltaEntry, Manifest};
use crate::store::Store;

const RECORDS: u64 = 45;
const CASES: u64 = 2_000;

async fn outcome(rig: &Rig, store: Arc<dyn Store>) -> (Manifest, Vec<DeltaEntry>, Vec<u64>) {
    let context = rig.context(store, 1);
    let mut through = Vec::new();
    let note = |published: crate::upload::Published| through.push(published.through().0);
    rig.serve(&context, "ps-a", RECORDS, note).await.unwrap();
    let entries = rig.audit().await;
    (rig.manifest().await, entries, through)
}

async fn case(seed: u64) -> u64 {
    let calm = Rig::new(seed);
    let (expected, expected_entries, _) = outcome(&calm, Arc::clone(&calm.memory) as _).await;
    let rig = Rig::new(seed);
    let hostile = Hostile::random(rig.plain(), &rig, seed, 40);
    let (_, _, through) = outcome(&rig, Arc::clone(&hostile) as _).await;
    assert!(through.is_sorted_by(|a, b| a < b), "each once, in order");
    assert_eq!(through.last(), Some(&RECORDS));
    // What is still under way must find every door closed.
    hostile.settle().await;
    let (manifest, entries) = (rig.manifest().await, rig.audit().await);
    // A claim whose answer was lost is repeated, under the next generation.
    let strip = |entries: &[DeltaEntry]| -> Vec<DeltaEntry> {
        let generation = crate::model::Generation(1);
        let id = crate::model::DeltaId([0; 16]);
        let strip =
            |entry: &DeltaEntry| DeltaEntry { generation, id, object_bytes: 0, ..entry.clone() };
        entries.iter().map(strip).collect()
    };
    if manifest.generation == expected.generation {
        let (found, wanted) =
            (meaning(&manifest, entries.clone()), meaning(&expected, expected_entries));
        assert_eq!(found, wanted);
    } else {
        assert_eq!(strip(&entries), strip(&expected_entries));
    }
    let there = ranges(&rig.machine, &rig.deltas().await);
    assert_eq!(there.len(), entries.len());
    assert!(there.values().all(|count| *count == 1), "one object each: {there:?}");
    let trouble = rig.metrics.machine(&rig.machine).trouble.lock().unwrap().clone();
    assert_eq!(trouble, None, "nothing keeps it back any more");
    rig.metrics.pacing.retries()
}

#[tokio::test]
async fn two_thousand_hostile_networks_change_nothing() {
    let mut retries = 0;
    for seed in 0..CASES {
        let ended = tokio::spawn(async move { case(seed).await }).await;
        retries += ended.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    assert!(retries > 10 * CASES, "the faults were really there: {retries}");
}
