//! Histories of one shard: appends, publishing, stops of every kind; after each stop, recovery and
//! the oracle.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::FutureExt;
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::computer::{Computer, Shared};
use super::oracle::Oracle;
use crate::budget::Permit;
use crate::cache::flush::Open;
use crate::cache::lineage::Lineage;
use crate::cache::log::{Batch, Entry};
use crate::cache::pool::{Geometry, Keeper};
use crate::cache::{Damage, Durable, open, recovery, writer};
use crate::clock::Entropy;
use crate::ingest::Admitted;
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, Change, DiskIndex, Extent, Generation, MachineKey, Record,
    Sequence, Timestamp,
};
use crate::observe::Metrics;

/// Rotation and reuse happen in every history.
pub(in crate::cache) const GEOMETRY: Geometry =
    Geometry { segment_bytes: 4096 + 6144, segments_max: 6 };

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Records of these machines, admitted together.
    Append(Vec<(u8, u8)>),
    /// This many of a machine's records are published.
    Publish(u8, u8),
    /// The process ends in order.
    Stop,
    /// The process is killed; the page cache stays.
    Kill,
    /// The power goes now.
    PowerCut,
    /// The power goes at the n-th operation from here.
    Fuse(u8),
    /// The next sync fails.
    FailSync,
    /// Another server owned the machine, published this much more, and lost the rest.
    Elsewhere(u8, u8),
    /// A bit flips, then the process is killed.
    Flip,
    /// A bit of the segment at this place of the log flips.
    Rot(u64, usize),
}

pub(super) fn steps(flips: bool) -> impl Strategy<Value = Vec<Step>> {
    let append = prop::collection::vec((0u8..3, 0u8..6), 1..12).prop_map(Step::Append);
    let step = prop_oneof![
        10 => append,
        6 => (0u8..3, 1u8..20).prop_map(|(machine, count)| Step::Publish(machine, count)),
        1 => Just(Step::Stop),
        2 => Just(Step::Kill),
        2 => Just(Step::PowerCut),
        2 => (0u8..24).prop_map(Step::Fuse),
        1 => Just(Step::FailSync),
        2 => if flips {
            Just(Step::Flip).boxed()
        } else {
            let elsewhere = (0u8..3, 0u8..4);
            elsewhere.prop_map(|(machine, more)| Step::Elsewhere(machine, more)).boxed()
        },
    ];
    prop::collection::vec(step, 1..40)
}

/// A process server's shard and the world around it.
pub(super) struct World {
    pub(super) computer: Shared,
    oracle: Oracle,
    process: Option<Process>,
    entropy: Arc<dyn Entropy>,
    metrics: Metrics,
    salt: u8,
    /// What the newest start found.
    pub(super) damage: Vec<Damage>,
}

struct Process {
    keeper: Keeper,
    freed: mpsc::UnboundedSender<crate::cache::file::Slot>,
    returned: mpsc::UnboundedReceiver<crate::cache::file::Slot>,
    lineage: Lineage,
    open: Option<Open>,
    held: VecDeque<Durable>,
}

struct Counter(std::sync::atomic::AtomicU64);
impl Entropy for Counter {
    fn fill(&self, target: &mut [u8]) {
        let n = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        target.fill(0xA5);
        target[..8].copy_from_slice(&n.to_le_bytes());
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let entropy = Arc::new(Counter(std::sync::atomic::AtomicU64::new(1)));
        Self::with(seed, entropy)
    }

    pub(super) fn with(seed: u64, entropy: Arc<dyn Entropy>) -> Self {
        Self {
            computer: Computer::shared(seed),
            oracle: Oracle::default(),
            process: None,
            entropy,
            metrics: Metrics::default(),
            salt: 0,
            damage: Vec::new(),
        }
    }

    /// The agent sends again what it sent before, never something else.
    pub(super) fn repeating(&mut self) {
        self.oracle.repeats = true;
    }

    /// What was acknowledged of a machine's records and is there yet, or published.
    pub(super) fn acked(&mut self, machine: u8) -> u64 {
        self.oracle.stream(MachineKey([machine; 16])).acked
    }

    /// Runs a history; the first broken promise is the error.
    pub(super) fn run(&mut self, steps: &[Step]) -> Result<(), String> {
        self.start()?;
        for step in steps {
            self.step(step)?;
        }
        self.end(Step::PowerCut)
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Append(records) => self.append(records),
            Step::Publish(machine, count) => self.publish(*machine, *count),
            Step::Fuse(operations) => {
                self.computer.lock().fuse = Some(u64::from(*operations));
                Ok(())
            }
            Step::FailSync => {
                self.computer.lock().fail_sync = true;
                Ok(())
            }
            Step::Elsewhere(machine, more) => {
                self.elsewhere(*machine, *more);
                Ok(())
            }
            Step::Rot(ordinal, at) => {
                self.computer.lock().rot(*ordinal, *at);
                self.oracle.flip();
                Ok(())
            }
            Step::Stop | Step::Kill | Step::PowerCut | Step::Flip => self.end(step.clone()),
        }
    }

    /// The process ends; the next one starts.
    fn end(&mut self, how: Step) -> Result<(), String> {
        if matches!(how, Step::Stop)
            && let Some(process) = &mut self.process
        {
            let _the_power_may_go = process.stop();
        }
        self.process = None; // nothing is freed: the pool ends with it
        let mut computer = self.computer.lock();
        computer.fail_sync = false;
        if matches!(how, Step::PowerCut) || !computer.powered {
            computer.power_cut();
        }
        if matches!(how, Step::Flip) {
            computer.flip();
            self.oracle.flip();
        }
        drop(computer);
        self.start()
    }

    /// Recovers, through power cuts, until it succeeds.
    pub(super) fn start(&mut self) -> Result<(), String> {
        loop {
            match self.try_start() {
                Some(started) => return started,
                None => self.computer.lock().power_cut(),
            }
        }
    }

    /// `None` if the power went.
    fn try_start(&mut self) -> Option<Result<(), String>> {
        let (freed, returned) = mpsc::unbounded_channel();
        let recovered = recovery::recover(
            Arc::new(self.computer.clone()),
            GEOMETRY,
            0,
            Arc::clone(&self.entropy),
            &self.metrics,
        );
        if !self.computer.lock().powered {
            return None;
        }
        let mut recovered = match recovered {
            Ok(recovered) => recovered,
            Err(cause) => return Some(Err(format!("recovery gave up: {cause}"))),
        };
        let (durable, lineage) = open::durable(&mut recovered, &freed).unwrap();
        let reported = self.reported();
        let durable = durable.into_iter().map(|survivor| survivor.record).collect();
        let checked = self.oracle.check(durable, reported, &recovered.damage);
        self.damage = recovered.damage;
        let mut keeper = recovered.keeper;
        for slot in recovered.stale {
            keeper.take_back(slot);
        }
        if !self.computer.lock().powered {
            return checked.err().map(Err);
        }
        Some(checked.map(|held| {
            self.process =
                Some(Process { keeper, freed, returned, lineage, open: None, held: held.into() });
        }))
    }

    /// Damage that was reported since this was asked last.
    fn reported(&self) -> u64 {
        let damage = &self.metrics.cache_damage;
        damage.swap(0, std::sync::atomic::Ordering::Relaxed)
    }

    fn append(&mut self, records: &[(u8, u8)]) -> Result<(), String> {
        let (sender, mut receiver) = mpsc::channel(records.len());
        let mut next: [u64; 3] = [0; 3];
        for &(machine, kind) in records {
            let key = MachineKey([machine; 16]);
            let sequence = &mut next[usize::from(machine)];
            if *sequence == 0 {
                *sequence = self.oracle.stream(key).acked + 1;
            }
            self.salt = self.salt.wrapping_add(1);
            let again = (*sequence as u8).wrapping_mul(5).wrapping_add(machine);
            let change = match self.oracle.repeats {
                true => change(again % 6, again),
                false => change(kind, self.salt),
            };
            let record = Record { sequence: Sequence(*sequence), change };
            *sequence += 1;
            self.oracle.admit(key, &record);
            let admitted = Admitted {
                machine: key,
                generation: Generation(1),
                record,
                permit: Permit::none(),
                received_at: std::time::Duration::ZERO,
            };
            sender.try_send(admitted).unwrap();
        }
        let process = self.process.as_mut().unwrap();
        let oracle = &mut self.oracle;
        match process.write(&mut receiver, |durable| oracle.ack(durable)) {
            Ok(()) => Ok(()),
            Err(_) => self.end(Step::Kill), // poisoned, or the power went
        }
    }

    fn publish(&mut self, machine: u8, count: u8) -> Result<(), String> {
        let key = MachineKey([machine; 16]);
        let stream = self.oracle.stream(key);
        stream.published = stream.acked.min(stream.published + u64::from(count));
        let published = stream.published;
        let process = self.process.as_mut().unwrap();
        let published = |r: &Durable| r.machine() == key && r.sequence().0 <= published;
        process.held.retain(|record| !published(record));
        process.take_back();
        let powered = self.computer.lock().powered;
        if powered { Ok(()) } else { self.end(Step::Kill) }
    }

    fn elsewhere(&mut self, machine: u8, more: u8) {
        let key = MachineKey([machine; 16]);
        let stream = self.oracle.stream(key);
        let last = stream.published + u64::from(more);
        self.oracle.begin_again(key, last);
        let process = self.process.as_mut().unwrap();
        process.held.retain(|record| record.machine() != key);
        process.take_back();
    }
}

impl Process {
    fn take_back(&mut self) {
        while let Ok(slot) = self.returned.try_recv() {
            self.keeper.take_back(slot);
        }
    }

    /// As `Writer::run` does. A full cache leaves the rest unadmitted.
    fn write(
        &mut self,
        admitted: &mut mpsc::Receiver<Admitted>,
        mut acked: impl FnMut(&[Durable]),
    ) -> Result<(), String> {
        let mut left_over = None;
        loop {
            let Some(first) =
                left_over.take().or_else(|| admitted.try_recv().ok().map(Entry::from))
            else {
                return Ok(());
            };
            let mut segment = match self.open.take() {
                Some(segment) => segment,
                None => {
                    self.take_back();
                    let Ok(prepared) = self.keeper.prepare() else {
                        return Ok(());
                    };
                    let (slot, freed) = (prepared.slot, self.freed.clone());
                    let open = Open::begin(slot, &prepared.header, freed);
                    let open = open.map_err(|cause| cause.to_string())?;
                    self.lineage.begin(open.segment());
                    open
                }
            };
            let (mut batch, rest) = writer::gather(&mut segment, first, admitted);
            left_over = rest;
            self.lineage.append(&batch);
            let durable = segment.commit(&mut batch).now_or_never().unwrap();
            let durable = durable.map_err(|cause| cause.to_string())?;
            acked(&durable);
            self.held.extend(durable);
            if !batch.closes {
                self.open = Some(segment);
            }
        }
    }

    fn stop(&mut self) -> Result<(), String> {
        if let Some(mut segment) = self.open.take().filter(|s| !s.layout.is_empty()) {
            let mut end = Batch::end(&mut segment.layout);
            let closed = segment.commit(&mut end).now_or_never().unwrap();
            closed.map_err(|cause| cause.to_string())?;
        }
        Ok(())
    }
}

fn change(kind: u8, salt: u8) -> Change {
    let disk = DiskIndex(u16::from(salt % 3));
    let offset = u64::from(salt) * 512;
    let sectors = u64::from(kind);
    match kind {
        0 => Change::Zero { disk, extent: Extent::new(offset, 512, 512).unwrap() },
        1..=4 => Change::Write {
            disk,
            extent: Extent::new(offset, sectors * 512, 4096).unwrap(),
            payload: vec![salt; usize::from(kind) * 512].into(),
        },
        _ => Change::Bookmark(Bookmark {
            id: BookmarkId([salt; 16]),
            kind: BookmarkKind::CrashConsistent,
            time: Timestamp(i64::from(salt)),
            name: String::new(),
        }),
    }
}

fn histories(cases: u32) -> ProptestConfig {
    let cases = std::env::var("HOLDFAST_HISTORIES").map_or(cases, |n| n.parse().unwrap());
    ProptestConfig { cases, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(histories(1500))]

    #[test]
    fn what_was_acknowledged_comes_back(seed: u64, steps in steps(false)) {
        World::new(seed).run(&steps).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn a_flipped_bit_is_reported_and_never_served(seed: u64, steps in steps(true)) {
        let mut world = World::new(seed);
        world.repeating();
        world.run(&steps).map_err(TestCaseError::fail)?;
    }
}
