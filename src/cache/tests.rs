//! The writer and the pool on the model: what they say when the disk says no.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::durable::Durable;
use super::error::CacheError;
use super::file::{Appender, Aside, SegmentDirectory, SegmentFile, Slot};
use super::model::{Computer, GEOMETRY, Shared};
use super::open::{Opened, start};
use super::pool::{Geometry, Keeper, Prepared};
use super::recovery::recover;
use super::segment::SegmentBytes;
use super::writer::Writer;
use crate::budget::Budget;
use crate::clock::System;
use crate::ingest::Admitted;
use crate::model::{
    Change, DiskIndex, DiskSpec, Epoch, EpochBegin, Extent, Generation, MachineKey, Record,
    Sequence,
};
use crate::observe::Metrics;
use crate::settings::RECORDS_MEMORY_PART;
use crate::store::Class;

fn open(computer: &Shared) -> Opened {
    let metrics = Arc::new(Metrics::default());
    let directory: Arc<dyn SegmentDirectory> = Arc::new(computer.clone());
    let recovered = recover(directory, GEOMETRY, 0, System::entropy(), &metrics).unwrap();
    let opened = start(recovered, GEOMETRY, System::clock(), metrics).unwrap();
    opened.recycling.begin();
    opened
}

fn write(sequence: u64, budget: &Budget) -> Admitted {
    let payload = vec![sequence as u8; 512];
    Admitted {
        machine: MachineKey([1; 16]),
        generation: Generation(1),
        record: Record {
            sequence: Sequence(sequence),
            change: Change::Write {
                disk: DiskIndex(0),
                extent: Extent::new(sequence * 512, 512, 512).unwrap(),
                payload: payload.into(),
            },
        },
        permit: budget.try_acquire(512).unwrap(),
        received_at: std::time::Duration::ZERO,
    }
}

#[tokio::test]
async fn a_failed_sync_poisons_the_log_and_nothing_is_acknowledged_after_it() {
    let computer = Computer::shared(1);
    let opened = open(&computer);
    let budget = Budget::new(1 << 20);
    let (sender, admitted) = mpsc::channel(8);
    let newest = Arc::new(AtomicU64::new(0));
    let (seen, shared) = (Arc::clone(&newest), computer.clone());
    for sequence in 1..=2 {
        sender.try_send(write(sequence, &budget)).unwrap();
    }
    // The first append succeeds; from inside its acknowledgement the next sync is made to fail.
    let feed = sender.clone();
    let more = Budget::clone(&budget);
    let run = opened.writer.run(admitted, move |durable| {
        let last = durable.last().unwrap().sequence().0;
        seen.store(last, Ordering::SeqCst);
        shared.lock().fail_sync = true;
        for sequence in last + 1..last + 3 {
            feed.try_send(write(sequence, &more)).unwrap();
        }
        std::mem::forget(durable); // held by later stages
    });
    let error = run.await.unwrap_err();
    assert_eq!(error.class(), Class::Poison);
    let CacheError::Poisoned { path, offset, .. } = &error else {
        panic!("{error}");
    };
    assert!(path.ends_with("00000000.segment") || path.ends_with("00000001.segment"), "{error}");
    assert!(*offset > 4096, "{error}");
    assert_eq!(newest.load(Ordering::SeqCst), 2);
    assert_eq!(budget.free(), 1 << 20, "the permits came back");
}

#[tokio::test]
async fn permits_come_back_when_durable_and_segments_when_released() {
    let computer = Computer::shared(1);
    let opened = open(&computer);
    let budget = Budget::new(4096);
    let (sender, admitted) = mpsc::channel(4);
    let feed = async {
        for sequence in 1..=200 {
            let permit = budget.acquire(512).await; // waits for the log to give it back
            let mut record = write(sequence, &Budget::new(512));
            record.permit = permit;
            sender.send(record).await.unwrap();
        }
        drop(sender);
    };
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let fill = Arc::clone(&opened.fill);
    let run = opened.writer.run(admitted, move |durable| {
        for record in &durable {
            assert_eq!(counted.fetch_add(1, Ordering::SeqCst) + 1, record.sequence().0);
        }
    });
    let (ended, ()) = tokio::join!(run, feed);
    ended.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 200);
    assert!(fill.used_bytes() <= fill.max_bytes());
}

/// The pool has seen what came back before: it looks at that before it prepares a segment.
async fn turned(mut writer: Writer) {
    for _ in 0..2 {
        writer.pool.next().await.unwrap();
    }
}

/// A log whose server does not come to its start, or ends: what it lets go of nobody has published.
#[tokio::test]
async fn before_recycling_begins_and_after_it_ends_every_record_stays() {
    let computer = Computer::shared(1);
    let written = |sequences: std::ops::RangeInclusive<u64>| {
        let (sender, admitted) = mpsc::channel(sequences.clone().count());
        for sequence in sequences {
            sender.try_send(write(sequence, &Budget::new(512))).unwrap();
        }
        (sender, admitted)
    };
    let found = |computer: &Shared| {
        let metrics = Arc::new(Metrics::default());
        let directory: Arc<dyn SegmentDirectory> = Arc::new(computer.clone());
        let recovered = recover(directory, GEOMETRY, 0, System::entropy(), &metrics).unwrap();
        start(recovered, GEOMETRY, System::clock(), metrics).unwrap()
    };
    // Several segments of them; all are held while the log is open, as pipelines do.
    let opened = open(&computer);
    let (sender, admitted) = written(1..=8);
    let mut held = Vec::new();
    drop(sender);
    opened.writer.run(admitted, |durable| held.extend(durable)).await.unwrap();
    drop(held);
    drop(opened.recycling);
    // It is opened, and something else fails.
    let opened = found(&computer);
    assert_eq!(opened.recovered.len(), 8);
    drop(opened.recovered);
    turned(opened.writer).await;
    // It runs, and another shard's disk fails.
    let opened = found(&computer);
    assert_eq!(opened.recovered.len(), 8, "let go before anything was published");
    opened.recycling.begin();
    drop(opened.recycling);
    drop(opened.recovered);
    turned(opened.writer).await;
    let opened = found(&computer);
    assert_eq!(opened.recovered.len(), 8, "let go by a process that ended");
    // And what is let go while it runs makes room.
    opened.recycling.begin();
    drop(opened.recovered);
    turned(opened.writer).await;
    assert_eq!(found(&computer).recovered.len(), 0);
}

/// Whatever is in them: what lies in memory for the records of the log stays a part of the log.
#[tokio::test]
async fn records_without_bytes_fill_the_cache_by_the_memory_they_take() {
    let geometry = Geometry { segment_bytes: 4 << 20, segments_max: 8 };
    let disks = (0..64).map(|index| DiskSpec {
        index: DiskIndex(index),
        name: format!("disk{index}").parse().unwrap(),
        size_bytes: 1 << 20,
    });
    let begin = EpochBegin { epoch: Epoch(1), disks: disks.collect() };
    let zero = Change::Zero { disk: DiskIndex(0), extent: Extent::new(0, 4096, 4096).unwrap() };
    for (change, count, in_memory) in [(zero, 3000, 64), (Change::EpochBegin(begin), 40, 4600)] {
        let computer = Computer::shared(1);
        let metrics = Arc::new(Metrics::default());
        let directory: Arc<dyn SegmentDirectory> = Arc::new(computer.clone());
        let found = recover(directory, geometry, 0, System::entropy(), &metrics).unwrap();
        let opened = start(found, geometry, System::clock(), metrics).unwrap();
        let (sender, admitted) = mpsc::channel(count);
        for sequence in 1..=count as u64 {
            let record = Record { sequence: Sequence(sequence), change: change.clone() };
            let mut admitted = write(sequence, &Budget::new(512));
            admitted.record = record;
            sender.try_send(admitted).unwrap();
        }
        drop(sender);
        let mut held = Vec::new();
        let ended = opened.writer.run(admitted, |durable| held.extend(durable)).await;
        ended.unwrap();
        assert_eq!(held.len(), count, "nothing is refused for it");
        let (memory, used) = (in_memory * count as u64, opened.fill.used_bytes());
        assert!(memory <= used / RECORDS_MEMORY_PART, "{memory} bytes beside {used} of segments");
        assert!(used <= 2 * RECORDS_MEMORY_PART * memory, "and not much more is taken for it");
    }
}

/// A start with a log that may be whole elsewhere, or later, leaves it as it is.
#[tokio::test]
async fn a_log_of_another_shard_or_one_that_cannot_be_read_now_is_refused_and_kept() {
    let computer = Computer::shared(1);
    let opened = open(&computer);
    let (sender, admitted) = mpsc::channel(16);
    for sequence in 1..=12 {
        sender.try_send(write(sequence, &Budget::new(512))).unwrap();
    }
    drop(sender);
    let mut held = Vec::new();
    opened.writer.run(admitted, |durable| held.extend(durable)).await.unwrap();
    let metrics = Metrics::default();
    let found = |shard| {
        let directory: Arc<dyn SegmentDirectory> = Arc::new(computer.clone());
        recover(directory, GEOMETRY, shard, System::entropy(), &metrics)
    };
    // Its directory has another one's number.
    let misplaced = found(1).map(drop).unwrap_err();
    assert_eq!(misplaced.class(), Class::Reject);
    assert!(misplaced.to_string().contains("this one was shard-0"), "{misplaced}");
    // The first header cannot be read, twice; then once.
    computer.lock().fail_reads = 2;
    let unread = found(0).map(drop).unwrap_err();
    assert!(matches!(unread, CacheError::Io { .. }), "{unread}");
    assert_eq!(unread.class(), Class::Retry);
    assert!(unread.to_string().contains(".segment"), "{unread}");
    computer.lock().fail_reads = 1;
    let recovered = found(0).unwrap();
    assert_eq!(recovered.damage.len(), 0);
    let sequences: Vec<_> = recovered.records.iter().map(|found| found.sequence.0).collect();
    assert_eq!(sequences, (1..=12).collect::<Vec<_>>());
}

#[test]
fn after_a_failed_blanking_nothing_is_recycled_or_prepared() {
    let computer = Computer::shared(1);
    let metrics = Metrics::default();
    let directory: Arc<dyn SegmentDirectory> = Arc::new(computer.clone());
    let recovered = recover(directory, GEOMETRY, 0, System::entropy(), &metrics).unwrap();
    let mut keeper: Keeper = recovered.keeper;
    let slots: Vec<_> = (0..3).map(|_| keeper.prepare().unwrap()).collect();
    let [first, second, third] = slots.try_into().unwrap();
    let ordinals = [&first, &second, &third].map(|p: &Prepared| p.header.ordinal);
    assert_eq!(ordinals, [1, 2, 3]);
    keeper.take_back(first.slot);
    let blank = keeper.blank.len();
    computer.lock().fail_sync = true;
    let path = second.slot.file.path().display().to_string();
    keeper.take_back(second.slot);
    keeper.take_back(third.slot);
    assert_eq!(keeper.blank.len(), blank);
    let refusal = keeper.prepare().unwrap_err();
    assert!(refusal.contains(&path), "{refusal}");
}

/// A directory in which the header of a segment after the first few cannot be synced.
#[derive(Clone, Debug)]
struct Failing {
    computer: Shared,
    headers: Arc<AtomicU64>,
    good: u64,
}

#[derive(Debug)]
struct FailingFile {
    of: Failing,
    file: Arc<dyn SegmentFile>,
}

impl Failing {
    fn slot(&self, slot: Slot) -> Slot {
        let file = FailingFile { of: self.clone(), file: slot.file };
        Slot { number: slot.number, file: Arc::new(file) }
    }
}

impl SegmentDirectory for Failing {
    fn path(&self) -> &Path {
        self.computer.path()
    }

    fn slots(&self) -> io::Result<Vec<Slot>> {
        Ok(self.computer.slots()?.into_iter().map(|slot| self.slot(slot)).collect())
    }

    fn create(&self, number: u32, bytes: u64) -> io::Result<Slot> {
        self.computer.create(number, bytes).map(|slot| self.slot(slot))
    }

    fn remove(&self, slot: &Slot) -> io::Result<()> {
        self.computer.remove(slot)
    }

    fn set_aside(&self, slot: &Slot) -> io::Result<PathBuf> {
        self.computer.set_aside(slot)
    }

    fn aside(&self) -> io::Result<Vec<Aside>> {
        self.computer.aside()
    }
}

impl SegmentFile for FailingFile {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    fn read(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read(target, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write(bytes, offset)
    }

    /// The pool's: what is appended is synced by the appender.
    fn sync(&self) -> io::Result<()> {
        if self.of.headers.fetch_add(1, Ordering::SeqCst) >= self.of.good {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file.sync()
    }

    fn view(&self) -> io::Result<SegmentBytes> {
        self.file.view()
    }

    fn appender(&self) -> io::Result<Box<dyn Appender>> {
        self.file.appender()
    }
}

/// A shard that takes nothing in must not look alive: the process ends, and the next start recovers.
#[tokio::test]
async fn a_header_that_cannot_be_synced_ends_the_log_and_what_was_durable_is_found() {
    for good in 0..4 {
        let computer = Computer::shared(1);
        let failing = Failing { computer: computer.clone(), headers: Arc::default(), good };
        let metrics = Arc::new(Metrics::default());
        let directory: Arc<dyn SegmentDirectory> = Arc::new(failing);
        let found = recover(directory, GEOMETRY, 0, System::entropy(), &metrics).unwrap();
        let opened = start(found, GEOMETRY, System::clock(), metrics).unwrap();
        opened.recycling.begin();
        let (sender, admitted) = mpsc::channel(64);
        for sequence in 1..=40 {
            sender.try_send(write(sequence, &Budget::new(512))).unwrap();
        }
        let mut held = Vec::new();
        let run = opened.writer.run(admitted, |durable| held.extend(durable));
        let hang = std::time::Duration::from_secs(60);
        let error = tokio::time::timeout(hang, run).await.expect("it waits for ever").unwrap_err();
        assert_eq!(error.class(), Class::Poison, "{error}");
        let CacheError::Header { path, source } = &error else { panic!("{error}") };
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert_eq!(source.raw_os_error(), Some(5));
        assert_eq!(held.len() as u64, good * 9, "every segment that was prepared is used");
        drop(opened.recycling);
        let again = open(&computer);
        let again: Vec<_> = again.recovered.iter().map(|one| one.record.sequence()).collect();
        assert_eq!(again, held.iter().map(Durable::sequence).collect::<Vec<_>>());
    }
}
