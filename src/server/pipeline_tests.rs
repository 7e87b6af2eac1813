//! A pipeline that rests and wakes, over a store that counts, under a clock that the test moves.

use std::cell::Cell;

use super::*;
use crate::clock::{Clock, System};
use crate::cloud_log::{ENTRIES_MAX, LogStore};
use crate::format::names;
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, Change, DiskIndex, DiskSpec, Epoch, EpochBegin,
    Extent, MachineId, MachineKey, Record, Sequence, Timestamp,
};
use crate::observe::Metrics;
use crate::seal::{KeyEncryptionKey, KeyRing};
use crate::server::testing::{Hands, settings, uplink};
use crate::settings::Tuning;
use crate::store::faulty::{Fault, Gate, Op, Rule};
use crate::store::{Condition, Faulty, Memory, Store};
use crate::turns::Turns;
use crate::upload::{Uplink, claim};

/// What the machines of a server share.
struct Ground {
    faulty: Arc<Faulty>,
    clock: Arc<Hands>,
    metrics: Arc<Metrics>,
    uplink: Arc<Uplink>,
    pool: Arc<SealPool>,
    room: Turns,
    settings: watch::Receiver<Arc<ServerSettings>>,
}

impl Ground {
    /// `room` bytes for objects.
    fn new(room: u64) -> Self {
        let clock = Arc::new(Hands::default());
        let memory: Arc<dyn Store> = Arc::new(Memory::new(Arc::clone(&clock) as _));
        let metrics = Arc::new(Metrics::default());
        let (settings, room) = (settings(), Turns::new(room, 0));
        let (pool_clock, shared) = (Arc::clone(&clock) as _, Arc::clone(&metrics));
        let (seal, entropy) = (settings.seal.clone(), System::entropy());
        let pool = SealPool::new(seal, room.clone(), shared, pool_clock, entropy);
        Self {
            faulty: Arc::new(Faulty::new(memory)),
            uplink: uplink(&clock, &metrics),
            pool: Arc::new(pool.unwrap()),
            settings: Tuning::from(settings).subscribe(),
            clock,
            metrics,
            room,
        }
    }
}

struct Rig {
    faulty: Arc<Faulty>,
    clock: Arc<Hands>,
    context: UploadContext,
    metrics: Arc<MachineMetrics>,
    records: mpsc::UnboundedSender<Durable>,
    /// A handle on each: it tells who else has one.
    pushed: Vec<Durable>,
    task: tokio::task::JoinHandle<Ended>,
    /// What it gave away when it was fenced.
    given: Arc<std::sync::Mutex<Vec<Durable>>>,
    /// Told when it was fenced.
    detached: tokio::sync::oneshot::Receiver<()>,
    next: u64,
    looks: Cell<u64>,
}

impl Rig {
    async fn new() -> Self {
        Self::on(&Ground::new(64 << 20), "web").await
    }

    async fn on(ground: &Ground, machine: &str) -> Self {
        let machine: MachineId = machine.parse().unwrap();
        let kek = KeyEncryptionKey::of([7; 32].into());
        let (key, _) = kek.make_data_key(&machine, 1, &System, Timestamp(0));
        let metrics = ground.metrics.machine(&machine);
        let keys = KeyRing::of(machine.clone(), key.clone());
        let (faulty, clock) = (Arc::clone(&ground.faulty), Arc::clone(&ground.clock));
        let context = UploadContext {
            log: Arc::new(LogStore::new(Arc::clone(&faulty) as _, machine, keys)),
            clock: Arc::clone(&clock) as _,
            entropy: System::entropy(),
            metrics: Arc::clone(&ground.metrics),
            uplink: Arc::clone(&ground.uplink),
            block_bytes: Arc::new((1 << 20).into()),
            entries_max: ENTRIES_MAX,
        };
        let claimed = claim(&context, &"ps-1".parse().unwrap()).await.unwrap();
        let pipeline = Pipeline {
            context: context.clone(),
            generation: claimed.manifest.generation,
            published: AtomicU64::new(0),
            key,
            pool: Arc::clone(&ground.pool),
            settings: ground.settings.clone(),
            keep_every_write: Arc::default(),
            link: Weak::new(),
            metrics: Arc::clone(&metrics),
            news: Arc::default(),
            stuck: Arc::default(),
        };
        let (records, durable) = mpsc::unbounded_channel();
        let (fenced, detached) = tokio::sync::oneshot::channel();
        let detach = async move { fenced.send(()).unwrap() };
        let given = Arc::<std::sync::Mutex<Vec<Durable>>>::default();
        let taken = Arc::clone(&given);
        let give = move |records| taken.lock().unwrap().extend(records);
        let task = tokio::spawn(pipeline.run(durable, give, detach));
        let (pushed, looks) = (Vec::new(), Cell::new(1));
        let next = 1;
        Self {
            faulty,
            clock,
            context,
            metrics,
            records,
            pushed,
            task,
            given,
            detached,
            next,
            looks,
        }
    }

    fn push(&mut self, change: Change) {
        let sequence = Sequence(self.next);
        self.next += 1;
        let machine = MachineKey::of(self.context.log.machine());
        let durable = Durable::never_written(machine, Record { sequence, change });
        self.metrics.backlog_bytes.fetch_add(durable.payload().len() as u64, Ordering::Relaxed);
        self.pushed.push(durable.clone());
        self.records.send(durable).unwrap();
    }

    fn begin(&mut self) {
        let name = "root".parse().unwrap();
        let disks = vec![DiskSpec { index: DiskIndex(0), name, size_bytes: 1 << 20 }];
        self.push(Change::EpochBegin(EpochBegin { epoch: Epoch(1), disks }));
        self.push(Change::CatchUpBegin(CatchUp::InitialReplication));
        self.push(Change::CatchUpEnd);
    }

    fn write(&mut self) {
        let extent = Extent::new(self.next * 512, 512, 1 << 20).unwrap();
        let payload = vec![self.next as u8; 512].into();
        self.push(Change::Write { disk: DiskIndex(0), extent, payload });
    }

    /// A batch of its own.
    fn bookmark(&mut self) {
        let (id, time) = (BookmarkId([1; 16]), self.clock.wall());
        let (kind, name) = (BookmarkKind::CrashConsistent, String::new());
        self.push(Change::Bookmark(Bookmark { id, kind, time, name }));
    }

    fn is_stopped(&self) -> bool {
        self.metrics.trouble.lock().unwrap().is_some()
    }

    /// Lets the batch grow old, and waits until the seal threads and the upload are through.
    async fn published(&self) -> u64 {
        loop {
            self.clock.advance(Duration::from_secs(1)).await;
            self.looks.set(self.looks.get() + 1);
            let manifest = self.context.log.manifest().await.unwrap().unwrap().0;
            if manifest.published.0 + 1 == self.next {
                return manifest.entries.len() as u64;
            }
            std::thread::yield_now();
        }
    }

    /// Reads of the manifest by the pipeline: all but those of the claim and of this rig.
    fn reads(&self) -> u64 {
        self.faulty.calls(Op::Read, "manifest") - self.looks.get()
    }
}

#[tokio::test]
async fn a_quiet_machine_is_let_go_and_goes_on_where_it_was() {
    let mut rig = Rig::new().await;
    rig.begin();
    rig.write();
    assert_eq!(rig.published().await, 1);
    rig.write();
    assert_eq!(rig.published().await, 2);
    assert_eq!(rig.reads(), 1, "once for a time of being awake");
    // A quiet time: nothing is read, nothing is written.
    rig.clock.advance(QUIET * 100).await;
    assert_eq!(rig.reads(), 1);
    // The next write comes after the last one, in a chain that recovery can follow.
    rig.write();
    rig.write();
    assert_eq!(rig.published().await, 3);
    assert_eq!(rig.reads(), 2, "it had been let go");
    let log = &rig.context.log;
    let manifest = log.manifest().await.unwrap().unwrap().0;
    let mut previous = None;
    for entry in &manifest.entries {
        log.open_delta(entry, previous).await.unwrap();
        previous = Some(entry.id);
    }
    drop(rig.records);
    rig.task.await.unwrap();
}

#[tokio::test]
async fn a_machine_that_was_taken_while_it_was_quiet_publishes_nothing() {
    let mut rig = Rig::new().await;
    rig.begin();
    rig.write();
    rig.published().await;
    rig.clock.advance(QUIET * 2).await;
    let theirs = claim(&rig.context, &"ps-2".parse().unwrap()).await.unwrap();
    rig.write();
    let Rig { task, context, records, mut pushed, given, detached, .. } = rig;
    detached.await.unwrap(); // it finds out although its queue is open
    let given = || given.lock().unwrap().iter().map(Durable::sequence).collect::<Vec<_>>();
    let last = pushed.pop().unwrap();
    assert_eq!(given(), [last.sequence()], "it may be the only copy, and room is waited for");
    records.send(last.clone()).unwrap();
    drop(records);
    let Ended { fenced, held } = task.await.unwrap();
    assert!(fenced && held.is_empty());
    assert_eq!(given(), [last.sequence(); 2], "and what became durable afterwards");
    let manifest = context.log.manifest().await.unwrap().unwrap().0;
    assert_eq!(manifest, theirs.manifest);
}

/// Two machines have uploads under way and more to seal; then their manifests are gone, which no
/// waiting cures. What they have begun to seal must not keep the others from memory and threads, and
/// their records must stay in the cache log until that has closed.
#[tokio::test]
async fn machines_that_stopped_hold_their_records_and_nothing_else() {
    let room = 1_300_000; // half of it: one batch while it is sealed, and a small one
    let ground = Ground::new(room);
    let (gate, shut) = (Gate::new(), Gate::new());
    let put = |gate: &Gate, first: &str| {
        Rule::on(Op::Put, Fault::Hold(gate.clone())).named(&format!("-{first:0>16}-"))
    };
    ground.faulty.add(put(&gate, "1"));
    ground.faulty.add(put(&shut, "5"));
    let mut stopping = Vec::new();
    for nth in 0..2 {
        let mut rig = Rig::on(&ground, &format!("stops-{nth}")).await;
        rig.begin();
        rig.bookmark();
        stopping.push(rig);
    }
    gate.arrived(2).await;
    stopping[0].bookmark();
    shut.arrived(1).await; // an upload that is under way when its machine stops
    // What they begin to seal now waits for room.
    let rest = room - ground.room.in_use();
    let taken = ground.room.take(MachineKey([9; 16]), rest, rest).await;
    stopping.iter_mut().for_each(|rig| (0..9).for_each(|_| rig.bookmark()));
    let mut steps = 0..100_000;
    while ground.room.waiting() < 8 {
        steps.next().expect("it comes to an end");
        ground.clock.advance(Duration::from_millis(1)).await;
    }
    for rig in &stopping {
        let manifest = names::manifest(rig.context.log.machine());
        ground.faulty.delete(&manifest, Condition::Always).await.unwrap();
    }
    gate.open();
    let mut steps = 0..100_000;
    while !stopping.iter().all(Rig::is_stopped) {
        steps.next().expect("it comes to an end");
        ground.clock.advance(Duration::from_secs(1)).await;
    }
    drop(taken);
    let mut web = Rig::on(&ground, "web").await;
    web.begin();
    web.write();
    let others_go_on = async {
        web.published().await;
        let mut steps = 0..100_000;
        while ground.room.in_use() > 0 || ground.pool.waiting() > 0 {
            steps.next().expect("it comes to an end");
            ground.clock.advance(Duration::from_millis(1)).await;
        }
    };
    let hang = Duration::from_secs(60);
    tokio::time::timeout(hang, others_go_on).await.expect("what stopped keeps room from others");
    assert_eq!(ground.uplink.uploads_waiting(), 0);
    for Rig { records, pushed, task, .. } in stopping {
        assert!(pushed.iter().all(|record| record.holders() > 1), "their segments may be recycled");
        drop(records);
        task.await.unwrap();
        assert!(pushed.iter().all(|record| record.holders() == 1), "let go when the log is closed");
    }
}

#[tokio::test]
async fn a_record_that_does_not_follow_is_held_with_those_before_it() {
    let mut rig = Rig::new().await;
    rig.begin();
    rig.write();
    rig.published().await;
    rig.write();
    rig.next += 1;
    rig.write();
    let mut steps = 0..100_000;
    while !rig.is_stopped() {
        steps.next().expect("it comes to an end");
        rig.clock.advance(Duration::from_millis(1)).await;
    }
    let Rig { records, pushed, task, .. } = rig;
    let (published, held) = pushed.split_at(4);
    assert!(published.iter().all(|record| record.holders() == 1), "they were let go");
    assert!(held.iter().all(|record| record.holders() > 1), "their segments may be recycled");
    drop(records);
    task.await.unwrap();
    assert!(pushed.iter().all(|record| record.holders() == 1));
}
