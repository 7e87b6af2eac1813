//! Azure's limits of one page blob: requests and bytes in a second.
//!
//! Owns: when the next request to a blob may start. Going faster only earns 503s, and every one of
//! them is a request that was paid for. Does not own: how many are in flight.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::model::ObjectName;

/// A quiet blob may begin with this much at once.
const BURST: Duration = Duration::from_millis(100);
/// Blobs that are remembered before those that are quiet are forgotten.
const REMEMBERED: usize = 1024;

/// One rate for each page blob.
pub(super) struct Pace {
    clock: Arc<dyn Clock>,
    request: Duration,
    mib: Duration,
    free_at: Mutex<HashMap<ObjectName, Duration>>,
}

impl Pace {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        requests_per_second: u32,
        mib_per_second: u32,
    ) -> Self {
        let request = Duration::from_secs(1) / requests_per_second.max(1);
        let mib = Duration::from_secs(1) / mib_per_second.max(1);
        Self { clock, request, mib, free_at: Mutex::default() }
    }

    /// Waits until a request with `bytes` may go to `name`.
    pub(super) async fn turn(&self, name: &ObjectName, bytes: u64) {
        let wait = self.reserve(name, bytes);
        if !wait.is_zero() {
            self.clock.sleep(wait).await;
        }
    }

    fn reserve(&self, name: &ObjectName, bytes: u64) -> Duration {
        let cost = self.request.max(self.mib.mul_f64(bytes as f64 / f64::from(1 << 20)));
        let now = self.clock.monotonic();
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        if free_at.len() >= REMEMBERED {
            free_at.retain(|_, at| *at > now);
        }
        let at = free_at.entry(name.clone()).or_default();
        let start = (*at).max(now.saturating_sub(BURST));
        *at = start + cost;
        start.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    struct Still;

    #[async_trait::async_trait]
    impl Clock for Still {
        fn wall(&self) -> Timestamp {
            Timestamp(0)
        }
        fn monotonic(&self) -> Duration {
            Duration::from_secs(100)
        }
        async fn sleep(&self, _: Duration) {}
    }

    #[test]
    fn neither_requests_nor_bytes_go_over_the_limit() {
        let pace = Pace::new(Arc::new(Still), 500, 60);
        let name = |text: &str| ObjectName::new(text).unwrap();
        let waits = |name: &ObjectName, bytes, count| {
            (0..count).map(|_| pace.reserve(name, bytes)).last().unwrap()
        };
        let small = waits(&name("a"), 512, 551);
        assert_eq!(small, Duration::from_secs(1), "550 requests: 500 and the burst of 50");
        let large = waits(&name("b"), 4 << 20, 17);
        let seconds = large.as_secs_f64();
        assert!((0.95..1.0).contains(&seconds), "64 MiB less the burst take {seconds} s");
        assert_eq!(
            pace.reserve(&name("c"), 512),
            Duration::ZERO,
            "blobs do not wait for each other"
        );
    }
}
