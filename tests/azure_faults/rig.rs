//! One machine's way through a store: claim, upload, publish, apply, snapshot; and what is left.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use holdfast::apply::{Applier, ApplierContext, Bodies, PinsSeen};
use holdfast::cache::Durable;
use holdfast::clock::{Clock, Entropy, System, random16};
use holdfast::cloud_log::{ENTRIES_MAX, LogStore};
use holdfast::format::names;
use holdfast::model::*;
use holdfast::observe::Metrics;
use holdfast::seal::{Batcher, KeyEncryptionKey, KeyRing, Lineage, StreamState, seal};
use holdfast::settings::{BatchSettings, RateSchedule, SealSettings, StreamBounds};
use holdfast::store::{Class, Store};
use holdfast::upload::{Uplink, Upload, UploadContext, claim};
use holdfast::vault::{MachineDocument, Policy, Vault};

/// Size of the disk in most runs.
pub(crate) const DISK_BYTES: u64 = 1 << 20;
const ROUNDS: u8 = 2;

/// Time that passes so many times faster.
pub(crate) struct Scaled(pub(crate) u32);

#[async_trait::async_trait]
impl Clock for Scaled {
    fn wall(&self) -> Timestamp {
        System.wall()
    }

    fn monotonic(&self) -> Duration {
        System.monotonic() * self.0
    }

    async fn sleep(&self, duration: Duration) {
        System.sleep(duration / self.0).await;
    }
}

/// The same bytes for the same seed.
pub(crate) struct Seeded(Mutex<u64>);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }
}

impl Entropy for Seeded {
    fn fill(&self, target: &mut [u8]) {
        let mut state = self.0.lock().unwrap();
        for byte in target {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (*state >> 56) as u8;
        }
    }
}

/// What is left in the store when everything is done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// How often the machine was claimed: a claim whose answer was lost may count, and every byte of
    /// the log carries the number.
    pub(crate) generation: u64,
    /// First and last sequence of what the manifest names.
    entries: Vec<(u64, u64)>,
    /// Every object of the cloud log, byte for byte.
    log: BTreeMap<String, Vec<u8>>,
    /// The disks.
    seed_disks: Vec<Vec<u8>>,
    /// The disks at every point.
    points: BTreeMap<u64, Vec<Vec<u8>>>,
}

pub(crate) struct Rig {
    pub(crate) store: Arc<dyn Store>,
    vault: Vault,
    log: Arc<LogStore>,
    clock: Arc<dyn Clock>,
    disk_bytes: u64,
}

fn machine() -> MachineId {
    "web-1".parse().unwrap()
}

fn spec(size_bytes: u64) -> DiskSpec {
    let name = "root".parse().unwrap();
    DiskSpec { index: DiskIndex(0), name, size_bytes }
}

/// When this program began: points of long ago would be thinned out, and the time is in the bytes
/// that are compared.
fn began() -> Timestamp {
    static BEGAN: OnceLock<Timestamp> = OnceLock::new();
    *BEGAN.get_or_init(|| System.wall())
}

/// In every round a few writes, at the beginning and at the end, then a bookmark a minute later.
fn changes(disk_bytes: u64) -> Vec<Change> {
    let disks = vec![spec(disk_bytes)];
    let mut changes = vec![
        Change::EpochBegin(EpochBegin { epoch: Epoch(1), disks }),
        Change::CatchUpBegin(CatchUp::InitialReplication),
        Change::CatchUpEnd,
    ];
    for round in 0..ROUNDS {
        for place in [0, disk_bytes - (64 << 10)] {
            let extent = Extent::new(place, 8 << 10, WRITE_BYTES_MAX).unwrap();
            let payload = vec![round * 2 + 1; 8 << 10].into();
            changes.push(Change::Write { disk: DiskIndex(0), extent, payload });
        }
        changes.push(Change::Bookmark(Bookmark {
            id: BookmarkId([round + 1; 16]),
            kind: BookmarkKind::CrashConsistent,
            time: Timestamp(began().0 + i64::from(round) * 60_000_000),
            name: String::new(),
        }));
    }
    changes
}

/// Tries until it is done: the caller of a room repeats what is `Retry`.
async fn insist<T, E: std::fmt::Debug>(
    clock: &dyn Clock,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let mut last = None;
    for _ in 0..200 {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => last = Some(error),
        }
        clock.sleep(Duration::from_secs(1)).await;
    }
    panic!("comes to no end: {last:?}");
}

impl Rig {
    pub(crate) fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        let key = KeyEncryptionKey::of([7; 32].into());
        let vault = Vault::new(Arc::clone(&store), key.derive("holdfast vault 1"));
        let entropy = Seeded::new(1);
        let (data_key, _) = key.make_data_key(&machine(), 1, &entropy, Timestamp(0));
        let keys = KeyRing::of(machine(), data_key);
        let log = Arc::new(LogStore::new(Arc::clone(&store), machine(), keys));
        Self { store, vault, log, clock, disk_bytes: DISK_BYTES }
    }

    /// The same with a disk of another size.
    pub(crate) fn sized(self, disk_bytes: u64) -> Self {
        Self { disk_bytes, ..self }
    }

    /// Takes the machine over, and over again.
    pub(crate) async fn claim(&self) {
        let context = self.upload_context();
        claim(&context, &"ps-1".parse().unwrap()).await.unwrap();
    }

    /// Everything, whatever the store does.
    pub(crate) async fn run(&self) {
        self.enroll().await;
        self.upload().await;
        self.apply().await;
    }

    pub(crate) async fn enroll(&self) {
        let key = KeyEncryptionKey::of([7; 32].into());
        let (_, wrapped) = key.make_data_key(&machine(), 1, &Seeded::new(1), Timestamp(0));
        let document = MachineDocument {
            machine: machine(),
            created: Timestamp(0),
            data_keys: vec![wrapped],
            certificates: Vec::new(),
            policy: policy(),
        };
        // The first try may have made it, and its answer was lost: then it is there.
        insist(self.clock.as_ref(), async || match self.vault.create_machine(&document).await {
            Err(error) => match self.vault.machine(&machine()).await {
                Ok(Some(_)) => Ok(()),
                _ => Err(error),
            },
            Ok(_) => Ok(()),
        })
        .await;
    }

    fn upload_context(&self) -> UploadContext {
        let (clock, metrics) = (Arc::clone(&self.clock), Arc::new(Metrics::default()));
        UploadContext {
            log: Arc::clone(&self.log),
            clock: Arc::clone(&clock),
            entropy: System::entropy(),
            metrics: Arc::clone(&metrics),
            uplink: Uplink::new(
                StreamBounds { min: 2, max: 2 },
                RateSchedule::default(),
                clock,
                System::entropy(),
                metrics,
            ),
            // Smaller than a delta: blocks are staged and committed.
            block_bytes: Arc::new((4 << 10).into()),
            entries_max: ENTRIES_MAX,
        }
    }

    pub(crate) async fn upload(&self) {
        let context = self.upload_context();
        let server = "ps-1".parse().unwrap();
        let claimed = insist(self.clock.as_ref(), async || claim(&context, &server).await).await;
        let settings = BatchSettings { bytes_max: 64 << 10, age_max: Duration::from_secs(1) };
        let key = MachineKey::of(&machine());
        let mut batcher = Batcher::new(key, StreamState::after(&claimed.manifest), settings);
        let (to, mut sealed) = tokio::sync::mpsc::channel(64);
        let (entropy, mut previous) = (Seeded::new(2), None);
        for (n, change) in changes(self.disk_bytes).into_iter().enumerate() {
            let record = Record { sequence: Sequence(n as u64 + 1), change };
            batcher.push(Durable::never_written(key, record), System.monotonic()).unwrap();
        }
        batcher.drain();
        while let Some(batch) = batcher.poll(System.monotonic()) {
            let id = DeltaId(random16(&entropy));
            let lineage = Lineage {
                machine: machine(),
                generation: claimed.manifest.generation,
                id,
                previous: previous.replace(id),
                // After all bookmarks: no moment is later than its delta.
                created: Timestamp(began().0 + 3_600_000_000),
            };
            let settings =
                SealSettings { threads: 1, compress: true, level: 1, frame_bytes: 64 << 10 };
            let key = self.log.keys().newest();
            to.send(seal(batch, lineage, key, &settings, false, &entropy).unwrap()).await.unwrap();
        }
        drop(to);
        Upload::new(context, claimed).run(&mut sealed, |_| ()).await.unwrap();
    }

    async fn applier(&self) -> Result<Applier, holdfast::apply::ApplyError> {
        Applier::claim(ApplierContext {
            store: Arc::clone(&self.store),
            vault: self.vault.clone(),
            log: Arc::clone(&self.log),
            clock: System::clock(), // the emulator's leases run in real time
            entropy: System::entropy(),
            metrics: Arc::new(Metrics::default()),
            streams: 2,
            bodies: Bodies::default(),
            pins: PinsSeen::default(),
        })
        .await
    }

    pub(crate) async fn apply(&self) {
        let clock = self.clock.as_ref();
        let mut applier = None;
        insist(clock, async || -> Result<(), String> {
            let told = |error: &dyn std::fmt::Debug| format!("{error:?}");
            let read = self.log.manifest().await.map_err(|error| told(&error))?;
            let (manifest, _) = read.ok_or("no manifest")?;
            if applier.is_none() {
                applier = Some(self.applier().await.map_err(|error| told(&error))?);
            }
            loop {
                match applier.as_mut().unwrap().step(&manifest, &policy()).await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Ok(()),
                    Err(error) => {
                        assert!(matches!(error.class(), Class::Retry | Class::Fence), "{error:?}");
                        if error.class() == Class::Fence {
                            applier = None;
                        }
                        return Err(told(&error));
                    }
                }
            }
        })
        .await;
    }

    /// Read past the proxy, by a store of its own.
    pub(crate) async fn outcome(&self, store: &Arc<dyn Store>) -> Outcome {
        let rig = Self::new(Arc::clone(store), System::clock());
        let manifest = rig.log.manifest().await.unwrap().unwrap().0;
        let entries = rig.log.entries(&manifest, Sequence(0)).await.unwrap();
        let mut log = BTreeMap::new();
        for row in store.list(&names::deltas(&machine())).await.unwrap() {
            log.insert(row.name.to_string(), store.read(&row.name).await.unwrap().0.to_vec());
        }
        assert_eq!(log.len(), entries.len(), "objects that the manifest does not name");
        let object = names::seed_disk(&machine(), &spec(DISK_BYTES).name, Epoch(1));
        let size = store.page_properties(&object).await.unwrap().length;
        let seed = store.read_pages(&object, None, 0, size).await.unwrap().to_vec();
        let points = rig.vault.points(&machine()).await.unwrap().unwrap().0;
        let mut at = BTreeMap::new();
        for point in &points.snapshots {
            let id = Some(&point.disks[0].snapshot);
            let read = store.read_pages(&object, id, 0, size).await.unwrap();
            at.insert(point.sequence, vec![read.to_vec()]);
        }
        let entries = entries.iter().map(|entry| (entry.first.0, entry.last.0)).collect();
        let generation = manifest.generation.0;
        Outcome { generation, entries, log, seed_disks: vec![seed], points: at }
    }
}

fn policy() -> Policy {
    Policy { snapshot_interval_s: 30, ..Policy::default() }
}

/// Names of containers.
pub(crate) fn container() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("case-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}
