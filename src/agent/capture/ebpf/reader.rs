//! Reads the rings and tells the stream, in order.
//!
//! Owns: that nothing lost goes unnoticed: what the rings could not take is found by the second ring,
//! then by the bits. Does not own: waiting for it ([`super::shared`]), or when it looks
//! ([`super::naps`]).

use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::agent::capture::CaptureMode;
use crate::agent::observed::Seen;
use crate::agent::stream::Stream;
use crate::model::{DiskIndex, TrackingMode};

use super::batch::Batch;
use super::kernel::{Counts, Rings};
use super::naps::Naps;
use super::record::{Assembly, Joined, Record, parse};
use super::shared::Shared;

/// How often the other half of the bits is used, and how much later a marker is put into the ring: no run
/// of the program takes so long from its bit to its record, so all that set bits in the half that was left
/// stands before that marker. When the marker was read, all of it is told, and the half is cleared.
const TURN: Duration = Duration::from_secs(5);
/// Time without anybody who takes what is copied until nothing is copied, and the same at the start,
/// while a process server is looked for.
const UNWANTED: Duration = Duration::from_millis(250);
const UNWANTED_AT_START: Duration = Duration::from_secs(10);
const RESTS: &str = "no process server takes what is written: only where is kept, until one does";
/// Records read in one go at most.
const READ_MAX: usize = 4096;
const BROKEN: &str = "a part of a write was lost";

/// A captured disk, and where its bits begin.
#[derive(Clone, Debug)]
pub(super) struct Tracked {
    pub(super) bytes: u64,
    pub(super) first_chunk: u64,
}

/// How a look at the ring ended.
pub(super) struct Pass {
    pub(super) read: usize,
    /// Nothing was left when it ended.
    emptied: bool,
}

/// The half of the bits that is not written any more.
struct Left {
    half: u32,
    /// Behind everything that has set a bit in it; not yet in the ring at first.
    marker: Option<u64>,
    told: bool,
}

pub(super) struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) stream: Arc<Stream>,
    pub(super) rings: Rings,
    pub(super) disks: Vec<Tracked>,
    pub(super) chunk_bytes: u64,
    /// What is as good as it gets: `Ordered`, or `Extents` where payloads cannot be copied.
    pub(super) best: (CaptureMode, String),
    pub(super) assembly: Assembly,
    counts: Counts,
    batch: Batch,
    naps: Naps,
    /// Payloads are copied by the program, and when somebody might have taken them last.
    copying: bool,
    wanted: bool,
    last_wanted: Duration,
    left: Option<Left>,
    turned: Duration,
    /// The bitmap file could not be written: no bit of the kernel's is cleared any more.
    unwritten: Cell<bool>,
}

impl Reader {
    pub(super) fn new(
        shared: Arc<Shared>,
        stream: Arc<Stream>,
        rings: Rings,
        naps: Naps,
        disks: Vec<Tracked>,
        chunk_bytes: u64,
    ) -> Self {
        let best = shared.mode();
        let turned = shared.clock.monotonic();
        let sizes = disks.iter().map(|disk| disk.bytes).collect();
        Self {
            shared,
            stream,
            rings,
            disks,
            chunk_bytes,
            best,
            assembly: Assembly::default(),
            counts: Counts::default(),
            batch: Batch::new(sizes),
            naps,
            copying: true,
            wanted: true,
            last_wanted: turned + UNWANTED_AT_START,
            left: None,
            turned,
            unwritten: Cell::new(false),
        }
    }

    /// Until the observer stops, or the kernel does not answer.
    pub(super) fn run(mut self) {
        let looks = catch_unwind(AssertUnwindSafe(|| self.looks()));
        self.end(looks.unwrap_or_else(|_panic| Err("the reader of the ring panicked".to_owned())));
    }

    fn looks(&mut self) -> Result<(), String> {
        while self.step()? {}
        Ok(())
    }

    /// One look at the ring, and the rest behind it; `false` when the observer stops. What stands in the
    /// ring then is left there, however much: who stops in order has settled before, and what came later is
    /// in the bits, for the next life.
    pub(super) fn step(&mut self) -> Result<bool, String> {
        if self.shared.stopping.load(Ordering::Acquire) || self.stream.closed() {
            return Ok(false);
        }
        self.turn()?;
        self.weigh()?;
        let Pass { read, emptied } = self.pass()?;
        if emptied {
            self.naps.rest(read > 0);
        }
        Ok(true)
    }

    /// Nothing is told any more.
    pub(super) fn end(&self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                let why = "the agent stops";
                for disk in 0..self.disks.len() {
                    self.stream.leave(DiskIndex(disk as u16), why);
                }
                self.shared.end(why);
            }
            Err(why) => {
                tracing::error!(
                    why,
                    "eBPF capture ended; everything is read again when the agent is restarted"
                );
                self.shared.set_mode(CaptureMode::Bitmap, &why);
                for disk in 0..self.disks.len() {
                    let index = DiskIndex(disk as u16);
                    self.stream.withhold(index, &format!("eBPF capture ended: {why}"));
                    self.unordered(index, 0..self.disks[disk].bytes, "eBPF capture ended");
                }
                self.shared.end(&why);
            }
        }
    }

    /// Reads what stands in the ring, a batch at most, and tells it.
    pub(super) fn pass(&mut self) -> Result<Pass, String> {
        let mut pass = Pass { read: 0, emptied: false };
        let mut marker = None;
        let more = |batch: &Batch, assembly: &Assembly| !batch.is_full() && !assembly.is_full();
        while pass.read < READ_MAX && more(&self.batch, &self.assembly) && marker.is_none() {
            let Some(item) = self.rings.events.next() else {
                pass.emptied = true;
                break;
            };
            pass.read += 1;
            let record = parse(&item).ok_or("the ring holds no record of ours")?;
            let batch = &mut self.batch;
            match record {
                Record::Marker(id) => marker = Some(id),
                Record::Piece(piece) if !self.wanted => {
                    self.assembly.forget(piece.id);
                    batch.unknown(piece.disk, piece.range, RESTS);
                }
                Record::Piece(piece) => match self.assembly.add(&piece) {
                    Joined::Waits | Joined::Refused => {}
                    Joined::Whole(disk, range, bytes) => batch.write(disk, range, &bytes),
                    Joined::Broken(disk, range) => batch.unknown(disk, range, BROKEN),
                },
                Record::Zero(disk, range) => batch.zero(disk, range),
                Record::Unknown(id, disk, range) => {
                    self.assembly.forget(id);
                    batch.unknown(disk, range, "it is known where was written, not what");
                }
                Record::Failed(disk, range) => {
                    batch.unknown(disk, range, "the device failed a write");
                }
                Record::PassedBy(disk, range) => {
                    tracing::warn!(
                        disk,
                        "a command was passed to the device past its block layer (SG_IO): the disk is read again"
                    );
                    batch.unknown(disk, range, "a command was passed to the device directly");
                }
            }
        }
        for (disk, range) in self.assembly.shed() {
            self.batch.unknown(disk, range, BROKEN);
        }
        // What was lost before these records were written is counted by now, and told before them: a
        // bookmark that is placed at any moment stands behind no write whose forerunner is missing.
        self.look(pass.emptied)?;
        let seen = self.batch.take();
        self.tell(seen);
        if let Some(marker) = marker {
            if let Some(left) = &mut self.left {
                left.told |= left.marker.is_some_and(|awaited| marker >= awaited);
            }
            self.shared.told(marker);
        }
        Ok(pass)
    }

    fn tell(&self, seen: Vec<Seen>) {
        if seen.is_empty() {
            return;
        }
        for (disk, error) in self.stream.observed(seen) {
            self.unwritten(disk, &error);
        }
    }

    fn unordered(&self, disk: DiskIndex, range: Range<u64>, why: &str) {
        if range.start < range.end
            && let Err(error) = self.stream.unordered(disk, range, why)
        {
            self.unwritten(disk, &error);
        }
    }

    /// A bit that is not on the agent's disk stays in the kernel's map for the next life.
    fn unwritten(&self, disk: DiskIndex, error: &std::io::Error) {
        tracing::error!(disk = disk.0, %error, "the bitmap cannot be written");
        self.unwritten.set(true);
    }

    /// Whether something was lost since the last look, and how much of it is known.
    fn look(&mut self, caught_up: bool) -> Result<(), String> {
        let now = self.shared.kernel.counts()?;
        let was = std::mem::replace(&mut self.counts, now);
        let why = "the ring was full: it is known where was written";
        let mut lost = Batch::new(self.disks.iter().map(|disk| disk.bytes).collect());
        while let Some(item) = self.rings.extents.next() {
            let (disk, range) = match parse(&item) {
                Some(Record::Unknown(id, disk, range)) => {
                    // Its pieces stand in the first ring, and some of them are not read yet.
                    self.assembly.refuse(id);
                    (disk, range)
                }
                Some(
                    Record::Failed(disk, range)
                    | Record::PassedBy(disk, range)
                    | Record::Zero(disk, range),
                ) => (disk, range),
                Some(Record::Marker(_) | Record::Piece(_)) | None => {
                    return Err("the second ring holds no record of ours".to_owned());
                }
            };
            lost.unknown(disk, range, why);
        }
        self.tell(lost.take());
        if now.forgotten > was.forgotten {
            // Of a request that was cut off not even this may be known: its pieces would wait for ever.
            self.assembly.forget_all();
        }
        if now.unflown > was.unflown {
            self.shared.blind();
        }
        if now.missed > was.missed {
            let why = "the kernel left the program out: everything is read again";
            tracing::warn!(missed = now.missed - was.missed, why);
            for (index, disk) in self.disks.iter().enumerate() {
                self.unordered(DiskIndex(index as u16), 0..disk.bytes, why);
            }
            if !self.unwritten.get() {
                self.shared.kernel.handled(now.missed)?;
            }
            self.shared.set_mode(CaptureMode::Bitmap, why);
        } else if now.forgotten > was.forgotten {
            let why = "both rings were full: what their bits name is read again";
            tracing::warn!(lost = now.forgotten - was.forgotten, why);
            let runs = runs(&self.shared.kernel.dirty()?, &self.disks, self.chunk_bytes);
            for (disk, error) in self.stream.unordered_all(runs, why) {
                self.unwritten(disk, &error);
            }
            self.shared.set_mode(CaptureMode::Bitmap, why);
        } else if now.dropped > was.dropped {
            let why = "the ring was full: what was written is read again";
            tracing::warn!(dropped = now.dropped - was.dropped, why);
            self.shared.set_mode(CaptureMode::Extents, why);
        } else if caught_up {
            match self.best.0 {
                CaptureMode::Ordered if !self.copying => {
                    self.shared.set_mode(CaptureMode::Extents, RESTS);
                }
                mode => self.shared.set_mode(mode, &self.best.1),
            }
        }
        Ok(())
    }

    /// Copies payloads while they may be of use. In bitmap mode nobody takes them, and where is enough;
    /// what is told without its bytes while the stream catches up already is read again.
    fn weigh(&mut self) -> Result<(), String> {
        let now = self.shared.clock.monotonic();
        self.wanted = self.stream.lock().mode != TrackingMode::Bitmap;
        if self.wanted {
            self.last_wanted = now.max(self.last_wanted);
        }
        let copies = now < self.last_wanted + UNWANTED;
        if self.best.0 == CaptureMode::Ordered && copies != self.copying {
            self.shared.kernel.copy(copies)?;
            self.copying = copies;
        }
        Ok(())
    }

    /// Now and then: what is told already needs no bit in the kernel any more.
    pub(super) fn turn(&mut self) -> Result<(), String> {
        if self.unwritten.get() {
            return Ok(());
        }
        let now = self.shared.clock.monotonic();
        let due = now >= self.turned + TURN;
        match &mut self.left {
            Some(Left { half, told: true, .. }) => {
                let half = *half;
                self.look(false)?;
                if self.unwritten.get() {
                    return Ok(());
                }
                self.shared.kernel.clear(half)?;
                self.left = None;
            }
            Some(Left { marker: marker @ None, .. }) if due => {
                let behind = self.shared.marker();
                *marker = Some(behind);
                // Where there is no room for it a later one says the same.
                let _room = self.shared.kernel.mark(behind)?;
            }
            Some(_) => {} // runs that use it may not have ended, or its marker is on its way
            None if due => {
                let half = self.shared.kernel.turn()?;
                self.left = Some(Left { half, marker: None, told: false });
                self.turned = now;
            }
            None => {}
        }
        Ok(())
    }
}

/// The runs of set bits as bytes of each disk.
pub(super) fn runs(
    bits: &[u64],
    disks: &[Tracked],
    chunk_bytes: u64,
) -> Vec<(DiskIndex, Range<u64>)> {
    let is_set = |chunk: u64| {
        bits.get((chunk / 64) as usize).is_some_and(|word| word >> (chunk % 64) & 1 == 1)
    };
    let mut found: Vec<(DiskIndex, Range<u64>)> = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        let index = DiskIndex(index as u16);
        for chunk in 0..disk.bytes.div_ceil(chunk_bytes) {
            if !is_set(disk.first_chunk + chunk) {
                continue;
            }
            let range = chunk * chunk_bytes..((chunk + 1) * chunk_bytes).min(disk.bytes);
            match found.last_mut() {
                Some((last, run)) if *last == index && run.end == range.start => {
                    run.end = range.end
                }
                _ => found.push((index, range)),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_runs_of_their_own_disks() {
        let disks = [
            Tracked { bytes: 5 * 4096 - 512, first_chunk: 0 },
            Tracked { bytes: 70 * 4096, first_chunk: 5 },
        ];
        let mut bits = vec![0_u64; 2];
        for chunk in [0, 3, 4, 5, 6, 63, 64, 74, 75] {
            bits[chunk / 64] |= 1 << (chunk % 64);
        }
        let expected = [(0, 0..1), (0, 3..5), (1, 0..2), (1, 58..60), (1, 69..70)];
        let expected = expected.map(|(disk, run): (u16, Range<u64>)| {
            let end = (run.end * 4096).min(disks[usize::from(disk)].bytes);
            (DiskIndex(disk), run.start * 4096..end)
        });
        assert_eq!(runs(&bits, &disks, 4096), expected);
    }
}
