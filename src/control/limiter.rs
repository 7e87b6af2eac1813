//! Who failed to show a good token too often waits.
//!
//! A token cannot be guessed; the limit keeps strangers from costing a read of the store each.
//! Memory is bounded: past the bound all further addresses share one count.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Failures that one address has in one window.
const FAILURES_MAX: u32 = 20;
/// After this time an address begins anew.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are counted one by one.
const ADDRESSES_MAX: usize = 1_024;

/// Counts failures by address.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    counts: Mutex<HashMap<Option<IpAddr>, Count>>, // `None`: all that found no place
}

#[derive(Clone, Copy, Debug)]
struct Count {
    failures: u32,
    since: Duration,
}

impl Limiter {
    /// Whether `peer` may try now.
    pub(super) fn admits(&self, peer: IpAddr, now: Duration) -> bool {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(&Some(network(peer)));
        let count = count.or_else(|| (counts.len() > ADDRESSES_MAX).then(|| counts.get(&None))?);
        count.is_none_or(|count| count.failures < FAILURES_MAX || now >= count.since + WINDOW)
    }

    /// `peer` failed.
    pub(super) fn failed(&self, peer: IpAddr, now: Duration) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= ADDRESSES_MAX {
            counts.retain(|_, count| now < count.since + WINDOW);
        }
        let known = Some(network(peer));
        let full = counts.len() >= ADDRESSES_MAX && !counts.contains_key(&known);
        let place = if full { None } else { known };
        let count = counts.entry(place).or_insert(Count { failures: 0, since: now });
        if now >= count.since + WINDOW {
            *count = Count { failures: 0, since: now };
        }
        count.failures += 1;
    }
}

/// One IPv6 customer has a /64; counting its addresses one by one would count nothing.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn too_many_failures_wait_for_the_next_window() {
        let limiter = Limiter::default();
        let start = Duration::from_secs(5);
        for _ in 0..FAILURES_MAX {
            assert!(limiter.admits(v4(1), start));
            limiter.failed(v4(1), start);
        }
        assert!(!limiter.admits(v4(1), start));
        assert!(limiter.admits(v4(2), start), "others are not concerned");
        assert!(!limiter.admits(v4(1), start + WINDOW - Duration::from_nanos(1)));
        assert!(limiter.admits(v4(1), start + WINDOW));
        for _ in 0..FAILURES_MAX {
            let next = start + WINDOW;
            assert!(limiter.admits(v4(1), next), "the count began anew");
            limiter.failed(v4(1), next);
        }
        assert!(!limiter.admits(v4(1), start + WINDOW), "and ends again");
    }

    #[test]
    fn memory_stays_bounded_and_strangers_share_a_count() {
        let limiter = Limiter::default();
        for number in 0..ADDRESSES_MAX as u32 + FAILURES_MAX {
            limiter.failed(v4(number), Duration::ZERO);
        }
        assert_eq!(limiter.counts.lock().unwrap().len(), ADDRESSES_MAX + 1);
        assert!(!limiter.admits(v4(u32::MAX), Duration::ZERO));
        assert!(limiter.admits(v4(0), Duration::ZERO), "those with a place keep it");
        limiter.failed(v4(u32::MAX), WINDOW);
        assert_eq!(limiter.counts.lock().unwrap().len(), 1);
    }

    #[test]
    fn an_ipv6_network_counts_as_one() {
        let limiter = Limiter::default();
        for number in 0..FAILURES_MAX {
            let address: IpAddr = format!("2001:db8::{number:x}").parse().unwrap();
            limiter.failed(address, Duration::ZERO);
        }
        assert!(!limiter.admits("2001:db8::ffff".parse().unwrap(), Duration::ZERO));
    }
}
