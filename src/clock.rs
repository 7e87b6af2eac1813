//! Time and randomness from outside: the only file that asks the system for either.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::model::Timestamp;

/// Where time comes from.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// Wall clock: labels only.
    fn wall(&self) -> Timestamp;
    /// Time since an arbitrary start; never goes back.
    fn monotonic(&self) -> Duration;
    /// Time since an arbitrary start that goes on while the host is suspended: what leases are counted
    /// by. Where a clock knows no suspending it is [`Clock::monotonic`].
    fn boot(&self) -> Duration {
        self.monotonic()
    }
    /// Waits. Never used to make a race come out right.
    async fn sleep(&self, duration: Duration);
}

/// Where random bytes come from.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `target` with bytes fit for keys.
    fn fill(&self, target: &mut [u8]);
}

/// Sixteen random bytes.
pub fn random16(entropy: &dyn Entropy) -> [u8; 16] {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes);
    bytes
}

/// A random number from 0 to 1.
pub fn fraction(entropy: &dyn Entropy) -> f64 {
    let mut bytes = [0; 4];
    entropy.fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

/// How long to wait before trying again: anything up to `first` · 2^`attempt` (counted from 0), at
/// most `longest`. Exponential with full jitter, so that all who lost the same server or store do
/// not come back to it in step.
pub fn back_off(
    attempt: u32,
    first: Duration,
    longest: Duration,
    entropy: &dyn Entropy,
) -> Duration {
    let factor = 1_u32.checked_shl(attempt).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(longest).mul_f64(fraction(entropy))
}

/// The operating system's clock and randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl System {
    /// As shared trait object.
    #[must_use]
    pub fn clock() -> Arc<dyn Clock> {
        Arc::new(Self)
    }

    /// As shared trait object.
    #[must_use]
    pub fn entropy() -> Arc<dyn Entropy> {
        Arc::new(Self)
    }
}

#[async_trait]
#[allow(clippy::disallowed_methods, reason = "the one place that may")]
impl Clock for System {
    fn wall(&self) -> Timestamp {
        let elapsed =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Duration {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        START.get_or_init(std::time::Instant::now).elapsed()
    }

    fn boot(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

impl Entropy for System {
    fn fill(&self, target: &mut [u8]) {
        use rand::TryRng;
        rand::rngs::SysRng
            .try_fill_bytes(target)
            .expect("getrandom(2) cannot fail once the kernel has booted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u8);

    impl Entropy for Fixed {
        fn fill(&self, target: &mut [u8]) {
            target.fill(self.0);
        }
    }

    #[test]
    fn waits_double_up_to_a_bound_and_may_be_nothing() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(60));
        let most = |attempt| back_off(attempt, first, longest, &Fixed(255));
        assert_eq!(most(0), first, "the ceiling itself can be drawn");
        for attempt in 1..=9 {
            assert_eq!(most(attempt), most(attempt - 1) * 2);
        }
        for attempt in 10..=80 {
            assert_eq!(most(attempt), longest, "attempt {attempt}");
        }
        assert_eq!(back_off(40, first, longest, &Fixed(0)), Duration::ZERO);
    }
}
