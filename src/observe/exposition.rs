//! Metrics as text: Prometheus (exposition format 0.0.4) or OpenMetrics 1.0. Names that are not here
//! stand in `process`, `pacing`, `scale` and `alarms`, and nowhere else; docs/metrics.md tells all of them.

use std::fmt::{Display, Write};
use std::sync::atomic::Ordering;

use super::facts::{AgentTracking, MachineFacts, ServerFacts};
use super::requests::StoreRequest;
use super::{Metrics, Pressure, Stage, alarms, pacing, process, scale};
use crate::model::Timestamp;
use crate::settings::CacheSettings;

/// What a page is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// OpenMetrics instead of Prometheus text.
    pub(super) openmetrics: bool,
    /// With the series of each machine.
    pub(super) machines: bool,
}

/// All metrics at `now`; the settings give the marks of the cache.
pub(super) fn render(
    metrics: &Metrics,
    settings: &CacheSettings,
    now: Timestamp,
    shape: Shape,
) -> String {
    let facts = ServerFacts::of(metrics, now);
    let text = String::with_capacity(32_768 + facts.machines.len() * 1_024);
    let mut page = Page { text, openmetrics: shape.openmetrics };
    process::render(&mut page);
    server(&mut page, metrics, &facts);
    cache(&mut page, metrics, &facts);
    marks(&mut page, settings);
    store(&mut page, metrics);
    scale::render(&mut page, &metrics.scale);
    pacing::render(&mut page, &metrics.pacing);
    stages(&mut page, metrics);
    alarms::certificates(&mut page, &metrics.certificates(), now);
    fleet(&mut page, &facts, now);
    if shape.machines {
        machines(&mut page, &facts, now);
        requests(&mut page, &facts);
        alarms::machines(&mut page, &facts, now);
    }
    if shape.openmetrics {
        page.line(format_args!("# EOF"));
    }
    page.text
}

fn server(page: &mut Page, metrics: &Metrics, facts: &ServerFacts) {
    page.family("holdfast_build_info", "gauge", "Version of the running program.");
    page.sample("holdfast_build_info", &[("version", &facts.version)], 1);
    let help = "Connections open now.";
    page.single("holdfast_connections", "gauge", help, facts.connections);
    let help = "Connections refused, for whatever reason.";
    page.single("holdfast_connections_refused_total", "counter", help, facts.connections_refused);
    let help = "Times that the QUIC endpoint ended by itself and was started again.";
    let restarts = metrics.quic_restarts.load(Ordering::Relaxed);
    page.single("holdfast_quic_restarts_total", "counter", help, restarts);
    let copied = metrics.ingest_copied_bytes.load(Ordering::Relaxed);
    let help = "Bytes that user space copied between socket and cache log.";
    page.single("holdfast_ingest_copied_bytes_total", "counter", help, copied);
    let queues = metrics.queues();
    for (bytes, taken, most) in [
        (true, "holdfast_queue_bytes", "holdfast_queue_max_bytes"),
        (false, "holdfast_queue_items", "holdfast_queue_max_items"),
    ] {
        let counted = || queues.iter().filter(|queue| queue.bytes == bytes);
        page.family(taken, "gauge", "What a queue holds, or what is taken of a budget.");
        for queue in counted() {
            page.sample(taken, &[("queue", &queue.queue)], queue.taken);
        }
        page.family(most, "gauge", "The most that a queue or a budget holds.");
        for queue in counted() {
            page.sample(most, &[("queue", &queue.queue)], queue.most);
        }
    }
}

fn cache(page: &mut Page, metrics: &Metrics, facts: &ServerFacts) {
    let help = "Bytes of cache segments in use.";
    page.single("holdfast_cache_used_bytes", "gauge", help, facts.cache_used_bytes);
    let help = "Bytes of all cache segments that may exist.";
    page.single("holdfast_cache_max_bytes", "gauge", help, facts.cache_max_bytes);
    let commits = metrics.cache_commits.load(Ordering::Relaxed);
    let help = "Group commits of the cache log: fdatasync calls.";
    page.single("holdfast_cache_commits_total", "counter", help, commits);
    let damage = metrics.cache_damage.load(Ordering::Relaxed);
    let help = "Damaged places found in the cache log at start.";
    page.single("holdfast_cache_damage_total", "counter", help, damage);
    let outlook = &facts.cache;
    let name = "holdfast_cache_pressure";
    page.family(name, "gauge", "How the cache stands to its marks: 1 for the present level.");
    for level in Pressure::ALL {
        page.sample(name, &[("level", level.as_str())], u8::from(outlook.pressure == level));
    }
    let name = "holdfast_cache_pressure_changes_total";
    page.family(name, "counter", "How often the cache of a shard came to a level.");
    for level in Pressure::ALL {
        page.sample(name, &[("level", level.as_str())], metrics.pressure_changes(level));
    }
    let help = "The part of their credit that agents get.";
    page.single("holdfast_credit_share_ratio", "gauge", help, outlook.credit_share);
    let name = "holdfast_cache_full_seconds";
    page.family(name, "gauge", "Time until the stop mark; absent when the backlog does not grow.");
    if let Some(seconds) = outlook.full_in_seconds {
        page.sample(name, &[], seconds);
    }
    let name = "holdfast_backlog_drain_seconds";
    page.family(name, "gauge", "Time until the backlog is published; absent while it grows.");
    if let Some(seconds) = outlook.drained_in_seconds {
        page.sample(name, &[], seconds);
    }
}

fn marks(page: &mut Page, settings: &CacheSettings) {
    let name = "holdfast_cache_mark_ratio";
    page.family(
        name,
        "gauge",
        "Fill of the cache at which a level begins, by the settings in force.",
    );
    for (level, fill) in [
        (Pressure::Warn, settings.warn_fill),
        (Pressure::Slow, settings.slow_fill),
        (Pressure::Stop, settings.stop_fill),
    ] {
        page.sample(name, &[("level", level.as_str())], fill);
    }
}

fn store(page: &mut Page, metrics: &Metrics) {
    let counts = StoreRequest::ALL.map(|kind| (kind.as_str(), metrics.store.of(kind)));
    let name = "holdfast_store_requests_total";
    page.family(name, "counter", "Requests to the store, failed ones included: what is paid for.");
    for (kind, (all, _)) in counts {
        page.sample(name, &[("kind", kind)], all);
    }
    let name = "holdfast_store_failures_total";
    page.family(name, "counter", "Requests to the store that failed, refused conditions included.");
    for (kind, (_, failed)) in counts {
        page.sample(name, &[("kind", kind)], failed);
    }
    let sent = metrics.store.sent_bytes.load(Ordering::Relaxed);
    page.single("holdfast_store_sent_bytes_total", "counter", "Bytes sent to the store.", sent);
    let read = metrics.store.received_bytes.load(Ordering::Relaxed);
    let help = "Bytes read from the store.";
    page.single("holdfast_store_received_bytes_total", "counter", help, read);
}

/// All machines together: what is left when the series of each are left out.
fn fleet(page: &mut Page, facts: &ServerFacts, now: Timestamp) {
    let name = "holdfast_machines";
    page.family(name, "gauge", "Machines by whether their agent is connected.");
    let (mut connected, mut away) = (0, 0);
    for machine in ours(facts) {
        *(if machine.connected { &mut connected } else { &mut away }) += 1;
    }
    page.sample(name, &[("agent", "connected")], connected);
    page.sample(name, &[("agent", "away")], away);
    let help = "Payload bytes durable and not yet published, over all machines.";
    page.single("holdfast_backlog_all_bytes", "gauge", help, facts.backlog_bytes);
    let name = "holdfast_rpo_worst_seconds";
    page.family(name, "gauge", "The largest RPO of all machines that have one.");
    let ages = ours(facts).filter_map(|machine| machine.recoverable_time);
    if let Some(oldest) = ages.min() {
        page.sample(name, &[], now.seconds_since(oldest).max(0.0));
    }
}

/// Machines of this server: those that it only applies have no agent and no RPO here.
fn ours(facts: &ServerFacts) -> impl Iterator<Item = &MachineFacts> {
    facts.machines.iter().filter(|machine| machine.ours)
}

/// One value of a machine.
type Field = fn(&MachineFacts) -> u64;

fn machines(page: &mut Page, facts: &ServerFacts, now: Timestamp) {
    const WATERMARKS: [(&str, Field); 5] = [
        ("received", |m| m.received),
        ("durable", |m| m.durable),
        ("published", |m| m.published),
        ("applied", |m| m.applied),
        ("recoverable", |m| m.recoverable),
    ];
    let name = "holdfast_watermark_sequence";
    let help = "How far a machine's stream has come: received >= durable >= published >= applied >= recoverable.";
    page.family(name, "gauge", help);
    for machine in &facts.machines {
        // How far another server received and published, that one knows.
        let known = if machine.ours { &WATERMARKS[..] } else { &WATERMARKS[3..] };
        for (watermark, value) in known {
            let labels = [("machine", machine.machine.as_str()), ("watermark", watermark)];
            page.sample(name, &labels, value(machine));
        }
    }
    const FIELDS: [(&str, &str, &str, Field); 6] = [
        ("holdfast_source_bytes_total", "counter", "Bytes of writes received.", |m| m.source_bytes),
        ("holdfast_published_bytes_total", "counter", "Bytes of deltas published.", |m| {
            m.published_bytes
        }),
        ("holdfast_backlog_bytes", "gauge", "Payload bytes durable and not yet published.", |m| {
            m.backlog_bytes
        }),
        ("holdfast_agent_connected", "gauge", "Whether an agent is connected.", |m| {
            m.connected.into()
        }),
        ("holdfast_agent_dirty_bytes", "gauge", "Bytes still to copy in a catch-up.", |m| {
            m.dirty_bytes
        }),
        ("holdfast_agent_disk_bytes", "gauge", "Bytes of all disks of the machine.", |m| {
            m.total_bytes
        }),
    ];
    for (name, kind, help, value) in FIELDS {
        page.family(name, kind, help);
        for machine in ours(facts) {
            page.sample(name, &[("machine", machine.machine.as_str())], value(machine));
        }
    }
    let name = "holdfast_rpo_seconds";
    page.family(
        name,
        "gauge",
        "Age of the newest moment that can be recovered to; absent before the first.",
    );
    for machine in ours(facts) {
        if let Some(time) = machine.recoverable_time {
            let age = now.seconds_since(time).max(0.0);
            page.sample(name, &[("machine", machine.machine.as_str())], age);
        }
    }
    let name = "holdfast_agent_tracking";
    page.family(name, "gauge", "How the agent tracks its machine: 1 for the present mode.");
    for machine in ours(facts) {
        let word = match machine.mode {
            AgentTracking::Unknown => continue,
            AgentTracking::Ordered => "ordered",
            AgentTracking::CatchingUp => "catching-up",
            AgentTracking::Bitmap => "bitmap",
        };
        page.sample(name, &[("machine", machine.machine.as_str()), ("mode", word)], 1);
    }
}

/// Requests of each machine: who costs what.
fn requests(page: &mut Page, facts: &ServerFacts) {
    let name = "holdfast_machine_store_requests_total";
    page.family(
        name,
        "counter",
        "Requests to the store for a machine, of the kinds that were asked.",
    );
    for machine in &facts.machines {
        for (kind, asked) in &machine.store_requests {
            let labels = [("machine", machine.machine.as_str()), ("kind", kind.as_str())];
            page.sample(name, &labels, asked.total);
        }
    }
}

/// Borders of the latency histogram: 2^4 to 2^26 µs, 16 µs to 67 s.
const BORDERS: std::ops::RangeInclusive<u32> = 4..=26;
const QUANTILES: [(&str, f64); 4] = [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("0.999", 0.999)];

fn stages(page: &mut Page, metrics: &Metrics) {
    let stages = Stage::ALL.map(|stage| (stage.as_str(), metrics.measured(stage)));
    let name = "holdfast_stage_in_bytes_total";
    page.family(name, "counter", "Bytes that went into a stage.");
    for (stage, measured) in stages {
        page.sample(name, &[("stage", stage)], measured.bytes_in());
    }
    let name = "holdfast_stage_out_bytes_total";
    page.family(name, "counter", "Bytes that came out of a stage.");
    for (stage, measured) in stages {
        page.sample(name, &[("stage", stage)], measured.bytes_out());
    }
    let name = "holdfast_stage_cpu_seconds_total";
    page.family(name, "counter", "CPU time spent in a stage.");
    for (stage, measured) in stages {
        page.sample(name, &[("stage", stage)], measured.cpu_seconds());
    }
    let (taken, given) = (stages[2].1.bytes_in(), stages[2].1.bytes_out());
    let name = "holdfast_compression_ratio";
    page.family(name, "gauge", "Source bytes for each byte sealed, since the start.");
    if given > 0 {
        page.sample(name, &[], taken as f64 / given as f64);
    }
    let name = "holdfast_stage_latency_seconds";
    page.family(name, "histogram", "Latency of a stage; that of cache is what an ack waits for.");
    let latencies = stages.map(|(stage, measured)| (stage, measured.latencies()));
    for (stage, latencies) in &latencies {
        for border in BORDERS {
            let seconds = ((1_u64 << border) as f64 / 1e6).to_string();
            let labels = [("stage", *stage), ("le", seconds.as_str())];
            page.sample("holdfast_stage_latency_seconds_bucket", &labels, latencies.within(border));
        }
        let labels = [("stage", *stage), ("le", "+Inf")];
        page.sample("holdfast_stage_latency_seconds_bucket", &labels, latencies.count());
        let labels = [("stage", *stage)];
        page.sample("holdfast_stage_latency_seconds_count", &labels, latencies.count());
        page.sample("holdfast_stage_latency_seconds_sum", &labels, latencies.sum_seconds());
    }
    let name = "holdfast_stage_latency_quantile_seconds";
    page.family(name, "gauge", "Quantiles of a stage's latency since the start.");
    for (stage, latencies) in &latencies {
        let histogram = latencies.histogram();
        for (label, quantile) in QUANTILES.iter().filter(|_| !histogram.is_empty()) {
            let seconds = histogram.value_at_quantile(*quantile) as f64 / 1e6;
            page.sample(name, &[("stage", stage), ("quantile", label)], seconds);
        }
    }
}

/// A page in the making.
pub(super) struct Page {
    text: String,
    openmetrics: bool,
}

impl Page {
    /// Begins a family; its samples follow. A counter's name ends in `_total`.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        if !self.openmetrics {
            self.line(format_args!("# HELP {name} {help}"));
            return self.line(format_args!("# TYPE {name} {kind}"));
        }
        let name = name.strip_suffix("_total").filter(|_| kind == "counter").unwrap_or(name);
        self.line(format_args!("# TYPE {name} {kind}"));
        let unit = ["seconds", "bytes", "ratio"].into_iter().find(|unit| name.ends_with(unit));
        if let Some(unit) = unit {
            self.line(format_args!("# UNIT {name} {unit}"));
        }
        self.line(format_args!("# HELP {name} {help}"));
    }

    /// A family with one sample.
    pub(super) fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// A sample of the family begun last.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            self.text.push(if at == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            escape(&mut self.text, value);
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        self.line(format_args!(" {value}"));
    }

    /// What `write` writes, for tests.
    #[cfg(test)]
    pub(super) fn of(write: impl FnOnce(&mut Self)) -> String {
        let mut page = Self { text: String::new(), openmetrics: true };
        write(&mut page);
        page.text
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a string takes every write");
    }
}

fn escape(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
#[path = "exposition_tests.rs"]
mod tests;
