//! What an upload works with, and how it waits when the store says "later".

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::error::UploadError;
use crate::clock::{Clock, Entropy};
use crate::cloud_log::LogStore;
use crate::observe::Metrics;

/// First ceiling of the wait; it doubles with every attempt.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// Last ceiling of the wait.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Attempts before a failure that may pass by itself is shown as trouble.
const QUIET_ATTEMPTS: u32 = 3;

/// What the uploads of one machine work with.
#[derive(Clone)]
pub struct UploadContext {
    /// The machine's log.
    pub log: Arc<LogStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Salts, ids of pages, jitter.
    pub entropy: Arc<dyn Entropy>,
    /// Retries, trouble, watermarks.
    pub metrics: Arc<Metrics>,
    /// Objects in flight at once, shared by all machines of the process.
    pub streams: Arc<Semaphore>,
    /// Bytes of a staged block.
    pub block_bytes: u32,
    /// Entries that the manifest holds itself; [`crate::cloud_log::ENTRIES_MAX`] outside tests.
    pub entries_max: usize,
}

/// One thing that is tried until it succeeds or cannot: counts, waits and says what is wrong.
pub(super) struct Patience<'a> {
    context: &'a UploadContext,
    attempts: u32,
    said: Option<String>,
}

impl<'a> Patience<'a> {
    pub(super) fn new(context: &'a UploadContext) -> Self {
        Self { context, attempts: 0, said: None }
    }

    /// Waits before the next attempt: exponential with full jitter, so that a thousand machines
    /// do not come back to a recovering store in step.
    pub(super) async fn wait(&mut self, error: &UploadError) {
        let context = self.context;
        context.metrics.store_retries.fetch_add(1, Ordering::Relaxed);
        self.attempts = self.attempts.saturating_add(1);
        if error.is_full() || self.attempts >= QUIET_ATTEMPTS {
            let text = chain(error);
            tracing::debug!(machine = %context.log.machine(), attempts = self.attempts, %text);
            let machine = context.metrics.machine(context.log.machine());
            machine.set_trouble(Some(text.clone()));
            self.said = Some(text);
        }
        let mut random = [0; 8];
        context.entropy.fill(&mut random);
        let wait = jitter(self.attempts, u64::from_le_bytes(random));
        context.clock.sleep(wait).await;
    }
}

impl Drop for Patience<'_> {
    /// However it ended, this attempt is no longer what keeps the machine back. Another's words
    /// stay.
    fn drop(&mut self) {
        let Some(said) = self.said.take() else { return };
        let machine = self.context.metrics.machine(self.context.log.machine());
        let mut trouble = machine.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if trouble.as_ref() == Some(&said) {
            *trouble = None;
        }
    }
}

/// A wait between 0 and the attempt's ceiling.
fn jitter(attempts: u32, random: u64) -> Duration {
    let factor = 1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    let ceiling = WAIT_FIRST.saturating_mul(factor).min(WAIT_MAX);
    let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random % nanos.saturating_add(1))
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_and_stops_at_a_minute() {
        for attempts in 1..=80 {
            let ceiling = jitter(attempts, u64::MAX / 3).max(jitter(attempts, 59_999_999_999));
            assert!(ceiling <= WAIT_MAX, "{attempts}");
        }
        assert_eq!(jitter(1, 100_000_000), WAIT_FIRST, "the ceiling itself can be drawn");
        assert_eq!(jitter(1, 100_000_001), Duration::ZERO, "and so can no wait at all");
        assert_eq!(jitter(60, 60_000_000_000), WAIT_MAX);
    }
}
