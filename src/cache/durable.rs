//! The product of the cache, and the only thing an ack of *durable* can be made from.

use std::ops::Range;
use std::sync::Arc;

use super::open::SEGMENT_BYTES_MAX;
use super::segment::Segment;
use crate::model::{Change, DiskIndex, DiskSpec, Extent, Generation, MachineKey, Record, Sequence};

/// What an allocation takes beside what was asked for, about.
const ALLOCATION_BYTES: usize = 16;

/// A record that survives a power cut of the process server: it was fdatasync'ed. Its payload is
/// read where it lies in its segment; the segment is not recycled while this exists, so it is
/// dropped only when the record is published (or refused for good).
#[derive(Clone, Debug)]
pub struct Durable {
    machine: MachineKey,
    sequence: Sequence,
    change: DurableChange,
    /// Where the bytes of a write begin in its segment, which is no longer than this can say.
    payload_at: u32,
    segment: Arc<Segment>,
}

// During an outage of the store one of these lies in memory for each record in the cache log.
const _: () = assert!(size_of::<Durable>() <= 64);
const _: () = assert!(SEGMENT_BYTES_MAX - 1 <= u32::MAX as u64);

/// Its machine's stream is durable through a record: said by that record alone, and small enough to
/// outlive it.
#[derive(Clone, Copy, Debug)]
pub struct DurableThrough {
    machine: MachineKey,
    sequence: Sequence,
}

impl DurableThrough {
    /// Whose stream.
    #[must_use]
    pub fn machine(&self) -> MachineKey {
        self.machine
    }

    /// Through here.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }
}

/// A record that an earlier process made durable.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// The record.
    pub record: Durable,
    /// The ownership of the machine under which it was admitted: by it whoever takes it up knows
    /// whether another owner may have gone on meanwhile.
    pub generation: Generation,
}

/// A change whose payload lies in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DurableChange {
    /// Bytes were written; see [`Durable::payload`].
    Write {
        /// Which disk.
        disk: DiskIndex,
        /// Where.
        extent: Extent,
    },
    /// The extent reads as zeros now.
    Zero {
        /// Which disk.
        disk: DiskIndex,
        /// Where.
        extent: Extent,
    },
    /// Any other change, decoded. Apart, because they are few: writes need not be as large.
    Mark(Box<Change>),
}

impl DurableChange {
    /// What is neither a write nor zeros.
    #[must_use]
    pub fn mark(change: Change) -> Self {
        Self::Mark(Box::new(change))
    }

    /// Bytes of memory that a record takes while somebody holds it, about.
    pub(super) fn memory_bytes(&self) -> u64 {
        let apart = match self {
            Self::Write { .. } | Self::Zero { .. } => 0,
            Self::Mark(mark) => {
                let named = |name: &str| ALLOCATION_BYTES + name.len();
                let inside = match &**mark {
                    Change::Bookmark(bookmark) => named(&bookmark.name),
                    Change::EpochBegin(begin) => {
                        let disk =
                            |disk: &DiskSpec| size_of::<DiskSpec>() + named(disk.name.as_str());
                        ALLOCATION_BYTES + begin.disks.iter().map(disk).sum::<usize>()
                    }
                    _ => 0,
                };
                ALLOCATION_BYTES + size_of::<Change>() + inside
            }
        };
        (size_of::<Durable>() + apart) as u64
    }
}

impl Durable {
    /// Whose stream.
    #[must_use]
    pub fn machine(&self) -> MachineKey {
        self.machine
    }

    /// Place in that stream.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// What happened.
    #[must_use]
    pub fn change(&self) -> &DurableChange {
        &self.change
    }

    /// The bytes of a write, `extent.length()` of them; empty for every other change.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        let start = self.payload_at as usize;
        self.segment.slice(start..start + self.payload_bytes() as usize)
    }

    /// Length of [`Durable::payload`] without touching it.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        match &self.change {
            DurableChange::Write { extent, .. } => u64::from(extent.length()),
            DurableChange::Zero { .. } | DurableChange::Mark(_) => 0,
        }
    }

    /// What an acknowledgement needs of it.
    #[must_use]
    pub fn through(&self) -> DurableThrough {
        DurableThrough { machine: self.machine, sequence: self.sequence }
    }

    /// How many hold its segment, all its records together.
    #[cfg(test)]
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.segment)
    }

    /// The proof itself: called by `flush` only, after the sync. `body` is where the record's body
    /// lies; of a mark it is decoded already.
    pub(super) fn proven(
        machine: MachineKey,
        sequence: Sequence,
        change: DurableChange,
        body: Range<usize>,
        segment: Arc<Segment>,
    ) -> Self {
        let payload_at = match &change {
            DurableChange::Write { extent, .. } => {
                assert_eq!(body.len(), extent.length() as usize, "a write lies there as it is");
                u32::try_from(body.start).expect("segments are smaller")
            }
            DurableChange::Zero { .. } | DurableChange::Mark(_) => 0,
        };
        Self { machine, sequence, change, payload_at, segment }
    }

    /// A record in memory that was never on a disk: for tests and benches of later stages only.
    #[doc(hidden)]
    #[must_use]
    pub fn never_written(machine: MachineKey, record: Record) -> Self {
        let (change, bytes) = match record.change {
            Change::Write { disk, extent, payload } => {
                (DurableChange::Write { disk, extent }, payload.to_bytes().to_vec())
            }
            Change::Zero { disk, extent } => (DurableChange::Zero { disk, extent }, Vec::new()),
            mark => (DurableChange::mark(mark), Vec::new()),
        };
        let segment = Arc::new(Segment::in_memory(bytes));
        Self { machine, sequence: record.sequence, change, payload_at: 0, segment }
    }
}
