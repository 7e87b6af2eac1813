//! What a GiB costs with one machine and with many: the same load, rung after rung, in one run.

use std::path::Path;

use serde::Serialize;

use crate::error::LoadError;
use crate::load::{self, Report};
use crate::site::{parse_level, pinned_level};

const GIB: f64 = (1u64 << 30) as f64;

/// The same load from more and more machines; what follows is passed on to each rung
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Machines of each rung
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
    rungs: Vec<u32>,
    /// zstd level of every rung; the server does not adapt it here, or the rungs would be compared at
    /// different ones
    #[arg(long, default_value_t = 1, allow_hyphen_values = true, value_parser = parse_level)]
    level: i32,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Options of the load, such as --seconds 10 --profile mixed --set apply.enabled=false
    #[arg(last = true, value_name = "OPTIONS")]
    load: Vec<String>,
}

/// Seconds that every rung is given to settle, and machines for which it gets one more.
const SETTLE_S: u32 = 10;
const SETTLED_PER_S: u32 = 25;
/// Seconds of the same load before it is measured: a process server makes its cache log's segments
/// once, and uses them again from then on.
const WARM_UP_S: u32 = 15;

/// One rung.
#[derive(Debug, Serialize)]
struct Rung {
    machines: u32,
    bytes_per_second: f64,
    /// Receiving to publishing.
    server_cpu_seconds_per_gib: f64,
    /// A GiB that was applied; absent when nothing was. Applying goes on behind the load, so what was
    /// applied meanwhile is not what was sent.
    apply_cpu_seconds_per_gib: Option<f64>,
    generator_cpu_seconds_per_gib: f64,
    server_anonymous_bytes: Option<u64>,
    connect_seconds: f64,
}

impl Rung {
    fn of(report: &Report) -> Option<Self> {
        let phase = report.phases.first()?;
        let applying = phase.server_cpu_seconds.apply / (phase.payload_bytes as f64 / GIB);
        Some(Self {
            machines: report.machines,
            bytes_per_second: phase.published_bytes_per_second,
            server_cpu_seconds_per_gib: phase.server_cpu_seconds_per_gib - applying,
            apply_cpu_seconds_per_gib: phase.apply_cpu_seconds_per_gib,
            generator_cpu_seconds_per_gib: phase.generator_cpu_seconds_per_gib,
            server_anonymous_bytes: report.server_memory.map(|memory| memory.anonymous_bytes),
            connect_seconds: report.connect_seconds,
        })
    }
}

impl Rung {
    /// A GiB on its whole way.
    fn whole(&self) -> f64 {
        self.server_cpu_seconds_per_gib + self.apply_cpu_seconds_per_gib.unwrap_or(0.0)
    }
}

/// Runs it; the text to print.
pub(crate) fn run(args: &Args, program: &Path) -> Result<String, LoadError> {
    let mut rungs = Vec::new();
    for machines in &args.rungs {
        eprintln!("{machines} machine(s)");
        let mut words = vec!["--flat-out".to_owned(), format!("--machines={machines}")];
        // What a machine that has just come costs once is not the load's.
        words.push(format!("--settle={}", SETTLE_S + machines / SETTLED_PER_S));
        words.push(format!("--warm-up={WARM_UP_S}"));
        words.extend(pinned_level(args.level));
        words.extend(args.load.iter().cloned());
        let report = load::measure(&load::Args::parsed(&words)?, program)?;
        rungs.extend(Rung::of(&report));
    }
    if args.json {
        return Ok(serde_json::to_string_pretty(&rungs).expect("plain values are JSON"));
    }
    let first = rungs.first().map_or(1.0, Rung::whole);
    let mut text =
        "                   server CPU s/GiB\nmachines      MB/s  published   applied       sum  \
                    to the first  generator  memory MiB\n"
            .to_owned();
    for rung in &rungs {
        let (machines, published) = (rung.machines, rung.server_cpu_seconds_per_gib);
        let applied =
            rung.apply_cpu_seconds_per_gib.map_or_else(|| "-".into(), |cpu| format!("{cpu:.2}"));
        let (mb, generator) = (rung.bytes_per_second / 1e6, rung.generator_cpu_seconds_per_gib);
        let memory = rung.server_anonymous_bytes.unwrap_or(0) >> 20;
        let (sum, to_first) = (rung.whole(), rung.whole() / first.max(1e-9));
        text.push_str(&format!(
            "{machines:8} {mb:9.1} {published:10.2} {applied:>9} {sum:9.2} {to_first:13.2} \
             {generator:10.2} {memory:11}\n"
        ));
    }
    Ok(text.trim_end().to_owned())
}
