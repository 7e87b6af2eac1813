//! What an upload works with, and how it waits when the store says "later".

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::error::UploadError;
use super::uplink::{Pass, Uplink};
use crate::clock::{Clock, Entropy, back_off};
use crate::cloud_log::LogStore;
use crate::model::MachineKey;
use crate::observe::{Metrics, RetryReason, error_chain};
use crate::store::StoreError;

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
    /// The way to the store, shared by all machines of the process.
    pub uplink: Arc<Uplink>,
    /// Bytes of a staged block; may change.
    pub block_bytes: Arc<AtomicU32>,
    /// Entries that the manifest holds itself; [`crate::cloud_log::ENTRIES_MAX`] outside tests.
    pub entries_max: usize,
}

impl UploadContext {
    /// Whose turn it is when this machine's uploads want something.
    pub(super) fn who(&self) -> MachineKey {
        MachineKey::of(self.log.machine())
    }

    /// Makes `attempt` once the store may be asked, and tells the breaker how it ended.
    pub(super) async fn ask<T>(
        &self,
        attempt: impl Future<Output = Result<T, UploadError>>,
    ) -> Result<T, UploadError> {
        let pass = self.waited(self.uplink.pass(self.who())).await;
        ended(pass, attempt.await)
    }

    /// Waits for the uplink, and says meanwhile what keeps everybody from the store.
    pub(super) async fn waited<T>(&self, wait: impl Future<Output = T>) -> T {
        let mut said = Said::nothing(self);
        if let Some(text) = self.uplink.trouble() {
            said.say(text);
        }
        wait.await
    }
}

/// Tells the breaker how a call ended.
pub(super) fn ended<T>(pass: Pass<'_>, result: Result<T, UploadError>) -> Result<T, UploadError> {
    pass.ended(result.as_ref().err().and_then(UploadError::store_error));
    result
}

/// One thing that is tried until it succeeds or cannot: counts, waits and says what is wrong.
pub struct Patience<'a> {
    context: &'a UploadContext,
    attempts: u32,
    said: Said<'a>,
}

impl<'a> Patience<'a> {
    /// For what was not tried yet.
    #[must_use]
    pub fn new(context: &'a UploadContext) -> Self {
        Self { context, attempts: 0, said: Said::nothing(context) }
    }

    /// Whether what can as well be done later has been tried often enough: tidying holds a place
    /// among few, and a server that drains waits for it.
    pub(super) fn is_spent(&self) -> bool {
        self.attempts + 1 >= TIDYING_ATTEMPTS
    }

    /// Waits before the next attempt: exponential with full jitter, so that a thousand machines
    /// do not come back to a recovering store in step, and within the budget of all of them.
    pub async fn wait(&mut self, error: &UploadError) {
        let context = self.context;
        context.metrics.pacing.retried(reason(error));
        self.attempts = self.attempts.saturating_add(1);
        if error.is_full() || self.attempts >= QUIET_ATTEMPTS {
            let text = error_chain(error);
            tracing::debug!(machine = %context.log.machine(), attempts = self.attempts, %text);
            self.said.say(text);
        }
        let waited = self.attempts - 1;
        let wait = back_off(waited, WAIT_FIRST, WAIT_MAX, context.entropy.as_ref());
        context.uplink.retry(wait).await;
    }
}

/// Why it is tried again.
fn reason(error: &UploadError) -> RetryReason {
    match error.store_error() {
        Some(StoreError::Throttled { .. }) => RetryReason::Throttled,
        Some(StoreError::Full { .. }) => RetryReason::Full,
        Some(StoreError::Io { .. }) => RetryReason::Io,
        Some(StoreError::Ambiguous { .. }) => RetryReason::Lost,
        Some(StoreError::Transient { .. }) => RetryReason::Unreachable,
        Some(_) | None => RetryReason::Conflict,
    }
}

/// A sentence in the machine's trouble, taken away again when this is dropped. Another's words
/// stay.
struct Said<'a> {
    context: &'a UploadContext,
    text: Option<String>,
}

impl<'a> Said<'a> {
    fn nothing(context: &'a UploadContext) -> Self {
        Self { context, text: None }
    }

    fn say(&mut self, text: String) {
        let machine = self.context.metrics.machine(self.context.log.machine());
        machine.set_trouble(Some(text.clone()));
        self.text = Some(text);
    }
}

impl Drop for Said<'_> {
    fn drop(&mut self) {
        let Some(text) = self.text.take() else { return };
        let machine = self.context.metrics.machine(self.context.log.machine());
        let mut trouble = machine.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.as_ref() == Some(&text) {
            *trouble = None;
        }
    }
}
