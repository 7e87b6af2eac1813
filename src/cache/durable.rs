//! The product of the cache, and the only thing an ack of *durable* can be made from.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::segment::Segment;
use crate::model::{Change, DiskIndex, Extent, MachineKey, Record, Sequence};

/// A record that survives a power cut of the process server: it was fdatasync'ed. Its payload is
/// read where it lies in its segment; the segment is not recycled while this exists, so it is
/// dropped only when the record is published (or refused for good).
#[derive(Clone, Debug)]
pub struct Durable {
    machine: MachineKey,
    sequence: Sequence,
    change: DurableChange,
    payload: Range<usize>,
    received_at: Duration,
    segment: Arc<Segment>,
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
    /// Any other change, decoded.
    Mark(Change),
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
        self.segment.slice(self.payload.clone())
    }

    /// Length of [`Durable::payload`] without touching it.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.payload.len() as u64
    }

    /// Monotonic time at which it was received; zero for records found by recovery.
    #[must_use]
    pub fn received_at(&self) -> Duration {
        self.received_at
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
        received_at: Duration,
        segment: Arc<Segment>,
    ) -> Self {
        let is_write = matches!(change, DurableChange::Write { .. });
        Self {
            machine,
            sequence,
            change,
            payload: if is_write { body } else { 0..0 },
            received_at,
            segment,
        }
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
            mark => (DurableChange::Mark(mark), Vec::new()),
        };
        Self {
            machine,
            sequence: record.sequence,
            change,
            payload: 0..bytes.len(),
            received_at: Duration::ZERO,
            segment: Arc::new(Segment::in_memory(bytes)),
        }
    }
}
