//! The limit that the parts set, what was reached, and each stage beside its parts.

use serde::Serialize;

use super::Alone;
use super::parts::Part;
use crate::error::LoadError;
use crate::load::Report;

const GIB: f64 = (1u64 << 30) as f64;

/// Bare commits on this disk.
#[derive(Debug, Serialize)]
pub(crate) struct Commits {
    /// 64 KiB.
    pub(crate) bare_p50_ms: f64,
    pub(crate) bare_p99_ms: f64,
    /// From due to durable in a lean log at half of the maximum rate, beside sealing and storing.
    pub(crate) beside_p50_ms: f64,
    pub(crate) beside_p99_ms: f64,
    /// 4 KiB writes, as many in one commit as are in flight.
    pub(crate) group_writes_per_second: f64,
}

/// A stage and what it is made of, CPU seconds per GiB.
#[derive(Debug, Serialize)]
pub(crate) struct Stage {
    pub(crate) stage: &'static str,
    pub(crate) parts: f64,
    pub(crate) pipeline: f64,
}

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Roofline {
    pub(crate) optimised: bool,
    pub(crate) cores: usize,
    pub(crate) parts: Vec<Part>,
    pub(crate) parts_cpu_seconds_per_gib: f64,
    /// Bytes in per byte out: zstd alone, and the pipeline.
    pub(crate) ratio_alone: f64,
    pub(crate) ratio_pipeline: f64,
    pub(crate) stages: Vec<Stage>,
    /// What applying is made of, and what it takes, per GiB applied: beside the pipeline.
    pub(crate) applying_part: Part,
    pub(crate) applying_cpu_seconds_per_gib: Option<f64>,
    pub(crate) pipeline_cpu_seconds_per_gib: f64,
    pub(crate) generator_cpu_seconds_per_gib: f64,
    /// All cores, nothing but the parts and the generator.
    pub(crate) limit_bytes_per_second: f64,
    pub(crate) achieved_bytes_per_second: f64,
    pub(crate) cpu_efficiency: f64,
    pub(crate) throughput_efficiency: f64,
    pub(crate) commits: Commits,
    /// Durable ack at half of the maximum rate.
    pub(crate) half_rate_ack_p99_ms: f64,
    pub(crate) half_rate_ack_to_bare: f64,
    pub(crate) half_rate_ack_to_beside: f64,
    pub(crate) small_writes_per_second: f64,
}

impl Roofline {
    pub(crate) fn of(
        alone: Alone,
        commits: Commits,
        pipeline: Report,
        small: Report,
        applying: Report,
    ) -> Result<Self, LoadError> {
        let Alone { parts, applying: applying_part, ratio: ratio_alone } = alone;
        let [flat, half] = pipeline.phases.as_slice() else {
            return Err(LoadError::Usage("the pipeline ran other phases than asked for".into()));
        };
        let Some(small) = small.phases.first() else {
            return Err(LoadError::Usage("the 4 KiB run had no phase".into()));
        };
        let applied = applying.phases.first().and_then(|phase| phase.apply_cpu_seconds_per_gib);
        let gib = flat.payload_bytes as f64 / GIB;
        let cpu = &flat.server_cpu_seconds;
        let of = |names: &[&str]| {
            let named = parts.iter().filter(|part| names.contains(&part.name));
            named.fold(0.0, |sum, part| sum + part.cpu_seconds_per_gib)
        };
        let stage = |stage, names: &[&str], seconds: f64| Stage {
            stage,
            parts: of(names),
            pipeline: seconds / gib,
        };
        let stages = vec![
            stage("ingest", &["receive + TLS in place", "CRC-32"], cpu.ingest),
            // The appends themselves are done by the kernel's I/O workers, which no stage counts.
            stage("cache + other", &["append + fdatasync"], cpu.cache + cpu.other),
            stage("seal", &["zstd", "AES-256-GCM"], cpu.seal),
            stage("upload", &["store write"], cpu.upload),
        ];
        let sum: f64 = parts.iter().map(|part| part.cpu_seconds_per_gib).sum();
        let (server, generator) =
            (flat.server_cpu_seconds_per_gib, flat.generator_cpu_seconds_per_gib);
        let cores = pipeline.cores;
        let limit = cores as f64 / (sum + generator) * GIB;
        let achieved = flat.published_bytes_per_second;
        let ack = half.durable_ms.p99;
        Ok(Self {
            optimised: pipeline.optimised,
            cores,
            parts_cpu_seconds_per_gib: sum,
            ratio_alone,
            ratio_pipeline: flat.payload_bytes as f64 / flat.published_bytes.max(1) as f64,
            stages,
            applying_part,
            applying_cpu_seconds_per_gib: applied,
            pipeline_cpu_seconds_per_gib: server,
            generator_cpu_seconds_per_gib: generator,
            limit_bytes_per_second: limit,
            achieved_bytes_per_second: achieved,
            cpu_efficiency: sum / server,
            throughput_efficiency: achieved / limit,
            half_rate_ack_p99_ms: ack,
            half_rate_ack_to_bare: ack / commits.bare_p99_ms,
            half_rate_ack_to_beside: ack / commits.beside_p99_ms,
            small_writes_per_second: small.durable_bytes_per_second / 4096.0,
            commits,
            parts,
        })
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text =
            format!("{} cores, shared by server and generator; parts on all of them\n", self.cores);
        if !self.optimised {
            text.push_str("THIS BUILD IS NOT OPTIMISED: the figures mean nothing\n");
        }
        text.push_str("\nalone                        CPU s/GiB      MB/s\n");
        for part in &self.parts {
            let (cpu, mb) = (part.cpu_seconds_per_gib, part.bytes_per_second / 1e6);
            text.push_str(&format!("  {:26} {cpu:9.2} {mb:9.0}\n", part.name));
        }
        let sum = self.parts_cpu_seconds_per_gib;
        text.push_str(&format!("  {:26} {sum:9.2}\n", "sum"));
        text.push_str("\nstage            its parts  pipeline   (CPU s/GiB)\n");
        for Stage { stage, parts, pipeline } in &self.stages {
            text.push_str(&format!("  {stage:13} {parts:10.2} {pipeline:9.2}\n"));
        }
        let (server, generator) =
            (self.pipeline_cpu_seconds_per_gib, self.generator_cpu_seconds_per_gib);
        text.push_str(&format!("  {:13} {sum:10.2} {server:9.2}\n", "server"));
        text.push_str(&format!("  {:13} {:10} {generator:9.2}\n", "generator", ""));
        text.push_str(
            "  cache is with other: the kernel's workers do what it asks for, and their time shows there\n",
        );
        let (part, taken) = (&self.applying_part, self.applying_cpu_seconds_per_gib);
        let taken = taken.map_or_else(|| "-".to_owned(), |taken| format!("{taken:.2}"));
        text.push_str(&format!(
            "\napplying is beside the pipeline, not in these sums: {}, {:.2} s/GiB alone; {taken} s a GiB \
             that was applied\n",
            part.name, part.cpu_seconds_per_gib
        ));
        let mb = |bytes: f64| format!("{:.0} MB/s", bytes / 1e6);
        let rows = [
            (
                "throughput: limit, reached",
                format!(
                    "{}, {}",
                    mb(self.limit_bytes_per_second),
                    mb(self.achieved_bytes_per_second)
                ),
            ),
            ("efficiency in throughput", format!("{:.2}", self.throughput_efficiency)),
            ("efficiency in CPU", format!("{:.2}", self.cpu_efficiency)),
            (
                "bytes in per byte out: zstd, pipeline",
                format!("{:.2}, {:.2}", self.ratio_alone, self.ratio_pipeline),
            ),
            (
                "bare 64 KiB commit p50, p99",
                format!("{:.2} ms, {:.2} ms", self.commits.bare_p50_ms, self.commits.bare_p99_ms),
            ),
            (
                "commit beside sealing, storing p50, p99",
                format!(
                    "{:.2} ms, {:.2} ms",
                    self.commits.beside_p50_ms, self.commits.beside_p99_ms
                ),
            ),
            (
                "ack p99 at half of the rate",
                format!(
                    "{:.2} ms, {:.1} × the bare commit's, {:.1} × that beside the rest",
                    self.half_rate_ack_p99_ms,
                    self.half_rate_ack_to_bare,
                    self.half_rate_ack_to_beside
                ),
            ),
            (
                "durable 4 KiB writes: limit, reached",
                format!(
                    "{:.0}/s, {:.0}/s",
                    self.commits.group_writes_per_second, self.small_writes_per_second
                ),
            ),
        ];
        text.push('\n');
        for (name, value) in rows {
            text.push_str(&format!("{name:40} {value}\n"));
        }
        text.trim_end().to_owned()
    }
}
