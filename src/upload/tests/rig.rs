//! One machine in a store in memory: its stream, sealed as a process server would seal it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;

use crate::cache::Durable;
use crate::clock::{Clock, Entropy, random16};
use crate::cloud_log::LogStore;
use crate::format::manifest::{DeltaEntry, Manifest};
use crate::format::names;
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, Change, DeltaId, DiskIndex, DiskSpec, Epoch,
    EpochBegin, Extent, MachineId, MachineKey, Payload, Record, Sequence, ServerId, Timestamp,
};
use crate::observe::Metrics;
use crate::seal::{Batcher, KeyEncryptionKey, KeyRing, Lineage, Sealed, StreamState, seal};
use crate::settings::{BatchSettings, RateSchedule, SealSettings, StreamBounds};
use crate::store::Memory;
use crate::store::{Listed, Store};
use crate::upload::{Claim, Published, Stopped, Uplink, Upload, UploadContext, claim};

/// A clock that only sleeping moves.
#[derive(Default)]
pub(super) struct Steps(Mutex<Duration>);

impl Steps {
    pub(super) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

#[async_trait]
impl Clock for Steps {
    fn wall(&self) -> Timestamp {
        Timestamp(1_000_000_000 + self.monotonic().as_micros() as i64)
    }
    fn monotonic(&self) -> Duration {
        *self.0.lock().unwrap()
    }
    async fn sleep(&self, duration: Duration) {
        self.advance(duration);
        tokio::task::yield_now().await;
    }
}

/// Random bytes from a seed.
pub(super) struct Seeded(Mutex<StdRng>);

impl Seeded {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(StdRng::seed_from_u64(seed))))
    }
}

impl Entropy for Seeded {
    fn fill(&self, target: &mut [u8]) {
        self.0.lock().unwrap().fill_bytes(target);
    }
}

pub(super) struct Rig {
    pub(super) memory: Arc<Memory>,
    pub(super) clock: Arc<Steps>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) machine: MachineId,
    pub(super) keys: KeyRing,
    seed: u64,
}

impl Rig {
    pub(super) fn new(seed: u64) -> Self {
        let clock = Arc::new(Steps::default());
        let machine: MachineId = "web".parse().unwrap();
        let kek = KeyEncryptionKey::of([7; 32].into());
        let entropy = Seeded::new(1);
        let (key, _) = kek.make_data_key(&machine, 1, entropy.as_ref(), Timestamp(0));
        Self {
            memory: Arc::new(Memory::new(Arc::clone(&clock) as Arc<dyn Clock>)),
            clock,
            metrics: Arc::new(Metrics::default()),
            keys: KeyRing::of(machine.clone(), key),
            machine,
            seed,
        }
    }

    pub(super) fn log(&self, store: Arc<dyn Store>) -> LogStore {
        LogStore::new(store, self.machine.clone(), self.keys.clone())
    }

    /// A context over `store`; `salt` tells its entropy from that of others.
    pub(super) fn context(&self, store: Arc<dyn Store>, salt: u64) -> UploadContext {
        UploadContext {
            log: Arc::new(self.log(store)),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            entropy: Seeded::new(self.seed.wrapping_mul(1000).wrapping_add(salt)),
            metrics: Arc::clone(&self.metrics),
            uplink: self.uplink(salt),
            block_bytes: Arc::new(700.into()),
            entries_max: 4,
        }
    }

    fn uplink(&self, salt: u64) -> Arc<Uplink> {
        let bounds = StreamBounds { min: 3, max: 3 };
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let entropy = Seeded::new(self.seed ^ (salt << 40));
        Uplink::new(bounds, RateSchedule::default(), clock, entropy, Arc::clone(&self.metrics))
    }

    pub(super) fn plain(&self) -> UploadContext {
        self.context(Arc::clone(&self.memory) as Arc<dyn Store>, 900)
    }

    /// The manifest as it stands.
    pub(super) async fn manifest(&self) -> Manifest {
        self.plain().log.manifest().await.unwrap().unwrap().0
    }

    /// All entries, each opened and compared with the stream, chained, its object there once.
    pub(super) async fn audit(&self) -> Vec<DeltaEntry> {
        let log = self.plain().log;
        let manifest = self.manifest().await;
        let entries = log.entries(&manifest, manifest.truncated).await.unwrap();
        let mut previous = None;
        let mut end = manifest.truncated;
        for entry in &entries {
            assert_eq!(entry.first, end.next(), "gapless");
            end = entry.last;
            let delta = log.open_delta(entry, previous).await.unwrap();
            let store = self.memory.as_ref();
            let frames = delta.index().frames.len() as u32;
            let plain = delta.frames_range(store, 0..frames).await.unwrap();
            let bytes: Vec<u8> = plain.concat();
            let expected: Vec<u8> = (entry.first.0..=entry.last.0)
                .filter(|n| matches!(change(*n), Change::Write { .. }))
                .flat_map(|n| payload(n).to_bytes())
                .collect();
            assert_eq!(bytes, expected, "content of {}..={}", entry.first, entry.last);
            previous = Some(entry.id);
        }
        assert_eq!(end, manifest.published);
        entries
    }

    pub(super) async fn objects(&self, prefix: String) -> Vec<Listed> {
        self.memory.list(&prefix).await.unwrap()
    }

    pub(super) async fn deltas(&self) -> Vec<Listed> {
        self.objects(names::deltas(&self.machine)).await
    }

    pub(super) async fn pages(&self) -> Vec<Listed> {
        self.objects(names::manifest_pages(&self.machine)).await
    }

    /// The records `published + 1..=last` of the stream, sealed as the holder of `claim` would.
    pub(super) fn sealed(&self, claim: &Claim, last: u64) -> Vec<Sealed> {
        let manifest = &claim.manifest;
        let entropy = Seeded::new(self.seed ^ (manifest.generation.0 << 32));
        let settings = BatchSettings { bytes_max: 4096, age_max: Duration::from_secs(1) };
        let key = MachineKey::of(&self.machine);
        let mut batcher = Batcher::new(key, StreamState::after(manifest), settings);
        let mut batches = Vec::new();
        for sequence in manifest.published.0 + 1..=last {
            let record = Record { sequence: Sequence(sequence), change: change(sequence) };
            let durable = Durable::never_written(key, record);
            batcher.push(durable, Duration::ZERO).unwrap();
        }
        batcher.drain();
        while let Some(batch) = batcher.poll(Duration::ZERO) {
            batches.push(batch);
        }
        let mut previous = manifest.last_delta;
        let seal_settings =
            SealSettings { threads: 1, compress: true, level: 1, frame_bytes: 4096 };
        let sealed = batches.into_iter().map(|batch| {
            let id = DeltaId(random16(entropy.as_ref()));
            let lineage = Lineage {
                machine: self.machine.clone(),
                generation: manifest.generation,
                id,
                previous: previous.replace(id),
                created: Timestamp(5),
            };
            let key = self.keys.newest();
            seal(batch, lineage, key, &seal_settings, true, entropy.as_ref()).unwrap()
        });
        sealed.collect()
    }

    /// Claims, seals through `last`, uploads in an order shuffled by the seed, publishes.
    pub(super) async fn serve(
        &self,
        context: &UploadContext,
        owner: &str,
        last: u64,
        on_published: impl FnMut(Published) + Send,
    ) -> Result<Claim, Stopped> {
        let claim = claim(context, &server(owner)).await.unwrap();
        self.go_on(context, claim, last, on_published).await
    }

    pub(super) async fn go_on(
        &self,
        context: &UploadContext,
        claim: Claim,
        last: u64,
        on_published: impl FnMut(Published) + Send,
    ) -> Result<Claim, Stopped> {
        let sealed = shuffled(self.sealed(&claim, last), self.seed);
        let mut receiver = channel(sealed);
        let upload = Upload::new(context.clone(), claim);
        let mut ended = upload.run(&mut receiver, on_published).await;
        if let Err(stopped) = &mut ended {
            // What was not taken out of the channel is still there: a caller keeps that, too.
            while let Ok(sealed) = receiver.try_recv() {
                stopped.unpublished.push(sealed);
            }
            stopped.unpublished.sort_by_key(|sealed| sealed.entry().first);
        }
        ended
    }
}

pub(super) fn server(name: &str) -> ServerId {
    name.parse().unwrap()
}

pub(super) fn channel(sealed: Vec<Sealed>) -> mpsc::Receiver<Sealed> {
    let (sender, receiver) = mpsc::channel(sealed.len().max(1));
    for one in sealed {
        sender.try_send(one).unwrap();
    }
    receiver
}

fn shuffled(mut sealed: Vec<Sealed>, seed: u64) -> Vec<Sealed> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut shuffled = Vec::new();
    while !sealed.is_empty() {
        // Near the order, as a pool gives them back.
        let at = (random.next_u32() as usize % 3).min(sealed.len() - 1);
        shuffled.push(sealed.remove(at));
    }
    shuffled
}

fn payload(sequence: u64) -> Payload {
    let mut random = StdRng::seed_from_u64(sequence);
    let mut bytes = vec![0; 512 * (1 + sequence as usize % 3)];
    random.fill_bytes(&mut bytes);
    bytes.into()
}

/// The machine's stream: an epoch, a catch-up, bookmarks, a resync at 31.
fn change(sequence: u64) -> Change {
    let bookmark = || {
        Change::Bookmark(Bookmark {
            id: BookmarkId([sequence as u8; 16]),
            kind: BookmarkKind::CrashConsistent,
            time: Timestamp(sequence as i64 * 1_000_000),
            name: String::new(),
        })
    };
    let begin = |epoch| {
        let disk =
            DiskSpec { index: DiskIndex(0), name: "root".parse().unwrap(), size_bytes: 1 << 30 };
        Change::EpochBegin(EpochBegin { epoch: Epoch(epoch), disks: vec![disk] })
    };
    match sequence {
        1 => begin(1),
        31 => begin(2),
        2 | 32 => Change::CatchUpBegin(CatchUp::InitialReplication),
        6 | 34 => Change::CatchUpEnd,
        n if n > 6 && n % 5 == 0 => bookmark(),
        n => {
            let payload = payload(n);
            let place = n % 40 * 4096;
            Change::Write {
                disk: DiskIndex(0),
                extent: Extent::new(place, payload.len() as u64, 1 << 20).unwrap(),
                payload,
            }
        }
    }
}

/// What two logs have in common when they say the same: version and pages are how it came to be.
pub(super) fn meaning(manifest: &Manifest, entries: Vec<DeltaEntry>) -> Manifest {
    Manifest { version: manifest.generation.0, pages: Vec::new(), entries, ..manifest.clone() }
}

/// How often each range is in the store.
pub(super) fn ranges(machine: &MachineId, deltas: &[Listed]) -> BTreeMap<(u64, u64), usize> {
    let mut ranges = BTreeMap::new();
    for row in deltas {
        let (_, first, last, _) = names::parse_delta(machine, &row.name).unwrap();
        *ranges.entry((first.0, last.0)).or_default() += 1;
    }
    ranges
}
