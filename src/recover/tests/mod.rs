//! A machine whose history is known byte for byte, sealed and published for real in a store in
//! memory; and a trivially simple applier to compare with.

mod damage;
mod differential;
mod files;
mod mounted;
mod points;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::cache::Durable;
use crate::clock::{Clock, System, random16};
use crate::cloud_log::LogStore;
use crate::format::manifest::{EpochEntry, Manifest};
use crate::format::names;
use crate::format::seed_disk::{FOOTER_BYTES, Footer, size_on_store, unique_id, virtual_bytes};
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, Change, DeltaId, DiskIndex, DiskName, DiskSpec,
    Epoch, EpochBegin, Extent, MachineId, MachineKey, ObjectName, Record, Sequence, Timestamp,
    ZERO_BYTES_MAX,
};
use crate::seal::{Batcher, KeyEncryptionKey, KeyRing, Lineage, StreamState, seal};
use crate::settings::{BatchSettings, SealSettings};
use crate::store::{Condition, LeaseId, Memory, PageBody, PageGuard, PageWrite, Store};
use crate::vault::{MachineDocument, Policy, SnapshotDisk, SnapshotPoint, Vault};

/// Sizes of the disks `root` and `log`; the first is no multiple of 4 KiB.
const SIZES: [usize; 2] = [49 * 512, 32 * 512];

/// One record, or a few.
#[derive(Clone, Debug)]
enum Op {
    Write { disk: u16, sector: u64, sectors: u64, zeros: bool },
    Zero { disk: u16, sector: u64, sectors: u64 },
    Bookmark { name: &'static str, app: bool },
    Epoch,
    CatchUp(bool),
}

/// The machine right after one record.
#[derive(Clone)]
struct State {
    epoch: u32,
    catching_up: bool,
    disks: [Vec<u8>; 2],
}

struct World {
    store: Arc<Memory>,
    key: KeyEncryptionKey,
    machine: MachineId,
    vault: Vault,
    recovery: Arc<Recovery>,
    /// By sequence; the first is before everything.
    states: Vec<State>,
    bookmarks: Vec<u64>,
    /// Nothing is folded.
    keep_every_write: bool,
    /// When a batch closes by size.
    batch_bytes: u64,
    /// Deltas name another one as the one before them.
    broken_chain: bool,
}

impl World {
    async fn new() -> Self {
        let store = Arc::new(Memory::new(System::clock()));
        let key = KeyEncryptionKey::of([9; 32].into());
        let machine: MachineId = "web-1".parse().unwrap();
        let shared: Arc<dyn Store> = Arc::clone(&store) as _;
        let vault = Vault::new(Arc::clone(&shared), key.derive("holdfast vault 1"));
        let (_, wrapped) = key.make_data_key(&machine, 1, &System, Timestamp(0));
        let document = MachineDocument {
            machine: machine.clone(),
            created: Timestamp(0),
            data_keys: vec![wrapped],
            certificates: Vec::new(),
            policy: Policy::default(),
        };
        vault.create_machine(&document).await.unwrap();
        let recovery = Arc::new(Recovery::open(shared, &key, &machine).await.unwrap());
        let disks = SIZES.map(|size| vec![0; size]);
        Self {
            store,
            key,
            machine,
            vault,
            recovery,
            states: vec![State { epoch: 0, catching_up: false, disks }],
            bookmarks: Vec::new(),
            keep_every_write: false,
            batch_bytes: 16 << 10,
            broken_chain: false,
        }
    }

    /// A world in which `ops` happened and were published.
    async fn after(ops: &[Op]) -> Self {
        let mut world = Self::new().await;
        world.publish(ops).await;
        world
    }

    async fn log(&self) -> LogStore {
        let document = self.vault.machine(&self.machine).await.unwrap().unwrap();
        let keys = KeyRing::unwrap(&self.key, &document).unwrap();
        LogStore::new(Arc::clone(&self.store) as _, self.machine.clone(), keys)
    }

    /// Applies one record in the simplest way and gives its change.
    fn apply(&mut self, op: &Op) -> Change {
        let sequence = self.states.len() as u64;
        let mut state = self.states.last().unwrap().clone();
        let change = match *op {
            Op::Write { disk, sector, sectors, zeros } => {
                let place = (sector * 512) as usize..((sector + sectors) * 512) as usize;
                let target = &mut state.disks[disk as usize][place];
                for (at, word) in target.chunks_mut(8).enumerate() {
                    let content = if zeros { 0 } else { (sequence << 32) | (at as u64 + 1) };
                    word.copy_from_slice(&content.to_le_bytes());
                }
                let extent = Extent::new(sector * 512, sectors * 512, 1 << 20).unwrap();
                let payload = target.to_vec().into();
                Change::Write { disk: DiskIndex(disk), extent, payload }
            }
            Op::Zero { disk, sector, sectors } => {
                let place = (sector * 512) as usize..((sector + sectors) * 512) as usize;
                state.disks[disk as usize][place].fill(0);
                let extent = Extent::new(sector * 512, sectors * 512, ZERO_BYTES_MAX).unwrap();
                Change::Zero { disk: DiskIndex(disk), extent }
            }
            Op::Bookmark { name, app } => {
                self.bookmarks.push(sequence);
                let kind = match app {
                    true => BookmarkKind::ApplicationConsistent,
                    false => BookmarkKind::CrashConsistent,
                };
                let time = Timestamp(sequence as i64 * 1_000_000);
                let id = BookmarkId(u128::from(sequence).to_be_bytes());
                Change::Bookmark(Bookmark { id, kind, time, name: name.to_owned() })
            }
            Op::Epoch => {
                let epoch = Epoch(state.epoch + 1);
                let disks = SIZES.map(|size| vec![0; size]);
                state = State { epoch: epoch.0, catching_up: false, disks };
                Change::EpochBegin(EpochBegin { epoch, disks: specs() })
            }
            Op::CatchUp(true) => {
                state.catching_up = true;
                Change::CatchUpBegin(CatchUp::Dirty)
            }
            Op::CatchUp(false) => {
                state.catching_up = false;
                Change::CatchUpEnd
            }
        };
        self.states.push(state);
        change
    }

    /// Records → batches → deltas → manifest.
    async fn publish(&mut self, ops: &[Op]) {
        let log = self.log().await;
        let read = log.manifest().await.unwrap();
        let (mut manifest, etag) = match read {
            Some((manifest, etag)) => (manifest, Some(etag)),
            None => (Manifest::first(self.machine.clone(), "ps".parse().unwrap()), None),
        };
        let machine_key = MachineKey::of(&self.machine);
        let settings =
            BatchSettings { bytes_max: self.batch_bytes, age_max: Duration::from_secs(1) };
        let mut batcher = Batcher::new(machine_key, StreamState::after(&manifest), settings);
        for op in ops {
            let sequence = Sequence(self.states.len() as u64);
            let record = Record { sequence, change: self.apply(op) };
            let item = Durable::never_written(machine_key, record);
            batcher.push(item, Duration::ZERO).unwrap();
        }
        batcher.drain();
        while let Some(batch) = batcher.poll(Duration::ZERO) {
            let previous = match self.broken_chain {
                true => Some(DeltaId([7; 16])),
                false => manifest.last_delta,
            };
            let lineage = Lineage {
                machine: self.machine.clone(),
                generation: manifest.generation,
                id: DeltaId(random16(&System)),
                previous,
                created: Timestamp(i64::MAX),
            };
            let seal_settings =
                SealSettings { threads: 1, compress: true, level: 1, frame_bytes: 4 << 10 };
            let key = log.keys().newest();
            let sealed = seal(batch, lineage, key, &seal_settings, self.keep_every_write, &System);
            let sealed = sealed.unwrap();
            let entry = sealed.entry().clone();
            let name = delta_name(&self.machine, &entry);
            let body = sealed.object().clone();
            self.store.put(&name, body, Condition::Absent).await.unwrap();
            if let Some(begin) = sealed.epoch_begin() {
                let (epoch, disks) = (begin.epoch, begin.disks.clone());
                manifest.epochs.push(EpochEntry { epoch, first: entry.first, disks });
            }
            manifest.published = entry.last;
            manifest.last_delta = Some(entry.id);
            manifest.catching_up = sealed.ends_catching_up();
            manifest.entries.push(entry);
        }
        manifest.version += u64::from(etag.is_some());
        log.page_out(&mut manifest, 8, &System).await.unwrap();
        log.replace(&manifest, etag.as_ref(), &System).await.unwrap();
    }

    async fn manifest(&self) -> Manifest {
        self.log().await.manifest().await.unwrap().unwrap().0
    }

    async fn entries(&self) -> Vec<crate::format::manifest::DeltaEntry> {
        let manifest = self.manifest().await;
        self.log().await.entries(&manifest, manifest.truncated).await.unwrap()
    }

    /// Writes the manifest changed by `change`.
    async fn rewrite(&self, change: impl FnOnce(&mut Manifest)) {
        let log = self.log().await;
        let (mut manifest, etag) = log.manifest().await.unwrap().unwrap();
        change(&mut manifest);
        manifest.version += 1;
        log.replace(&manifest, Some(&etag), &System).await.unwrap();
    }

    /// Removes the log through `sequence`, the end of a delta in the manifest itself, and its pages.
    async fn truncate(&self, sequence: u64) {
        let through = Sequence(sequence);
        let cut = |manifest: &mut Manifest| {
            manifest.pages.retain(|page| page.last > through);
            manifest.entries.retain(|entry| entry.last > through);
            manifest.truncated = through;
        };
        self.rewrite(cut).await;
    }

    /// Makes the seed disks hold what the machine held at `sequence`, and records the point.
    async fn snapshot(&self, sequence: u64) {
        let state = &self.states[sequence as usize];
        let epoch = Epoch(state.epoch);
        let mut disks = Vec::new();
        for (spec, content) in specs().into_iter().zip(&state.disks) {
            let object = names::seed_disk(&self.machine, &spec.name, epoch);
            let lease = LeaseId([1; 16]);
            let guard = PageGuard { lease, sequence_number: 1 };
            let _exists = self.store.create_pages(&object, size_on_store(spec.size_bytes)).await;
            self.store.acquire_lease(&object, lease, 60).await.unwrap();
            self.store.raise_sequence_number(&object, 1, lease).await.unwrap();
            let id = unique_id(&self.machine, &spec.name, epoch);
            let footer = Footer::new(virtual_bytes(spec.size_bytes), id).unwrap().encode();
            let footer_at = size_on_store(spec.size_bytes) - FOOTER_BYTES as u64;
            let mut writes =
                vec![PageWrite { offset: footer_at, body: PageBody::Data(footer.to_vec().into()) }];
            for (at, sector) in content.chunks(512).enumerate() {
                let body = match sector.iter().all(|byte| *byte == 0) {
                    true => PageBody::Clear(512),
                    false => PageBody::Data(sector.to_vec().into()),
                };
                writes.push(PageWrite { offset: at as u64 * 512, body });
            }
            self.store.write_pages(&object, &writes, &guard).await.unwrap();
            self.store.flush_pages(&object, &guard).await.unwrap();
            let snapshot =
                self.store.snapshot(&object, &sequence.to_string(), &guard).await.unwrap();
            disks.push(SnapshotDisk {
                index: spec.index.0,
                name: spec.name,
                size_bytes: spec.size_bytes,
                snapshot,
            });
        }
        let entries = self.entries().await;
        let mut bookmarks = entries.into_iter().flat_map(|entry| entry.bookmarks);
        let at = bookmarks.find(|at| at.sequence == Sequence(sequence)).unwrap();
        let point = SnapshotPoint {
            bookmark: at.bookmark.id.to_string(),
            name: at.bookmark.name,
            kind: at.bookmark.kind,
            time: at.bookmark.time,
            sequence,
            epoch: epoch.0,
            disks,
        };
        let add = |mut document: crate::vault::PointsDocument| {
            document.snapshots.push(point.clone());
            document.snapshots.sort_by_key(|snapshot| snapshot.sequence);
            Ok(document)
        };
        self.vault.update_points(&self.machine, add).await.unwrap();
    }

    async fn resolve(&self, spec: &str) -> Result<ResolvedPoint, RecoverError> {
        self.recovery.resolve(&spec.parse().unwrap()).await
    }

    async fn opened(&self, spec: &str, disk: &str) -> Result<DiskReader, RecoverError> {
        let point = self.resolve(spec).await?;
        DiskReader::open(&self.recovery, &point, &disk_name(disk), 8 << 10).await
    }

    async fn reader(&self, spec: &str, disk: &str) -> Result<Arc<DiskReader>, RecoverError> {
        Ok(Arc::new(self.opened(spec, disk).await?))
    }

    /// Both disks at a point, whole.
    async fn read(&self, spec: &str) -> Result<[Vec<u8>; 2], RecoverError> {
        let root = self.reader(spec, "root").await?;
        let log = self.reader(spec, "log").await?;
        let root = root.read(0, root.size_bytes()).await?;
        let log = log.read(0, log.size_bytes()).await?;
        Ok([root.to_vec(), log.to_vec()])
    }

    async fn verify(&self, spec: Option<&str>) -> Result<VerifyReport, RecoverError> {
        let spec: Option<PointSpec> = spec.map(|spec| spec.parse().unwrap());
        let clock: Arc<dyn Clock> = System::clock();
        verify(&self.recovery, spec.as_ref(), &clock, &System, &|_| {}).await
    }

    /// Flips one bit of an object in the store.
    async fn flip(&self, name: &ObjectName, at: usize) {
        let (bytes, _) = self.store.read(name).await.unwrap();
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 4;
        self.store.put(name, bytes.into(), Condition::Always).await.unwrap();
    }
}

fn delta_name(machine: &MachineId, entry: &crate::format::manifest::DeltaEntry) -> ObjectName {
    names::delta(machine, entry.generation, entry.first, entry.last, entry.id)
}

fn disk_name(name: &str) -> DiskName {
    name.parse().unwrap()
}

fn specs() -> Vec<DiskSpec> {
    let spec = |index: usize, name| DiskSpec {
        index: DiskIndex(index as u16),
        name: disk_name(name),
        size_bytes: SIZES[index] as u64,
    };
    vec![spec(0, "root"), spec(1, "log")]
}

fn write(disk: u16, sector: u64, sectors: u64) -> Op {
    Op::Write { disk, sector, sectors, zeros: false }
}

fn bookmark(name: &'static str) -> Op {
    Op::Bookmark { name, app: false }
}

/// Two epochs, overwrites, zeros, a catch-up, and bookmarks at 4, 7, 12 and 16.
fn story() -> Vec<Op> {
    vec![
        Op::Epoch,
        write(0, 0, 8),
        write(1, 4, 4),
        bookmark("first"), // 4
        write(0, 4, 8),
        Op::Zero { disk: 0, sector: 0, sectors: 2 },
        Op::Bookmark { name: "", app: true }, // 7
        Op::CatchUp(true),
        write(0, 40, 9),
        write(1, 0, 32),
        Op::CatchUp(false),
        bookmark("last of one"), // 12
        Op::Epoch,
        write(0, 10, 2),
        Op::Write { disk: 1, sector: 1, sectors: 3, zeros: true },
        bookmark("first"), // 16
    ]
}
