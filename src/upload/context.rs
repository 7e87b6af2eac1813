//! What an upload works with, and how it waits when the store says "later".

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::error::UploadError;
use crate::budget::Slots;
use crate::clock::{Clock, Entropy, back_off};
use crate::cloud_log::LogStore;
use crate::observe::{Metrics, error_chain};

/// First ceiling of the wait; it doubles with every attempt.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// Last ceiling of the wait.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Attempts after which tidying leaves it for its next time.
const TIDYING_ATTEMPTS: u32 = 4;
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
    pub streams: Slots,
    /// Bytes of a staged block; may change.
    pub block_bytes: Arc<AtomicU32>,
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

    /// Whether what can as well be done later has been tried often enough: tidying holds a place
    /// among few, and a server that drains waits for it.
    pub(super) fn is_spent(&self) -> bool {
        self.attempts + 1 >= TIDYING_ATTEMPTS
    }

    /// Waits before the next attempt: exponential with full jitter, so that a thousand machines
    /// do not come back to a recovering store in step.
    pub(super) async fn wait(&mut self, error: &UploadError) {
        let context = self.context;
        context.metrics.store_retries.fetch_add(1, Ordering::Relaxed);
        self.attempts = self.attempts.saturating_add(1);
        if error.is_full() || self.attempts >= QUIET_ATTEMPTS {
            let text = error_chain(error);
            tracing::debug!(machine = %context.log.machine(), attempts = self.attempts, %text);
            let machine = context.metrics.machine(context.log.machine());
            machine.set_trouble(Some(text.clone()));
            self.said = Some(text);
        }
        let waited = self.attempts - 1;
        let wait = back_off(waited, WAIT_FIRST, WAIT_MAX, context.entropy.as_ref());
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
