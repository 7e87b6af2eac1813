//! How fast the pipeline goes and why: levels, streams, rates, retries. Names and help included.
//!
//! Owns: the gauges that the controllers of sealing and uploading write. Does not own: the
//! controllers (`docs/pacing.md`).

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::exposition::Page;

/// What `pacing.md` calls its outputs, and the inputs that explain them.
#[derive(Debug, Default)]
pub struct PacingMetrics {
    /// zstd level of the next batch.
    pub level: AtomicI64,
    /// Batches that wait for a sealing thread.
    pub seals_waiting: AtomicU64,
    /// Bytes of sealed objects and of those being sealed.
    pub sealed_bytes: AtomicU64,
    /// Most that these may be.
    pub sealed_bytes_max: AtomicU64,
    /// Frames that were stored because a sample said that they do not compress.
    pub frames_passed_over: AtomicU64,
    /// Idle share of the CPU, in thousandths.
    pub idle_milli: AtomicU64,
    /// Objects that may travel at once.
    pub streams: AtomicU64,
    /// Objects that do.
    pub streams_busy: AtomicU64,
    /// Sealed objects that wait for a stream.
    pub uploads_waiting: AtomicU64,
    /// Rate that uploads keep now, bytes a second; 0 without a limit.
    pub rate_bytes: AtomicU64,
    /// Breaker towards the store: 0 closed, 1 open, 2 probing.
    pub breaker: AtomicU64,
    /// Calls made as the only one while the breaker was open.
    pub probes: AtomicU64,
    retries: [AtomicU64; RetryReason::ALL.len()],
}

/// Why a call to the store was repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    /// It did not reach the store.
    Unreachable,
    /// Its answer was lost.
    Lost,
    /// The store asked for it.
    Throttled,
    /// The store has no room.
    Full,
    /// The operating system said no.
    Io,
    /// Somebody else changed the manifest meanwhile.
    Conflict,
}

impl RetryReason {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Unreachable, Self::Lost, Self::Throttled, Self::Full, Self::Io, Self::Conflict];

    /// As label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Lost => "lost",
            Self::Throttled => "throttled",
            Self::Full => "full",
            Self::Io => "io",
            Self::Conflict => "conflict",
        }
    }
}

impl PacingMetrics {
    /// A call is repeated.
    pub fn retried(&self, reason: RetryReason) {
        self.retries[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Calls repeated, for whatever reason.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.retries.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// One number of the process.
type Field = fn(&PacingMetrics) -> &AtomicU64;

pub(super) fn render(page: &mut Page, pacing: &PacingMetrics) {
    let name = "holdfast_seal_level";
    let level = pacing.level.load(Ordering::Relaxed);
    page.single(name, "gauge", "zstd level of the next batch.", level);
    let name = "holdfast_cpu_idle_ratio";
    let idle = pacing.idle_milli.load(Ordering::Relaxed) as f64 / 1e3;
    page.single(name, "gauge", "Idle share of the CPU as the level's controller sees it.", idle);
    const FIELDS: [(&str, &str, &str, Field); 10] = [
        ("holdfast_seal_waiting", "gauge", "Batches that wait for a sealing thread.", |p| {
            &p.seals_waiting
        }),
        ("holdfast_sealed_bytes", "gauge", "Objects sealed or being sealed, in memory.", |p| {
            &p.sealed_bytes
        }),
        ("holdfast_sealed_max_bytes", "gauge", "Most bytes that these may have.", |p| {
            &p.sealed_bytes_max
        }),
        (
            "holdfast_seal_frames_passed_over_total",
            "counter",
            "Frames stored because a sample said that they do not compress.",
            |p| &p.frames_passed_over,
        ),
        ("holdfast_upload_streams", "gauge", "Objects that may travel at once.", |p| &p.streams),
        ("holdfast_upload_streams_busy", "gauge", "Objects that travel now.", |p| &p.streams_busy),
        ("holdfast_upload_waiting", "gauge", "Sealed objects that wait for a stream.", |p| {
            &p.uploads_waiting
        }),
        (
            "holdfast_upload_rate_limit_bytes_per_second",
            "gauge",
            "Rate that uploads keep now; 0 without a limit.",
            |p| &p.rate_bytes,
        ),
        (
            "holdfast_store_breaker_state",
            "gauge",
            "Breaker towards the store: 0 closed, 1 open, 2 probing.",
            |p| &p.breaker,
        ),
        (
            "holdfast_store_probes_total",
            "counter",
            "Calls made as the only one while the breaker was open.",
            |p| &p.probes,
        ),
    ];
    for (name, kind, help, value) in FIELDS {
        page.single(name, kind, help, value(pacing).load(Ordering::Relaxed));
    }
    let name = "holdfast_store_retries_total";
    page.family(name, "counter", "Calls to the store that were repeated, by reason.");
    for reason in RetryReason::ALL {
        let count = pacing.retries[reason as usize].load(Ordering::Relaxed);
        page.sample(name, &[("reason", reason.as_str())], count);
    }
}
