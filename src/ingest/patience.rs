//! How long a peer may keep us waiting, sans-io.
//!
//! Owns: the moments after which a silent, trickling or unread connection is given up. Does not own
//! the clock, which is asked only when the peer has to be waited for. Waiting for ourselves (budget, cache) never counts against a
//! peer.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

/// A frame that was begun must come at least this fast.
const BYTES_PER_SECOND_MIN: u64 = 64 << 10;
const NEVER: u64 = u64::MAX;

/// Deadlines of one connection; the halves of the connection and its watchdog share it.
#[derive(Debug)]
pub(super) struct Patience {
    idle: AtomicU64,
    reading: AtomicU64,
    writing: AtomicU64,
}

/// What kept us waiting too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// Bytes that the peer should have sent.
    Reading,
    /// Bytes that the peer should have taken.
    Writing,
}

impl Patience {
    pub(super) fn new(idle: Duration) -> Self {
        Self {
            idle: AtomicU64::new(nanos(idle)),
            reading: AtomicU64::new(NEVER),
            writing: AtomicU64::new(NEVER),
        }
    }

    /// Changes how long silence may last, for what is expected from now on.
    pub(super) fn set_idle(&self, idle: Duration) {
        self.idle.store(nanos(idle), Ordering::Relaxed);
    }

    /// The peer owes `bytes`: a header, or the payload behind one. Said again while it still owes
    /// them it changes nothing, so a trickle gains no time.
    pub(super) fn expect(&self, clock: &dyn Clock, bytes: u32) {
        if self.reading.load(Ordering::Relaxed) == NEVER {
            let slowest = Duration::from_millis(u64::from(bytes) * 1_000 / BYTES_PER_SECOND_MIN);
            let deadline = clock.monotonic() + self.idle() + slowest;
            self.reading.store(nanos(deadline), Ordering::Relaxed);
        }
    }

    /// The peer owes nothing: what comes next is ours to do.
    pub(super) fn received(&self) {
        self.reading.store(NEVER, Ordering::Relaxed);
    }

    /// Waits for ourselves: the peer's time stands still meanwhile.
    pub(super) async fn ours<T>(&self, clock: &dyn Clock, wait: impl Future<Output = T>) -> T {
        let _paused = Paused {
            patience: self,
            clock,
            reading: self.reading.swap(NEVER, Ordering::Relaxed),
            since: clock.monotonic(),
        };
        wait.await
    }

    /// The peer must take what we write.
    pub(super) fn offer(&self, now: Duration) {
        self.writing.store(nanos(now + self.idle()), Ordering::Relaxed);
    }

    /// The peer took it.
    pub(super) fn taken(&self) {
        self.writing.store(NEVER, Ordering::Relaxed);
    }

    fn idle(&self) -> Duration {
        Duration::from_nanos(self.idle.load(Ordering::Relaxed))
    }

    /// How long to wait before looking again.
    ///
    /// # Errors
    /// When a deadline has passed.
    pub(super) fn look(&self, now: Duration) -> Result<Duration, Overdue> {
        let (now, idle) = (nanos(now), nanos(self.idle()));
        let reading = self.reading.load(Ordering::Relaxed);
        let writing = self.writing.load(Ordering::Relaxed);
        if now >= reading {
            return Err(Overdue::Reading);
        }
        if now >= writing {
            return Err(Overdue::Writing);
        }
        let next = reading.min(writing).min(now.saturating_add(idle));
        Ok(Duration::from_nanos(next - now))
    }
}

/// While we wait for ourselves.
struct Paused<'a> {
    patience: &'a Patience,
    clock: &'a dyn Clock,
    reading: u64,
    since: Duration,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        let waited = self.clock.monotonic().saturating_sub(self.since);
        let reading = match self.reading {
            NEVER => NEVER,
            deadline => deadline.saturating_add(nanos(waited)),
        };
        self.patience.reading.store(reading, Ordering::Relaxed);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    struct At(u64);

    #[async_trait::async_trait]
    impl Clock for At {
        fn wall(&self) -> Timestamp {
            Timestamp(0)
        }

        fn monotonic(&self) -> Duration {
            seconds(self.0)
        }

        async fn sleep(&self, _: Duration) {}
    }

    #[test]
    fn only_the_peers_own_time_counts() {
        let patience = Patience::new(seconds(30));
        assert_eq!(patience.look(seconds(1000)), Ok(seconds(30)));
        patience.expect(&At(1000), 40);
        assert!(patience.look(seconds(1029)).is_ok());
        patience.expect(&At(1029), 40);
        assert_eq!(patience.look(seconds(1031)), Err(Overdue::Reading), "a trickle gains no time");
        patience.received();
        assert!(patience.look(seconds(2000)).is_ok(), "we waited for ourselves");
        patience.offer(seconds(2000));
        assert_eq!(patience.look(seconds(2031)), Err(Overdue::Writing));
        patience.taken();
        assert!(patience.look(seconds(3000)).is_ok());
    }

    #[test]
    fn another_patience_holds_from_the_next_expectation() {
        let patience = Patience::new(seconds(30));
        patience.expect(&At(100), 40);
        patience.set_idle(seconds(5));
        assert!(patience.look(seconds(129)).is_ok(), "what was promised is kept");
        patience.received();
        patience.expect(&At(129), 40);
        assert_eq!(patience.look(seconds(135)), Err(Overdue::Reading));
    }

    #[test]
    fn a_large_frame_has_more_time_and_not_for_ever() {
        let patience = Patience::new(seconds(30));
        patience.expect(&At(0), 1 << 20);
        assert!(patience.look(seconds(45)).is_ok());
        assert_eq!(patience.look(seconds(47)), Err(Overdue::Reading));
    }
}
