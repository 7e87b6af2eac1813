//! Writes that are seen after the fact, beside catch-up reads and rounds of clearing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::bitmap::Teller;
use super::capture::{CaptureMode, Observer};
use super::clearing::Round;
use super::observed::{Seen, What};
use super::stream::Placed;
use super::stream_tests::{CHUNK, DISK_BYTES, Hook, Machine, ordered, ordered_of};
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, Change, DiskIndex, Extent, Record, Timestamp, TrackingMode,
    WRITE_BYTES_MAX,
};
use crate::nbd::Export;

const DISK: DiskIndex = DiskIndex(0);

fn write(offset: u64, bytes: &[u8]) -> Change {
    let extent = Extent::new(offset, bytes.len() as u64, WRITE_BYTES_MAX).unwrap();
    Change::Write { disk: DISK, extent, payload: bytes.to_vec().into() }
}

/// Somebody writes to the disk, and the observer hears of it.
fn behind_its_back(machine: &Machine, offset: u64, bytes: &[u8]) {
    let at = offset as usize;
    machine.sources[0].bytes.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
    let range = offset..offset + bytes.len() as u64;
    let what = What::Change(write(offset, bytes));
    let unwritten = machine.stream.observed(vec![Seen { disk: DISK, range, what }]);
    assert!(unwritten.is_empty(), "{unwritten:?}");
}

/// What the records make of the disk.
fn replayed(image: &mut [u8], records: &[Record]) {
    for record in records {
        match &record.change {
            Change::Write { disk: DISK, extent, payload } => {
                let range = extent.range();
                image[range.start as usize..range.end as usize]
                    .copy_from_slice(&payload.to_bytes());
            }
            Change::Zero { disk: DISK, extent } => {
                let range = extent.range();
                image[range.start as usize..range.end as usize].fill(0);
            }
            _ => {}
        }
    }
}

#[test]
fn a_read_never_covers_what_was_written_while_it_ran() {
    let machine = Arc::new(ordered(8 << 20));
    let mut image = vec![0; DISK_BYTES as usize];
    machine.sources[0].bytes.lock().unwrap()[..CHUNK as usize].fill(7);
    machine.stream.unordered(DISK, 0..CHUNK, "not seen").unwrap();
    assert_eq!(machine.mode(), TrackingMode::CatchingUp);
    let shared = Arc::clone(&machine);
    // The read has the old bytes and has not returned.
    *machine.sources[0].hook.lock().unwrap() = Some(Box::new(move || {
        behind_its_back(&shared, 0, &[1; 512]);
        behind_its_back(&shared, 4096, &[2; 1024]);
        behind_its_back(&shared, CHUNK - 512, &[3; 1024]);
        behind_its_back(&shared, 4608, &[4; 512]);
    }));
    machine.repair();
    assert_eq!((machine.mode(), machine.dirty()), (TrackingMode::Ordered, 0));
    replayed(&mut image, &machine.take());
    assert!(image == *machine.sources[0].bytes.lock().unwrap());
}

/// Its QEMU may be holding everything still until that write is answered, the read as well.
#[test]
fn a_guests_write_is_answered_while_a_catch_up_reads_its_range() {
    let machine = Arc::new(ordered_of(Teller::Guest, 8 << 20));
    let mut image = vec![0; DISK_BYTES as usize];
    machine.sources[0].bytes.lock().unwrap()[..CHUNK as usize].fill(7);
    machine.stream.unordered(DISK, 0..CHUNK, "not seen").unwrap();
    let shared = Arc::clone(&machine);
    // The read has the old bytes and does not return before the write does.
    *machine.sources[0].hook.lock().unwrap() = Some(Box::new(move || {
        let (done, ended) = channel();
        std::thread::spawn(move || {
            let written = shared.exports[0].write(512, vec![1; 1024].into(), false);
            done.send(written).unwrap();
        });
        ended.recv_timeout(Duration::from_secs(20)).expect("it waits for the read").unwrap();
    }));
    machine.repair();
    assert_eq!((machine.mode(), machine.dirty()), (TrackingMode::Ordered, 0));
    replayed(&mut image, &machine.take());
    assert!(image == *machine.sources[0].bytes.lock().unwrap());
}

#[test]
fn a_range_that_changed_unseen_while_it_was_read_is_read_again() {
    let machine = Arc::new(ordered(8 << 20));
    let mut image = vec![0; DISK_BYTES as usize];
    machine.sources[0].bytes.lock().unwrap()[..CHUNK as usize].fill(7);
    machine.stream.unordered(DISK, 0..CHUNK, "not seen").unwrap();
    let shared = Arc::clone(&machine);
    *machine.sources[0].hook.lock().unwrap() = Some(Box::new(move || {
        shared.sources[0].bytes.lock().unwrap()[512..1024].fill(9);
        shared.stream.unordered(DISK, 512..1024, "not seen").unwrap();
    }));
    machine.repair();
    assert_eq!((machine.mode(), machine.dirty()), (TrackingMode::Ordered, 0));
    replayed(&mut image, &machine.take());
    assert!(image == *machine.sources[0].bytes.lock().unwrap());
}

#[test]
fn a_read_that_order_was_lost_under_is_not_placed() {
    let machine = Arc::new(ordered(8 << 20));
    machine.sources[0].bytes.lock().unwrap()[..CHUNK as usize].fill(7);
    machine.stream.unordered(DISK, 0..CHUNK, "not seen").unwrap();
    let shared = Arc::clone(&machine);
    *machine.sources[0].hook.lock().unwrap() = Some(Box::new(move || {
        // Lost and catching up again before the read returns: the write between is in no stream.
        shared.stream.give_up_order("test");
        behind_its_back(&shared, 0, &[5; 512]);
        let sent = shared.stream.lock().sent;
        shared.stream.acked(sent, sent).unwrap();
        shared.stream.resume(Duration::MAX, u64::MAX, 0);
    }));
    let step = super::catchup::step(&machine.stream, Default::default(), 512 << 10);
    assert!(matches!(step, Ok(super::catchup::Step::Wait(_))));
    assert_eq!(machine.dirty(), CHUNK, "still to be read");
}

/// The catch-up looks whether it may read, and order is lost before it begins to.
#[test]
fn a_read_that_began_in_bitmap_mode_does_not_cover_a_write() {
    let machine = Arc::new(ordered(8 << 20));
    let mut image = vec![0; DISK_BYTES as usize];
    machine.sources[0].bytes.lock().unwrap()[..CHUNK as usize].fill(7);
    machine.stream.unordered(DISK, 0..CHUNK, "not seen").unwrap();
    assert!(machine.stream.may_repair(CHUNK));
    machine.stream.give_up_order("test");
    let shared = Arc::clone(&machine);
    *machine.sources[0].hook.lock().unwrap() = Some(Box::new(move || {
        behind_its_back(&shared, 0, &[5; 512]);
        let sent = shared.stream.lock().sent;
        shared.stream.acked(sent, sent).unwrap();
        shared.stream.resume(Duration::ZERO, u64::MAX, 0);
        assert_eq!(shared.mode(), TrackingMode::CatchingUp);
    }));
    machine.repair();
    assert_eq!((machine.mode(), machine.dirty()), (TrackingMode::Ordered, 0));
    replayed(&mut image, &machine.take());
    assert!(image == *machine.sources[0].bytes.lock().unwrap());
}

#[test]
fn nothing_is_called_ordered_while_an_observer_withholds_it() {
    let machine = ordered(8 << 20);
    machine.stream.withhold(DISK, "the mirror is away");
    assert_eq!(machine.mode(), TrackingMode::CatchingUp);
    machine.repair();
    assert_eq!(machine.mode(), TrackingMode::CatchingUp);
    assert!(machine.bookmark().unwrap_err().contains("the mirror is away"));
    machine.stream.withhold(DiskIndex(1), "as well");
    machine.stream.release(DISK);
    machine.repair();
    assert_eq!(machine.mode(), TrackingMode::CatchingUp, "the other one");
    machine.stream.release(DiskIndex(1));
    machine.repair();
    assert_eq!(machine.mode(), TrackingMode::Ordered);
    machine.bookmark().unwrap();
}

#[test]
fn a_round_of_clearing_that_begins_before_a_write_has_its_sequence_leaves_its_bit() {
    let machine = Arc::new(ordered(8 << 20));
    behind_its_back(&machine, 8 * CHUNK, &[1; 512]);
    let shared = Arc::clone(&machine);
    // The bit of the next write is being written to its file.
    *machine.bits[0].hook.lock().unwrap() = Some(Box::new(move || {
        assert_eq!(shared.stream.clear_step().unwrap(), Round::Waits);
    }));
    behind_its_back(&machine, 0, &[2; 512]);
    let round = machine.stream.lock().round.unwrap();
    machine.take();
    machine.stream.acked(round, round).unwrap();
    assert_eq!(machine.stream.clear_step().unwrap(), Round::Cleared(CHUNK));
    assert_eq!(machine.stream.disks[0].bitmap.set_bytes(), CHUNK, "the second write's");
}

/// Says what it is told to say, after the hook ran.
pub(super) struct Said {
    hook: Mutex<Option<Hook>>,
    verdict: Result<(), String>,
    settled: AtomicBool,
}

impl Said {
    pub(super) fn new(hook: Option<Hook>, verdict: Result<(), String>) -> Arc<Self> {
        Arc::new(Self { hook: Mutex::new(hook), verdict, settled: AtomicBool::new(false) })
    }
}

pub(super) fn marked(machine: &Machine) -> Result<Placed, String> {
    machine.stream.bookmark_behind_all(Bookmark {
        id: BookmarkId([1; 16]),
        kind: BookmarkKind::CrashConsistent,
        time: Timestamp(0),
        name: String::new(),
    })
}

impl Observer for Said {
    fn settle(&self) -> Result<(), String> {
        self.settled.store(true, Ordering::Relaxed);
        Ok(())
    }
    fn confirm(&self) -> Result<(), String> {
        let hook = self.hook.lock().unwrap().take();
        hook.into_iter().for_each(|hook| hook());
        self.verdict.clone()
    }
    fn modes(&self) -> Vec<(DiskIndex, CaptureMode, String)> {
        Vec::new()
    }
    fn stop(&self) {}
}

#[test]
fn a_bookmark_is_sent_when_observers_confirm_it_and_taken_back_when_not() {
    let is_bookmark = |record: &Record| matches!(record.change, Change::Bookmark(_));
    for verdict in [Ok(()), Err("a mirror died".to_owned())] {
        let machine = Arc::new(ordered(8 << 20));
        behind_its_back(&machine, 0, &[1; 512]);
        let shared = Arc::clone(&machine);
        let hook: Hook = Box::new(move || {
            behind_its_back(&shared, 512, &[2; 512]);
            let sent = shared.take();
            assert!(sent.len() == 1 && !sent.iter().any(is_bookmark), "{sent:?}");
        });
        machine.stream.observe_with(vec![Said::new(Some(hook), verdict.clone())]);
        let placed = marked(&machine);
        let sent = machine.take();
        assert_eq!(placed.is_ok(), verdict.is_ok());
        match verdict {
            Ok(()) => assert!(is_bookmark(&sent[0]) && sent.len() == 2, "{sent:?}"),
            Err(_) => {
                assert!(sent.is_empty() && machine.mode() == TrackingMode::Bitmap, "{sent:?}");
                assert!(machine.dirty() > 0, "the write behind it is read again");
            }
        }
    }
}

#[test]
fn a_bookmark_whose_confirmation_panics_is_never_sent() {
    let machine = Arc::new(ordered(8 << 20));
    behind_its_back(&machine, 0, &[1; 512]);
    machine.take();
    let hook: Hook = Box::new(|| panic!("on purpose"));
    machine.stream.observe_with(vec![Said::new(Some(hook), Ok(()))]);
    let shared = Arc::clone(&machine);
    std::thread::spawn(move || marked(&shared)).join().unwrap_err();
    assert_eq!(machine.mode(), TrackingMode::Bitmap, "order was lost");
    let sent = machine.stream.lock().sent;
    machine.stream.acked(sent, sent).unwrap();
    machine.stream.resume(Duration::ZERO, u64::MAX, 0);
    machine.repair();
    marked(&machine).unwrap(); // the next one is confirmed
    let is_bookmark = |record: &&Record| matches!(record.change, Change::Bookmark(_));
    assert_eq!(machine.take().iter().filter(is_bookmark).count(), 1);
}

#[test]
fn no_observer_is_asked_for_a_bookmark_that_cannot_be() {
    let machine = ordered(8 << 20);
    let said = Said::new(None, Ok(()));
    machine.stream.observe_with(vec![Arc::clone(&said) as _]);
    machine.stream.withhold(DISK, "the mirror is away");
    assert!(marked(&machine).unwrap_err().contains("the mirror is away"));
    assert!(!said.settled.load(Ordering::Relaxed));
    machine.stream.release(DISK);
    machine.repair();
    marked(&machine).unwrap();
    assert!(said.settled.load(Ordering::Relaxed));
}

#[test]
fn many_ranges_become_dirty_with_one_sync() {
    let machine = ordered(8 << 20);
    let syncs = || machine.bits[0].syncs.load(Ordering::Relaxed);
    let before = syncs();
    let all = (0..DISK_BYTES).step_by(512).map(|at| at..at + 512);
    let ranges = all.clone().step_by(2);
    let of_disk = |range| (DISK, range);
    assert!(machine.stream.unordered_all(ranges.map(of_disk), "test").is_empty());
    assert_eq!((machine.dirty(), syncs() - before), (DISK_BYTES, 1));
    assert_eq!(machine.mode(), TrackingMode::CatchingUp);
    // The file cannot be written: more of them than are made known together.
    let machine = ordered(8 << 20);
    machine.bits[0].broken.store(true, Ordering::Relaxed);
    let unwritten = machine.stream.unordered_all(all.map(of_disk), "test");
    assert!(unwritten.contains_key(&DISK));
    assert!(machine.dirty() > 0);
}

/// Without its bit on the agent's disk a write would be forgotten by an agent that is killed: it is no
/// record, and its disk says so. The others go on.
#[test]
fn a_write_whose_bit_cannot_be_written_is_read_again() {
    let machine = ordered(8 << 20);
    machine.bits[0].broken.store(true, Ordering::Relaxed);
    let other = DiskIndex(1);
    let seen = [DISK, other].map(|disk| {
        let extent = Extent::new(CHUNK, 512, WRITE_BYTES_MAX).unwrap();
        let change = Change::Write { disk, extent, payload: vec![1; 512].into() };
        Seen { disk, range: extent.range(), what: What::Change(change) }
    });
    let unwritten = machine.stream.observed(seen.into());
    assert_eq!(unwritten.into_keys().collect::<Vec<_>>(), [DISK]);
    assert_eq!((machine.mode(), machine.dirty()), (TrackingMode::CatchingUp, CHUNK));
    let records = machine.take();
    let written = records.iter().filter_map(|record| match record.change {
        Change::Write { disk, .. } => Some(disk),
        _ => None,
    });
    assert_eq!(written.collect::<Vec<_>>(), [other]);
}
