//! Many machines over one line to one store, in virtual time: who gets how much of it, and what an
//! outage does.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{join, join_all};
use tokio::sync::mpsc;

use super::rig::Seeded;
use super::virtual_time::Virtual;
use crate::cache::Durable;
use crate::clock::{Clock, Entropy, random16};
use crate::cloud_log::LogStore;
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, Change, DeltaId, DiskIndex, DiskSpec, Epoch, EpochBegin,
    Extent, MachineId, MachineKey, Record, Sequence,
};
use crate::observe::Metrics;
use crate::seal::{Batcher, KeyEncryptionKey, KeyRing, Lineage, Sealed, StreamState, seal};
use crate::settings::{BatchSettings, RateSchedule, SealSettings, StreamBounds};
use crate::store::{
    BlockId, Condition, ETag, LeaseId, Listed, Memory, ObjectName, PageGuard, PageRange, PageWrite,
    Properties, Result, SnapshotId, SnapshotInfo, Store, StoreError,
};
use crate::turns::Turns;
use crate::upload::{Uplink, Upload, UploadContext, claim, resume};

/// Time of an empty request.
const LATENCY: Duration = Duration::from_millis(20);
/// What the line carries for one request before the next has its part.
const PORTION: u64 = 16 << 10;

/// A store behind a line that all requests share, with an outage.
pub(super) struct Line {
    memory: Memory,
    clock: Arc<Virtual>,
    bytes_per_s: u64,
    free_at: Mutex<Duration>,
    away: std::ops::Range<Duration>,
    requests: AtomicU64,
}

impl Line {
    async fn carry(&self, name: &str, bytes: u64) -> Result<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.clock.sleep(LATENCY).await;
        let mut left = bytes;
        while left > 0 {
            let portion = left.min(PORTION);
            left -= portion;
            let wait = {
                let mut free_at = self.free_at.lock().unwrap();
                let now = self.clock.monotonic();
                let took = Duration::from_secs_f64(portion as f64 / self.bytes_per_s as f64);
                *free_at = now.max(*free_at) + took;
                *free_at - now
            };
            self.clock.sleep(wait).await;
        }
        if self.away.contains(&self.clock.monotonic()) {
            let source = Arc::new(std::io::Error::other("away"));
            return Err(StoreError::Transient {
                store: self.describe(),
                name: name.to_owned(),
                source,
            });
        }
        Ok(())
    }
}

/// Every method: over the line, then on the store in memory.
macro_rules! over_the_line {
    ($($method:ident($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {
        #[async_trait]
        impl Store for Line {
            fn describe(&self) -> String {
                "line".to_owned()
            }

            async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
                self.carry(prefix, 0).await?;
                self.memory.list(prefix).await
            }

            async fn put(&self, name: &ObjectName, body: Bytes, condition: Condition) -> Result<ETag> {
                self.carry(name.as_str(), body.len() as u64).await?;
                self.memory.put(name, body, condition).await
            }

            async fn stage_block(&self, name: &ObjectName, block: BlockId, body: Bytes) -> Result<()> {
                self.carry(name.as_str(), body.len() as u64).await?;
                self.memory.stage_block(name, block, body).await
            }

            $(async fn $method(&self, name: &ObjectName, $($arg: $kind),*) -> Result<$out> {
                self.carry(name.as_str(), 0).await?;
                self.memory.$method(name, $($arg),*).await
            })*
        }
    };
}

over_the_line! {
    commit_blocks(blocks: &[BlockId], condition: Condition) -> ETag;
    put_leased(body: Bytes, condition: Condition, lease: LeaseId) -> ETag;
    read() -> (Bytes, ETag);
    read_range(offset: u64, length: u64) -> Bytes;
    properties() -> Properties;
    delete(condition: Condition) -> ();
    create_pages(size: u64) -> ();
    write_pages(writes: &[PageWrite], guard: &PageGuard) -> ();
    flush_pages(guard: &PageGuard) -> ();
    snapshot(label: &str, guard: &PageGuard) -> SnapshotId;
    list_snapshots() -> Vec<SnapshotInfo>;
    read_pages(snapshot: Option<&SnapshotId>, offset: u64, length: u64) -> Bytes;
    page_ranges(snapshot: Option<&SnapshotId>, offset: u64, length: u64) -> Vec<PageRange>;
    page_properties() -> Properties;
    delete_snapshot(snapshot: &SnapshotId) -> ();
    delete_pages(lease: Option<LeaseId>) -> ();
    raise_sequence_number(number: u64, lease: LeaseId) -> ();
    acquire_lease(lease: LeaseId, seconds: u32) -> ();
    renew_lease(lease: LeaseId) -> ();
    break_lease() -> ();
    release_lease(lease: LeaseId) -> ();
}

/// What a machine writes: a batch that ends with a bookmark, every so often.
#[derive(Clone, Copy)]
pub(super) struct Habit {
    pub(super) bytes: usize,
    /// `None`: as fast as it is taken.
    pub(super) every: Option<Duration>,
}

/// One batch: when its bookmark was made, when it was published, its source bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) made: Duration,
    pub(super) published: Duration,
    pub(super) bytes: u64,
}

pub(super) struct Fleet {
    pub(super) clock: Arc<Virtual>,
    pub(super) line: Arc<Line>,
    pub(super) metrics: Arc<Metrics>,
    uplink: Arc<Uplink>,
    /// Memory of sealed objects and sealing threads, as the pool has them.
    room: Turns,
    threads: Turns,
    noise: Vec<u8>,
    end: Duration,
}

impl Fleet {
    pub(super) fn new(
        bytes_per_s: u64,
        away: std::ops::Range<u64>,
        rate: RateSchedule,
        end: u64,
    ) -> Self {
        let clock = Arc::new(Virtual::default());
        let shared = || Arc::clone(&clock) as Arc<dyn Clock>;
        let metrics = Arc::new(Metrics::default());
        let line = Line {
            memory: Memory::new(shared()),
            clock: Arc::clone(&clock),
            bytes_per_s,
            free_at: Mutex::default(),
            away: Duration::from_secs(away.start)..Duration::from_secs(away.end),
            requests: AtomicU64::new(0),
        };
        let bounds = StreamBounds { min: 2, max: 8 };
        let uplink = Uplink::new(bounds, rate, shared(), Seeded::new(3), Arc::clone(&metrics));
        let mut noise = vec![0; 1 << 20];
        Seeded::new(4).fill(&mut noise);
        Self {
            line: Arc::new(line),
            metrics,
            uplink,
            room: Turns::new(8 << 20, 1 << 20),
            threads: Turns::new(4, 1),
            noise,
            end: Duration::from_secs(end),
            clock,
        }
    }

    /// Runs all machines to the end of the time and until everything is published.
    pub(super) fn run(&self, habits: &[Habit]) -> Vec<Vec<Point>> {
        let machines = habits.iter().enumerate().map(|(n, habit)| self.machine(n, *habit));
        self.clock.run(join_all(machines))
    }

    pub(super) fn requests(&self) -> u64 {
        self.line.requests.load(Ordering::Relaxed)
    }

    fn context(&self, machine: &MachineId, number: usize) -> UploadContext {
        let kek = KeyEncryptionKey::of([7; 32].into());
        let (key, _) = kek.make_data_key(machine, 1, Seeded::new(1).as_ref(), self.clock.wall());
        let keys = KeyRing::of(machine.clone(), key);
        UploadContext {
            log: Arc::new(LogStore::new(Arc::clone(&self.line) as _, machine.clone(), keys)),
            clock: Arc::clone(&self.clock) as _,
            entropy: Seeded::new(1_000 + number as u64),
            metrics: Arc::clone(&self.metrics),
            uplink: Arc::clone(&self.uplink),
            block_bytes: Arc::new((64 << 10).into()),
            entries_max: 64,
        }
    }

    async fn machine(&self, number: usize, habit: Habit) -> Vec<Point> {
        let machine: MachineId = format!("m-{number}").parse().unwrap();
        let context = self.context(&machine, number);
        // They do not begin in step.
        self.clock.sleep(habit.every.unwrap_or_default().mul_f64(number as f64 / 64.0)).await;
        let claimed = claim(&context, &"ps".parse().unwrap()).await.unwrap();
        let (to_upload, mut sealed) = mpsc::channel(1);
        let made = Mutex::new(VecDeque::new());
        let points = Mutex::new(Vec::new());
        let upload = Upload::new(context.clone(), claimed);
        let uploading = upload.run(&mut sealed, |published| {
            for entry in published.entries() {
                let (last, at) = made.lock().unwrap().pop_front().unwrap();
                assert_eq!(last, entry.last, "in order");
                let point = Point {
                    made: at,
                    published: self.clock.monotonic(),
                    bytes: entry.source_bytes,
                };
                points.lock().unwrap().push(point);
            }
        });
        let writing = self.write(&context, habit, &made, to_upload);
        let (ended, ()) = join(uploading, writing).await;
        ended.unwrap();
        points.into_inner().unwrap()
    }

    async fn write(
        &self,
        context: &UploadContext,
        habit: Habit,
        made: &Mutex<VecDeque<(Sequence, Duration)>>,
        to_upload: mpsc::Sender<Sealed>,
    ) {
        let mut stream = Stream::new(context, &self.noise[..habit.bytes]);
        let mut due = self.clock.monotonic();
        while self.clock.monotonic() < self.end && due < self.end {
            if let Some(every) = habit.every {
                due += every;
                self.clock.sleep(due.saturating_sub(self.clock.monotonic())).await;
            }
            // What was written while this machine waited is as old as it is.
            let at = habit.every.map_or(self.clock.monotonic(), |_| due);
            let sealed = stream.next();
            made.lock().unwrap().push_back((sealed.entry().last, at));
            let (who, bytes) = (context.who(), habit.bytes as u64);
            // Given back when it is handed on; the pool's objects keep theirs until they stand.
            let room = self.room.take(who, bytes, bytes).await;
            let thread = self.threads.take(who, 1, bytes).await;
            self.clock.sleep(Duration::from_secs_f64(bytes as f64 / 200e6)).await;
            drop(thread);
            to_upload.send(sealed).await.unwrap();
            drop(room);
        }
    }
}

/// One machine's batches.
struct Stream<'a> {
    batcher: Batcher,
    machine: MachineId,
    key: MachineKey,
    keys: KeyRing,
    entropy: Arc<Seeded>,
    payload: &'a [u8],
    next: u64,
    previous: Option<DeltaId>,
}

impl<'a> Stream<'a> {
    fn new(context: &UploadContext, payload: &'a [u8]) -> Self {
        let machine = context.log.machine().clone();
        let key = MachineKey::of(&machine);
        let settings = BatchSettings { bytes_max: 8 << 20, age_max: Duration::from_secs(3_600) };
        Self {
            batcher: Batcher::new(key, StreamState::BEGINNING, settings),
            keys: context.log.keys().clone(),
            entropy: Seeded::new(u64::from(key.0[0]) << 8 | u64::from(key.0[1])),
            machine,
            key,
            payload,
            next: 1,
            previous: None,
        }
    }

    fn push(&mut self, change: Change) {
        let record = Record { sequence: Sequence(self.next), change };
        self.next += 1;
        self.batcher.push(Durable::never_written(self.key, record), Duration::ZERO).unwrap();
    }

    fn next(&mut self) -> Sealed {
        if self.next == 1 {
            let name = "root".parse().unwrap();
            let disk = DiskSpec { index: DiskIndex(0), name, size_bytes: 1 << 30 };
            self.push(Change::EpochBegin(EpochBegin { epoch: Epoch(1), disks: vec![disk] }));
        }
        let extent = Extent::new(0, self.payload.len() as u64, 1 << 20).unwrap();
        let payload = Bytes::copy_from_slice(self.payload);
        self.push(Change::Write { disk: DiskIndex(0), extent, payload: payload.into() });
        self.push(Change::Bookmark(Bookmark {
            id: BookmarkId(random16(self.entropy.as_ref())),
            kind: BookmarkKind::CrashConsistent,
            time: crate::model::Timestamp(self.next as i64),
            name: String::new(),
        }));
        let batch = self.batcher.poll(Duration::ZERO).expect("a bookmark closes it");
        let id = DeltaId(random16(self.entropy.as_ref()));
        let lineage = Lineage {
            machine: self.machine.clone(),
            generation: crate::model::Generation(1),
            id,
            previous: self.previous.replace(id),
            created: crate::model::Timestamp(0),
        };
        let settings = SealSettings { threads: 1, level: 1, frame_bytes: 64 << 10 };
        seal(batch, lineage, self.keys.newest(), &settings, false, self.entropy.as_ref()).unwrap()
    }
}

const LOUD: Habit = Habit { bytes: 1 << 20, every: None };
const QUIET: Habit = Habit { bytes: 8 << 10, every: Some(Duration::from_secs(1)) };

/// After so long the number of streams fits the line.
const FOUND: Duration = Duration::from_secs(5);

/// The 99th percentile of how old the newest point of a machine was just before the next.
fn rpo_p99(machines: &[Vec<Point>]) -> f64 {
    let mut ages: Vec<f64> = machines
        .iter()
        .flat_map(|points| points.windows(2))
        .filter(|pair| pair[0].made >= FOUND)
        .map(|pair| (pair[1].published - pair[0].made).as_secs_f64())
        .collect();
    ages.sort_by(f64::total_cmp);
    ages[ages.len() * 99 / 100]
}

/// Fifty quiet machines with and without a loud one that fills the line.
fn quiet_rpo(rate: RateSchedule) -> (f64, f64, f64) {
    let (line, seconds) = (4_000_000, 20);
    let alone = Fleet::new(line, 0..0, rate.clone(), seconds).run(&[QUIET; 50]);
    let mut habits = vec![QUIET; 50];
    habits.push(LOUD);
    let fleet = Fleet::new(line, 0..0, rate, seconds);
    let beside = fleet.run(&habits);
    let loud: u64 = beside[50].iter().map(|point| point.bytes).sum();
    let quiet = beside[..50].iter().map(Vec::len).sum::<usize>();
    assert!(quiet > 50 * (seconds as usize - 1), "everything was published: {quiet}");
    (rpo_p99(&alone), rpo_p99(&beside[..50]), loud as f64 / seconds as f64)
}

#[test]
fn a_loud_machine_does_not_cost_the_quiet_their_rpo() {
    let (alone, beside, loud) = quiet_rpo(RateSchedule::default());
    assert!(beside <= 2.0 * alone, "p99 {beside:.3} s beside, {alone:.3} s without the loud one");
    assert!(loud > 2_500_000.0, "the line is not left idle: {loud:.0} bytes/s");
}

#[test]
fn nor_under_a_rate_limit() {
    let rate = RateSchedule { default: Some(2_000_000), windows: Vec::new() };
    let (alone, beside, loud) = quiet_rpo(rate);
    assert!(beside <= 2.0 * alone, "p99 {beside:.3} s beside, {alone:.3} s without the loud one");
    assert!((1_200_000.0..2_000_000.0).contains(&loud), "{loud:.0} bytes/s");
}

/// Machines that had been idle and write in an outage: the breaker is for them, too.
#[test]
fn machines_that_wake_in_an_outage_make_no_storm() {
    let fleet = Fleet::new(4_000_000, 10..310, RateSchedule::default(), 400);
    let wake = |number: usize| {
        let fleet = &fleet;
        async move {
            let machine: MachineId = format!("m-{number}").parse().unwrap();
            let context = fleet.context(&machine, number);
            let claimed = claim(&context, &"ps".parse().unwrap()).await.unwrap();
            fleet.clock.sleep(Duration::from_secs(20)).await;
            let resumed = resume(&context, claimed.manifest.generation).await.unwrap();
            assert_eq!(resumed.manifest, claimed.manifest);
        }
    };
    fleet.clock.run(join_all((0..50).map(wake)));
    let (asked, usual) = (fleet.requests(), 50 * 3);
    let probes = fleet.metrics.pacing.probes.load(Ordering::Relaxed);
    assert!(asked <= usual + usual / 3 + probes, "{asked} requests, {probes} of them probes");
    assert!(probes < 100, "{probes} probes");
}

/// What waits while the store is away has not used the line: afterwards the rate holds at once.
#[test]
fn a_rate_holds_right_after_an_outage() {
    let (rate, back) = (200_000, 120);
    let schedule = RateSchedule { default: Some(rate), windows: Vec::new() };
    let fleet = Fleet::new(40_000_000, 10..back, schedule, 300);
    let machines =
        fleet.run(&[Habit { bytes: 400 << 10, every: Some(Duration::from_secs(15)) }; 6]);
    let back = Duration::from_secs(back);
    let soon = back..back + Duration::from_secs(30);
    let points = machines.iter().flatten().filter(|point| soon.contains(&point.published));
    let bytes: u64 = points.map(|point| point.bytes).sum();
    // Beside the half minute's: objects that were under way when the store went, one a stream.
    let most = 30 * rate + 8 * (400 << 10);
    assert!(bytes <= most, "{bytes} bytes in half a minute after the outage, {most} allowed");
    assert!(bytes >= 10 * rate, "{bytes} bytes: it went on");
}

/// Ten minutes without a store, at 0.4 of what the line carries.
#[test]
fn an_outage_makes_no_storm_and_the_backlog_drains_at_twice_the_ingest() {
    let habit = Habit { bytes: 60 << 10, every: Some(Duration::from_secs(6)) };
    let habits = [habit; 6];
    let ingest = 6.0 * 10.0 * 1024.0;
    let line = (ingest * 2.5) as u64;
    let (out, back, end) = (30, 630, 1_200);
    let expected = {
        let usual = Fleet::new(line, 0..0, RateSchedule::default(), end);
        usual.run(&habits);
        usual.requests()
    };
    let fleet = Fleet::new(line, out..back, RateSchedule::default(), end);
    let machines = fleet.run(&habits);
    assert!(machines.iter().all(|points| points.len() == end as usize / 6), "nothing is lost");
    let probes = fleet.metrics.pacing.probes.load(Ordering::Relaxed);
    let found = fleet.requests();
    assert!(found as f64 <= 1.3 * expected as f64 + probes as f64, "{found} for {expected}");
    assert!(probes < 100, "{probes} probes");
    // From the first answer to when points are as fresh as ever.
    let all = || machines.iter().flatten();
    let first = all().map(|point| point.published).filter(|at| at.as_secs() > back).min().unwrap();
    assert!(first < Duration::from_secs(back + 20), "noticed after {first:?}");
    let late = |point: &&Point| point.published - point.made > Duration::from_secs(3);
    let drained = all().filter(late).map(|point| point.published).max().unwrap();
    let during = |point: &&Point| (first..drained).contains(&point.published);
    let bytes: u64 = all().filter(during).map(|point| point.bytes).sum();
    let rate = bytes as f64 / (drained - first).as_secs_f64();
    assert!(rate >= 2.0 * ingest, "{rate:.0} bytes/s for an ingest of {ingest:.0}");
}
