//! Reads the rings and tells the stream, in order.
//!
//! Owns: that nothing lost goes unnoticed: what the rings could not take is found by the second ring,
//! then by the bits. Does not own: waiting for it ([`super::shared`]).

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::agent::capture::CaptureMode;
use crate::agent::disk::cut;
use crate::agent::stream::Stream;
use crate::model::{Change, DiskIndex, WRITE_BYTES_MAX, ZERO_BYTES_MAX};

use super::kernel::{Counts, Rings};
use super::record::{Assembly, Joined, Record, parse};
use super::shared::Shared;

/// Records and bytes told at a time: their bits reach the disk together.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 8 << 20;
/// How often the other half of the bits is used. A half is cleared a whole turn after everything that
/// had set its bits was told, so that no run of the program that had begun is still between its bit
/// and its record.
const TURN: Duration = Duration::from_secs(5);
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A captured disk, and where its bits begin.
#[derive(Clone, Debug)]
pub(super) struct Tracked {
    pub(super) bytes: u64,
    pub(super) first_chunk: u64,
}

enum Told {
    Write(Range<u64>, Bytes),
    Zero(Range<u64>),
    Unknown(Range<u64>, &'static str),
}

pub(super) struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) stream: Arc<Stream>,
    pub(super) rings: Rings,
    pub(super) disks: Vec<Tracked>,
    pub(super) chunk_bytes: u64,
    /// What is as good as it gets: `Ordered`, or `Extents` where payloads cannot be copied.
    pub(super) best: (CaptureMode, String),
    assembly: Assembly,
    counts: Counts,
    batch: Vec<(DiskIndex, Told)>,
    batch_bytes: usize,
    /// The half that is not written any more, its marker, and whether that was seen.
    left: Option<(u32, u64, bool)>,
    turned: Duration,
    /// The bitmap file could not be written: no bit of the kernel's is cleared any more.
    unwritten: Cell<bool>,
}

impl Reader {
    pub(super) fn new(
        shared: Arc<Shared>,
        stream: Arc<Stream>,
        rings: Rings,
        disks: Vec<Tracked>,
        chunk_bytes: u64,
    ) -> Self {
        let best = shared.mode();
        let turned = shared.clock.monotonic();
        Self {
            shared,
            stream,
            rings,
            disks,
            chunk_bytes,
            best,
            assembly: Assembly::default(),
            counts: Counts::default(),
            batch: Vec::new(),
            batch_bytes: 0,
            left: None,
            turned,
            unwritten: Cell::new(false),
        }
    }

    /// Until the observer stops, or the kernel does not answer.
    pub(super) fn run(mut self) {
        let outcome = loop {
            let stopping = self.shared.stopping.load(Ordering::Acquire) || self.stream.closed();
            match self.turn().and_then(|()| self.pass()) {
                Ok(0) if stopping => break Ok(()),
                Ok(0) => {
                    let mut fds = [PollFd::new(&self.rings.events, PollFlags::IN)];
                    // A time out or a signal: the ring is looked at anyway.
                    let _ready = poll(&mut fds, Some(&POLL));
                }
                Ok(_) => {}
                Err(why) => break Err(why),
            }
        };
        match outcome {
            Ok(()) => self.shared.end("the agent stops"),
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

    /// Reads what stands in the ring, a batch at most; returns how many records.
    pub(super) fn pass(&mut self) -> Result<usize, String> {
        let mut read = 0;
        let mut marker = None;
        while read < BATCH && self.batch_bytes < BATCH_BYTES && marker.is_none() {
            let Some(item) = self.rings.events.next() else { break };
            read += 1;
            let record = parse(&item).ok_or("the ring holds no record of ours")?;
            match record {
                Record::Marker(id) => marker = Some(id),
                Record::Piece(piece) => match self.assembly.add(&piece) {
                    Joined::Waits => {}
                    Joined::Whole(disk, range, bytes) => {
                        self.batch_bytes += bytes.len();
                        self.batch.push((DiskIndex(disk), Told::Write(range, bytes)));
                    }
                    Joined::Broken(disk, range) => {
                        let told = Told::Unknown(range, "a part of a write was lost");
                        self.batch.push((DiskIndex(disk), told));
                    }
                },
                Record::Zero(disk, range) => self.batch.push((DiskIndex(disk), Told::Zero(range))),
                Record::Unknown(id, disk, range) => {
                    self.assembly.forget(id);
                    let told = Told::Unknown(range, "it is known where was written, not what");
                    self.batch.push((DiskIndex(disk), told));
                }
                Record::Failed(disk, range) => {
                    let told = Told::Unknown(range, "the device failed a write");
                    self.batch.push((DiskIndex(disk), told));
                }
                Record::PassedBy(disk, range) => {
                    tracing::warn!(
                        disk,
                        "a command was passed to the device past its block layer (SG_IO): the disk is read again"
                    );
                    let told = Told::Unknown(range, "a command was passed to the device directly");
                    self.batch.push((DiskIndex(disk), told));
                }
            }
        }
        for (disk, range) in self.assembly.shed() {
            let told = Told::Unknown(range, "a part of a write was lost");
            self.batch.push((DiskIndex(disk), told));
        }
        // What was lost before these records were written is counted by now, and told before them: a
        // bookmark that is placed at any moment stands behind no write whose forerunner is missing.
        self.look(read == 0)?;
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        self.tell(batch);
        if let Some(marker) = marker {
            if let Some((_, awaited, seen)) = &mut self.left {
                *seen |= marker >= *awaited;
            }
            self.shared.told(marker);
        }
        Ok(read)
    }

    /// Tells a batch: all of its bits in one go, then each change in order.
    fn tell(&self, batch: Vec<(DiskIndex, Told)>) {
        for (index, disk) in self.stream.disks.iter().enumerate() {
            let ranges = batch.iter().filter(|(disk, _)| usize::from(disk.0) == index);
            let ranges = ranges.map(|(_, told)| match told {
                Told::Write(range, _) | Told::Zero(range) | Told::Unknown(range, _) => {
                    range.clone()
                }
            });
            let limit = disk.size_bytes;
            // A failure is heard again, and told, where each change is placed.
            let _each = disk
                .bitmap
                .intend_all(ranges.map(|range| range.start.min(limit)..range.end.min(limit)));
        }
        for (disk, told) in batch {
            let Some(tracked) = self.disks.get(usize::from(disk.0)) else { continue };
            let inside = |range: &Range<u64>| range.end <= tracked.bytes;
            let placed = match told {
                Told::Write(range, bytes) if inside(&range) => {
                    let start = range.start;
                    let part = |extent: crate::model::Extent| {
                        let at = (extent.offset() - start) as usize;
                        let payload = bytes.slice(at..at + extent.length() as usize).into();
                        Change::Write { disk, extent, payload }
                    };
                    let changes = cut(start, bytes.len() as u64, WRITE_BYTES_MAX).map(part);
                    self.stream.observed(disk, range, changes.collect()).map(drop)
                }
                Told::Zero(range) if inside(&range) => {
                    let zero = |extent| Change::Zero { disk, extent };
                    let changes =
                        cut(range.start, range.end - range.start, ZERO_BYTES_MAX).map(zero);
                    self.stream.observed(disk, range.clone(), changes.collect()).map(drop)
                }
                Told::Write(range, _) | Told::Zero(range) => self.stream.unordered(
                    disk,
                    range.start.min(tracked.bytes)..tracked.bytes,
                    "a write passed the end of the disk",
                ),
                Told::Unknown(range, why) => {
                    let range = range.start.min(tracked.bytes)..range.end.min(tracked.bytes);
                    self.unordered(disk, range, why);
                    Ok(())
                }
            };
            self.report(disk, placed);
        }
    }

    fn unordered(&self, disk: DiskIndex, range: Range<u64>, why: &str) {
        if range.start < range.end {
            self.report(disk, self.stream.unordered(disk, range, why));
        }
    }

    /// A bit that is not on the agent's disk stays in the kernel's map for the next life.
    fn report(&self, disk: DiskIndex, placed: io::Result<()>) {
        if let Err(error) = placed {
            tracing::error!(disk = disk.0, %error, "the bitmap cannot be written");
            self.unwritten.set(true);
        }
    }

    /// Whether something was lost since the last look, and how much of it is known.
    fn look(&mut self, idle: bool) -> Result<(), String> {
        let now = self.shared.kernel.counts()?;
        let was = std::mem::replace(&mut self.counts, now);
        let why = "the ring was full: it is known where was written";
        let mut lost = Vec::new();
        while let Some(item) = self.rings.extents.next() {
            let (disk, range) = match parse(&item) {
                Some(Record::Unknown(id, disk, range)) => {
                    self.assembly.forget(id);
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
            lost.push((DiskIndex(disk), Told::Unknown(range, why)));
        }
        self.tell(lost);
        if now.unflown > was.unflown {
            self.shared.blind();
        }
        if now.missed > was.missed {
            let why = "the kernel left the program out: everything is read again";
            tracing::warn!(missed = now.missed - was.missed, why);
            for (index, disk) in self.disks.iter().enumerate() {
                self.unordered(DiskIndex(index as u16), 0..disk.bytes, why);
            }
            self.shared.set_mode(CaptureMode::Bitmap, why);
        } else if now.forgotten > was.forgotten {
            let why = "both rings were full: what their bits name is read again";
            tracing::warn!(lost = now.forgotten - was.forgotten, why);
            for (disk, range) in runs(&self.shared.kernel.dirty()?, &self.disks, self.chunk_bytes) {
                self.unordered(disk, range, why);
            }
            self.shared.set_mode(CaptureMode::Bitmap, why);
        } else if now.dropped > was.dropped {
            let why = "the ring was full: what was written is read again";
            tracing::warn!(dropped = now.dropped - was.dropped, why);
            self.shared.set_mode(CaptureMode::Extents, why);
        } else if idle && self.shared.mode().0 != self.best.0 {
            let (mode, why) = self.best.clone();
            self.shared.set_mode(mode, &why);
        }
        Ok(())
    }

    /// Now and then: what is told already needs no bit in the kernel any more.
    pub(super) fn turn(&mut self) -> Result<(), String> {
        let now = self.shared.clock.monotonic();
        if now < self.turned + TURN || self.unwritten.get() {
            return Ok(());
        }
        self.turned = now;
        match self.left {
            Some((half, _, true)) => {
                self.look(false)?;
                self.shared.kernel.clear(half)?;
                self.left = None;
            }
            Some((_, _, false)) => return Ok(()), // its marker is still on its way
            None => {}
        }
        let half = self.shared.kernel.turn()?;
        let marker = self.shared.marker();
        // Where there is no room for the marker a later one says the same.
        let _room = self.shared.kernel.mark(marker)?;
        self.left = Some((half, marker, false));
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
