//! How much an agent may have in flight on one connection.
//!
//! Owns: which bytes of this connection are durable, and the limit that follows from it. Does not
//! own: the memory itself, which the receive budget bounds over all connections.

use std::collections::VecDeque;

use crate::format::wire::PAYLOAD_BYTES_MAX;
use crate::model::Sequence;

/// Records are counted in runs of this many bytes, so that millions of tiny records in flight cost
/// a bounded number of entries; credit comes back by the run.
const RUN_BYTES: u64 = 64 << 10;
/// A window below two of the largest frames would stop a connection for ever.
const WINDOW_BYTES_MIN: u64 = 2 * (PAYLOAD_BYTES_MAX as u64 + 4096);

/// The account of one connection. All totals count from its begin and only grow.
#[derive(Debug)]
pub(super) struct Credit {
    window: u64,
    received: u64,
    durable: u64,
    limit: u64,
    in_flight: VecDeque<Run>,
}

#[derive(Debug)]
struct Run {
    last: Sequence,
    bytes: u64,
}

impl Credit {
    pub(super) fn new(window: u64) -> Self {
        Self {
            window: window.max(WINDOW_BYTES_MIN),
            received: 0,
            durable: 0,
            limit: 0,
            in_flight: VecDeque::new(),
        }
    }

    /// Bytes that may have been sent in all, as told to the agent.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that were sent in all.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Whether a frame of `bytes` is covered.
    pub(super) fn covers(&self, bytes: u64) -> bool {
        self.received.saturating_add(bytes) <= self.limit
    }

    /// A record was admitted.
    pub(super) fn spend(&mut self, last: Sequence, bytes: u64) {
        self.received += bytes;
        match self.in_flight.back_mut() {
            Some(run) if run.bytes + bytes <= RUN_BYTES => {
                run.last = last;
                run.bytes += bytes;
            }
            _ => self.in_flight.push_back(Run { last, bytes }),
        }
    }

    /// Everything through here is durable.
    pub(super) fn durable_through(&mut self, through: Sequence) {
        while let Some(run) = self.in_flight.pop_front_if(|run| run.last <= through) {
            self.durable += run.bytes;
        }
    }

    /// Raises the limit to what is durable plus the window.
    pub(super) fn grant(&mut self) {
        self.limit = self.limit.max(self.durable + self.window);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_comes_back_when_bytes_are_durable_and_not_before() {
        let mut credit = Credit::new(4 << 20);
        assert!(!credit.covers(1), "nothing was granted yet");
        credit.grant();
        for sequence in 1..=4 {
            assert!(credit.covers(1 << 20));
            credit.spend(Sequence(sequence), 1 << 20);
        }
        assert!(!credit.covers(1));
        credit.grant();
        assert!(!credit.covers(1), "nothing is durable yet");
        credit.durable_through(Sequence(2));
        credit.grant();
        assert_eq!((credit.limit(), credit.received()), (6 << 20, 4 << 20));
    }

    #[test]
    fn tiny_records_cost_few_entries_and_none_is_lost() {
        let mut credit = Credit::new(16 << 20);
        for sequence in 1..=100_000 {
            credit.spend(Sequence(sequence), 40);
        }
        assert!(credit.in_flight.len() <= 100_000 * 40 / (RUN_BYTES as usize / 2));
        credit.durable_through(Sequence(99_999));
        assert!(credit.durable < 4_000_000, "the last run is not wholly durable");
        credit.durable_through(Sequence(100_000));
        assert_eq!(credit.durable, 4_000_000);
    }
}
