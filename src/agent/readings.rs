//! Reads of a catch-up that run beside writes nobody holds back.
//!
//! Owns: what of a read may be placed, when the same range was written meanwhile. Does not own: the
//! reading, or when a write is known.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::model::{Change, DiskIndex, Extent};

/// The read that has begun and is not placed yet. A catch-up makes one at a time.
#[derive(Debug)]
pub(super) struct Reading {
    disk: DiskIndex,
    range: Range<u64>,
    losses: u64,
    /// Parts that were written meanwhile and stand in the stream already, by their begin, none touching
    /// another: what was read there may be older. However long the read takes, they are no more than
    /// the range has sectors.
    written: BTreeMap<u64, u64>,
    /// Something of the range is known to have changed, and not to what.
    spoiled: bool,
}

impl Reading {
    pub(super) fn new(disk: DiskIndex, range: Range<u64>, losses: u64) -> Self {
        Self { disk, range, losses, written: BTreeMap::new(), spoiled: false }
    }

    /// A write that stands in the stream.
    pub(super) fn written(&mut self, disk: DiskIndex, range: &Range<u64>) {
        if !self.touches(disk, range) {
            return;
        }
        let mut start = range.start.max(self.range.start);
        let mut end = range.end.min(self.range.end);
        // From the last that begins at or before the end, back to the first that is reached.
        while let Some((&at, &until)) = self.written.range(..=end).next_back()
            && until >= start
        {
            (start, end) = (start.min(at), end.max(until));
            self.written.remove(&at);
        }
        self.written.insert(start, end);
    }

    /// A change that does not.
    pub(super) fn spoiled(&mut self, disk: DiskIndex, range: &Range<u64>) {
        self.spoiled |= self.touches(disk, range);
    }

    /// What of `changes`, that were read, is still the newest. `None` when the range has to be read
    /// again.
    pub(super) fn end(self, losses: u64, changes: Vec<Change>) -> Option<Vec<Change>> {
        if self.spoiled || self.losses != losses {
            return None;
        }
        let holes = self.written.into_iter().map(|(start, end)| start..end);
        Some(holes.fold(changes, |changes, hole| cut_out(changes, &hole)))
    }

    fn touches(&self, disk: DiskIndex, range: &Range<u64>) -> bool {
        self.disk == disk && self.range.start < range.end && range.start < self.range.end
    }
}

/// The changes without the part that lies in `hole`.
fn cut_out(changes: Vec<Change>, hole: &Range<u64>) -> Vec<Change> {
    let mut left = Vec::with_capacity(changes.len() + 1);
    for change in changes {
        let (Change::Write { extent, .. } | Change::Zero { extent, .. }) = &change else {
            left.push(change);
            continue;
        };
        let Range { start, end } = extent.range();
        if hole.end <= start || end <= hole.start {
            left.push(change);
            continue;
        }
        let parts = [start..hole.start.max(start), hole.end.min(end)..end];
        left.extend(parts.into_iter().filter_map(|part| slice(&change, &part)));
    }
    left
}

/// The part of a change that lies in `part`, a range inside it; `None` of an empty one.
fn slice(change: &Change, part: &Range<u64>) -> Option<Change> {
    let length = part.end.checked_sub(part.start).filter(|length| *length > 0)?;
    match change {
        Change::Write { disk, extent, payload } => {
            let start = (part.start - extent.offset()) as usize;
            let payload = payload.slice(start..start + length as usize);
            let extent = Extent::new(part.start, length, extent.length()).ok()?;
            Some(Change::Write { disk: *disk, extent, payload })
        }
        Change::Zero { disk, extent } => {
            let extent = Extent::new(part.start, length, extent.length()).ok()?;
            Some(Change::Zero { disk: *disk, extent })
        }
        Change::EpochBegin(_)
        | Change::CatchUpBegin(_)
        | Change::CatchUpEnd
        | Change::Bookmark(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_kept_as_few_ranges() {
        const DISK: DiskIndex = DiskIndex(3);
        let mut reading = Reading::new(DISK, 4096..8192, 0);
        let written = [4608..5120, 6144..6656, 0..512, 7680..9000, 5120..5632, 0..4097, 6144..6656];
        for range in &written {
            reading.written(DISK, range);
            reading.written(DiskIndex(2), &(4096..8192));
        }
        let kept: Vec<_> = reading.written.clone().into_iter().collect();
        assert_eq!(kept, [(4096, 4097), (4608, 5632), (6144, 6656), (7680, 8192)]);
        reading.written(DISK, &(4097..7000));
        let kept: Vec<_> = reading.written.into_iter().collect();
        assert_eq!(kept, [(4096, 7000), (7680, 8192)]);
    }
}
