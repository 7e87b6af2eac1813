//! What a run found: one JSON document, one table.

use std::time::Duration;

use hdrhistogram::Histogram;
use holdfast::control::words;
use serde::Serialize;

use super::args::{Granularity, Transport};
use super::pace::Pace;
use super::pattern::Profile;
use super::scenario::{OutageSeen, Step};
use super::tally::Tally;
use super::target::{Between, Cpu, Standing};
use crate::process::Memory;

const GIB: f64 = (1u64 << 30) as f64;

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    /// Whether the build is one whose figures mean something.
    pub(crate) optimised: bool,
    pub(crate) cores: usize,
    pub(crate) machines: u32,
    pub(crate) disks: u16,
    pub(crate) disk_bytes: u64,
    pub(crate) profile: Option<Profile>,
    pub(crate) trace: Option<String>,
    pub(crate) transport: Transport,
    pub(crate) granularity: Granularity,
    pub(crate) bookmark_interval_seconds: u32,
    pub(crate) threads: u8,
    pub(crate) connect_seconds: f64,
    pub(crate) phases: Vec<PhaseReport>,
    /// Of the embedded server.
    pub(crate) server_memory: Option<Memory>,
    /// Bytes that were read back and compared; absent without audit.
    pub(crate) audited_bytes: Option<u64>,
}

/// One phase, from its begin until everything of it was published.
#[derive(Debug, Serialize)]
pub(crate) struct PhaseReport {
    pub(crate) name: String,
    /// Asked for; absent in a closed loop.
    pub(crate) rate_bytes_per_second: Option<f64>,
    /// Of sending.
    pub(crate) seconds: f64,
    /// From the begin until the last write was published.
    pub(crate) published_after_seconds: f64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    /// Due and never sent: many of them mean that the rate is more than the server takes.
    pub(crate) missed: u64,
    /// Bytes of the writes; zeros count what they cover.
    pub(crate) bytes: u64,
    /// Bytes that travelled.
    pub(crate) payload_bytes: u64,
    /// Bytes of deltas.
    pub(crate) published_bytes: u64,
    /// Durable while it was sent.
    pub(crate) durable_bytes_per_second: f64,
    pub(crate) published_bytes_per_second: f64,
    pub(crate) writes_per_second: f64,
    pub(crate) commits: u64,
    pub(crate) durable_ms: Quantiles,
    /// Due to published; of the quiet machines where one is loud.
    pub(crate) published_ms: Quantiles,
    pub(crate) loud_published_ms: Option<Quantiles>,
    /// Age of what could be recovered to, over time and machines.
    pub(crate) rpo_ms: Quantiles,
    pub(crate) loud_rpo_ms: Option<Quantiles>,
    pub(crate) server_cpu_seconds: Cpu,
    /// Server CPU per GiB of payload.
    pub(crate) server_cpu_seconds_per_gib: f64,
    pub(crate) generator_cpu_seconds_per_gib: f64,
    /// CPU of applying per GiB of source bytes that was applied meanwhile, of whichever phase.
    pub(crate) apply_cpu_seconds_per_gib: Option<f64>,
    pub(crate) outage: Option<OutageSeen>,
    /// At the end of a phase in which nothing is written.
    pub(crate) standing: Option<Standing>,
}

/// Of a latency, ms.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Quantiles {
    pub(crate) fn of(us: &Histogram<u64>) -> Self {
        let at = |quantile| us.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: us.max() as f64 / 1e3 }
    }

    pub(crate) fn words(self) -> String {
        let Self { p50, p99, p999, max } = self;
        format!("{} / {} / {}, worst {}", ms(p50), ms(p99), ms(p999), ms(max))
    }
}

pub(crate) fn ms(value: f64) -> String {
    match value {
        0.0..10.0 => format!("{value:.2} ms"),
        10.0..1000.0 => format!("{value:.0} ms"),
        _ => format!("{:.1} s", value / 1e3),
    }
}

impl PhaseReport {
    /// From what was seen of a step that began at `start`.
    pub(crate) fn of(step: &Step, start: Duration, tally: &Tally, server: &Between) -> Self {
        let seconds = step.time.as_secs_f64();
        let rate = match step.pace {
            Some(Pace::Bytes(rate)) => Some(rate),
            _ => None,
        };
        let published_after = tally.last_published.saturating_sub(start).as_secs_f64();
        let gib = tally.payload_bytes as f64 / GIB;
        let loud = !tally.rpo_loud.is_empty();
        let in_time = tally.course.slots.iter().take(tally.course.slots_in(step.time));
        let (durable, published) = in_time.fold((0, 0), |(durable, published), slot| {
            (durable + slot.durable_bytes, published + slot.published_bytes)
        });
        Self {
            name: step.name.to_owned(),
            rate_bytes_per_second: rate,
            seconds,
            published_after_seconds: published_after,
            writes: tally.writes,
            flushes: tally.flushes,
            missed: tally.missed,
            bytes: tally.bytes,
            payload_bytes: tally.payload_bytes,
            published_bytes: server.published_bytes as u64,
            durable_bytes_per_second: durable as f64 / seconds,
            // Both were reached. The second suffers from a last delta that waits for its age while
            // nothing is left to do, the first from deltas that are long beside the phase.
            published_bytes_per_second: (published as f64 / seconds)
                .max(tally.bytes as f64 / published_after.max(seconds)),
            writes_per_second: tally.writes as f64 / seconds,
            commits: server.commits as u64,
            durable_ms: Quantiles::of(&tally.durable),
            published_ms: Quantiles::of(&tally.published),
            loud_published_ms: loud.then(|| Quantiles::of(&tally.published_loud)),
            rpo_ms: Quantiles::of(&tally.rpo),
            loud_rpo_ms: loud.then(|| Quantiles::of(&tally.rpo_loud)),
            server_cpu_seconds: server.cpu,
            server_cpu_seconds_per_gib: server.cpu.total / gib.max(1e-9),
            generator_cpu_seconds_per_gib: server.cpu.generator / gib.max(1e-9),
            apply_cpu_seconds_per_gib: (server.applied_bytes > 0.0)
                .then(|| server.cpu.apply / (server.applied_bytes / GIB)),
            outage: None,
            standing: (tally.writes == 0).then_some(server.standing),
        }
    }

    fn rows(&self, rows: &mut Vec<[String; 2]>) {
        let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
        let mb = |bytes_per_second: f64| format!("{:.1} MB/s", bytes_per_second / 1e6);
        if let Some(rate) = self.rate_bytes_per_second {
            row("asked for", mb(rate));
        }
        if self.writes > 0 {
            let (durable, published) =
                (self.durable_bytes_per_second, self.published_bytes_per_second);
            row("durable / published", format!("{} / {}", mb(durable), mb(published)));
            row("writes", format!("{:.0}/s", self.writes_per_second));
            row("durable ack p50 / p99 / p99.9", self.durable_ms.words());
            row("published ack p50 / p99 / p99.9", self.published_ms.words());
        }
        if self.missed > 0 {
            let part = 100.0 * self.missed as f64 / (self.missed + self.writes) as f64;
            let text = format!("{} ({part:.1} %)", self.missed);
            row("due and never sent", text);
        }
        row("RPO p50 / p99 / p99.9", self.rpo_ms.words());
        if let Some(loud) = self.loud_published_ms {
            row("published ack of the loud machine", loud.words());
        }
        if let Some(loud) = self.loud_rpo_ms {
            row("RPO of the loud machine", loud.words());
        }
        if let Some(outage) = &self.outage {
            outage.rows(&mut row);
        }
        let cpu = &self.server_cpu_seconds;
        if self.payload_bytes > 0 {
            let gib = self.payload_bytes as f64 / GIB;
            row("server CPU per GiB", format!("{:.2} s", self.server_cpu_seconds_per_gib));
            let stages = [cpu.ingest, cpu.cache, cpu.seal, cpu.upload, cpu.apply, cpu.other];
            let stages = stages.map(|cpu| format!("{:.2}", cpu / gib)).join("  ");
            row("  ingest cache seal upload apply other", stages);
            if let Some(cpu) = self.apply_cpu_seconds_per_gib {
                row("  apply, per GiB applied meanwhile", format!("{cpu:.2} s"));
            }
            row("generator CPU per GiB", format!("{:.2} s", self.generator_cpu_seconds_per_gib));
            let ratio = self.payload_bytes as f64 / self.published_bytes.max(1) as f64;
            row("bytes in per byte published", format!("{ratio:.2}"));
        } else {
            let part = |spent| 100.0 * spent / self.published_after_seconds.max(self.seconds);
            row("server CPU", format!("{:.2} % of a core", part(cpu.total)));
            let stages = [cpu.ingest, cpu.cache, cpu.seal, cpu.upload, cpu.apply, cpu.other];
            let stages = stages.map(|cpu| format!("{:.2}", part(cpu))).join("  ");
            row("  ingest cache seal upload apply other", stages);
        }
        if let Some(standing) = &self.standing {
            let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
            row("connections at the end", standing.connections.to_string());
            let (own, all) = (mib(standing.anonymous_bytes), mib(standing.resident_bytes));
            row("server memory at the end", format!("{own}; with file pages {all}"));
        }
    }
}

impl Report {
    /// For people.
    pub(crate) fn table(&self) -> String {
        let (machines, disks, cores) = (self.machines, self.disks, self.cores);
        let size = words::bytes(self.disk_bytes);
        let what = match (&self.trace, self.profile) {
            (Some(trace), _) => format!("trace {trace}"),
            (None, Some(profile)) => format!("profile {profile:?}").to_lowercase(),
            (None, None) => "no profile".to_owned(),
        };
        let mut text = format!(
            "{machines} machine(s) of {disks} disk(s) of {size}, {what}, {:?}; {cores} cores, shared \
             with the server\n",
            self.transport
        );
        if !self.optimised {
            text.push_str("THIS BUILD IS NOT OPTIMISED: the figures mean nothing\n");
        }
        for phase in &self.phases {
            let mut rows = Vec::new();
            phase.rows(&mut rows);
            if phase.loud_rpo_ms.is_some()
                && let Some(before) = self.phases.first().filter(|before| before.name != phase.name)
            {
                // The RPO has the bookmark interval in it; how long publishing takes has not.
                let pairs = [
                    ("published ack", phase.published_ms, before.published_ms),
                    ("RPO", phase.rpo_ms, before.rpo_ms),
                ];
                for (name, now, then) in pairs {
                    let name = format!("{name} p50, p99 of the quiet ones, to before");
                    let (p50, p99) = (now.p50 / then.p50.max(1e-3), now.p99 / then.p99.max(1e-3));
                    rows.push([name, format!("{p50:.2}, {p99:.2} times")]);
                }
            }
            text.push_str(&format!("\n{}, {:.0} s\n{}", phase.name, phase.seconds, lines(&rows)));
        }
        let mut rows = Vec::new();
        let row = |name: &str, value: String| [name.to_owned(), value];
        if let Some(memory) = self.server_memory {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let (peak, own) = (mib(memory.peak_bytes), mib(memory.anonymous_bytes));
            rows.push(row(
                "server memory, peak",
                format!("{own:.0} MiB; with file pages {peak:.0}"),
            ));
        }
        rows.push(row(
            "audit",
            match self.audited_bytes {
                Some(bytes) => {
                    format!("{} read back from the store, all equal", words::bytes(bytes))
                }
                None => "left out (--audit)".to_owned(),
            },
        ));
        text.push_str(&format!("\nthe run\n{}", lines(&rows)));
        text.trim_end().to_owned()
    }
}

fn lines(rows: &[[String; 2]]) -> String {
    let width = rows.iter().map(|[name, _]| name.len()).max().unwrap_or(0);
    rows.iter().map(|[name, value]| format!("  {name:width$}  {value}\n")).collect()
}
