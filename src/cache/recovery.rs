//! Opening a log: what the last process left, and what of it may be believed.
//!
//! Owns: the decision table of `docs/formats/cache-segment.md` (its letters stand at the decisions).
//! Does not own: which bad place is damage (`scan`), which record of a machine counts (`streams`),
//! what is written before the log opens (`rewrite`).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::damage::{Damage, Finding};
use super::error::CacheError;
use super::file::{Aside, SegmentDirectory, Slot};
use super::pool::{Geometry, Keeper, blank};
use super::scan::{Content, Scan, Verdict, scan};
use super::streams::{Found, Streams};
use crate::clock::Entropy;
use crate::format::bytes::FormatError;
use crate::format::segment::{
    SEGMENT_HEADER_BYTES, SEGMENT_HEADER_SECTOR, SegmentHeader, record_bytes,
};
use crate::model::{MachineKey, Sequence};
use crate::observe::Metrics;

/// What was found and put in order.
pub(super) struct Recovered {
    /// Segments that hold records that count.
    pub(super) segments: Vec<Slot>,
    /// Those records in log order; `Found::segment` is a place in `segments`.
    pub(super) records: Vec<Found>,
    /// Whether segments must be recycled in log order, see `lineage`.
    pub(super) again: bool,
    /// Records that are in the log and not served: the newest of each machine.
    pub(super) kept_back: Vec<(MachineKey, Sequence)>,
    pub(super) damage: Vec<Damage>,
    /// Slots that nobody needs but that are not blank.
    pub(super) stale: Vec<Slot>,
    pub(super) keeper: Keeper,
}

/// A segment with a valid header.
#[derive(Debug)]
struct Candidate {
    slot: Slot,
    header: SegmentHeader,
}

/// A segment with records.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) slot: Slot,
    pub(super) header: SegmentHeader,
    pub(super) scan: Scan,
    unreadable: Vec<Range<u64>>,
    /// Whether some of it is damaged: what is left is safer elsewhere.
    pub(super) damaged: bool,
    /// Void records in it.
    pub(super) voids: Vec<(MachineKey, Sequence)>,
}

/// Where what counts of a segment is after rewriting.
#[derive(Debug)]
pub(super) struct Place {
    /// `None` if nothing counts and the slot is blank already.
    pub(super) slot: Option<Slot>,
    /// Whether it voids records of earlier ones.
    pub(super) voids: bool,
}

/// Puts the log of `directory` in order. When it returns, every record it names is on the disk. It
/// may be cut off anywhere and done again.
pub(super) fn recover(
    directory: Arc<dyn SegmentDirectory>,
    geometry: Geometry,
    shard: u16,
    entropy: Arc<dyn Entropy>,
    metrics: &Metrics,
) -> Result<Recovered, CacheError> {
    let mut recovery = Recovery {
        damage: Vec::new(),
        stale: Vec::new(),
        keeper: Keeper {
            directory,
            geometry,
            shard,
            entropy,
            blank: Vec::new(),
            files: 0,
            next_slot: 0,
            next_ordinal: 1,
            broken: None,
        },
        unplaced: Vec::new(),
        again: false,
        kept_back: Vec::new(),
        to_void: Vec::new(),
        metrics,
    };
    let candidates = recovery.headers()?;
    let mut log = recovery.scan(candidates);
    let mut records = recovery.believe(&mut log);
    let places = recovery.rewrite(&log, &mut records)?;
    recovery.set_aside()?;
    let segments = recovery.needed(places, &mut records);
    Ok(Recovered {
        segments,
        records,
        again: recovery.again,
        kept_back: recovery.kept_back,
        damage: recovery.damage,
        stale: recovery.stale,
        keeper: recovery.keeper,
    })
}

/// All segments with records, in log order.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) segments: Vec<Scanned>,
    /// The last one; if it was not closed, the page cache may hold what the disk does not.
    pub(super) last: Option<usize>,
    /// Its bytes as they were scanned.
    pub(super) last_bytes: Vec<u8>,
}

pub(super) struct Recovery<'a> {
    damage: Vec<Damage>,
    stale: Vec<Slot>,
    /// Segments whose place in the log is not known (row D).
    unplaced: Vec<Slot>,
    again: bool,
    kept_back: Vec<(MachineKey, Sequence)>,
    /// Streams that damage was found in: what it keeps back must not come back when it is forgotten, and
    /// what comes later must not be kept back for it.
    pub(super) to_void: Vec<(MachineKey, Sequence)>,
    pub(super) keeper: Keeper,
    metrics: &'a Metrics,
}

impl Recovery<'_> {
    /// Rows A, B, D and D′; what is left may have records. Nothing is changed before all are read.
    fn headers(&mut self) -> Result<Vec<Candidate>, CacheError> {
        let directory = Arc::clone(&self.keeper.directory);
        let read = || CacheError::io(directory.path(), "reading the directory");
        let slots = directory.slots().map_err(read())?;
        self.tell_aside(directory.aside().map_err(read())?);
        let mut headers = Vec::new();
        for slot in slots {
            let header = header(&slot)?;
            if let Ok(Some(SegmentHeader { shard, .. })) = header
                && shard != self.keeper.shard
            {
                let (path, found) = (slot.file.path().to_owned(), shard);
                return Err(CacheError::Misplaced { path, found, shard: self.keeper.shard }); // D′
            }
            headers.push((slot, header));
        }
        let mut candidates = Vec::new();
        for (slot, header) in headers {
            self.keeper.files += 1;
            self.keeper.next_slot = self.keeper.next_slot.max(slot.number + 1);
            match header {
                Ok(None) if slot.file.bytes() == self.keeper.geometry.segment_bytes => {
                    self.free(slot)?; // A: the page cache says so, and now the disk does
                }
                Ok(None) => self.stale.push(slot), // A′
                Ok(Some(header)) => match misfit(&slot, &header) {
                    None => candidates.push(Candidate { slot, header }),
                    Some(reason) => self.unplaced(slot, Finding::Header(reason)), // D
                },
                Err(reason) => self.unplaced(slot, Finding::Header(reason)), // D
            }
        }
        let present: Vec<_> = candidates.iter().map(|c| c.header.ordinal).collect();
        let last = present.iter().copied().max().unwrap_or(0);
        self.keeper.next_ordinal = last + 1;
        let unfinished = |c: &Candidate| c.header.copy_of.is_some_and(|of| present.contains(&of));
        let (copies, mut candidates): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(unfinished);
        for copy in copies {
            self.free(copy.slot)?; // B
        }
        candidates.sort_by_key(|candidate| candidate.header.ordinal);
        Ok(candidates)
    }

    /// Reads every candidate; rows C and G.
    fn scan(&mut self, candidates: Vec<Candidate>) -> Log {
        let (mut segments, mut bytes) = (Vec::new(), Vec::new());
        let (mut last, mut last_bytes) = (None, Vec::new());
        for Candidate { slot, header } in candidates {
            let unreadable = read(&slot, &mut bytes);
            let scan = scan(&bytes, &header);
            for range in &unreadable {
                self.damaged(&slot, range.clone(), Finding::Unreadable); // G
            }
            if scan.is_empty() && unreadable.is_empty() {
                self.stale.push(slot); // C
                continue;
            }
            if !scan.is_empty() {
                last = Some(segments.len());
                std::mem::swap(&mut bytes, &mut last_bytes);
            }
            segments.push(Scanned {
                slot,
                header,
                scan,
                unreadable,
                damaged: false,
                voids: Vec::new(),
            });
        }
        Log { segments, last, last_bytes }
    }

    /// Rows E to N: which records count.
    fn believe(&mut self, log: &mut Log) -> Vec<Found> {
        let mut streams = Streams::default();
        if !self.unplaced.is_empty() {
            streams.damage_anywhere();
        }
        for at in 0..log.segments.len() {
            let segment = &mut log.segments[at];
            let followed = Some(at) < log.last;
            let verdict = segment.scan.judge(followed, &segment.unreadable);
            self.take(at, segment, &verdict, &mut streams);
        }
        let counted = streams.finish();
        self.again = counted.again;
        self.to_void = counted.unsettled;
        for gap in counted.gaps {
            self.kept_back.push((gap.machine, gap.last));
            if gap.settled {
                continue;
            }
            let slot = &log.segments[gap.segment].slot;
            let range = gap.position..slot.file.bytes();
            let (machine, missing, records) = (gap.machine, gap.missing, gap.records);
            let (first, last) = (gap.first, gap.last);
            self.damaged(slot, range, Finding::AfterGap { machine, missing, first, last, records });
        }
        counted.records
    }

    /// Feeds one segment's records and damage into the streams, in the order they stand.
    fn take(&mut self, at: usize, segment: &mut Scanned, verdict: &Verdict, streams: &mut Streams) {
        if let Some(torn) = verdict.torn {
            let path = segment.slot.file.path().display();
            tracing::warn!(%path, torn, "an append was torn: it was never acknowledged"); // H
        }
        segment.damaged = !verdict.damaged.is_empty() || !segment.unreadable.is_empty();
        for range in &verdict.damaged {
            self.damaged(&segment.slot, range.clone(), Finding::Records);
        }
        let holes = verdict.damaged.iter().chain(&segment.unreadable);
        let mut holes: Vec<u64> = holes.map(|range| range.start).collect();
        holes.sort_unstable();
        let mut holes = holes.into_iter().peekable();
        let end = verdict.torn.unwrap_or(u64::MAX);
        let records = std::mem::take(&mut segment.scan.records);
        for record in records.into_iter().filter(|record| record.position < end) {
            while holes.next_if(|&hole| hole <= record.position).is_some() {
                streams.damage();
            }
            let (machine, sequence) = (record.machine, record.sequence);
            match record.content {
                Content::Void => {
                    streams.void(machine, sequence); // N
                    segment.voids.push((machine, sequence));
                }
                Content::Change(change) => streams.record(Found {
                    machine,
                    generation: record.generation,
                    sequence,
                    change,
                    payload: record.payload,
                    segment: at,
                    position: record.position,
                }),
                Content::Unknown(reason) => {
                    let payload_bytes = u32::try_from(record.payload.len()).unwrap_or(u32::MAX);
                    let range = record.position..record.position + record_bytes(payload_bytes);
                    let finding = Finding::Body { machine, sequence, reason };
                    self.damaged(&segment.slot, range, finding); // M
                    streams.damage();
                }
            }
        }
        for _ in holes {
            streams.damage();
        }
    }

    /// Makes a slot blank at once, because what comes next relies on it.
    pub(super) fn free(&mut self, slot: Slot) -> Result<(), CacheError> {
        blank(&slot).map_err(CacheError::io(slot.file.path(), "blanking a segment"))?;
        if slot.file.bytes() == self.keeper.geometry.segment_bytes {
            self.keeper.blank.push(slot);
        } else {
            self.stale.push(slot);
        }
        Ok(())
    }

    /// Row D.
    fn unplaced(&mut self, slot: Slot, finding: Finding) {
        self.damaged(&slot, 0..SEGMENT_HEADER_SECTOR as u64, finding);
        self.unplaced.push(slot);
    }

    /// What its loss keeps back is voided on the disk: a later gap is none of its making.
    fn set_aside(&mut self) -> Result<(), CacheError> {
        for slot in std::mem::take(&mut self.unplaced) {
            let present = slot.file.path();
            let path = self.keeper.directory.set_aside(&slot);
            let path = path.map_err(CacheError::io(present, "setting a damaged segment aside"))?;
            tracing::warn!(segment = %present.display(), path = %path.display(), "set aside");
            self.keeper.files -= 1;
            let theirs = self.damage.iter_mut().filter(|damage| damage.path == present);
            theirs.for_each(|damage| damage.path.clone_from(&path));
        }
        Ok(())
    }

    /// Nothing new, so it is not counted; but somebody has to see to it.
    fn tell_aside(&mut self, aside: Vec<Aside>) {
        for Aside { number, path, bytes } in aside {
            self.keeper.next_slot = self.keeper.next_slot.max(number + 1);
            let damage = Damage { path, range: 0..bytes, finding: Finding::Aside };
            tracing::error!("{damage}");
            self.damage.push(damage);
        }
    }

    /// Segments of which nothing counts go to the pool; but where segments are recycled in log order, not
    /// before those in front of them: what they hold tells a later start that there is no damage between two records.
    fn needed(&mut self, places: Vec<Place>, records: &mut [Found]) -> Vec<Slot> {
        let mut counts = vec![false; places.len()];
        for record in &*records {
            counts[record.segment] = true;
        }
        let mut moved = vec![0; places.len()];
        let mut kept = Vec::new();
        for (at, place) in places.into_iter().enumerate() {
            moved[at] = kept.len();
            let in_order = (place.voids || self.again) && !kept.is_empty();
            match place.slot {
                Some(slot) if counts[at] || in_order => kept.push(slot),
                Some(slot) => self.stale.push(slot),
                None => {}
            }
        }
        for record in records {
            record.segment = moved[record.segment];
        }
        kept
    }

    fn damaged(&mut self, slot: &Slot, range: Range<u64>, finding: Finding) {
        let path = slot.file.path().to_owned();
        let damage = Damage { path, range, finding };
        tracing::error!("{damage}");
        self.metrics.cache_damage.fetch_add(1, Ordering::Relaxed);
        self.damage.push(damage);
    }
}

/// What a segment's first sector says. A sector that the disk does not give says nothing about the records:
/// asked once more, then the start is for later (D′).
fn header(slot: &Slot) -> Result<Result<Option<SegmentHeader>, FormatError>, CacheError> {
    let mut sector = [0; SEGMENT_HEADER_SECTOR];
    if slot.file.bytes() >= SEGMENT_HEADER_BYTES {
        let read = slot.file.read(&mut sector, 0).or_else(|_| slot.file.read(&mut sector, 0));
        let action = "reading the header of a segment (nothing was changed; if the disk never gives it, see \
                      docs/operations.md, \"A segment whose header cannot be read\")";
        read.map_err(CacheError::io(slot.file.path(), action))?;
    }
    Ok(SegmentHeader::decode(&sector))
}

/// Why a valid header does not belong to this file.
fn misfit(slot: &Slot, header: &SegmentHeader) -> Option<FormatError> {
    let bytes = slot.file.bytes();
    (header.segment_bytes != bytes)
        .then(|| FormatError::value("segment_bytes", header.segment_bytes, bytes))
}

/// Reads a whole segment. What the disk cannot read is zeros here, and named.
fn read(slot: &Slot, bytes: &mut Vec<u8>) -> Vec<Range<u64>> {
    const PAGE: usize = 4096;
    bytes.clear();
    bytes.resize(usize::try_from(slot.file.bytes()).unwrap_or(0), 0);
    let mut unreadable: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let piece = (at + (1 << 20)).min(bytes.len());
        if slot.file.read(&mut bytes[at..piece], at as u64).is_err() {
            for page in (at..piece).step_by(PAGE) {
                let end = (page + PAGE).min(piece);
                if slot.file.read(&mut bytes[page..end], page as u64).is_err() {
                    bytes[page..end].fill(0);
                    let (page, end) = (page as u64, end as u64);
                    match unreadable.last_mut().filter(|last| last.end == page) {
                        Some(last) => last.end = end,
                        None => unreadable.push(page..end),
                    }
                }
            }
        }
        at = piece;
    }
    unreadable
}
