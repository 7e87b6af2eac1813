//! Damage in the log: the applier stops before it, says why, and goes on when it is whole again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast::apply::{Applier, ApplyError};
use holdfast::format::manifest::{DeltaEntry, Manifest};
use holdfast::format::names;
use holdfast::model::{Change, DiskIndex, Epoch, Extent, ObjectName, WRITE_BYTES_MAX};
use holdfast::store::{Class, Condition, Faulty, Store};
use holdfast::upload::{Cut, Removal, remove_orphans, truncate};
use holdfast::vault::Policy;
use rand::{SeedableRng, rngs::StdRng};

use crate::races::distinct;
use crate::site::{DISK_BYTES, Site, beginning, bookmark, history, machine, policy, rounds, specs};

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

fn delta_name(entry: &DeltaEntry) -> ObjectName {
    names::delta(&machine(), entry.generation, entry.first, entry.last, entry.id)
}

/// A whole epoch: its first sector of both disks is written with `fill`, then comes a bookmark.
fn epoch(number: u32, fill: u8) -> Vec<Change> {
    let mut changes = beginning(number);
    for disk in 0..2 {
        let extent = Extent::new(0, 512, WRITE_BYTES_MAX).unwrap();
        let payload = vec![fill; 512].into();
        changes.push(Change::Write { disk: DiskIndex(disk), extent, payload });
    }
    changes.push(bookmark(distinct(fill), 600 + i64::from(number), String::new()));
    changes
}

/// The first delta of an epoch that is not applied yet.
async fn next_of(site: &Site, epoch: Epoch) -> DeltaEntry {
    let (manifest, applied) = (site.manifest().await, site.points().await.applied);
    let entries = site.log.entries(&manifest, manifest.truncated).await.unwrap();
    let next = |entry: &DeltaEntry| entry.epoch == epoch && entry.first.0 > applied;
    entries.into_iter().find(next).unwrap()
}

/// Stops before `delta`, says what and what to do about it, and loses nothing.
async fn stops_before(site: &Site, applier: &mut Applier, delta: &DeltaEntry) {
    let before = site.points().await;
    let error = poisoned(applier, &site.manifest().await, &policy()).await;
    assert_eq!(error.class(), Class::Poison, "{error:?}");
    assert!(matches!(error, ApplyError::Damaged { .. }), "{error:?}");
    let after = site.points().await;
    let why = after.quarantine.expect("why it stopped is on record");
    for part in [delta_name(delta).as_str(), "put back", "resync"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert_eq!(after.snapshots, before.snapshots);
    assert!(after.applied < delta.first.0, "nothing of it counts as applied");
}

#[tokio::test]
async fn a_resync_leads_past_a_delta_that_is_gone_or_altered() {
    for gone in [false, true] {
        let site = Site::of(rounds(3, distinct)).await;
        let mut applier = site.applier().await.unwrap();
        applier.step(&site.manifest().await, &policy()).await.unwrap().expect("the first point");
        let first_point = site.points().await.snapshots;
        // Twice: the epoch that leads out may be hit, too.
        for number in 1..3 {
            let damaged = next_of(&site, Epoch(number)).await;
            match gone {
                true => {
                    let name = delta_name(&damaged);
                    site.faulty.delete(&name, Condition::Always).await.unwrap();
                }
                false => flip(&site.faulty, &delta_name(&damaged), 200).await,
            }
            stops_before(&site, &mut applier, &damaged).await;
            stops_before(&site, &mut applier, &damaged).await;
            site.publish(epoch(number + 1, number as u8 + 40)).await;
        }
        let manifest = site.manifest().await;
        site.apply_all(&mut applier, &policy()).await;
        let points = site.points().await;
        assert_eq!((points.applied, points.quarantine), (manifest.published.0, None));
        let [older, newest] = &points.snapshots[..] else { panic!("{:?}", points.snapshots) };
        assert_eq!((older, newest.epoch), (&first_point[0], 3), "what was a point stays one");
        for disk in &newest.disks {
            let object = names::seed_disk(&machine(), &disk.name, Epoch(3));
            let read = site.faulty.read_pages(&object, Some(&disk.snapshot), 0, DISK_BYTES).await;
            let mut expected = vec![42; 512];
            expected.resize(DISK_BYTES as usize, 0);
            assert!(read.unwrap() == expected, "{object}");
        }
        assert_eq!(newest.disks.len(), specs().len());
        applier.retain(&manifest, &policy()).await.unwrap();
    }
}

#[tokio::test]
async fn a_page_that_cannot_be_read_stops_what_needs_it_alone() {
    const ROUNDS: u8 = 12;
    let (changes, at) = rounds(ROUNDS, distinct);
    let (begin, rest) = changes.split_at(beginning(1).len());
    let mut site = Site::of((begin.to_vec(), at)).await;
    site.entries_max = 4;
    site.publish(rest.to_vec()).await;
    let manifest = site.manifest().await;
    let page = manifest.pages[manifest.pages.len() / 4].clone();
    let name = names::manifest_page(&machine(), page.id);
    let every = Policy { snapshot_interval_s: 1, ..policy() };
    // One that ends where it is applied names nothing that is missed.
    let mut applier = site.applier().await.unwrap();
    applier.step(&manifest, &every).await.unwrap();
    let applied = site.points().await.applied;
    let ends = manifest.pages.iter().find(|page| page.last.0 == applied).unwrap();
    let passed = names::manifest_page(&machine(), ends.id);
    flip(&site.faulty, &passed, 100).await;
    applier.step(&manifest, &every).await.unwrap();
    assert!(site.points().await.applied > applied);
    flip(&site.faulty, &passed, 100).await;
    // Before it is applied: applying stops there, and goes on when it was put back.
    flip(&site.faulty, &name, 100).await;
    let error = poisoned(&mut applier, &manifest, &every).await;
    assert!(matches!(error, ApplyError::Damaged { epoch: Epoch(1), .. }), "{error:?}");
    let why = site.points().await.quarantine.unwrap();
    for part in [name.as_str(), "put back", "resync"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    flip(&site.faulty, &name, 100).await;
    site.apply_all(&mut applier, &every).await;
    assert_eq!(site.points().await.quarantine, None);
    assert_eq!(site.check().await, usize::from(ROUNDS));
    // Behind what is applied: applying goes on without it.
    flip(&site.faulty, &name, 100).await;
    site.apply_all(&mut site.applier().await.unwrap(), &every).await;
    // So does retention: nothing is given up for it before its time, and it goes when that comes.
    let mut applier = site.applier().await.unwrap();
    let decision = applier.retain(&manifest, &every).await.unwrap();
    assert_eq!((decision.truncate_through.0, applier.unread().len()), (0, 1));
    let short = Policy { journal_window_s: 100, ladder: Vec::new(), ..every };
    let decision = applier.retain(&manifest, &short).await.unwrap();
    assert!(decision.truncate_through > page.last);
    let (context, generation) = (site.upload_context(), manifest.generation);
    let (through, epochs_from) = (decision.truncate_through, decision.epochs_from);
    truncate(&context, Cut { generation, through, epochs_from }).await.unwrap();
    remove_orphans(&context, generation, Duration::ZERO, Removal::Remove).await.unwrap();
    let manifest = site.manifest().await;
    let named = site.log.entries(&manifest, manifest.truncated).await.unwrap();
    let there = site.faulty.list(&names::deltas(&machine())).await.unwrap();
    assert_eq!(there.len(), named.len(), "what it named is gone with it");
    applier.retain(&manifest, &short).await.unwrap();
    assert_eq!(applier.unread().len(), 0);
    site.check().await;
}
