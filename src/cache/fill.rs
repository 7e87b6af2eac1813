//! How full the cache of a shard is, for credits, metrics and status.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::observe::Metrics;

/// Bytes of segments in use, of all that may be, and why there are no more. Shared by `Arc`.
#[derive(Debug)]
pub struct Fill {
    used_bytes: AtomicU64,
    max_bytes: u64,
    refusal: Mutex<Option<String>>,
    metrics: Arc<Metrics>,
}

impl Fill {
    pub(super) fn new(max_bytes: u64, metrics: Arc<Metrics>) -> Self {
        let max = &metrics.cache_max_bytes;
        max.fetch_add(max_bytes, Ordering::Relaxed);
        Self { used_bytes: AtomicU64::new(0), max_bytes, refusal: Mutex::new(None), metrics }
    }

    /// Segments that hold records somebody needs, bytes.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Acquire)
    }

    /// Most that may be in use at once, bytes; recovery's reserve is not part of it.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Part in use, 0 to 1 (above 1 after `bytes_max` was made smaller).
    #[must_use]
    pub fn fraction(&self) -> f64 {
        self.used_bytes() as f64 / self.max_bytes.max(1) as f64
    }

    /// `cache full: <cause>` while no further segment can be had; `None` otherwise.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.lock().clone()
    }

    pub(super) fn take(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Ordering::AcqRel);
        let used = &self.metrics.cache_used_bytes;
        used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
        let used = &self.metrics.cache_used_bytes;
        used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Says why no further segment can be had. Logged when it changes.
    pub(super) fn refuse(&self, cause: &str) {
        let refusal = Some(format!("cache full: {cause}"));
        let mut present = self.lock();
        if *present != refusal {
            tracing::warn!(cause, "cache full: nothing is taken in until there is room");
            *present = refusal;
        }
    }

    pub(super) fn accept(&self) {
        if self.lock().take().is_some() {
            tracing::info!("the cache has room again");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.give(self.used_bytes());
        let max = &self.metrics.cache_max_bytes;
        max.fetch_sub(self.max_bytes, Ordering::Relaxed);
    }
}
