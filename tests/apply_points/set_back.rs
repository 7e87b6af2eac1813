//! Log and vault are set back to an older state, the seed disks are not, as when block blobs alone
//! are restored: no point is made of a disk that is ahead, and a new epoch leads out.

use bytes::Bytes;
use holdfast::apply::{Applier, ApplyError};
use holdfast::format::names;
use holdfast::model::{Change, DiskIndex, Epoch, Extent, ObjectName, Sequence, WRITE_BYTES_MAX};
use holdfast::store::{Class, Condition, Store};
use holdfast::upload::{Cut, truncate};
use holdfast::vault::{PointsDocument, Policy};

use super::races::distinct;
use super::site::{DISK_BYTES, Site, beginning, bookmark, machine, policy, seed_disk, specs};

/// One point only, however long it takes.
fn seldom() -> Policy {
    Policy { snapshot_interval_s: 86_400, ..policy() }
}

/// Round `n` writes `n + 1` into the `n`th 64 KiB of both disks and ends with a bookmark: a later
/// round leaves what an earlier one wrote, and an earlier one hides nothing of a later.
fn round(n: u8) -> Vec<Change> {
    let extent = Extent::new(u64::from(n) << 16, 1 << 16, WRITE_BYTES_MAX).unwrap();
    let write = |disk| {
        let payload = vec![n + 1; 1 << 16].into();
        Change::Write { disk: DiskIndex(disk), extent, payload }
    };
    vec![write(0), write(1), bookmark(distinct(n), i64::from(n) * 60, String::new())]
}

/// Where round `n` of epoch 1 ends, and what a disk holds there.
fn at(n: u8) -> u64 {
    6 + 3 * u64::from(n)
}

fn content(through: u8) -> Vec<u8> {
    let mut disk: Vec<u8> = (0..=through).flat_map(|n| vec![n + 1; 1 << 16]).collect();
    disk.resize(DISK_BYTES as usize, 0);
    disk
}

/// Everything of the machine but its seed disks.
struct Backup(Vec<(ObjectName, Bytes)>);

impl Backup {
    async fn of(site: &Site) -> Self {
        let mut objects = Vec::new();
        for listed in site.faulty.list("machines/").await.unwrap() {
            let (body, _) = site.faulty.read(&listed.name).await.unwrap();
            objects.push((listed.name, body));
        }
        Self(objects)
    }

    async fn restore(&self, site: &Site) {
        for listed in site.faulty.list("machines/").await.unwrap() {
            site.faulty.delete(&listed.name, Condition::Always).await.unwrap();
        }
        for (name, body) in &self.0 {
            site.faulty.put(name, body.clone(), Condition::Always).await.unwrap();
        }
    }
}

/// Rounds 0 and 1 are published, the first of them is applied.
async fn begun(policy: &Policy) -> (Site, Applier) {
    let mut changes = beginning(1);
    changes.extend(round(0));
    changes.extend(round(1));
    let mut site = Site::of((changes, [].into())).await;
    site.at = (0..8).map(|n| (at(n), [content(n), content(n)])).collect();
    let manifest = site.manifest().await;
    let mut applier = site.applier().await.unwrap();
    let every = Policy { snapshot_interval_s: 1, ..policy.clone() };
    applier.step(&manifest, &every).await.unwrap().unwrap();
    assert_eq!(site.points().await.applied, at(0));
    (site, applier)
}

/// Rounds 2 to 5 are published and applied.
async fn go_on(site: &Site, applier: &mut Applier, policy: &Policy) {
    for n in 2..6 {
        site.publish(round(n)).await;
    }
    site.apply_all(applier, policy).await;
    assert_eq!(site.points().await.applied, at(5));
}

/// The next applier stops, names the disk and the cure, on record too, and makes no point.
async fn stops(site: &Site, applier: &mut Applier, witness: &str) -> PointsDocument {
    let before = site.points().await;
    for _ in 0..2 {
        let error = applier.step(&site.manifest().await, &policy()).await.unwrap_err();
        assert!(matches!(error, ApplyError::Ahead { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Poison);
        let after = site.points().await;
        let why = after.quarantine.expect("why it stopped is on record");
        for part in [seed_disk(0).as_str(), witness, "was set back; resync"] {
            assert!(why.contains(part), "{part}: {why}");
        }
        assert_eq!((after.applied, after.snapshots), (before.applied, before.snapshots.clone()));
    }
    let root = site.faulty.read_pages(&seed_disk(0), None, 0, DISK_BYTES).await.unwrap();
    assert!(root == content(5), "nothing was written");
    site.points().await
}

#[tokio::test]
async fn a_disk_with_a_snapshot_from_later_is_ahead() {
    let (site, mut applier) = begun(&policy()).await;
    let backup = Backup::of(&site).await;
    go_on(&site, &mut applier, &policy()).await;
    backup.restore(&site).await;
    // Its number tells nothing: the applier of then was the last one that had it.
    let mut next = site.applier().await.unwrap();
    stops(&site, &mut next, &format!("@{}", at(2))).await;
}

#[tokio::test]
async fn a_disk_that_an_unknown_applier_had_is_ahead() {
    for lives in 1..4 {
        let (site, applier) = begun(&seldom()).await;
        drop(applier);
        let backup = Backup::of(&site).await;
        for n in 0..lives {
            let mut later = site.applier().await.unwrap();
            match n {
                0 => go_on(&site, &mut later, &seldom()).await,
                n => {
                    site.publish(round(5 + n)).await;
                    site.apply_all(&mut later, &seldom()).await;
                }
            }
        }
        backup.restore(&site).await;
        let mut next = site.applier().await.unwrap();
        let error = next.step(&site.manifest().await, &policy()).await.unwrap_err();
        let ApplyError::Ahead { witness, .. } = &error else { panic!("{error:?}") };
        assert!(witness.contains(&format!("generation {}", 1 + lives)), "{witness}");
        assert!(site.points().await.quarantine.is_some());
        assert_eq!(site.points().await.snapshots.len(), 1);
    }
}

#[tokio::test]
async fn a_running_applier_that_takes_its_disks_again_is_no_stranger_to_them() {
    let (site, mut applier) = begun(&policy()).await;
    for index in 0..specs().len() {
        site.faulty.break_lease(&seed_disk(index)).await.unwrap();
    }
    let manifest = site.manifest().await;
    let lost = applier.step(&manifest, &policy()).await.unwrap_err();
    assert_eq!(lost.class(), Class::Retry, "{lost:?}");
    site.apply_all(&mut applier, &policy()).await;
    assert_eq!(site.check().await, 2);
}

/// One that is made anew would hold what comes next and nothing of what was before.
#[tokio::test]
async fn a_disk_that_is_gone_is_not_made_again() {
    let (site, mut applier) = begun(&policy()).await;
    site.apply_all(&mut applier, &policy()).await;
    applier.release().await.unwrap();
    site.publish(round(2)).await;
    site.faulty.delete_pages(&seed_disk(1), None).await.unwrap();
    let mut next = site.applier().await.unwrap();
    let manifest = site.manifest().await;
    for _ in 0..2 {
        let error = next.step(&manifest, &policy()).await.unwrap_err();
        assert!(matches!(error, ApplyError::Missing { .. }), "{error:?}");
    }
    let points = site.points().await;
    assert_eq!((points.applied, points.snapshots.len()), (at(1), 2));
    let why = points.quarantine.unwrap();
    assert!(why.contains(seed_disk(1).as_str()) && why.contains("Resync"), "{why}");
    let gone = site.faulty.page_properties(&seed_disk(1)).await;
    assert!(gone.is_err(), "nothing was made in its place");
}

#[tokio::test]
async fn retention_deletes_no_witness() {
    let (site, mut applier) = begun(&policy()).await;
    site.apply_all(&mut applier, &policy()).await;
    let backup = Backup::of(&site).await;
    go_on(&site, &mut applier, &policy()).await;
    backup.restore(&site).await;
    let there = site.faulty.list_snapshots(&seed_disk(0)).await.unwrap();
    let mut next = site.applier().await.unwrap();
    let manifest = site.manifest().await;
    assert!(next.step(&manifest, &policy()).await.unwrap().is_none(), "all is applied");
    let error = next.retain(&manifest, &Policy::default()).await.unwrap_err();
    assert!(matches!(error, ApplyError::Ahead { .. }), "{error:?}");
    assert!(site.points().await.quarantine.is_some());
    assert_eq!(site.faulty.list_snapshots(&seed_disk(0)).await.unwrap(), there);
}

#[tokio::test]
async fn disks_of_an_epoch_that_was_never_begun_are_not_used() {
    let (site, applier) = begun(&policy()).await;
    drop(applier);
    let left = names::seed_disk(&machine(), &specs()[1].name, Epoch(2));
    let size = holdfast::format::seed_disk::size_on_store(DISK_BYTES);
    site.faulty.create_pages(&left, size).await.unwrap();
    let mut changes = beginning(2);
    changes.extend(round(0));
    site.publish(changes).await;
    let mut next = site.applier().await.unwrap();
    let manifest = site.manifest().await;
    next.step(&manifest, &policy()).await.unwrap().expect("the rest of epoch 1");
    for _ in 0..2 {
        let error = next.step(&manifest, &policy()).await.unwrap_err();
        assert!(matches!(error, ApplyError::Ahead { epoch: Epoch(2), .. }), "{error:?}");
    }
    let points = site.points().await;
    assert_eq!((points.applied, points.epoch), (at(1), 1));
    assert!(points.quarantine.unwrap().contains(left.as_str()));
    assert_eq!(site.check().await, 2);
}

#[tokio::test]
async fn a_resync_leads_out() {
    let (site, mut applier) = begun(&policy()).await;
    let backup = Backup::of(&site).await;
    go_on(&site, &mut applier, &policy()).await;
    backup.restore(&site).await;
    let mut next = site.applier().await.unwrap();
    stops(&site, &mut next, "@").await;
    let mut changes = beginning(2);
    changes.extend(round(0));
    site.publish(changes).await;
    site.apply_all(&mut next, &policy()).await;
    let points = site.points().await;
    assert_eq!((points.applied, points.epoch, points.quarantine), (at(1) + 6, 2, None));
    let [older, newest] = &points.snapshots[..] else { panic!("{:?}", points.snapshots) };
    assert_eq!((older.sequence, newest.sequence), (at(0), at(1) + 6));
    for (point, expected) in [(older, content(0)), (newest, content(0))] {
        for disk in &point.disks {
            let object = names::seed_disk(&machine(), &disk.name, Epoch(point.epoch));
            let read = site.faulty.read_pages(&object, Some(&disk.snapshot), 0, DISK_BYTES).await;
            assert!(read.unwrap() == expected, "{object} at {}", point.sequence);
        }
    }
}

/// Rounds 0 to 5 are applied, then the manifest alone is as it was after round 1.
async fn manifest_set_back() -> (Site, Applier) {
    let (site, mut applier) = begun(&policy()).await;
    let name = names::manifest(&machine());
    let (older, _) = site.faulty.read(&name).await.unwrap();
    go_on(&site, &mut applier, &policy()).await;
    site.faulty.put(&name, older, Condition::Always).await.unwrap();
    (site, applier)
}

/// The log is not the one that was applied: said with its cure, and nothing is made of it.
async fn is_set_back(site: &Site, applier: &mut Applier, witness: &str) {
    let before = site.points().await;
    let error = applier.step(&site.manifest().await, &policy()).await.unwrap_err();
    assert!(matches!(error, ApplyError::SetBack { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Poison);
    let after = site.points().await;
    let why = after.quarantine.expect("why it stopped is on record");
    for part in [witness, "was set back", "resync the machine once"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert_eq!((after.applied, after.snapshots), (before.applied, before.snapshots));
    assert_eq!(site.check().await, 6, "what was a point stays one");
}

#[tokio::test]
async fn a_manifest_that_was_set_back_alone_is_noticed() {
    let (site, mut applier) = manifest_set_back().await;
    is_set_back(&site, &mut applier, &format!("ends at record {}", at(1))).await;
    let mut next = site.applier().await.unwrap();
    is_set_back(&site, &mut next, &format!("ends at record {}", at(1))).await;
    // It goes on until as much is published as was applied: other records under the same numbers.
    for n in 2..6 {
        site.publish(round(n)).await;
    }
    assert_eq!(site.manifest().await.published.0, site.points().await.applied);
    is_set_back(&site, &mut next, "of its log ends there, not").await;
    // A new epoch whose records are later than all that was applied leads out.
    let mut changes = beginning(2);
    changes.extend(round(0));
    site.publish(changes).await;
    site.apply_all(&mut next, &policy()).await;
    let points = site.points().await;
    assert_eq!((points.applied, points.epoch, points.quarantine), (at(5) + 6, 2, None));
    assert_eq!(points.snapshots.len(), 7);
}

#[tokio::test]
async fn a_log_in_which_no_delta_ends_where_it_was_applied_is_another() {
    let (site, mut applier) = manifest_set_back().await;
    let extent = Extent::new(0, 512, WRITE_BYTES_MAX).unwrap();
    let zero = Change::Zero { disk: DiskIndex(0), extent };
    // An epoch that begins before that does not lead out: its records have numbers that are taken.
    let mut changes = beginning(2);
    changes.extend(vec![zero; 30]);
    site.publish(changes).await;
    assert!(site.manifest().await.published.0 > at(5));
    is_set_back(&site, &mut applier, "no delta of its log ends there").await;
    let mut changes = beginning(3);
    changes.extend(round(0));
    site.publish(changes).await;
    site.apply_all(&mut applier, &policy()).await;
    let points = site.points().await;
    assert_eq!((points.epoch, points.quarantine, points.snapshots.len()), (3, None, 7));
}

/// A look at the manifest that is older than what another applier did since.
#[tokio::test]
async fn an_older_look_at_the_manifest_is_no_set_back() {
    let (site, mut applier) = begun(&policy()).await;
    let older = site.manifest().await;
    go_on(&site, &mut applier, &policy()).await;
    let mut next = site.applier().await.unwrap();
    assert!(next.step(&older, &policy()).await.unwrap().is_none());
    assert_eq!(site.points().await.quarantine, None);
}

#[tokio::test]
async fn a_log_that_was_cut_too_far_has_the_same_way_out() {
    let (site, mut applier) = begun(&policy()).await;
    let generation = site.manifest().await.generation;
    let cut = Cut { generation, through: Sequence(at(1)), epochs_from: Epoch(1) };
    truncate(&site.upload_context(), cut).await.unwrap();
    let error = applier.step(&site.manifest().await, &policy()).await.unwrap_err();
    assert!(matches!(error, ApplyError::Gap { .. }), "{error:?}");
    let mut changes = beginning(2);
    changes.extend(round(0));
    site.publish(changes).await;
    site.apply_all(&mut applier, &policy()).await;
    let points = site.points().await;
    assert_eq!((points.applied, points.epoch, points.snapshots.len()), (at(1) + 6, 2, 2));
}
