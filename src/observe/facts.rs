//! What a process server says about itself as JSON: `/v1/status`. Read again by status.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{CacheOutlook, MachineMetrics, Metrics, QueueFacts, RequestFacts, Stage, process};
use crate::model::{MachineId, Timestamp, TrackingMode};

/// Everything that one process server knows right now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// Version of the program.
    pub version: String,
    /// The server's wall clock.
    pub now: Timestamp,
    /// Open connections.
    pub connections: i64,
    /// Connections refused since it started.
    pub connections_refused: u64,
    /// Bytes of cache segments in use.
    pub cache_used_bytes: u64,
    /// Bytes of all segments that may exist.
    pub cache_max_bytes: u64,
    /// What its cache log had lost when it started, segment and bytes named.
    pub cache_damages: Vec<String>,
    /// How the cache stands to its marks, and where it is going.
    pub cache: CacheOutlook,
    /// Payload bytes durable and not yet published, over all machines.
    pub backlog_bytes: u64,
    /// Its stages, in flow order.
    pub stages: Vec<StageFacts>,
    /// Its queues and budgets.
    pub queues: Vec<QueueFacts>,
    /// Durable records that it holds of machines that it does not serve.
    #[serde(default)]
    pub held: Vec<HeldFacts>,
    /// Its machines, and those that it applies for another server.
    pub machines: Vec<MachineFacts>,
}

/// Records of a machine that it does not serve: they may be the only copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldFacts {
    /// Which machine.
    pub machine: MachineId,
    /// How many.
    pub records: u64,
}

/// What it knows of one stage, since it started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageFacts {
    /// Which.
    pub stage: Stage,
    /// Bytes that went in.
    pub in_bytes: u64,
    /// Bytes that came out.
    pub out_bytes: u64,
    /// CPU time.
    pub cpu_seconds: f64,
    /// Median latency.
    pub p50_seconds: f64,
    /// Latency that 99 of 100 stay below.
    pub p99_seconds: f64,
}

/// What it knows of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineFacts {
    /// Which.
    pub machine: MachineId,
    /// Taken from the wire, through this sequence.
    pub received: u64,
    /// Survives a power cut of the process server, through this sequence.
    pub durable: u64,
    /// Survives the loss of the process server, through this sequence.
    pub published: u64,
    /// On the seed disks, through this sequence.
    pub applied: u64,
    /// Sequence of the newest snapshot point.
    pub recoverable: u64,
    /// Bytes of writes received.
    pub source_bytes: u64,
    /// Bytes of deltas published.
    pub published_bytes: u64,
    /// Payload bytes durable and not yet published.
    pub backlog_bytes: u64,
    /// Newest moment that can be recovered to.
    pub recoverable_time: Option<Timestamp>,
    /// Whether an agent is connected.
    pub connected: bool,
    /// When the agent was heard last.
    pub heard: Option<Timestamp>,
    /// How the agent tracks its machine, by its last word.
    pub mode: AgentTracking,
    /// Bytes still to copy in a catch-up.
    pub dirty_bytes: u64,
    /// Bytes of all disks.
    pub total_bytes: u64,
    /// Requests to the store for it, by kind; those that were never asked are left out.
    pub store_requests: BTreeMap<String, RequestFacts>,
    /// What keeps the machine from advancing.
    pub trouble: Option<String>,
    /// The same, and what stopped applying for good, by what is in the way: `two-agents`, `cache`, `upload`,
    /// `apply`, `quarantine`.
    #[serde(default)]
    pub troubles: BTreeMap<String, String>,
    /// Time of the newest snapshot.
    #[serde(default)]
    pub snapshot_time: Option<Timestamp>,
    /// End of the certificate with which its agent came last.
    #[serde(default)]
    pub certificate_end: Option<Timestamp>,
    /// It is this server's: served here, or its manifest says so. Its agent and its RPO are nobody else's to
    /// tell of.
    #[serde(default)]
    pub ours: bool,
    /// It is applied here.
    #[serde(default)]
    pub applies: bool,
}

/// How an agent tracks its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentTracking {
    /// It has not said yet.
    Unknown,
    /// Every write in order.
    Ordered,
    /// In order, beside the repair of extents whose order was lost.
    CatchingUp,
    /// Dirty extents only.
    Bitmap,
}

impl AgentTracking {
    /// From the number in [`MachineMetrics::agent_mode`].
    #[must_use]
    pub fn of(number: u64) -> Self {
        match number {
            1 => Self::Ordered,
            2 => Self::CatchingUp,
            3 => Self::Bitmap,
            _ => Self::Unknown,
        }
    }

    /// The number for [`MachineMetrics::agent_mode`].
    #[must_use]
    pub fn number(mode: TrackingMode) -> u64 {
        match mode {
            TrackingMode::Ordered => 1,
            TrackingMode::CatchingUp => 2,
            TrackingMode::Bitmap => 3,
        }
    }
}

impl ServerFacts {
    /// What `metrics` say at `now`.
    #[must_use]
    pub fn of(metrics: &Metrics, now: Timestamp) -> Self {
        let machines = metrics.machines();
        let hours = process::age_hours();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now,
            connections: metrics.connections.load(Ordering::Relaxed),
            connections_refused: metrics.connections_refused.load(Ordering::Relaxed),
            cache_used_bytes: metrics.cache_used_bytes.load(Ordering::Relaxed),
            cache_max_bytes: metrics.cache_max_bytes.load(Ordering::Relaxed),
            cache_damages: metrics
                .cache_damages
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            cache: metrics.outlook.now(),
            backlog_bytes: metrics.backlog_bytes(),
            stages: Stage::ALL.map(|stage| StageFacts::of(stage, metrics)).into(),
            queues: metrics.queues(),
            held: metrics.scale.held.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            machines: machines
                .into_iter()
                .map(|(machine, of_machine)| MachineFacts::of(machine, &of_machine, metrics, hours))
                // Each server looks at each machine of the site now and then: that makes none its own.
                .filter(|machine| machine.ours || machine.applies)
                .collect(),
        }
    }
}

impl StageFacts {
    fn of(stage: Stage, metrics: &Metrics) -> Self {
        let (in_bytes, out_bytes, cpu_seconds, latencies) = metrics.stage(stage);
        let quantile = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e6;
        let (p50_seconds, p99_seconds) = (quantile(0.5), quantile(0.99));
        Self { stage, in_bytes, out_bytes, cpu_seconds, p50_seconds, p99_seconds }
    }
}

impl MachineFacts {
    fn of(machine: MachineId, metrics: &MachineMetrics, process: &Metrics, hours: f64) -> Self {
        let watermarks = metrics.watermarks();
        let moment = |micros: i64| (micros != 0).then_some(Timestamp(micros));
        let said = [
            ("two-agents", &metrics.rival),
            ("cache", &process.cache_trouble),
            ("upload", &metrics.trouble),
            ("apply", &metrics.apply_trouble),
            ("quarantine", &metrics.quarantine),
        ];
        let said = said.map(|(what, words)| {
            (what, words.lock().unwrap_or_else(PoisonError::into_inner).clone())
        });
        let said = || said.iter().filter_map(|(what, words)| Some((*what, words.clone()?)));
        // What the points document says status reads there.
        let words: Vec<_> = said().filter(|(what, _)| *what != "quarantine").collect();
        let words: Vec<_> = words.into_iter().map(|(_, words)| words).collect();
        let trouble = (!words.is_empty()).then(|| words.join("; "));
        let troubles = said().map(|(what, words)| (what.to_owned(), words)).collect();
        Self {
            machine,
            received: watermarks.received.0,
            durable: watermarks.durable.0,
            published: watermarks.published.0,
            applied: watermarks.applied.0,
            recoverable: watermarks.recoverable.0,
            source_bytes: metrics.source_bytes.load(Ordering::Relaxed),
            published_bytes: metrics.published_bytes.load(Ordering::Relaxed),
            backlog_bytes: metrics.backlog_bytes.load(Ordering::Relaxed),
            recoverable_time: moment(metrics.recoverable_time.load(Ordering::Acquire)),
            connected: metrics.connected.load(Ordering::Relaxed) != 0,
            heard: moment(metrics.heard_time.load(Ordering::Relaxed)),
            mode: AgentTracking::of(metrics.agent_mode.load(Ordering::Relaxed)),
            dirty_bytes: metrics.agent_dirty_bytes.load(Ordering::Relaxed),
            total_bytes: metrics.agent_total_bytes.load(Ordering::Relaxed),
            store_requests: metrics.store.facts(hours),
            trouble,
            troubles,
            snapshot_time: moment(metrics.snapshot_time.load(Ordering::Relaxed)),
            certificate_end: moment(metrics.certificate_end.load(Ordering::Relaxed)),
            ours: metrics.served.load(Ordering::Relaxed) || metrics.owned.load(Ordering::Relaxed),
            applies: metrics.applies.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_applying_says_and_takes_back_leaves_the_uploads_words() {
        let process = Metrics::default();
        let machine: MachineId = "web".parse().unwrap();
        let metrics = process.machine(&machine);
        let trouble = || MachineFacts::of(machine.clone(), &metrics, &process, 1.0).trouble;
        assert_eq!(trouble(), None);
        metrics.store.count(crate::observe::StoreRequest::Put, 6);
        let facts = MachineFacts::of(machine.clone(), &metrics, &process, 0.5);
        let puts = RequestFacts { total: 6, per_hour: 12.0 };
        assert_eq!(facts.store_requests, [("put".to_owned(), puts)].into());
        metrics.set_trouble(Some("the store has no room".to_owned()));
        metrics.set_apply_trouble(Some("a lease ended".to_owned()));
        assert_eq!(trouble().as_deref(), Some("the store has no room; a lease ended"));
        metrics.set_apply_trouble(None);
        assert_eq!(trouble().as_deref(), Some("the store has no room"));
    }
}
