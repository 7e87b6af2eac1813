//! The applier against a trivially simple one: whatever the store does wrong and however often the
//! applier is replaced, each snapshot point holds exactly the writes up to its bookmark, over all
//! disks, and a stale applier changes nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use holdfast::apply::{Applier, ApplierContext, ApplyError};
use holdfast::budget::Slots;
use holdfast::cache::Durable;
use holdfast::clock::{Clock, System, random16};
use holdfast::cloud_log::{ENTRIES_MAX, LogStore};
use holdfast::format::{manifest::Manifest, names};
use holdfast::model::*;
use holdfast::observe::Metrics;
use holdfast::seal::{Batcher, KeyEncryptionKey, KeyRing, Lineage, StreamState, seal};
use holdfast::settings::{BatchSettings, SealSettings};
use holdfast::store::{Class, Faulty, Memory, Store};
use holdfast::upload::{Upload, UploadContext, claim};
use holdfast::vault::{Policy, Vault};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

const DISK_BYTES: u64 = 2 << 20;

/// Bytes of both disks.
type Disks = [Vec<u8>; 2];

/// A machine's log in a store that can be shaken, and what its disks held at each bookmark.
struct Site {
    faulty: Arc<Faulty>,
    vault: Vault,
    log: Arc<LogStore>,
    at: BTreeMap<u64, Disks>,
}

fn machine() -> MachineId {
    "web-1".parse().unwrap()
}

fn specs() -> Vec<DiskSpec> {
    let spec = |index, name: &str| DiskSpec {
        index: DiskIndex(index),
        name: name.parse().unwrap(),
        size_bytes: DISK_BYTES,
    };
    vec![spec(0, "root"), spec(1, "data")]
}

fn bookmark(second: i64, random: &mut StdRng) -> Change {
    let mut id = [0; 16];
    random.fill_bytes(&mut id);
    let name = if random.random_bool(0.3) { format!("at {second}") } else { String::new() };
    let time = Timestamp(second * 1_000_000);
    let kind = BookmarkKind::CrashConsistent;
    Change::Bookmark(Bookmark { id: BookmarkId(id), kind, time, name })
}

/// A random stream, and the disks at each of its bookmarks.
fn history(random: &mut StdRng) -> (Vec<Record>, BTreeMap<u64, Disks>) {
    let begin = EpochBegin { epoch: Epoch(1), disks: specs() };
    let mut changes = vec![
        Change::EpochBegin(begin),
        Change::CatchUpBegin(CatchUp::InitialReplication),
        Change::CatchUpEnd,
    ];
    let mut disks: Disks = [vec![0; DISK_BYTES as usize], vec![0; DISK_BYTES as usize]];
    let mut at = BTreeMap::new();
    for second in 0..random.random_range(4..14) {
        for _ in 0..random.random_range(1..12) {
            let disk = random.random_range(0..2_usize);
            let sectors = random.random_range(1..64_u64);
            let offset = random.random_range(0..DISK_BYTES / 512 - sectors) * 512;
            let extent = Extent::new(offset, sectors * 512, WRITE_BYTES_MAX).unwrap();
            let mut payload = vec![0; extent.length() as usize];
            let index = DiskIndex(disk as u16);
            changes.push(if random.random_bool(0.2) {
                Change::Zero { disk: index, extent }
            } else {
                random.fill_bytes(&mut payload);
                let payload = Bytes::from(payload.clone());
                Change::Write { disk: index, extent, payload }
            });
            disks[disk][offset as usize..extent.end() as usize].copy_from_slice(&payload);
        }
        changes.push(bookmark(second * 40, random));
        at.insert(changes.len() as u64, disks.clone());
    }
    let records = changes.into_iter().enumerate();
    let record = |(n, change)| Record { sequence: Sequence(n as u64 + 1), change };
    (records.map(record).collect(), at)
}

impl Site {
    async fn with(random: &mut StdRng) -> Self {
        let inner: Arc<dyn Store> = Arc::new(Memory::new(System::clock()));
        let faulty = Arc::new(Faulty::new(inner));
        let store: Arc<dyn Store> = Arc::clone(&faulty) as _;
        let kek = KeyEncryptionKey::of([7; 32].into());
        let vault = Vault::new(Arc::clone(&store), kek.derive("holdfast vault 1"));
        let (key, _) = kek.make_data_key(&machine(), 1, &System, Timestamp(0));
        let log = Arc::new(LogStore::new(store, machine(), KeyRing::of(machine(), key)));
        let (records, at) = history(random);
        let site = Self { faulty, vault, log, at };
        site.publish(records).await;
        site
    }

    async fn publish(&self, records: Vec<Record>) {
        let context = UploadContext {
            log: Arc::clone(&self.log),
            clock: System::clock(),
            entropy: System::entropy(),
            metrics: Arc::new(Metrics::default()),
            streams: Slots::new(4),
            block_bytes: Arc::new((1 << 20).into()),
            entries_max: ENTRIES_MAX,
        };
        let claimed = claim(&context, &"ps-1".parse().unwrap()).await.unwrap();
        let settings =
            BatchSettings { bytes_max: 64 << 10, age_max: std::time::Duration::from_secs(1) };
        let key = MachineKey::of(&machine());
        let mut batcher = Batcher::new(key, StreamState::after(&claimed.manifest), settings);
        let (to, mut sealed) = tokio::sync::mpsc::channel(1024);
        let mut previous = None;
        for record in records {
            batcher.push(Durable::never_written(key, record), System.monotonic()).unwrap();
        }
        batcher.drain();
        while let Some(batch) = batcher.poll(System.monotonic()) {
            let id = DeltaId(random16(&System));
            let lineage = Lineage {
                machine: machine(),
                generation: claimed.manifest.generation,
                id,
                previous: previous.replace(id),
                created: Timestamp(0),
            };
            let settings = SealSettings { threads: 1, level: 1, frame_bytes: 64 << 10 };
            let key = self.log.keys().newest();
            let delta = seal(batch, lineage, key, &settings, false, &System);
            to.send(delta.unwrap_or_else(|error| panic!("{error}"))).await.unwrap();
        }
        drop(to);
        Upload::new(context, claimed).run(&mut sealed, |_| ()).await.unwrap();
    }

    async fn applier(&self) -> Result<Applier, ApplyError> {
        Applier::claim(ApplierContext {
            store: Arc::clone(&self.faulty) as _,
            vault: self.vault.clone(),
            log: Arc::clone(&self.log),
            clock: System::clock(),
            entropy: System::entropy(),
            metrics: Arc::new(Metrics::default()),
            streams: 3,
        })
        .await
    }

    async fn manifest(&self) -> Manifest {
        self.log.manifest().await.unwrap().unwrap().0
    }

    /// Every snapshot point against the simple applier's disks.
    async fn check(&self) -> usize {
        let (points, _) = self.vault.points(&machine()).await.unwrap().unwrap();
        for point in &points.snapshots {
            let expected = &self.at[&point.sequence];
            assert_eq!(point.disks.len(), 2, "all disks at one cut");
            for disk in &point.disks {
                let object = names::seed_disk(&machine(), &disk.name, Epoch(1));
                let read =
                    self.faulty.read_pages(&object, Some(&disk.snapshot), 0, DISK_BYTES).await;
                let expected = &expected[usize::from(disk.index)];
                assert!(read.unwrap() == *expected, "point {} of {}", point.sequence, disk.name);
            }
        }
        points.snapshots.len()
    }
}

fn policy() -> Policy {
    Policy { snapshot_interval_s: 60, ..Policy::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_point_is_a_cut_whatever_the_store_does() {
    let mut points = 0;
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let site = Site::with(&mut random).await;
        let mut applier = None;
        site.faulty.shake(seed, 120);
        for round in 0.. {
            assert!(round < 2_000, "seed {seed} comes to no end");
            if round == 1_000 {
                site.faulty.heal();
            }
            // Now and then the applier is killed, and the policy changes under it.
            if random.random_bool(0.1) {
                applier = None;
            }
            let interval = [1, 60, 3600][random.random_range(0..3)];
            let policy = Policy { snapshot_interval_s: interval, ..policy() };
            let Ok(Some((manifest, _))) = site.log.manifest().await else { continue };
            if applier.is_none() {
                applier = site.applier().await.ok();
            }
            let Some(working) = applier.as_mut() else { continue };
            match working.step(&manifest, &policy).await {
                Ok(None) => break,
                Ok(Some(_)) => {}
                Err(error) => {
                    assert!(matches!(error.class(), Class::Retry | Class::Fence), "{error:?}");
                    applier = None;
                }
            }
        }
        site.faulty.heal();
        points += site.check().await;
        let (document, _) = site.vault.points(&machine()).await.unwrap().unwrap();
        assert_eq!(document.applied, site.manifest().await.published.0, "seed {seed}");
    }
    assert!(points > 100, "only {points} points were checked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_applier_changes_nothing() {
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(1_000 + seed);
        let site = Site::with(&mut random).await;
        let manifest = site.manifest().await;
        let mut older = site.applier().await.unwrap();
        older.step(&manifest, &policy()).await.unwrap();
        let mut newer = site.applier().await.unwrap();
        while newer.step(&manifest, &policy()).await.unwrap().is_some() {
            // The older one goes on from where it was stopped, at every step of the newer.
            match older.step(&manifest, &policy()).await {
                Ok(None) => {}
                Ok(Some(step)) => panic!("seed {seed}: a stale applier applied {step:?}"),
                Err(error) => assert_eq!(error.class(), Class::Fence, "{error:?}"),
            }
        }
        site.check().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_keeps_what_kept_points_need() {
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(2_000 + seed);
        let site = Site::with(&mut random).await;
        let manifest = site.manifest().await;
        let mut applier = site.applier().await.unwrap();
        let every = Policy { snapshot_interval_s: 1, ..policy() };
        while applier.step(&manifest, &every).await.unwrap().is_some() {}
        let before = site.check().await;
        let short = Policy { journal_window_s: 100, ladder: Vec::new(), ..every };
        let decision = applier.retain(&manifest, &short).await.unwrap();
        let after = site.check().await;
        assert!(after <= before && after >= 1);
        let object = names::seed_disk(&machine(), &specs()[0].name, Epoch(1));
        let kept = site.faulty.list_snapshots(&object).await.unwrap().len();
        assert_eq!(kept, after, "snapshots that no point names are gone");
        let (points, _) = site.vault.points(&machine()).await.unwrap().unwrap();
        let base = points.snapshots.iter().any(|p| p.sequence == decision.truncate_through.0);
        assert!(base || decision.truncate_through == Sequence::ZERO, "the log goes up to a base");
    }
}
