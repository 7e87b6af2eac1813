//! A bound on what the agent sends: a bucket that fills at the rate and pays for records.
//!
//! Owns: how much may be sent now. Does not own: what waits meanwhile; that is the buffer's, and
//! what the buffer cannot hold is the bitmap's.

use std::time::Duration;

/// What the bucket holds at most, as time at the rate.
const BURST: Duration = Duration::from_millis(100);

/// The bucket of one connection. A record is sent whole as soon as anything is in it, so it may owe.
#[derive(Debug)]
pub(super) struct Bandwidth {
    /// Bytes a second; none for no bound.
    rate: Option<u64>,
    /// Bytes; negative while it owes.
    held: f64,
    at: Duration,
}

impl Bandwidth {
    /// A full one.
    pub(super) fn new(rate: Option<u64>, now: Duration) -> Self {
        let held = rate.map_or(0.0, full);
        Self { rate, held, at: now }
    }

    /// Bytes that may be sent now.
    pub(super) fn allows(&mut self, now: Duration) -> u64 {
        let Some(rate) = self.rate else { return u64::MAX };
        let filled = now.saturating_sub(self.at).as_secs_f64() * rate as f64;
        self.held = (self.held + filled).min(full(rate));
        self.at = now;
        self.held.max(0.0) as u64
    }

    /// So many were sent.
    pub(super) fn spend(&mut self, bytes: u64) {
        self.held -= bytes as f64;
    }

    /// Time until something may be sent; none when that is now.
    pub(super) fn pause(&self) -> Option<Duration> {
        let rate = self.rate? as f64;
        (self.held < 1.0).then(|| Duration::from_secs_f64((1.0 - self.held) / rate))
    }
}

fn full(rate: u64) -> f64 {
    rate as f64 * BURST.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_records_are_sent_the_rate_is_kept() {
        for record in [100, 4096, 1 << 20] {
            let (rate, mut now) = (1_000_000, Duration::ZERO);
            let mut bucket = Bandwidth::new(Some(rate), now);
            let mut sent = 0;
            while now < Duration::from_secs(60) {
                if bucket.allows(now) > 0 {
                    assert_eq!(bucket.pause(), None);
                    bucket.spend(record);
                    sent += record;
                } else {
                    now += bucket.pause().unwrap();
                }
            }
            let most = 60 * rate + record + full(rate) as u64;
            assert!((59 * rate..=most).contains(&sent), "{sent} bytes in records of {record}");
        }
        let mut free = Bandwidth::new(None, Duration::ZERO);
        free.spend(u64::MAX);
        assert_eq!((free.allows(Duration::ZERO), free.pause()), (u64::MAX, None));
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut bucket = Bandwidth::new(Some(1_000_000), Duration::ZERO);
        assert_eq!(bucket.allows(Duration::from_secs(3600)), 100_000);
    }
}
