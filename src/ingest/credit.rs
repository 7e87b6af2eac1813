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

/// The part of its window that a connection may use: shrinks when the cache fills. Counted in
/// sixteenths, so that thousands of connections hear of it when it matters and not at every
/// segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CreditShare(u8);

impl CreditShare {
    /// The whole window.
    pub const WHOLE: Self = Self(Self::PARTS);
    /// Nothing more is granted.
    pub const NONE: Self = Self(0);
    const LEAST: Self = Self(1);
    const PARTS: u8 = 16;

    /// The share that is left at `fill`, between the marks `slow` (the whole) and `stop` (nothing):
    /// proportional to the room below `stop`, rounded up.
    #[must_use]
    pub fn at(fill: f64, slow: f64, stop: f64) -> Self {
        if fill >= stop {
            return Self::NONE;
        }
        let room = (stop - fill) / (stop - slow);
        // A hair less, so that the half of a window is not rounded up to nine parts.
        let parts =
            (room * f64::from(Self::PARTS) - 1e-6).ceil().clamp(1.0, f64::from(Self::PARTS));
        Self(parts as u8)
    }

    /// As a number from 0 to 1.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(Self::PARTS)
    }

    /// This share of a window; nothing, or enough for the largest frame.
    pub(super) fn of(self, window: u64) -> u64 {
        match self {
            Self::NONE => 0,
            Self(parts) => {
                (window / u64::from(Self::PARTS) * u64::from(parts)).max(WINDOW_BYTES_MIN)
            }
        }
    }
}

/// What a shard's cache lets its agents have in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditTerms {
    /// The part of their windows that agents may use.
    pub share: CreditShare,
    /// A machine with at most this much that is not yet published keeps the smallest window when the
    /// share is nothing: it is not who filled the cache.
    pub small_backlog_bytes: u64,
}

impl CreditTerms {
    /// The cache is empty enough.
    pub const FREE: Self = Self { share: CreditShare::WHOLE, small_backlog_bytes: 0 };

    /// The share of a machine with such a backlog.
    pub(super) fn share_of(self, backlog_bytes: u64) -> CreditShare {
        match backlog_bytes <= self.small_backlog_bytes && self.small_backlog_bytes > 0 {
            true => self.share.max(CreditShare::LEAST),
            false => self.share,
        }
    }
}

/// The account of one connection. All totals count from its begin and only grow.
#[derive(Debug)]
pub(super) struct Credit {
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
    pub(super) fn new() -> Self {
        Self { received: 0, durable: 0, limit: 0, in_flight: VecDeque::new() }
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

    /// Raises the limit to what is durable plus `window`. What was granted stays granted: a smaller
    /// window takes hold as its bytes are used up.
    pub(super) fn grant(&mut self, window: u64) {
        self.limit = self.limit.max(self.durable + window);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_comes_back_when_bytes_are_durable_and_not_before() {
        let mut credit = Credit::new();
        assert!(!credit.covers(1), "nothing was granted yet");
        credit.grant(4 << 20);
        for sequence in 1..=4 {
            assert!(credit.covers(1 << 20));
            credit.spend(Sequence(sequence), 1 << 20);
        }
        assert!(!credit.covers(1));
        credit.grant(4 << 20);
        assert!(!credit.covers(1), "nothing is durable yet");
        credit.durable_through(Sequence(2));
        credit.grant(4 << 20);
        assert_eq!((credit.limit(), credit.received()), (6 << 20, 4 << 20));
    }

    #[test]
    fn a_smaller_window_takes_hold_as_credit_is_used_up() {
        let mut credit = Credit::new();
        credit.grant(8 << 20);
        credit.grant(4 << 20);
        assert_eq!(credit.limit(), 8 << 20, "what was granted stays granted");
        for sequence in 1..=8 {
            credit.spend(Sequence(sequence), 1 << 20);
        }
        credit.durable_through(Sequence(4));
        credit.grant(4 << 20);
        assert!(!credit.covers(1), "four are in flight, and the window is four");
        credit.grant(0);
        credit.durable_through(Sequence(8));
        credit.grant(0);
        assert!(!credit.covers(1), "no window, no credit");
    }

    #[test]
    fn the_share_shrinks_with_the_room_below_stop() {
        let at = |fill| CreditShare::at(fill, 0.6, 0.8).0;
        assert_eq!([at(0.0), at(0.6), at(0.61), at(0.7)], [16, 16, 16, 8]);
        assert_eq!([at(0.799_999), at(0.8), at(1.0), at(1.5)], [1, 0, 0, 0]);
        let falling: Vec<_> = (0..=200).map(|step| at(f64::from(step) / 200.0)).collect();
        assert!(falling.is_sorted_by(|before, after| before >= after));
        assert_eq!(CreditShare::NONE.of(16 << 20), 0);
        assert_eq!(CreditShare(4).of(16 << 20), 4 << 20);
        assert_eq!(CreditShare(1).of(16 << 20), WINDOW_BYTES_MIN, "or the largest frame is stuck");
        assert_eq!(CreditShare::WHOLE.of(16 << 20), 16 << 20);
    }

    #[test]
    fn who_did_not_fill_the_cache_keeps_the_smallest_window() {
        let terms = CreditTerms { share: CreditShare::NONE, small_backlog_bytes: 1000 };
        assert_eq!(terms.share_of(1000).of(16 << 20), WINDOW_BYTES_MIN);
        assert_eq!(terms.share_of(1001), CreditShare::NONE);
        let slow = CreditTerms { share: CreditShare(9), ..terms };
        assert_eq!(slow.share_of(0), CreditShare(9), "and no more than that");
        let full = CreditTerms { share: CreditShare::NONE, small_backlog_bytes: 0 };
        assert_eq!(full.share_of(0), CreditShare::NONE, "there is no room for anybody");
    }

    #[test]
    fn tiny_records_cost_few_entries_and_none_is_lost() {
        let mut credit = Credit::new();
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
