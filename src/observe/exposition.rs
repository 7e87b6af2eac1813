//! Metrics as Prometheus text (exposition format 0.0.4). Every name is in
//! this file or in `pacing`.

use std::fmt::{Display, Write};
use std::sync::atomic::Ordering;

use super::facts::{AgentTracking, MachineFacts, ServerFacts};
use super::{Metrics, Stage, pacing};
use crate::model::Timestamp;

/// All metrics at `now`.
pub(super) fn render(metrics: &Metrics, now: Timestamp) -> String {
    let facts = ServerFacts::of(metrics, now);
    let mut page = Page(String::with_capacity(4_096 + facts.machines.len() * 1_024));
    process(&mut page, metrics, &facts);
    pacing::render(&mut page, &metrics.pacing);
    machines(&mut page, &facts, now);
    stages(&mut page, metrics);
    page.0
}

fn process(page: &mut Page, metrics: &Metrics, facts: &ServerFacts) {
    page.family("holdfast_build_info", "gauge", "Version of the running program.");
    page.sample("holdfast_build_info", &[("version", &facts.version)], 1);
    if let Some(bytes) = resident_bytes() {
        let help = "Memory of the process that is in RAM, bytes.";
        page.single("holdfast_process_resident_memory_bytes", "gauge", help, bytes);
    }
    let help = "Connections open now.";
    page.single("holdfast_connections", "gauge", help, facts.connections);
    let help = "Connections refused, for whatever reason.";
    page.single("holdfast_connections_refused_total", "counter", help, facts.connections_refused);
    let help = "Times that the QUIC endpoint ended by itself and was started again.";
    let restarts = metrics.quic_restarts.load(Ordering::Relaxed);
    page.single("holdfast_quic_restarts_total", "counter", help, restarts);
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
    let copied = metrics.ingest_copied_bytes.load(Ordering::Relaxed);
    let help = "Bytes that user space copied between socket and cache log.";
    page.single("holdfast_ingest_copied_bytes_total", "counter", help, copied);
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
        for (watermark, value) in WATERMARKS {
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
        for machine in &facts.machines {
            page.sample(name, &[("machine", machine.machine.as_str())], value(machine));
        }
    }
    let name = "holdfast_rpo_seconds";
    page.family(
        name,
        "gauge",
        "Age of the newest moment that can be recovered to; absent before the first.",
    );
    for machine in &facts.machines {
        if let Some(time) = machine.recoverable_time {
            let age = now.seconds_since(time).max(0.0);
            page.sample(name, &[("machine", machine.machine.as_str())], age);
        }
    }
    let name = "holdfast_agent_tracking";
    page.family(name, "gauge", "How the agent tracks its machine: 1 for the present mode.");
    for machine in &facts.machines {
        let modes = [
            ("ordered", AgentTracking::Ordered),
            ("catching-up", AgentTracking::CatchingUp),
            ("bitmap", AgentTracking::Bitmap),
        ];
        for (word, mode) in modes {
            let labels = [("machine", machine.machine.as_str()), ("mode", word)];
            page.sample(name, &labels, u8::from(machine.mode == mode));
        }
    }
}

fn stages(page: &mut Page, metrics: &Metrics) {
    let stages = Stage::ALL.map(|stage| (stage.as_str(), metrics.stage(stage)));
    page.family("holdfast_stage_in_bytes_total", "counter", "Bytes that went into a stage.");
    for (stage, (bytes_in, ..)) in &stages {
        page.sample("holdfast_stage_in_bytes_total", &[("stage", stage)], bytes_in);
    }
    page.family("holdfast_stage_out_bytes_total", "counter", "Bytes that came out of a stage.");
    for (stage, (_, bytes_out, ..)) in &stages {
        page.sample("holdfast_stage_out_bytes_total", &[("stage", stage)], bytes_out);
    }
    page.family("holdfast_stage_cpu_seconds_total", "counter", "CPU time spent in a stage.");
    for (stage, (_, _, seconds, _)) in &stages {
        page.sample("holdfast_stage_cpu_seconds_total", &[("stage", stage)], seconds);
    }
    let name = "holdfast_stage_latency_seconds";
    page.family(name, "summary", "Latency of a stage; that of cache is what an ack waits for.");
    for (stage, (.., histogram)) in &stages {
        for (label, quantile) in [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("0.999", 0.999)] {
            let seconds = if histogram.is_empty() {
                f64::NAN // as the format's clients do for a summary without observations
            } else {
                histogram.value_at_quantile(quantile) as f64 / 1e6
            };
            page.sample(name, &[("stage", stage), ("quantile", label)], seconds);
        }
        let sum = histogram.mean() * histogram.len() as f64 / 1e6;
        page.sample(&format!("{name}_sum"), &[("stage", stage)], sum);
        page.sample(&format!("{name}_count"), &[("stage", stage)], histogram.len());
    }
}

pub(super) struct Page(String);

impl Page {
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    pub(super) fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
        match labels.is_empty() {
            true => self.line(format_args!("{name} {value}")),
            false => self.line(format_args!("{name}{{{}}} {value}", labels.join(","))),
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a string takes every write");
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Second number of `/proc/self/statm`: resident pages.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Sequence, Watermarks};

    #[test]
    fn the_page_says_what_was_measured() {
        let metrics = Metrics::default();
        let web = metrics.machine(&"web".parse().unwrap());
        web.raise(Watermarks {
            received: Sequence(9),
            durable: Sequence(8),
            ..Watermarks::default()
        });
        web.recoverable_time.store(5_000_000, Ordering::Release);
        web.agent_mode.store(2, Ordering::Relaxed);
        metrics.latency(Stage::Cache, Duration::from_micros(1_000));
        metrics.moved(Stage::Seal, 10, 3);
        let page = render(&metrics, Timestamp(7_500_000));
        for line in [
            "holdfast_watermark_sequence{machine=\"web\",watermark=\"received\"} 9",
            "holdfast_watermark_sequence{machine=\"web\",watermark=\"durable\"} 8",
            "holdfast_rpo_seconds{machine=\"web\"} 2.5",
            "holdfast_agent_tracking{machine=\"web\",mode=\"catching-up\"} 1",
            "holdfast_stage_in_bytes_total{stage=\"seal\"} 10",
            "holdfast_stage_out_bytes_total{stage=\"seal\"} 3",
            "holdfast_stage_latency_seconds_count{stage=\"cache\"} 1",
            "holdfast_stage_latency_seconds{stage=\"seal\",quantile=\"0.5\"} NaN",
            "# TYPE holdfast_stage_latency_seconds summary",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        let quantile = "holdfast_stage_latency_seconds{stage=\"cache\",quantile=\"0.99\"} 0.00100";
        assert!(page.contains(quantile), "{page}");
    }

    #[test]
    fn every_sample_follows_its_family_and_families_are_unique() {
        let metrics = Metrics::default();
        metrics.machine(&"web".parse().unwrap());
        let page = render(&metrics, Timestamp(1));
        let mut families = std::collections::BTreeSet::new();
        let mut family = String::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap().to_owned();
                assert!(family.starts_with("holdfast_"));
                assert!(families.insert(family.clone()), "{family} twice");
            } else if !line.starts_with('#') {
                assert!(line.starts_with(&family), "{line} is not of {family}");
                assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
            }
        }
    }

    #[test]
    fn labels_cannot_break_out() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
