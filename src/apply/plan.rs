//! From delta indexes to page writes: pure, last writer wins, never across a run's end.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::format::delta::{DeltaIndex, EntrySource};
use crate::model::{DiskIndex, ExtentMap, Slice};
use crate::store::PAGE_WRITE_BYTES_MAX;

/// Where bytes of a page write come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: they are zeros.
    Zero,
    /// A frame of one of the deltas.
    Frame {
        /// Which delta, by its place in what was folded.
        delta: usize,
        /// Which of its frames.
        frame: u32,
        /// First byte within the frame's plaintext.
        offset: u32,
    },
}

impl Slice for Source {
    fn skip(&self, skip: u64) -> Self {
        match *self {
            Self::Zero => Self::Zero,
            Self::Frame { delta, frame, offset } => {
                // An entry never spans two frames, so an offset inside it stays inside 32 bits.
                Self::Frame { delta, frame, offset: offset + skip as u32 }
            }
        }
    }
}

/// Longest run of zeros that one page write clears: a store may have to copy what lies under it
/// for a snapshot, and everybody else who wants the disk waits meanwhile.
pub(super) const CLEAR_BYTES_MAX: u64 = 64 << 20;

/// One page write: adjacent parts, either all zero (`CLEAR_BYTES_MAX`) or data of at most 4 MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Where on the disk.
    pub range: Range<u64>,
    /// What goes there, ascending and without gaps.
    pub parts: Vec<(Range<u64>, Source)>,
}

impl Planned {
    pub(super) fn is_zero(&self) -> bool {
        matches!(self.parts.as_slice(), [(_, Source::Zero)])
    }
}

/// Everything that one run writes, by disk, in ascending order, without overlaps.
#[derive(Debug, Default)]
pub struct Plan {
    /// By disk, ascending, without overlaps.
    pub disks: BTreeMap<DiskIndex, Vec<Planned>>,
}

/// Folds the indexes of consecutive deltas (oldest first).
#[must_use]
pub fn plan(indexes: &[&DeltaIndex]) -> Plan {
    let mut maps: BTreeMap<DiskIndex, ExtentMap<Source>> = BTreeMap::new();
    for (delta, index) in indexes.iter().enumerate() {
        for entry in &index.entries {
            let source = match entry.source {
                EntrySource::Zero => Source::Zero,
                EntrySource::Frame { frame, offset } => Source::Frame { delta, frame, offset },
            };
            maps.entry(entry.disk).or_default().insert(entry.extent.range(), source);
        }
    }
    let disks = maps.into_iter().map(|(disk, map)| (disk, join(&map))).collect();
    Plan { disks }
}

/// Joins neighbours into writes: zeros with zeros, data with data, each up to its limit (an entry's
/// data is at most one frame, which is smaller; its zeros may be more and are cut).
fn join(map: &ExtentMap<Source>) -> Vec<Planned> {
    let mut writes: Vec<Planned> = Vec::new();
    for (range, &source) in map.iter() {
        if source == Source::Zero {
            join_zeros(&mut writes, range);
            continue;
        }
        match writes.last_mut() {
            Some(last) if fits(last, &range) => {
                last.range.end = range.end;
                last.parts.push((range, source));
            }
            _ => writes.push(Planned { range: range.clone(), parts: vec![(range, source)] }),
        }
    }
    writes
}

fn join_zeros(writes: &mut Vec<Planned>, mut range: Range<u64>) {
    if let Some(last) = writes.last_mut()
        && last.range.end == range.start
        && last.is_zero()
    {
        let room = CLEAR_BYTES_MAX.saturating_sub(last.range.end - last.range.start);
        last.range.end += room.min(range.end - range.start);
        last.parts[0].0.end = last.range.end;
        range.start = last.range.end;
    }
    while range.start < range.end {
        let part = range.start..range.end.min(range.start + CLEAR_BYTES_MAX);
        range.start = part.end;
        writes.push(Planned { range: part.clone(), parts: vec![(part, Source::Zero)] });
    }
}

fn fits(last: &Planned, range: &Range<u64>) -> bool {
    let adjacent = last.range.end == range.start;
    adjacent && !last.is_zero() && range.end - last.range.start <= u64::from(PAGE_WRITE_BYTES_MAX)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
