//! What a run found: one JSON document, one table.

use serde::Serialize;

use crate::process::Memory;

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) version: &'static str,
    pub(crate) cores: usize,
    pub(crate) machines: usize,
    pub(crate) disks: usize,
    pub(crate) disk_bytes: u64,
    pub(crate) rate_bytes_per_second: u64,
    pub(crate) replication: Phase,
    pub(crate) live: Phase,
    pub(crate) live_writes: u64,
    pub(crate) write_p50_us: u64,
    pub(crate) write_p99_us: u64,
    pub(crate) write_max_us: u64,
    /// Record received to durable while initial replication ran.
    pub(crate) replication_ack: Ack,
    /// The same over the whole run.
    pub(crate) ack: Ack,
    /// From asking for a bookmark in the middle of the live writes until it could be recovered to,
    /// worst machine; absent when none could be placed (agents were catching up).
    pub(crate) rpo_under_load_seconds: Option<f64>,
    /// From the last write's answer until a bookmark behind it could be recovered to, worst machine.
    pub(crate) last_byte_seconds: f64,
    pub(crate) server_memory: Memory,
    /// Of the agent that had most.
    pub(crate) agent_memory: Memory,
    /// `du` of the machines' deltas.
    pub(crate) log_bytes: u64,
    /// `du` of the seed disks, snapshots not counted.
    pub(crate) seed_bytes: u64,
    pub(crate) source_bytes: u64,
    /// Disks that were exported and found equal to their source; absent without audit.
    pub(crate) audited_disks: Option<usize>,
}

/// One phase, from its first byte until all of it was published and applied.
#[derive(Debug, Serialize)]
pub(crate) struct Phase {
    /// Until everything was published.
    pub(crate) seconds: f64,
    /// Until everything was on the seed disks, too.
    pub(crate) applied_seconds: f64,
    /// Bytes of disks copied, or of writes made.
    pub(crate) disk_bytes: u64,
    /// Bytes of writes that the server received: holes are not sent, repairs are.
    pub(crate) source_bytes: u64,
    /// Bytes of deltas.
    pub(crate) published_bytes: u64,
    pub(crate) commits: f64,
    pub(crate) cpu: Cpu,
}

/// CPU seconds of the process server.
#[derive(Debug, Serialize)]
pub(crate) struct Cpu {
    pub(crate) total: f64,
    pub(crate) ingest: f64,
    pub(crate) cache: f64,
    pub(crate) seal: f64,
    pub(crate) upload: f64,
    pub(crate) apply: f64,
    /// The kernel's I/O workers, the runtimes, answering this run's own questions.
    pub(crate) other: f64,
}

/// Latency of the cache stage, seconds.
#[derive(Debug, Serialize)]
pub(crate) struct Ack {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Phase {
    fn per_gib(&self, cpu: f64) -> f64 {
        cpu / (self.source_bytes as f64 / f64::from(1 << 30)).max(1e-9)
    }

    fn rows(&self, rows: &mut Vec<[String; 2]>, what: &str) {
        let mb = |bytes: u64| bytes as f64 / 1e6 / self.seconds.max(1e-3);
        let mut row = |name: &str, value: String| rows.push([format!("{what}: {name}"), value]);
        row("disk bytes", format!("{:.1} MB/s", mb(self.disk_bytes)));
        row("source bytes to published", format!("{:.1} MB/s", mb(self.source_bytes)));
        let (published, applied) = (self.seconds, self.applied_seconds);
        row("all published, all applied after", format!("{published:.1} s, {applied:.1} s"));
        let ratio = self.source_bytes as f64 / self.published_bytes.max(1) as f64;
        row("source bytes per published byte", format!("{ratio:.2}"));
        row("server CPU per GiB of source bytes", format!("{:.2} s", self.per_gib(self.cpu.total)));
        let cpu = &self.cpu;
        let stages = [cpu.ingest, cpu.cache, cpu.seal, cpu.upload, cpu.apply, cpu.other];
        let stages = stages.map(|cpu| format!("{:.2}", self.per_gib(cpu))).join("  ");
        row("  ingest, cache, seal, upload, apply, other", stages);
        let commit = self.source_bytes as f64 / self.commits.max(1.0);
        row("source bytes per group commit", format!("{:.0} KiB", commit / 1024.0));
    }
}

impl Figures {
    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut rows = Vec::new();
        self.replication.rows(&mut rows, "initial replication");
        rows.push([
            "initial replication: durable ack p50, p99".to_owned(),
            self.replication_ack.words(),
        ]);
        self.live.rows(&mut rows, "live");
        let ms = |us: u64| us as f64 / 1e3;
        let latency = [self.write_p50_us, self.write_p99_us, self.write_max_us].map(ms);
        let [p50, p99, max] = latency.map(|ms| format!("{ms:.2} ms"));
        rows.push([
            "live: write at the agent p50, p99, max".to_owned(),
            format!("{p50}, {p99}, {max}"),
        ]);
        let rpo = self.rpo_under_load_seconds;
        let rpo = rpo.map_or("none could be placed".to_owned(), |rpo| format!("{rpo:.2} s"));
        rows.push(["live: bookmark asked to recoverable".to_owned(), rpo]);
        rows.push([
            "live: last byte published after".to_owned(),
            format!("{:.2} s", self.last_byte_seconds),
        ]);
        self.run_rows(&mut rows);
        let width = rows.iter().map(|[name, _]| name.len()).max().unwrap_or(0);
        let line = |[name, value]: &[String; 2]| format!("{name:width$}  {value}");
        let lines: Vec<_> = rows.iter().map(line).collect();
        let disk = holdfast::control::words::bytes(self.disk_bytes);
        let (machines, disks, cores) = (self.machines, self.disks, self.cores);
        format!(
            "{machines} machine(s) of {disks} disk(s) of {disk}, {cores} cores\n\n{}",
            lines.join("\n")
        )
    }

    fn run_rows(&self, rows: &mut Vec<[String; 2]>) {
        let mut row = |name: &str, value: String| rows.push([format!("run: {name}"), value]);
        let memory = |memory: Memory| {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            format!("{:.0} MiB, {:.0} MiB", mib(memory.peak_bytes), mib(memory.anonymous_bytes))
        };
        row("durable ack p50, p99", self.ack.words());
        row("server memory, peak and anonymous", memory(self.server_memory));
        row("agent memory, peak and anonymous", memory(self.agent_memory));
        let per_source = |bytes: u64| bytes as f64 / self.source_bytes.max(1) as f64;
        row("cloud log bytes per source byte", format!("{:.2}", per_source(self.log_bytes)));
        row("seed disk bytes per source byte", format!("{:.2}", per_source(self.seed_bytes)));
        let audit = match self.audited_disks {
            Some(disks) => format!("{disks} disk(s) exported, SHA-256 equal to the source"),
            None => "left out".to_owned(),
        };
        row("audit", audit);
    }
}

impl Ack {
    fn words(&self) -> String {
        format!("{:.1} ms, {:.1} ms", self.p50 * 1e3, self.p99 * 1e3)
    }
}
