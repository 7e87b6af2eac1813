//! Counters, gauges and latency histograms. Stages write here; the endpoint renders.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::PacingMetrics;
use super::pressure::{OutlookCell, Pressure};
use super::queues::{Queue, QueueFacts};
use super::requests::{RequestCounts, StoreMetrics};
use super::scale::ScaleMetrics;
use super::stage::{Stage, StageMetrics};
use crate::model::{MachineId, Sequence, Timestamp, Watermarks};

/// Everything one process measures. Cheap to update, shared by `Arc`.
#[derive(Debug, Default)]
pub struct Metrics {
    machines: Mutex<BTreeMap<MachineId, Arc<MachineMetrics>>>,
    stages: [StageMetrics; 5],
    /// Connections open now.
    pub connections: AtomicI64,
    /// Connections refused, for whatever reason.
    pub connections_refused: AtomicU64,
    /// Times that the QUIC endpoint ended by itself and was started again.
    pub quic_restarts: AtomicU64,
    /// Bytes of cache segments in use / of all that may exist.
    pub cache_used_bytes: AtomicU64,
    /// See `cache_used_bytes`.
    pub cache_max_bytes: AtomicU64,
    /// Group commits (fdatasync calls) of the cache log.
    pub cache_commits: AtomicU64,
    /// Damaged places found in the cache log at start.
    pub cache_damage: AtomicU64,
    /// What was found damaged in the cache log at start, in words: segment, bytes, consequence.
    pub cache_damages: Mutex<Vec<String>>,
    /// Bytes that user space copied between socket and cache log: none on the fast path.
    pub ingest_copied_bytes: AtomicU64,
    /// Levels, streams, rates, retries.
    pub pacing: PacingMetrics,
    /// Requests to the store.
    pub store: StoreMetrics,
    /// Who serves which machine.
    pub scale: ScaleMetrics,
    queues: Mutex<Vec<Queue>>,
    /// How the cache stands to its marks, and where it is going.
    pub outlook: OutlookCell,
    pressure_changes: [AtomicU64; 4],
    /// Why the cache takes nothing in; `None` while it does.
    pub cache_trouble: Mutex<Option<String>>,
    certificates: Mutex<Vec<(&'static str, Timestamp)>>,
}

/// One machine.
#[derive(Debug, Default)]
pub struct MachineMetrics {
    received: AtomicU64,
    durable: AtomicU64,
    published: AtomicU64,
    applied: AtomicU64,
    recoverable: AtomicU64,
    /// Bytes of writes received since the process started.
    pub source_bytes: AtomicU64,
    /// Bytes of deltas published.
    pub published_bytes: AtomicU64,
    /// Payload bytes durable here and not yet published.
    pub backlog_bytes: AtomicU64,
    /// Time (µs) of the newest bookmark that is published, or of the newest moment known to be
    /// wholly published on an idle machine; 0 when there is none. RPO counts from here.
    pub recoverable_time: AtomicI64,
    /// The agent's last word: tracking mode (0 unknown, 1 ordered, 2 catching up, 3 bitmap).
    pub agent_mode: AtomicU64,
    /// The agent's last word: bytes still to copy in a catch-up.
    pub agent_dirty_bytes: AtomicU64,
    /// The agent's last word: bytes of all disks.
    pub agent_total_bytes: AtomicU64,
    /// Whether an agent is connected (0 or 1).
    pub connected: AtomicU64,
    /// Time (µs) of the agent's last word; 0 before the first.
    pub heard_time: AtomicI64,
    /// Requests to the store for it.
    pub store: RequestCounts,
    /// What stopped applying for good, as the points document says.
    pub quarantine: Mutex<Option<String>>,
    /// Time (µs) of the newest snapshot; 0 when there is none.
    pub snapshot_time: AtomicI64,
    /// End (µs) of the certificate with which its agent came last; 0 before the first.
    pub certificate_end: AtomicI64,
    /// It is served here.
    pub served: AtomicBool,
    /// Its manifest names this server, as the applier saw it last.
    pub owned: AtomicBool,
    /// This process applies it.
    pub applies: AtomicBool,
    /// What keeps this machine from advancing, in words; `None` when nothing does.
    pub trouble: Mutex<Option<String>>,
    /// The same of applying, which goes on and stops by itself.
    pub apply_trouble: Mutex<Option<String>>,
    /// Another agent of the machine wants to be it, in words.
    pub rival: Mutex<Option<String>>,
}

impl MachineMetrics {
    /// Present watermarks. Read from the right to the left, so that the inequality holds even
    /// while they move.
    #[must_use]
    pub fn watermarks(&self) -> Watermarks {
        let load = |value: &AtomicU64| Sequence(value.load(Ordering::Acquire));
        let recoverable = load(&self.recoverable);
        let applied = load(&self.applied);
        let published = load(&self.published);
        let durable = load(&self.durable);
        let received = load(&self.received);
        Watermarks { received, durable, published, applied, recoverable }
    }

    /// Raises watermarks; none ever falls.
    pub fn raise(&self, to: Watermarks) {
        self.received.fetch_max(to.received.0, Ordering::AcqRel);
        self.durable.fetch_max(to.durable.0, Ordering::AcqRel);
        self.published.fetch_max(to.published.0, Ordering::AcqRel);
        self.applied.fetch_max(to.applied.0, Ordering::AcqRel);
        self.recoverable.fetch_max(to.recoverable.0, Ordering::AcqRel);
    }

    /// Raises one watermark that moves with every record.
    pub fn received(&self, through: Sequence) {
        self.received.fetch_max(through.0, Ordering::AcqRel);
    }

    /// Sets or clears the sentence that says what is wrong.
    pub fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = trouble;
    }

    /// The same of applying: what one of the two says, the other does not take back.
    pub fn set_apply_trouble(&self, trouble: Option<String>) {
        *self.apply_trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = trouble;
    }

    /// Says that two agents of the machine live at once, or that they do no more.
    pub fn set_rival(&self, rival: Option<String>) {
        *self.rival.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = rival;
    }

    /// Says what stopped applying for good, or that nothing does.
    pub fn set_quarantine(&self, quarantine: Option<String>) {
        *self.quarantine.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = quarantine;
    }

    /// Seconds since the newest moment that can be recovered to; `None` before the first.
    #[must_use]
    pub fn rpo_seconds(&self, now: Timestamp) -> Option<f64> {
        match self.recoverable_time.load(Ordering::Acquire) {
            0 => None,
            time => Some(now.seconds_since(Timestamp(time)).max(0.0)),
        }
    }
}

impl Metrics {
    /// The metrics of a machine, made on first use.
    pub fn machine(&self, machine: &MachineId) -> Arc<MachineMetrics> {
        let mut machines = self.machines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(machines.entry(machine.clone()).or_default())
    }

    /// The metrics of a machine that has some.
    #[must_use]
    pub fn known(&self, machine: &str) -> Option<Arc<MachineMetrics>> {
        let machines = self.machines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        machines.get(&machine.parse().ok()?).map(Arc::clone)
    }

    /// All machines by name.
    #[must_use]
    pub fn machines(&self) -> Vec<(MachineId, Arc<MachineMetrics>)> {
        let machines = self.machines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        machines.iter().map(|(id, metrics)| (id.clone(), Arc::clone(metrics))).collect()
    }

    /// Lets a machine's metrics go: another process server serves it. Watermarks of another ownership
    /// begin anew.
    pub fn forget_machine(&self, machine: &MachineId) {
        let mut machines = self.machines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        machines.remove(machine);
    }

    /// Says why the cache takes nothing in, or that it does again.
    pub fn set_cache_trouble(&self, trouble: Option<String>) {
        *self.cache_trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = trouble;
    }

    /// The certificates that this process shows and believes, each with its end.
    pub fn set_certificates(&self, ends: Vec<(&'static str, Timestamp)>) {
        *self.certificates.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = ends;
    }

    pub(super) fn certificates(&self) -> Vec<(&'static str, Timestamp)> {
        self.certificates.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Says what was found damaged in the cache log.
    pub fn note_cache_damage(&self, damage: &impl ToString) {
        let mut damages =
            self.cache_damages.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        damages.push(damage.to_string());
    }

    /// A shard's cache came to this pressure.
    pub fn pressure_changed(&self, to: Pressure) {
        self.pressure_changes[to as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often a shard's cache came to this pressure.
    #[must_use]
    pub fn pressure_changes(&self, to: Pressure) -> u64 {
        self.pressure_changes[to as usize].load(Ordering::Relaxed)
    }

    /// Payload bytes durable and not yet published, over all machines.
    #[must_use]
    pub fn backlog_bytes(&self) -> u64 {
        let machines = self.machines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        machines.values().map(|machine| machine.backlog_bytes.load(Ordering::Relaxed)).sum()
    }

    /// Bytes of writes received, over all machines served now.
    #[must_use]
    pub fn source_bytes(&self) -> u64 {
        let machines = self.machines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        machines.values().map(|machine| machine.source_bytes.load(Ordering::Relaxed)).sum()
    }

    /// Bytes into and out of a stage.
    pub fn moved(&self, stage: Stage, bytes_in: u64, bytes_out: u64) {
        self.stages[stage as usize].moved(bytes_in, bytes_out);
    }

    /// One latency of a stage.
    pub fn latency(&self, stage: Stage, latency: Duration) {
        self.latencies(stage, [latency]);
    }

    /// Many latencies of a stage at once.
    pub fn latencies(&self, stage: Stage, latencies: impl IntoIterator<Item = Duration>) {
        self.stages[stage as usize].took(latencies);
    }

    /// CPU time spent in a stage.
    pub fn cpu(&self, stage: Stage, spent: Duration) {
        self.stages[stage as usize].cpu(spent);
    }

    /// Bytes in, bytes out, CPU seconds and the latencies (µs) of a stage.
    #[must_use]
    pub fn stage(&self, stage: Stage) -> (u64, u64, f64, Histogram<u64>) {
        let stage = &self.stages[stage as usize];
        let latencies = stage.latencies().histogram();
        (stage.bytes_in(), stage.bytes_out(), stage.cpu_seconds(), latencies)
    }

    pub(super) fn measured(&self, stage: Stage) -> &StageMetrics {
        &self.stages[stage as usize]
    }

    /// Adds a queue or a budget to what is shown.
    pub fn show_queue(&self, queue: Queue) {
        self.queues.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(queue);
    }

    /// Every queue and budget as it is now.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueFacts> {
        let queues = self.queues.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        queues.iter().map(Queue::facts).collect()
    }
}

/// CPU time of the calling thread since it was started; for synchronous pieces of work only.
#[derive(Debug)]
pub struct CpuTimer {
    start: Duration,
}

impl CpuTimer {
    /// Starts on this thread.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Self::thread_time() }
    }

    /// CPU time since the start.
    #[must_use]
    pub fn spent(&self) -> Duration {
        Self::thread_time().saturating_sub(self.start)
    }

    fn thread_time() -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
    }
}
