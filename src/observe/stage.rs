//! What is measured of a stage: bytes, CPU time, latencies. Written on the hot path.
//!
//! Recording takes no lock: each thread adds to a stripe of counters that few others touch, and
//! whoever reads adds the stripes up. Latencies fall into buckets of which 32 make a doubling, so a
//! quantile is right within 3 %.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;

/// A part of the pipeline that is measured.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Socket to `Admitted`.
    Ingest,
    /// `Admitted` to `Durable`; its latency is what an ack waits for.
    Cache,
    /// `Batch` to `Sealed`.
    Seal,
    /// `Sealed` to `Published`.
    Upload,
    /// `Published` to `Applied`.
    Apply,
}

impl Stage {
    /// All, in flow order.
    pub const ALL: [Self; 5] = [Self::Ingest, Self::Cache, Self::Seal, Self::Upload, Self::Apply];

    /// As label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Cache => "cache",
            Self::Seal => "seal",
            Self::Upload => "upload",
            Self::Apply => "apply",
        }
    }
}

/// Stripes of counters; threads share one when there are more of them.
const STRIPES: usize = 8;
/// Buckets of a doubling, as a power of two.
const FINE_BITS: u32 = 5;
const FINE: usize = 1 << FINE_BITS;
/// Longest latency that is told apart from longer ones: 2^32 µs, 72 minutes.
const LONGEST_BITS: u32 = 32;
const BUCKETS: usize = (LONGEST_BITS - FINE_BITS + 1) as usize * FINE;

/// The stripe of the calling thread.
fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
        }
        mine.get()
    })
}

/// One stage's counters.
#[derive(Debug)]
pub(super) struct StageMetrics {
    stripes: [Stripe; STRIPES],
}

/// Alone on its cache lines, so that threads do not take them from each other.
#[derive(Debug)]
#[repr(align(128))]
struct Stripe {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    cpu_ns: AtomicU64,
    latency_us: AtomicU64,
    counts: Box<[AtomicU64]>,
}

impl Default for StageMetrics {
    fn default() -> Self {
        Self { stripes: std::array::from_fn(|_| Stripe::new()) }
    }
}

impl Stripe {
    fn new() -> Self {
        Self {
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            cpu_ns: AtomicU64::new(0),
            latency_us: AtomicU64::new(0),
            counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl StageMetrics {
    pub(super) fn moved(&self, bytes_in: u64, bytes_out: u64) {
        let stripe = &self.stripes[stripe()];
        stripe.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        stripe.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
    }

    pub(super) fn took(&self, latencies: impl IntoIterator<Item = Duration>) {
        let stripe = &self.stripes[stripe()];
        let mut sum = 0_u64;
        for latency in latencies {
            let micros = latency.as_nanos().div_ceil(1_000);
            let micros = u64::try_from(micros).unwrap_or(u64::MAX).clamp(1, 1 << LONGEST_BITS);
            stripe.counts[bucket(micros)].fetch_add(1, Ordering::Relaxed);
            sum = sum.wrapping_add(micros);
        }
        stripe.latency_us.fetch_add(sum, Ordering::Relaxed);
    }

    pub(super) fn cpu(&self, spent: Duration) {
        let nanos = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        self.stripes[stripe()].cpu_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn bytes_in(&self) -> u64 {
        self.sum(|stripe| &stripe.bytes_in)
    }

    pub(super) fn bytes_out(&self) -> u64 {
        self.sum(|stripe| &stripe.bytes_out)
    }

    pub(super) fn cpu_seconds(&self) -> f64 {
        self.sum(|stripe| &stripe.cpu_ns) as f64 / 1e9
    }

    /// Latencies as they are now.
    pub(super) fn latencies(&self) -> Latencies {
        let mut counts = vec![0; BUCKETS];
        for stripe in &self.stripes {
            for (sum, count) in counts.iter_mut().zip(&stripe.counts) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        Latencies { counts, sum_us: self.sum(|stripe| &stripe.latency_us) }
    }

    fn sum(&self, counter: impl Fn(&Stripe) -> &AtomicU64) -> u64 {
        self.stripes.iter().map(|stripe| counter(stripe).load(Ordering::Relaxed)).sum()
    }
}

/// Latencies of a stage, counted.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    counts: Vec<u64>,
    sum_us: u64,
}

impl Latencies {
    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(super) fn sum_seconds(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }

    /// How many took at most 2^`exponent` µs; exact, such a bound is the border of a bucket.
    pub(super) fn within(&self, exponent: u32) -> u64 {
        self.counts[..=bucket(1 << exponent)].iter().sum()
    }

    /// As histogram of microseconds.
    pub(super) fn histogram(&self) -> Histogram<u64> {
        let histogram = Histogram::new_with_bounds(1, 1 << LONGEST_BITS, 3);
        let mut histogram = histogram.expect("constant bounds are valid");
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            histogram.saturating_record_n(longest_in(bucket), *count);
        }
        histogram
    }
}

/// The bucket of a latency of 1 µs or more. Borders are inclusive above: 2^n µs is the last value of
/// its bucket.
fn bucket(micros: u64) -> usize {
    let value = micros.saturating_sub(1);
    if value < FINE as u64 {
        return value as usize;
    }
    let exponent = value.ilog2();
    let coarse = (exponent - FINE_BITS + 1) as usize * FINE;
    let fine = (value >> (exponent - FINE_BITS)) as usize - FINE;
    (coarse + fine).min(BUCKETS - 1)
}

/// The longest latency of a bucket, µs.
fn longest_in(bucket: usize) -> u64 {
    if bucket < FINE {
        return bucket as u64 + 1;
    }
    let (coarse, fine) = (bucket / FINE - 1, bucket % FINE);
    ((FINE + fine + 1) as u64) << coarse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        for number in 0..BUCKETS {
            let longest = longest_in(number);
            assert_eq!(bucket(longest), number);
            assert_eq!(bucket(longest + 1), (number + 1).min(BUCKETS - 1));
        }
        assert_eq!(longest_in(BUCKETS - 1), 1 << LONGEST_BITS);
        for exponent in 0..=LONGEST_BITS {
            assert_eq!(longest_in(bucket(1 << exponent)), 1 << exponent, "a border is exact");
        }
    }

    #[test]
    fn threads_add_up_and_quantiles_are_close() {
        let stage = StageMetrics::default();
        std::thread::scope(|scope| {
            for thread in 0..10 {
                let stage = &stage;
                scope.spawn(move || {
                    for step in 0..1000 {
                        stage.took([Duration::from_micros(thread + 10 * step)]);
                        stage.moved(2, 1);
                    }
                });
            }
        });
        let latencies = stage.latencies();
        assert_eq!(
            (latencies.count(), stage.bytes_in(), stage.bytes_out()),
            (10_000, 20_000, 10_000)
        );
        assert_eq!(latencies.within(10), 1025, "0 to 1024 µs");
        assert!((latencies.sum_seconds() - 49.995).abs() < 0.001);
        let median = latencies.histogram().value_at_quantile(0.5);
        assert!((4_900..=5_150).contains(&median), "{median}");
    }

    #[test]
    fn a_latency_is_never_told_shorter_than_it_was() {
        let stage = StageMetrics::default();
        for nanos in [0, 1, 999, 1_000, 1_001, 1_048_577, 3_600_000_000_001] {
            stage.took([Duration::from_nanos(nanos)]);
        }
        stage.took([Duration::MAX]);
        let latencies = stage.latencies();
        assert_eq!((latencies.within(0), latencies.within(1), latencies.within(32)), (4, 5, 8));
    }
}
