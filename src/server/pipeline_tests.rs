//! A pipeline that rests and wakes, over a store that counts, under a clock that the test moves.

use std::cell::Cell;

use super::*;
use crate::clock::System;
use crate::cloud_log::{ENTRIES_MAX, LogStore};
use crate::model::{
    CatchUp, Change, DiskIndex, DiskSpec, Epoch, EpochBegin, Extent, MachineId, Record, Timestamp,
};
use crate::observe::Metrics;
use crate::seal::{KeyEncryptionKey, KeyRing};
use crate::server::testing::{Hands, settings, uplink};
use crate::settings::Tuning;
use crate::store::faulty::Op;
use crate::store::{Faulty, Memory, Store};
use crate::turns::Turns;
use crate::upload::claim;

struct Rig {
    faulty: Arc<Faulty>,
    clock: Arc<Hands>,
    context: UploadContext,
    metrics: Arc<MachineMetrics>,
    records: mpsc::UnboundedSender<Durable>,
    task: tokio::task::JoinHandle<()>,
    next: u64,
    looks: Cell<u64>,
}

impl Rig {
    async fn new() -> Self {
        let clock = Arc::new(Hands::default());
        let memory: Arc<dyn Store> = Arc::new(Memory::new(Arc::clone(&clock) as _));
        let faulty = Arc::new(Faulty::new(memory));
        let machine: MachineId = "web".parse().unwrap();
        let kek = KeyEncryptionKey::of([7; 32].into());
        let (key, _) = kek.make_data_key(&machine, 1, &System, Timestamp(0));
        let all = Arc::new(Metrics::default());
        let metrics = all.machine(&machine);
        let keys = KeyRing::of(machine.clone(), key.clone());
        let context = UploadContext {
            log: Arc::new(LogStore::new(Arc::clone(&faulty) as _, machine, keys)),
            clock: Arc::clone(&clock) as _,
            entropy: System::entropy(),
            metrics: Arc::clone(&all),
            uplink: uplink(&clock, &all),
            block_bytes: Arc::new((1 << 20).into()),
            entries_max: ENTRIES_MAX,
        };
        let claimed = claim(&context, &"ps-1".parse().unwrap()).await.unwrap();
        let settings = settings();
        let (pool_clock, room) = (Arc::clone(&clock) as _, Turns::new(64 << 20, 0));
        let (seal, entropy) = (settings.seal.clone(), System::entropy());
        let pool = SealPool::new(seal, room, all, pool_clock, entropy);
        let pipeline = Pipeline {
            context: context.clone(),
            generation: claimed.manifest.generation,
            published: AtomicU64::new(0),
            key,
            pool: Arc::new(pool.unwrap()),
            settings: Tuning::from(settings).subscribe(),
            keep_every_write: Arc::default(),
            link: Weak::new(),
            metrics: Arc::clone(&metrics),
            drain: watch::Sender::new(true).subscribe(),
            news: Arc::default(),
        };
        let (records, durable) = mpsc::unbounded_channel();
        let task = tokio::spawn(pipeline.run(durable));
        Self { faulty, clock, context, metrics, records, task, next: 1, looks: Cell::new(1) }
    }

    fn push(&mut self, change: Change) {
        let sequence = Sequence(self.next);
        self.next += 1;
        let machine = MachineKey::of(self.context.log.machine());
        let durable = Durable::never_written(machine, Record { sequence, change });
        self.metrics.backlog_bytes.fetch_add(durable.payload().len() as u64, Ordering::Relaxed);
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
    let Rig { task, context, .. } = rig;
    task.await.unwrap(); // it ends although its queue is open
    let manifest = context.log.manifest().await.unwrap().unwrap().0;
    assert_eq!(manifest, theirs.manifest);
}
