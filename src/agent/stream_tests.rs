//! The stream's rules, one by one, without a connection.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::attach::Unwelcome;
use super::bitmap::{self, Identity, Teller};
use super::buffer::cost;
use super::catchup::{self, Place};
use super::clearing::Round;
use super::disk::{Captured, Disk};
use super::locks::RangeLocks;
use super::medium::Medium;
use super::source_identity::SourceIdentity;
use super::stream::Stream;
use super::syncs::Syncs;
use super::turnover::{Awaited, Turnover};
use crate::format::wire::Welcome;
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, Change, DiskIndex, Epoch, Generation, MachineKey,
    Record, Sequence, Timestamp, TrackingMode, WRITE_BYTES_MAX,
};
use crate::nbd::Export;
use crate::settings::AgentMode;

pub(super) const DISK_BYTES: u64 = 4 << 20;
pub(super) const CHUNK: u64 = 65536;

pub(super) type Hook = Box<dyn FnOnce() + Send>;

/// Bytes in memory; `broken` makes every write fail half-way, `deaf` every sync; the hook runs
/// when the next read or write has touched the bytes and has not returned.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) bytes: Mutex<Vec<u8>>,
    pub(super) hook: Mutex<Option<Hook>>,
    pub(super) broken: AtomicBool,
    deaf: AtomicBool,
    /// How often it was synced.
    pub(super) syncs: AtomicU64,
}

impl Memory {
    fn run_hook(&self) {
        let hook = self.hook.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
    }
}

impl Medium for Arc<Memory> {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        target.copy_from_slice(&self.bytes.lock().unwrap()[at..at + target.len()]);
        self.run_hook();
        Ok(())
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let broken = self.broken.load(Ordering::Relaxed);
        let length = if broken { bytes.len() / 2 } else { bytes.len() };
        let at = offset as usize;
        self.bytes.lock().unwrap()[at..at + length].copy_from_slice(&bytes[..length]);
        self.run_hook();
        if broken {
            return Err(io::Error::other("broken"));
        }
        Ok(())
    }
    fn zero_at(&self, offset: u64, length: u64, _release: bool) -> io::Result<()> {
        self.write_at(offset, &vec![0; length as usize])
    }
    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        match self.deaf.load(Ordering::Relaxed) {
            true => Err(io::Error::other("deaf")),
            false => Ok(()),
        }
    }
    fn next_data(&self, offset: u64, end: u64) -> io::Result<u64> {
        let bytes = self.bytes.lock().unwrap();
        let found = bytes[offset as usize..end as usize].iter().position(|byte| *byte != 0);
        Ok(found.map_or(end, |found| offset + found as u64))
    }
    fn next_hole(&self, _offset: u64, end: u64) -> io::Result<u64> {
        Ok(end)
    }
}

pub(super) struct Machine {
    pub(super) sources: Vec<Arc<Memory>>,
    /// What the bitmaps' files hold.
    pub(super) bits: Vec<Arc<Memory>>,
    pub(super) exports: Vec<Captured>,
    pub(super) stream: Arc<Stream>,
}

fn welcome(epoch: u32, durable: u64, published: u64) -> Welcome {
    Welcome {
        server: "ps-1".parse().unwrap(),
        generation: Generation(1),
        epoch: Epoch(epoch),
        durable: Sequence(durable),
        published: Sequence(published),
        credit_limit: u64::MAX,
        bookmark_interval_ms: 5000,
    }
}

fn machine(buffer_bytes: u64) -> Machine {
    machine_of(Teller::Agent, buffer_bytes)
}

/// Two disks, never replicated.
fn machine_of(teller: Teller, buffer_bytes: u64) -> Machine {
    let (mut sources, mut files) = (Vec::new(), Vec::new());
    let disk = |index: u16| {
        let source = Arc::new(Memory::default());
        *source.bytes.lock().unwrap() = vec![0; DISK_BYTES as usize];
        let name: crate::model::DiskName = format!("d{index}").parse().unwrap();
        let identity = Identity {
            machine: MachineKey([1; 16]),
            disk: name.clone(),
            disk_bytes: DISK_BYTES,
            chunk_bytes: CHUNK as u32,
            disks_crc: 7,
            teller,
            source: SourceIdentity::default(),
        };
        let bits = Arc::new(Memory::default());
        *bits.bytes.lock().unwrap() = bitmap::blank(&identity);
        sources.push(Arc::clone(&source));
        files.push(Arc::clone(&bits));
        let turnover = Arc::new(Turnover::default());
        let awaited = |medium| Box::new(Awaited::new(Box::new(medium), &turnover));
        Arc::new(Disk {
            index: DiskIndex(index),
            name,
            size_bytes: DISK_BYTES,
            source: awaited(source),
            bitmap: bitmap::load(awaited(bits), &identity).unwrap().0.unwrap(),
            locks: RangeLocks::default(),
            syncs: Syncs::default(),
            turnover,
        })
    };
    let disks: Vec<_> = (0..2).map(disk).collect();
    let resync = Some("new".to_owned());
    let stream =
        Arc::new(Stream::new(disks, buffer_bytes, Epoch(0), Sequence::ZERO, false, resync));
    let exports = stream.disks.iter().map(|disk| Captured {
        disk: Arc::clone(disk),
        stream: Arc::clone(&stream),
        mode: AgentMode::Async,
    });
    let exports = exports.collect();
    Machine { sources, bits: files, exports, stream }
}

/// The same in ordered mode: initial replication ran, everything is published and cleared.
pub(super) fn ordered(buffer_bytes: u64) -> Machine {
    ordered_of(Teller::Agent, buffer_bytes)
}

pub(super) fn ordered_of(teller: Teller, buffer_bytes: u64) -> Machine {
    let machine = machine_of(teller, buffer_bytes);
    machine.connect(welcome(0, 0, 0)).unwrap();
    machine.repair();
    machine.publish_all();
    assert_eq!(machine.stream.lock().mode, TrackingMode::Ordered);
    assert_eq!(machine.stream.clear_step().unwrap(), Round::Waits);
    assert_eq!(machine.stream.clear_step().unwrap(), Round::Cleared(2 * DISK_BYTES));
    machine
}

impl Machine {
    fn connect(&self, welcome: Welcome) -> Result<(), Unwelcome> {
        self.stream.detach();
        self.stream.attach(&welcome)?;
        self.stream.resume(Duration::MAX, u64::MAX, 0);
        Ok(())
    }

    pub(super) fn repair(&self) {
        for _ in 0..100 {
            catchup::step(&self.stream, Place::default(), 512 << 10).map_err(|(_, e)| e).unwrap();
        }
    }

    pub(super) fn take(&self) -> Vec<Record> {
        self.stream.take(u64::MAX, u64::MAX, |_| 1).0
    }

    pub(super) fn publish_all(&self) {
        self.take();
        let sent = self.stream.lock().sent;
        self.stream.acked(sent, sent).unwrap();
    }

    fn write(&self, disk: usize, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.exports[disk].write(offset, bytes.to_vec().into(), false)
    }

    pub(super) fn mode(&self) -> TrackingMode {
        self.stream.lock().mode
    }

    pub(super) fn dirty(&self) -> u64 {
        self.stream.disks.iter().map(|disk| disk.bitmap.dirty_bytes()).sum()
    }

    pub(super) fn bookmark(&self) -> Result<Sequence, String> {
        let bookmark = Bookmark {
            id: BookmarkId([1; 16]),
            kind: BookmarkKind::CrashConsistent,
            time: Timestamp(0),
            name: String::new(),
        };
        self.stream.bookmark(bookmark).map(|placed| placed.sequence)
    }
}

#[test]
fn an_epoch_begins_with_its_disks_and_zeros_are_sent_as_zeros() {
    let machine = machine(1 << 20);
    machine.sources[1].bytes.lock().unwrap()[70_000] = 9;
    assert!(machine.bookmark().is_err(), "no point before the first copy");
    machine.connect(welcome(0, 0, 0)).unwrap();
    assert!(machine.bookmark().is_err());
    machine.repair();
    let records = machine.take();
    let sequences: Vec<u64> = records.iter().map(|record| record.sequence.0).collect();
    assert_eq!(sequences, (1..=records.len() as u64).collect::<Vec<_>>());
    let Change::EpochBegin(begin) = &records[0].change else {
        panic!("{:?}", records[0]);
    };
    assert_eq!((begin.epoch, begin.disks.len()), (Epoch(1), 2));
    assert_eq!(records[1].change, Change::CatchUpBegin(CatchUp::InitialReplication));
    assert_eq!(records.last().unwrap().change, Change::CatchUpEnd);
    let payload: u64 = records.iter().map(|record| record.change.payload_bytes()).sum();
    assert_eq!(payload, 16 << 10, "one piece holds the only byte");
    assert_eq!(machine.bookmark().unwrap().0, records.len() as u64 + 1);
}

#[test]
fn a_long_write_is_consecutive_records_and_a_bookmark_cuts_behind_it() {
    let machine = ordered(16 << 20);
    let before = machine.stream.lock().last.0;
    machine.write(0, 512, &vec![7; 2 * WRITE_BYTES_MAX as usize + 512]).unwrap();
    machine.write(1, 0, &[8; 512]).unwrap();
    let bookmark = machine.bookmark().unwrap();
    let records = machine.take();
    let lengths: Vec<u64> = records.iter().map(|record| record.change.payload_bytes()).collect();
    assert_eq!(lengths, [1 << 20, 1 << 20, 512, 512, 0]);
    assert_eq!(records[0].sequence.0, before + 1);
    assert_eq!(bookmark, records[4].sequence);
    machine.exports[0].zero(0, DISK_BYTES, true, false).unwrap();
    assert!(matches!(machine.take()[0].change, Change::Zero { .. }));
}

#[test]
fn a_full_buffer_falls_to_the_bitmap_and_the_way_back_is_a_catch_up() {
    let room = 3 * cost(CHUNK);
    let machine = ordered(room);
    let before = machine.stream.lock().last;
    for chunk in 0..3 {
        machine.write(0, chunk * CHUNK, &vec![1; CHUNK as usize]).unwrap();
    }
    assert_eq!(machine.mode(), TrackingMode::Ordered);
    let (taken, _) = machine.stream.take(1, 1, |_| 1);
    assert_eq!(taken.len(), 1, "one was sent");
    machine.write(1, 5 * CHUNK, &[2; 512]).unwrap();
    assert_eq!(machine.mode(), TrackingMode::Bitmap);
    assert_eq!(machine.dirty(), 4 * CHUNK, "all that was held, and the write that found no room");
    assert_eq!(machine.stream.lock().last, before.next(), "only what was sent keeps its sequence");
    assert!(machine.bookmark().unwrap_err().contains("full"));
    machine.stream.resume(Duration::ZERO, u64::MAX, 0);
    assert_eq!(machine.mode(), TrackingMode::Bitmap, "what was sent is not durable yet");
    machine.stream.acked(before.next(), before).unwrap();
    machine.stream.resume(Duration::ZERO, 99, 100);
    assert_eq!(machine.mode(), TrackingMode::Bitmap, "no credit, no way back");
    machine.stream.resume(Duration::ZERO, 100, 100);
    assert_eq!(machine.mode(), TrackingMode::CatchingUp);
    let records = machine.take();
    assert_eq!(records[0].sequence, before.next().next());
    assert_eq!(records[0].change, Change::CatchUpBegin(CatchUp::Dirty));
    machine.write(1, 9 * CHUNK, &[3; 512]).unwrap();
    assert_eq!(machine.dirty(), 4 * CHUNK, "a live write is teed, it needs no second read");
    while machine.mode() == TrackingMode::CatchingUp {
        let _full = catchup::step(&machine.stream, Place::default(), CHUNK);
        machine.publish_all();
    }
    assert_eq!((machine.mode(), machine.dirty()), (TrackingMode::Ordered, 0));
}

/// Attempts to catch up in so many seconds of a load that is always too much, from `start` on.
fn attempts(machine: &Machine, start: u64, seconds: u64) -> Vec<u64> {
    let mut attempts = Vec::new();
    for now in start..start + seconds {
        // What the server takes is little, but all of it.
        machine.publish_all();
        machine.stream.resume(Duration::from_secs(now), u64::MAX, 0);
        if machine.mode() != TrackingMode::Bitmap {
            attempts.push(now - start);
            while machine.mode() != TrackingMode::Bitmap {
                machine.write(0, 0, &vec![1; CHUNK as usize]).unwrap();
            }
        }
    }
    attempts
}

#[test]
fn a_load_that_is_too_much_is_caught_up_with_ever_less_often_until_order_lasts() {
    let machine = ordered(3 * cost(CHUNK));
    let resume = |now| machine.stream.resume(Duration::from_secs(now), u64::MAX, 0);
    // Ordered at the first second; then the load. Each loss is seen a second later.
    assert_eq!(attempts(&machine, 0, 22), [0, 1, 3, 6, 11, 16, 21]);
    // A machine that goes quiet at any moment is caught up with 4 s later at most.
    machine.publish_all();
    resume(22);
    resume(25);
    assert_eq!(machine.mode(), TrackingMode::Bitmap);
    resume(26);
    assert_eq!(machine.mode(), TrackingMode::CatchingUp);
    machine.repair();
    machine.publish_all();
    assert_eq!(machine.mode(), TrackingMode::Ordered);
    // Order for less than a point's time is no success; for longer it is.
    resume(27);
    assert_eq!(attempts(&machine, 30, 7), [0, 5]);
    machine.publish_all();
    resume(40);
    machine.repair();
    machine.publish_all();
    resume(41);
    assert_eq!(machine.mode(), TrackingMode::Ordered);
    assert_eq!(attempts(&machine, 50, 12), [0, 1, 3, 6, 11], "as the first time");
}

#[test]
fn order_that_was_lost_to_a_server_is_taken_up_at_once() {
    let machine = ordered(1 << 20);
    for now in 0..10 {
        machine.stream.give_up_order("the server is gone");
        machine.stream.resume(Duration::from_secs(now), u64::MAX, 0);
        assert_eq!(machine.mode(), TrackingMode::CatchingUp);
    }
}

#[test]
fn durable_records_give_way_before_order_is_given_up() {
    let machine = ordered(3 * cost(512));
    for n in 0..50 {
        machine.write(0, n * 512, &[1; 512]).unwrap();
        machine.take();
        let sent = machine.stream.lock().sent;
        let published = machine.stream.lock().witnessed;
        machine.stream.acked(sent, published).unwrap();
    }
    assert_eq!(machine.mode(), TrackingMode::Ordered);
    assert!(machine.stream.lock().buffer.bytes() <= 3 * cost(512));
    // The server is lost with what it had not published: order is lost, nothing else.
    let published = machine.stream.lock().witnessed.0;
    machine.connect(welcome(1, published, published)).unwrap();
    assert_eq!(machine.mode(), TrackingMode::CatchingUp);
    assert_eq!(machine.dirty(), CHUNK);
}

#[test]
fn a_reconnect_sends_again_from_the_durable_position_in_order() {
    let machine = ordered(1 << 20);
    let base = machine.stream.lock().last.0;
    for n in 0..10 {
        machine.write(0, n * 512, &[n as u8; 512]).unwrap();
    }
    assert_eq!(machine.take().len(), 10);
    machine.connect(welcome(1, base + 4, base)).unwrap();
    assert_eq!(machine.mode(), TrackingMode::Ordered);
    let again: Vec<u64> = machine.take().iter().map(|record| record.sequence.0).collect();
    assert_eq!(again, (base + 5..=base + 10).collect::<Vec<_>>());
    // Another owner that knows only what is published: the buffer still reaches back.
    machine.stream.acked(Sequence(base + 8), Sequence(base)).unwrap();
    machine.connect(welcome(1, base, base)).unwrap();
    assert_eq!(machine.take().len(), 10);
    assert!(matches!(machine.connect(welcome(1, base + 11, base)), Err(Unwelcome::Foreign(_))));
    machine.connect(welcome(1, base, base - 1)).unwrap();
    let core = machine.stream.lock();
    assert_eq!((core.mode, core.epoch), (TrackingMode::CatchingUp, Epoch(2)), "rolled back");
    drop(core);
    assert_eq!(machine.dirty(), 2 * DISK_BYTES);
}

/// A clone was connected meanwhile, and its records have the numbers of these.
#[test]
fn records_that_were_never_sent_are_not_taken_for_what_the_server_has() {
    let machine = ordered(1 << 20);
    let published = machine.stream.lock().last.0;
    for n in 0..3 {
        machine.write(0, n * CHUNK, &[1; 512]).unwrap();
    }
    let last = machine.stream.lock().last.0;
    let attached = machine.connect(welcome(1, last - 1, published));
    assert!(matches!(attached, Err(Unwelcome::Foreign(_))), "{attached:?}");
    // What was sent stays sent, also where order was lost or a server had less of it.
    machine.connect(welcome(1, published, published)).unwrap();
    machine.take();
    machine.connect(welcome(1, published, published)).unwrap();
    machine.connect(welcome(1, last, published)).unwrap();
    machine.stream.give_up_order("test");
    machine.connect(welcome(1, last, published)).unwrap();
    let attached = machine.connect(welcome(1, last + 2, published));
    assert!(matches!(attached, Err(Unwelcome::Foreign(_))), "{attached:?}");
}

#[test]
fn an_acknowledgement_that_cannot_be_true_is_refused() {
    let machine = ordered(1 << 20);
    machine.write(0, 0, &[1; 512]).unwrap();
    let last = machine.stream.lock().last;
    assert!(machine.stream.acked(last, last).is_err(), "it was not sent");
    machine.take();
    assert!(machine.stream.acked(Sequence(last.0 - 1), last).is_err());
    machine.stream.acked(last, last).unwrap();
    assert!(machine.stream.acked(Sequence(last.0 - 1), Sequence(0)).is_err(), "backwards");
}

#[test]
fn a_failed_write_is_told_and_its_chunks_are_read_again() {
    let machine = ordered(1 << 20);
    machine.sources[0].broken.store(true, Ordering::Relaxed);
    assert!(machine.write(0, CHUNK, &[7; 1024]).is_err());
    machine.sources[0].broken.store(false, Ordering::Relaxed);
    assert_eq!((machine.mode(), machine.dirty()), (TrackingMode::CatchingUp, CHUNK));
    machine.repair();
    assert_eq!(machine.mode(), TrackingMode::Ordered);
    let records = machine.take();
    assert_eq!(records[0].change, Change::CatchUpBegin(CatchUp::Dirty));
    let Change::Write { extent, payload, .. } = &records[1].change else {
        panic!("{:?}", records[1]);
    };
    assert_eq!(extent.offset(), CHUNK);
    let payload = payload.to_bytes();
    assert_eq!((payload[511], payload[512]), (7, 0), "what the disk holds, not what was meant");
}

#[test]
fn after_a_failed_sync_no_bit_is_cleared() {
    let machine = ordered(1 << 20);
    machine.write(0, 0, &[7; 512]).unwrap();
    machine.sources[0].deaf.store(true, Ordering::Relaxed);
    assert!(machine.exports[0].flush().is_err());
    machine.sources[0].deaf.store(false, Ordering::Relaxed);
    machine.publish_all();
    for _ in 0..4 {
        machine.stream.clear_step().unwrap();
    }
    assert_eq!(machine.stream.disks[0].bitmap.set_bytes(), CHUNK);
}

#[test]
fn a_bitmap_that_cannot_be_written_keeps_no_bit_of_another_disk() {
    let machine = ordered(1 << 20);
    machine.write(0, 0, &[1; 512]).unwrap();
    machine.write(1, 0, &[1; 512]).unwrap();
    machine.publish_all();
    assert_eq!(machine.stream.clear_step().unwrap(), Round::Waits);
    machine.bits[0].broken.store(true, Ordering::Relaxed);
    assert!(machine.stream.clear_step().is_err());
    let set = |disk: usize| machine.stream.disks[disk].bitmap.set_bytes();
    assert_eq!(set(1), 0);
    machine.write(1, CHUNK, &[1; 512]).unwrap();
    machine.publish_all();
    assert_eq!(machine.stream.clear_step().unwrap(), Round::Waits, "another round");
    assert!(machine.stream.clear_step().is_err());
    assert_eq!(set(1), 0);
}

#[test]
fn a_failed_sync_that_a_round_of_clearing_met_is_the_workloads_answer_too() {
    let machine = ordered(1 << 20);
    machine.write(0, 0, &[7; 512]).unwrap();
    machine.publish_all();
    machine.stream.clear_step().unwrap();
    // The kernel reports it once, and here the agent's own sync happens to be the one.
    machine.sources[0].deaf.store(true, Ordering::Relaxed);
    machine.stream.clear_step().unwrap();
    machine.sources[0].deaf.store(false, Ordering::Relaxed);
    assert!(machine.exports[0].flush().is_err(), "the write may not be on the disk");
    assert!(machine.exports[0].write(0, vec![1; 512].into(), true).is_err(), "nor is FUA");
    assert_eq!(machine.stream.disks[0].bitmap.set_bytes(), CHUNK);
}

#[test]
fn a_chunk_written_during_a_round_stays_set() {
    let machine = ordered(1 << 20);
    machine.write(0, 0, &[1; 512]).unwrap();
    machine.write(0, CHUNK, &[1; 512]).unwrap();
    machine.publish_all();
    assert_eq!(machine.stream.clear_step().unwrap(), Round::Waits);
    machine.write(0, CHUNK, &[2; 512]).unwrap();
    assert_eq!(machine.stream.clear_step().unwrap(), Round::Cleared(CHUNK));
    assert_eq!(machine.stream.disks[0].bitmap.set_bytes(), CHUNK);
}

#[test]
fn a_round_waits_for_publication() {
    let machine = ordered(1 << 20);
    machine.write(0, 0, &[1; 512]).unwrap();
    assert_eq!(machine.stream.clear_step().unwrap(), Round::Waits);
    assert_eq!(machine.stream.clear_step().unwrap(), Round::Waits);
    machine.publish_all();
    assert_eq!(machine.stream.clear_step().unwrap(), Round::Cleared(CHUNK));
    assert_eq!(machine.stream.clear_step().unwrap(), Round::Idle);
}

#[test]
fn a_sync_writer_waits_for_durable_and_is_let_go_when_order_is_lost() {
    let machine = ordered(1 << 20);
    let wait = |answer: fn(&Machine)| {
        let export = Captured {
            mode: AgentMode::Sync,
            disk: Arc::clone(&machine.stream.disks[0]),
            stream: Arc::clone(&machine.stream),
        };
        let writer = std::thread::spawn(move || export.write(0, vec![1; 512].into(), false));
        while machine.stream.lock().waiters == 0 {
            std::thread::yield_now();
        }
        assert!(!writer.is_finished());
        answer(&machine);
        writer.join().unwrap().unwrap();
    };
    wait(|machine| {
        machine.take();
        let (last, published) = {
            let core = machine.stream.lock();
            (core.last, core.witnessed)
        };
        machine.stream.acked(last, published).unwrap();
    });
    wait(|machine| machine.stream.give_up_order("the server does not answer"));
    wait_mode(&machine);
}

fn wait_mode(machine: &Machine) {
    assert_eq!(machine.mode(), TrackingMode::Bitmap);
    assert_eq!(machine.dirty(), CHUNK);
}

/// While `first` is between the source and the stream another thread writes the same place. It
/// must come second in both; without the range lock it comes second on the disk alone.
fn overtaken(machine: &Machine, first: impl FnOnce()) {
    let export = Captured {
        mode: AgentMode::Async,
        disk: Arc::clone(&machine.stream.disks[0]),
        stream: Arc::clone(&machine.stream),
    };
    let (done, written) = std::sync::mpsc::channel();
    *machine.sources[0].hook.lock().unwrap() = Some(Box::new(move || {
        let (passed, overtook) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            export.write(0, vec![2; 512].into(), false).unwrap();
            let _nobody_waits_any_more = passed.send(());
            done.send(()).unwrap();
        });
        let _held_as_it_must_be = overtook.recv_timeout(Duration::from_millis(100));
    }));
    first();
    written.recv_timeout(Duration::from_secs(30)).unwrap();
    let last = machine.take().into_iter().rev().find_map(|record| match record.change {
        Change::Write { extent, payload, .. } if extent.offset() == 0 => {
            Some(payload.to_bytes()[0])
        }
        _ => None,
    });
    assert_eq!(machine.sources[0].bytes.lock().unwrap()[0], 2);
    assert_eq!(last, Some(2), "the stream ends as the disk does");
}

#[test]
fn overlapping_writes_have_the_order_of_the_disk() {
    let machine = ordered(1 << 20);
    overtaken(&machine, || machine.write(0, 0, &[1; 1024]).unwrap());
}

#[test]
fn a_catch_up_read_does_not_bring_back_what_was_overwritten() {
    let machine = ordered(1 << 20);
    machine.stream.give_up_order("test");
    machine.write(0, 0, &[1; 512]).unwrap();
    machine.stream.resume(Duration::MAX, u64::MAX, 0);
    overtaken(&machine, || machine.repair());
}
