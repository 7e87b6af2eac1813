//! What the reader makes of losses, with the program in this machine's kernel and a loop device of the
//! self-test's kind. Takes root.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::device::{self, Part};
use super::facts::{Facts, Possible};
use super::kernel::{Kernel, RANGES_MAX, Rings, Watched};
use super::medium::{self, DiskGate};
use super::naps::Naps;
use super::proof::{self, Aligned, Loop, Proven};
use super::reader::{Reader, Tracked};
use super::record::{Joined, Piece};
use super::shared::Shared;
use crate::agent::capture::CaptureMode;
use crate::agent::medium::Medium;
use crate::agent::stream_tests::{CHUNK, DISK_BYTES, Machine, ordered};
use crate::clock::{Clock, System};
use crate::model::{Change, Record, Timestamp, TrackingMode};

pub(super) const RING_BYTES: u32 = 256 << 10;
const CHUNKS: u64 = 2 * DISK_BYTES / CHUNK;

/// Time as the test says it; at the end of all times nobody can tell it.
#[derive(Default)]
struct Hand(AtomicU64);

#[async_trait]
impl Clock for Hand {
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }
    fn monotonic(&self) -> Duration {
        let now = self.0.load(Ordering::Relaxed);
        assert!(now < u64::MAX, "planned");
        Duration::from_secs(now)
    }
    async fn sleep(&self, _: Duration) {}
}

/// The program in the kernel, not attached; `None`, loudly, where that cannot be.
pub(super) fn loaded() -> Option<(Kernel, Rings)> {
    loaded_for(CHUNK, CHUNKS + proof::CHUNKS)
}

pub(super) fn loaded_for(chunk_bytes: u64, chunks: u64) -> Option<(Kernel, Rings)> {
    if Facts::read().judge() == Possible::Data {
        return Some(Kernel::load(RING_BYTES, chunk_bytes as u32, chunks).unwrap());
    }
    assert!(std::env::var_os("CI").is_none(), "CI never skips: {:?}", Facts::read());
    let line = format_args!("\nskipped: this kernel or user cannot load the eBPF program\n");
    std::io::Write::write_fmt(&mut std::io::stderr(), line).ok();
    None
}

/// A reader that is driven by hand, over the first MiB of the machine's first disk.
pub(super) struct Rig {
    file: std::fs::File,
    // Gone before its directory.
    device: Loop,
    pub(super) reader: Reader,
    pub(super) machine: Machine,
    time: Arc<Hand>,
    _directory: tempfile::TempDir,
}

impl Rig {
    pub(super) fn new() -> Option<Self> {
        let (kernel, mut rings) = loaded()?;
        let directory = tempfile::tempdir().unwrap();
        kernel.attach().unwrap();
        let path = directory.path();
        let proven = proof::prove(&kernel, &mut rings, path, CHUNKS, &System, None);
        assert_eq!(proven, Ok(Proven::Data));
        let device = Loop::new(path).unwrap();
        let mut options = std::fs::File::options();
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = options.write(true).custom_flags(direct).open(&device.path).unwrap();
        let number = device::part(&device.path).unwrap();
        let (device_number, end) = (number.device, number.end);
        let watched = Watched { device: device_number, start: 0, end, first_chunk: 0, disk: 0 };
        kernel.watch(&[watched]).unwrap();
        let (machine, time) = (ordered(8 << 20), Arc::new(Hand::default()));
        let clock: Arc<dyn Clock> = Arc::clone(&time) as _;
        let shared =
            Shared::new(kernel, clock, (CaptureMode::Ordered, String::new()), vec![watched]);
        let disks = (0..2)
            .map(|disk| Tracked { bytes: DISK_BYTES, first_chunk: disk * DISK_BYTES / CHUNK });
        let stream = Arc::clone(&machine.stream);
        let naps = Naps::new(&rings.events).unwrap();
        let reader = Reader::new(Arc::new(shared), stream, rings, naps, disks.collect(), CHUNK);
        Some(Self { file, device, reader, machine, time, _directory: directory })
    }

    pub(super) fn write(&self, offset: u64, length: usize) {
        let bytes = Aligned::random(&System, length);
        self.file.write_all_at(bytes.bytes(), offset).unwrap();
    }

    /// Reads a batch and tells it; returns how many records.
    pub(super) fn pass(&mut self) -> usize {
        self.reader.pass().unwrap().read
    }

    /// No record fits into the first ring, and no extent into the second.
    fn fill_rings(&self) {
        let kernel = &self.reader.shared.kernel;
        while kernel.mark(1).unwrap() {}
        // Of one write as many records as a device may have captured parts.
        let Part { device, end, .. } = device::part(&self.device.path).unwrap();
        let part = Watched { device, start: 0, end, first_chunk: 0, disk: 0 };
        kernel.watch(&[part; RANGES_MAX]).unwrap();
        let mut written = 0;
        while kernel.counts().unwrap().forgotten == 0 {
            assert!(written < 100_000, "the second ring takes everything");
            self.write(3 * CHUNK, 512);
            written += 1;
        }
    }

    fn dirty(&self) -> bool {
        self.reader.shared.kernel.dirty().unwrap().iter().any(|word| *word != 0)
    }
}

#[test]
fn what_was_lost_is_told_before_what_was_issued_behind_it() {
    let Some(mut rig) = Rig::new() else { return };
    // No room in the ring, not even for a place.
    let mut markers = 0;
    while rig.reader.shared.kernel.mark(1).unwrap() {
        markers += 1;
    }
    assert!(markers > 1000, "{markers}");
    rig.write(3 * CHUNK, 512);
    // The reader makes room, and has not looked at the counts since.
    while rig.reader.rings.events.next().is_some() {}
    rig.write(4 * CHUNK, 512);
    assert_eq!(rig.pass(), 1);
    let records = rig.machine.take();
    let behind = |record: &Record| match &record.change {
        Change::Write { extent, .. } => extent.offset() == 4 * CHUNK,
        _ => false,
    };
    let lost = |record: &Record| matches!(record.change, Change::CatchUpBegin(_));
    let (lost, behind) = (records.iter().position(lost), records.iter().position(behind));
    assert!(lost.is_some() && lost < behind, "{records:?}");
    assert_eq!(rig.machine.dirty(), CHUNK, "and what was lost is read again");
}

#[test]
fn bits_that_the_bitmap_file_did_not_take_stay_in_the_kernel() {
    for broken in [false, true] {
        let Some(mut rig) = Rig::new() else { return };
        rig.machine.bits[0].broken.store(broken, Ordering::Relaxed);
        rig.write(3 * CHUNK, 512);
        rig.pass();
        assert!(rig.dirty());
        // Two turns leave the half and clear it.
        for _ in 0..4 {
            rig.time.0.fetch_add(6, Ordering::Relaxed);
            rig.reader.turn().unwrap();
            while rig.pass() > 0 {}
        }
        assert_eq!(rig.dirty(), broken);
    }
}

#[test]
fn a_half_is_not_cleared_while_a_record_of_it_stands_unread() {
    let Some(mut rig) = Rig::new() else { return };
    rig.time.0.fetch_add(6, Ordering::Relaxed);
    rig.reader.turn().unwrap();
    // A run that began before the turn, and ends behind all that stands in the ring now.
    let shared = Arc::clone(&rig.reader.shared);
    shared.kernel.turn().unwrap();
    rig.write(3 * CHUNK, 512);
    shared.kernel.turn().unwrap();
    let before = rig.machine.stream.lock().last;
    for _ in 0..3 {
        rig.pass();
        rig.time.0.fetch_add(6, Ordering::Relaxed);
        rig.reader.turn().unwrap();
        let told = rig.machine.stream.lock().last > before;
        assert!(told || rig.dirty(), "neither told nor marked");
    }
    assert!(!rig.dirty(), "in the end it is cleared");
}

#[test]
fn an_orderly_stop_ends_while_writes_go_on_and_leaves_order() {
    let Some(mut rig) = Rig::new() else { return };
    rig.write(3 * CHUNK, 512);
    assert_eq!(rig.reader.step(), Ok(true));
    rig.reader.shared.stopping.store(true, Ordering::Release);
    let again = |rig: &mut Rig| {
        rig.write(4 * CHUNK, 512);
        rig.reader.step().unwrap()
    };
    let looks = (0..100).take_while(|_| again(&mut rig)).count();
    assert_eq!(looks, 0, "each look finds another write");
    rig.reader.end(Ok(()));
    assert!(rig.reader.shared.settle().is_err_and(|why| why.contains("the agent stops")));
    let core = rig.machine.stream.lock();
    assert_eq!(core.mode, TrackingMode::Ordered, "what was told can be published");
    assert_eq!(core.withheld.len(), 2, "and nobody waits for a catch-up");
    drop(core);
    assert!(rig.dirty(), "the next life knows of what came later");
}

#[test]
fn pieces_whose_rest_nobody_may_remember_do_not_wait_for_it() {
    let Some(mut rig) = Rig::new() else { return };
    let piece = |at| Piece { id: u64::MAX, disk: 0, range: 0..1024, at, bytes: &[1; 512] };
    assert_eq!(rig.reader.assembly.add(&piece(0)), Joined::Waits);
    rig.fill_rings();
    rig.pass();
    assert_eq!(rig.reader.assembly.add(&piece(512)), Joined::Broken(0, 0..1024));
}

#[test]
fn however_many_chunks_only_the_bits_name_their_file_is_synced_for_all_at_once() {
    let Some(mut rig) = Rig::new() else { return };
    rig.fill_rings();
    let chunks = (5..16).step_by(2);
    chunks.clone().for_each(|chunk| rig.write(chunk * CHUNK, 512));
    let bits = Arc::clone(&rig.machine.bits[0]);
    let before = bits.syncs.load(Ordering::Relaxed);
    rig.pass();
    // One for the extents of the second ring.
    let syncs = bits.syncs.load(Ordering::Relaxed) - before;
    assert!(syncs <= 2, "{syncs} syncs");
    assert_eq!(rig.machine.dirty(), (1 + chunks.count() as u64) * CHUNK);
}

#[test]
fn a_reader_that_panics_ends_the_capture_and_says_so() {
    let Some(rig) = Rig::new() else { return };
    let shared = Arc::clone(&rig.reader.shared);
    rig.time.0.store(u64::MAX, Ordering::Relaxed);
    rig.reader.run();
    rig.time.0.store(0, Ordering::Relaxed);
    assert!(shared.settle().is_err_and(|why| why.contains("the reader of the ring panicked")));
    assert_eq!(shared.mode().0, CaptureMode::Bitmap);
    assert_eq!(rig.machine.stream.lock().withheld.len(), 2);
    assert_eq!(rig.machine.dirty(), 2 * DISK_BYTES, "everything is read again");
}

#[test]
fn a_read_returns_when_what_was_issued_before_its_end_is_told() {
    let Some(mut rig) = Rig::new() else { return };
    let (device, _) = medium::open(&rig.device.path).unwrap();
    device.guard(Arc::new(DiskGate { shared: Arc::clone(&rig.reader.shared), disk: 0 }));
    rig.write(3 * CHUNK, 512);
    let stream = Arc::clone(&rig.machine.stream);
    let before = stream.lock().last;
    let read = std::thread::spawn(move || {
        let mut bytes = [0; 512];
        device.read_at(3 * CHUNK, &mut bytes).unwrap();
        stream.lock().last
    });
    // A wrong one returns meanwhile.
    let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let _time_out = rustix::event::poll(&mut [], Some(&none));
    while !read.is_finished() {
        rig.pass();
    }
    assert!(read.join().unwrap() > before, "it returned before the write was told");
}

#[test]
fn a_program_that_sees_nothing_is_not_taken_for_one_that_sees_places() {
    let Some((kernel, mut rings)) = loaded() else { return };
    let directory = tempfile::tempdir().unwrap();
    let places = Some("asked for".to_owned());
    let path = directory.path();
    for places in [None, places.clone()] {
        let proven = proof::prove(&kernel, &mut rings, path, CHUNKS, &System, places);
        assert!(proven.is_err_and(|why| why.contains("was not seen")));
    }
    kernel.attach().unwrap();
    let proven = proof::prove(&kernel, &mut rings, path, CHUNKS, &System, places);
    assert_eq!(proven, Ok(Proven::Places("asked for".to_owned())));
}

#[test]
fn a_flight_is_found_whatever_begins_and_ends_beside_it() {
    let Some((kernel, _rings)) = loaded() else { return };
    // More than one part of a walk. Requests are aligned to more than the 16 that one may be noted as.
    let flying: BTreeSet<u64> = (1..=5000).map(|request| request * 64).collect();
    for request in &flying {
        kernel.note(*request, Some([0, *request, request + 1, 2, 0]));
    }
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each takes the element that the one before gave back, mostly in another bucket.
            for request in (5001..).take_while(|_| !ended.load(Ordering::Acquire)) {
                kernel.note(request * 64, Some([0; 5]));
                kernel.note(request * 64, None);
            }
        });
        let _end = End(&ended);
        for _ in 0..10 {
            let flights = kernel.flights().unwrap();
            let found: BTreeSet<u64> =
                flights.iter().filter(|one| one.id == 2).map(|one| one.request).collect();
            assert!(flying == found, "{} of {}", found.len(), flying.len());
        }
    });
}

/// Ends what runs beside a test that fails as well.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn a_marker_wakes_the_reader_from_however_long_a_rest() {
    let Some((kernel, rings)) = loaded() else { return };
    let naps = Naps::new(&rings.events).unwrap();
    let seconds = |tv_sec| rustix::event::Timespec { tv_sec, tv_nsec: 0 };
    assert!(!naps.woken_within(&seconds(0)), "the ring is empty");
    assert!(kernel.mark(1).unwrap());
    // Far longer than the program's wake-up takes, and than any rest of the reader.
    assert!(naps.woken_within(&seconds(60)), "a bookmark waits until the reader looks by itself");
    assert!(!naps.woken_within(&seconds(0)), "by edge: that it lies there wakes nobody");
}
