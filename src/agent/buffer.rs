//! Records that may have to be sent again, bounded in bytes.
//!
//! Owns: what is held and what it costs. Does not own: what happens when there is no room.

use std::collections::VecDeque;

use crate::model::{Record, Sequence};

/// What a record costs besides its payload: its place in the queue and in the allocator.
const RECORD_COST_BYTES: u64 = 192;

/// Bytes that a record is counted with.
pub(super) fn cost(payload_bytes: u64) -> u64 {
    payload_bytes + RECORD_COST_BYTES
}

/// Consecutive records up to the last one given out. Published ones are let go at once, durable
/// ones when room is needed (the server has them; should it be lost as well, the bitmap knows), the
/// others never.
#[derive(Debug)]
pub(super) struct Buffer {
    records: VecDeque<Record>,
    bytes: u64,
    bytes_max: u64,
    /// Cost of the records that are not durable yet: the tail of the queue.
    waiting_bytes: u64,
}

impl Buffer {
    /// An empty one.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { records: VecDeque::new(), bytes: 0, bytes_max, waiting_bytes: 0 }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes held that are not durable at the server.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Most bytes it holds.
    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// First record held.
    pub(super) fn first(&self) -> Option<Sequence> {
        self.records.front().map(|record| record.sequence)
    }

    /// Makes room for `bytes` by letting durable records go; `false` when that is not enough.
    pub(super) fn make_room(&mut self, bytes: u64, durable: Sequence) -> bool {
        if self.waiting_bytes + bytes > self.bytes_max {
            return false;
        }
        while self.bytes + bytes > self.bytes_max {
            let fits = self.pop_through(durable);
            debug_assert!(fits, "only durable records stand before the waiting ones");
            if !fits {
                return false;
            }
        }
        true
    }

    /// Appends the next record.
    pub(super) fn push(&mut self, record: Record) {
        let cost = cost(record.change.payload_bytes());
        self.bytes += cost;
        self.waiting_bytes += cost;
        self.records.push_back(record);
    }

    /// The records after `before` became durable through `through`.
    pub(super) fn durable(&mut self, before: Sequence, through: Sequence) {
        let became: u64 = (self.after(before))
            .take_while(|record| record.sequence <= through)
            .map(|record| cost(record.change.payload_bytes()))
            .sum();
        self.waiting_bytes -= became;
    }

    /// Lets go of everything through `published`, which is durable.
    pub(super) fn published(&mut self, published: Sequence) {
        while self.pop_through(published) {}
    }

    /// The records after `sequence`, in order.
    pub(super) fn after(&self, sequence: Sequence) -> impl Iterator<Item = &Record> {
        let skip = match self.first() {
            Some(first) => (sequence.0 + 1).saturating_sub(first.0),
            None => 0,
        };
        self.records.range((skip as usize).min(self.records.len())..)
    }

    /// Counts as waiting whatever stands after `durable`: another server begins there.
    pub(super) fn rewind(&mut self, durable: Sequence) {
        let waiting = self.after(durable).map(|record| cost(record.change.payload_bytes()));
        self.waiting_bytes = waiting.sum();
    }

    /// Throws everything away.
    pub(super) fn clear(&mut self) {
        self.records = VecDeque::new(); // gives the memory back
        self.bytes = 0;
        self.waiting_bytes = 0;
    }

    fn pop_through(&mut self, through: Sequence) -> bool {
        if self.first().is_none_or(|first| first > through) {
            return false;
        }
        let record = self.records.pop_front().expect("it has a first record");
        self.bytes -= cost(record.change.payload_bytes());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, DiskIndex, Extent};

    fn record(sequence: u64) -> Record {
        let change = Change::Write {
            disk: DiskIndex(0),
            extent: Extent::new(0, 512, 512).unwrap(),
            payload: vec![0; 512].into(),
        };
        let sequence = Sequence(sequence);
        Record { sequence, change }
    }

    #[test]
    fn durable_records_make_room_and_waiting_ones_do_not() {
        let one = cost(512);
        let mut buffer = Buffer::new(4 * one);
        for sequence in 7..=10 {
            assert!(buffer.make_room(one, Sequence(6)));
            buffer.push(record(sequence));
        }
        assert!(!buffer.make_room(one, Sequence(6)), "full of waiting ones");
        buffer.durable(Sequence(6), Sequence(8));
        assert_eq!(buffer.waiting_bytes(), 2 * one);
        assert!(buffer.make_room(one, Sequence(8)));
        assert_eq!(buffer.first(), Some(Sequence(8)), "only as many as needed go");
        buffer.published(Sequence(8));
        let left: Vec<u64> = buffer.after(Sequence(0)).map(|r| r.sequence.0).collect();
        assert_eq!(left, [9, 10]);
        assert_eq!(buffer.after(Sequence(9)).count(), 1);
        assert_eq!(buffer.after(Sequence(10)).count(), 0);
        buffer.rewind(Sequence(9));
        assert_eq!(buffer.waiting_bytes(), one);
    }
}
