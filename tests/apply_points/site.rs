//! A machine's log in a store that can be shaken, what its disks held at each bookmark, and
//! appliers and recoveries over it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::apply::{Applier, ApplierContext, ApplyError, Bodies, PinsSeen};
use holdfast::cache::Durable;
use holdfast::clock::{Clock, Entropy, System, random16};
use holdfast::cloud_log::{ENTRIES_MAX, LogStore};
use holdfast::format::{manifest::Manifest, names};
use holdfast::model::*;
use holdfast::observe::Metrics;
use holdfast::recover::Recovery;
use holdfast::seal::{Batcher, KeyEncryptionKey, KeyRing, Lineage, StreamState, seal};
use holdfast::settings::{BatchSettings, RateSchedule, SealSettings, StreamBounds};
use holdfast::store::{Faulty, Memory, ObjectName, Store};
use holdfast::upload::{Uplink, Upload, UploadContext, claim};
use holdfast::vault::{MachineDocument, PointsDocument, Policy, Vault};
use rand::{Rng, RngExt, rngs::StdRng};
use tokio::sync::watch;

pub(crate) const DISK_BYTES: u64 = 2 << 20;

/// Bytes of both disks.
type Disks = [Vec<u8>; 2];

/// Changes from the first on, and the disks at each bookmark's sequence.
pub(crate) type History = (Vec<Change>, BTreeMap<u64, Disks>);

pub(crate) struct Site {
    pub(crate) faulty: Arc<Faulty>,
    pub(crate) vault: Vault,
    pub(crate) log: Arc<LogStore>,
    pub(crate) clock: Arc<Hand>,
    pub(crate) drawn: Arc<Drawn>,
    pins: PinsSeen,
    pub(crate) key: Arc<KeyEncryptionKey>,
    pub(crate) at: BTreeMap<u64, Disks>,
    /// Entries of the manifest before some move to a page.
    pub(crate) entries_max: usize,
}

/// A clock that moves when it is told to, and wakes who waited for that. Its wall clock can be set
/// apart from that.
pub(crate) struct Hand {
    now: watch::Sender<Duration>,
    wrong_by: AtomicI64,
}

impl Hand {
    pub(crate) fn advance(&self, seconds: u64) {
        self.now.send_modify(|now| *now += Duration::from_secs(seconds));
    }

    /// Sets the wall clock alone: seconds.
    pub(crate) fn set_wrong_by(&self, seconds: i64) {
        self.wrong_by.store(seconds, Ordering::Relaxed);
    }
}

#[async_trait::async_trait]
impl Clock for Hand {
    fn wall(&self) -> Timestamp {
        let right = Timestamp(self.now.borrow().as_micros() as i64);
        right.plus_seconds(self.wrong_by.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        *self.now.borrow()
    }

    async fn sleep(&self, duration: Duration) {
        let until = self.monotonic() + duration;
        self.now.subscribe().wait_for(|now| *now >= until).await.unwrap();
    }
}

/// Randomness that remembers what was drawn: a test knows every lease id that was ever used.
#[derive(Default)]
pub(crate) struct Drawn(pub(crate) Mutex<Vec<Vec<u8>>>);

impl Entropy for Drawn {
    fn fill(&self, target: &mut [u8]) {
        System.fill(target);
        self.0.lock().unwrap().push(target.to_vec());
    }
}

pub(crate) fn machine() -> MachineId {
    "web-1".parse().unwrap()
}

pub(crate) fn specs() -> Vec<DiskSpec> {
    let spec = |index, name: &str| DiskSpec {
        index: DiskIndex(index),
        name: name.parse().unwrap(),
        size_bytes: DISK_BYTES,
    };
    vec![spec(0, "root"), spec(1, "data")]
}

pub(crate) fn seed_disk(index: usize) -> ObjectName {
    names::seed_disk(&machine(), &specs()[index].name, Epoch(1))
}

pub(crate) fn policy() -> Policy {
    Policy { snapshot_interval_s: 60, ..Policy::default() }
}

/// How epoch `epoch` begins.
pub(crate) fn beginning(epoch: u32) -> Vec<Change> {
    vec![
        Change::EpochBegin(EpochBegin { epoch: Epoch(epoch), disks: specs() }),
        Change::CatchUpBegin(CatchUp::InitialReplication),
        Change::CatchUpEnd,
    ]
}

pub(crate) fn bookmark(id: [u8; 16], second: i64, name: String) -> Change {
    let time = Timestamp(second * 1_000_000);
    let kind = BookmarkKind::CrashConsistent;
    Change::Bookmark(Bookmark { id: BookmarkId(id), kind, time, name })
}

/// A random stream.
pub(crate) fn history(random: &mut StdRng) -> History {
    let mut changes = beginning(1);
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
                let payload = payload.clone().into();
                Change::Write { disk: index, extent, payload }
            });
            disks[disk][offset as usize..extent.end() as usize].copy_from_slice(&payload);
        }
        let mut id = [0; 16];
        random.fill_bytes(&mut id);
        let name = if random.random_bool(0.3) { format!("at {second}") } else { String::new() };
        changes.push(bookmark(id, second * 40, name));
        at.insert(changes.len() as u64, disks.clone());
    }
    (changes, at)
}

/// Both disks are written all over in every round, then comes a bookmark; a round a minute. The
/// bookmark of round `n` (from 0) is at sequence [`at_round`].
pub(crate) fn rounds(count: u8, ids: impl Fn(u8) -> [u8; 16]) -> History {
    let mut changes = beginning(1);
    let mut at = BTreeMap::new();
    for round in 0..count {
        let content = [vec![round * 2 + 1; 64 << 10], vec![round * 2 + 2; 64 << 10]];
        let disks = content.map(|bytes| {
            let mut disk = bytes;
            disk.resize(DISK_BYTES as usize, 0);
            disk
        });
        for (index, disk) in disks.iter().enumerate() {
            let extent = Extent::new(0, 64 << 10, WRITE_BYTES_MAX).unwrap();
            let payload = disk[..64 << 10].to_vec().into();
            changes.push(Change::Write { disk: DiskIndex(index as u16), extent, payload });
        }
        changes.push(bookmark(ids(round), i64::from(round) * 60, String::new()));
        at.insert(at_round(round), disks);
    }
    (changes, at)
}

/// Where the bookmark of a round of [`rounds`] is.
pub(crate) fn at_round(round: u8) -> u64 {
    6 + 3 * u64::from(round)
}

impl Site {
    pub(crate) async fn of((changes, at): History) -> Self {
        let now = watch::Sender::new(Duration::from_secs(4_000_000_000));
        let clock = Arc::new(Hand { now, wrong_by: AtomicI64::new(0) });
        let inner: Arc<dyn Store> = Arc::new(Memory::new(Arc::clone(&clock) as _));
        let faulty = Arc::new(Faulty::new(inner));
        let store: Arc<dyn Store> = Arc::clone(&faulty) as _;
        let key = Arc::new(KeyEncryptionKey::of([7; 32].into()));
        let vault = Vault::new(Arc::clone(&store), key.derive("holdfast vault 1"));
        let (data_key, wrapped) = key.make_data_key(&machine(), 1, &System, Timestamp(0));
        let document = MachineDocument {
            machine: machine(),
            created: Timestamp(0),
            data_keys: vec![wrapped],
            certificates: Vec::new(),
            policy: policy(),
        };
        vault.create_machine(&document).await.unwrap();
        let log = Arc::new(LogStore::new(store, machine(), KeyRing::of(machine(), data_key)));
        let drawn = Arc::new(Drawn::default());
        let pins = PinsSeen::default();
        let entries_max = ENTRIES_MAX;
        let site = Self { faulty, vault, log, clock, drawn, pins, key, at, entries_max };
        site.publish(changes).await;
        site
    }

    pub(crate) fn upload_context(&self) -> UploadContext {
        UploadContext {
            log: Arc::clone(&self.log),
            clock: System::clock(),
            entropy: System::entropy(),
            metrics: Arc::new(Metrics::default()),
            uplink: Uplink::new(
                StreamBounds { min: 4, max: 4 },
                RateSchedule::default(),
                System::clock(),
                System::entropy(),
                Arc::new(Metrics::default()),
            ),
            block_bytes: Arc::new((1 << 20).into()),
            entries_max: self.entries_max,
        }
    }

    /// Publishes what comes next.
    pub(crate) async fn publish(&self, changes: Vec<Change>) {
        let context = self.upload_context();
        let claimed = claim(&context, &"ps-1".parse().unwrap()).await.unwrap();
        let after = claimed.manifest.published.0;
        let settings = BatchSettings { bytes_max: 64 << 10, age_max: Duration::from_secs(1) };
        let key = MachineKey::of(&machine());
        let mut batcher = Batcher::new(key, StreamState::after(&claimed.manifest), settings);
        let (to, mut sealed) = tokio::sync::mpsc::channel(1024);
        let mut previous = claimed.manifest.last_delta;
        for (n, change) in changes.into_iter().enumerate() {
            let record = Record { sequence: Sequence(after + n as u64 + 1), change };
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
                created: self.clock.wall(),
            };
            let settings =
                SealSettings { threads: 1, compress: true, level: 1, frame_bytes: 64 << 10 };
            let key = self.log.keys().newest();
            let delta = seal(batch, lineage, key, &settings, false, &System);
            to.send(delta.unwrap_or_else(|error| panic!("{error}"))).await.unwrap();
        }
        drop(to);
        Upload::new(context, claimed).run(&mut sealed, |_| ()).await.unwrap();
    }

    pub(crate) async fn applier(&self) -> Result<Applier, ApplyError> {
        Applier::claim(ApplierContext {
            store: Arc::clone(&self.faulty) as _,
            vault: self.vault.clone(),
            log: Arc::clone(&self.log),
            clock: Arc::clone(&self.clock) as _,
            entropy: Arc::clone(&self.drawn) as _,
            metrics: Arc::new(Metrics::default()),
            streams: 3,
            bodies: Bodies::default(),
            pins: self.pins.clone(),
        })
        .await
    }

    /// Applies everything.
    pub(crate) async fn apply_all(&self, applier: &mut Applier, policy: &Policy) {
        let manifest = self.manifest().await;
        while applier.step(&manifest, policy).await.unwrap().is_some() {}
    }

    pub(crate) async fn recovery(&self) -> Recovery {
        let store: Arc<dyn Store> = Arc::clone(&self.faulty) as _;
        Recovery::open(store, &self.key, &machine()).await.unwrap()
    }

    pub(crate) async fn manifest(&self) -> Manifest {
        self.log.manifest().await.unwrap().unwrap().0
    }

    pub(crate) async fn points(&self) -> PointsDocument {
        self.vault.points(&machine()).await.unwrap().unwrap().0
    }

    /// Every snapshot point against the simple applier's disks.
    pub(crate) async fn check(&self) -> usize {
        let points = self.points().await;
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
