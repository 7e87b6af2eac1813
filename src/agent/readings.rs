//! Reads of a catch-up that run beside writes nobody holds back.
//!
//! Owns: what of a read may be placed, when the same range was written meanwhile. Does not own: the
//! reading, or when a write is known.

use std::ops::Range;

use crate::model::{Change, DiskIndex, Extent};

/// One read that has begun and is not placed yet.
#[derive(Debug)]
pub(super) struct Reading {
    disk: DiskIndex,
    range: Range<u64>,
    losses: u64,
    /// Parts that were written meanwhile and stand in the stream already: what was read there may be
    /// older.
    written: Vec<Range<u64>>,
    /// Something of the range is known to have changed, and not to what.
    spoiled: bool,
}

/// The reads that run. There are few: a catch-up makes one at a time.
#[derive(Debug, Default)]
pub(super) struct Readings {
    next: u64,
    open: Vec<(u64, Reading)>,
}

/// Names a reading until it is placed or dropped by its maker.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl Readings {
    pub(super) fn begin(&mut self, disk: DiskIndex, range: Range<u64>, losses: u64) -> Ticket {
        // A maker that failed never came back for its reading; it has one at a time.
        self.open.retain(|(_, reading)| reading.disk != disk || reading.range != range);
        self.next += 1;
        let reading = Reading { disk, range, losses, written: Vec::new(), spoiled: false };
        self.open.push((self.next, reading));
        Ticket(self.next)
    }

    /// A write that stands in the stream.
    pub(super) fn written(&mut self, disk: DiskIndex, range: &Range<u64>) {
        for (_, reading) in &mut self.open {
            if reading.touches(disk, range) {
                reading.written.push(range.clone());
            }
        }
    }

    /// A change that does not.
    pub(super) fn spoiled(&mut self, disk: DiskIndex, range: &Range<u64>) {
        for (_, reading) in &mut self.open {
            reading.spoiled |= reading.touches(disk, range);
        }
    }

    /// Ends a reading: what of `changes` is still the newest. `None` when the range has to be read
    /// again.
    pub(super) fn end(
        &mut self,
        ticket: &Ticket,
        losses: u64,
        changes: Vec<Change>,
    ) -> Option<Vec<Change>> {
        let at = self.open.iter().position(|(number, _)| *number == ticket.0)?;
        let (_, reading) = self.open.swap_remove(at);
        if reading.spoiled || reading.losses != losses {
            return None;
        }
        Some(reading.written.iter().fold(changes, cut_out))
    }
}

impl Reading {
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
