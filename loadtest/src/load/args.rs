//! What the generator is asked for.

use std::path::PathBuf;

use super::pattern::Profile;
use crate::site::{Setting, parse_setting};

/// How machines are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    /// TLS 1.3 over TCP
    Tcp,
    /// QUIC
    Quic,
}

/// What may be folded between two bookmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Granularity {
    /// Overwritten writes between two bookmarks
    Bookmark,
    /// Nothing
    Write,
}

/// Machines that speak the wire protocol, against an embedded process server or a given one
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Machines
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) machines: u32,
    /// Disks of each machine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) disks: u16,
    /// Size of each disk, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) size: u32,
    /// What is written where
    #[arg(long, value_enum, default_value = "mixed")]
    pub(crate) profile: Profile,
    /// Write size of the profiles that have one, KiB
    #[arg(long, value_name = "KIB", value_parser = clap::value_parser!(u32).range(4..=1024))]
    pub(crate) block: Option<u32>,
    /// Replay what fio recorded (iolog version 2 or 3) on every machine, as fast as it was recorded
    #[arg(long, value_name = "FILE", conflicts_with_all = ["profile", "disks", "size", "block"])]
    pub(crate) trace: Option<PathBuf>,
    /// Folder whose files fill the writes
    #[arg(long, value_name = "DIR", default_value = "/usr")]
    pub(crate) files: PathBuf,
    /// Fill the writes with pieces of this image
    #[arg(long, value_name = "IMAGE", conflicts_with = "files")]
    pub(crate) data: Option<PathBuf>,
    /// Closed loop, as fast as the server takes it, and nothing else
    #[arg(long, conflicts_with_all = ["rate", "writes"])]
    pub(crate) flat_out: bool,
    /// Closed loop: writes of a machine that are not durable yet, at most
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) depth: u32,
    /// Open loop: MiB/s of all machines together
    #[arg(long, value_name = "MIB", conflicts_with = "writes")]
    pub(crate) rate: Option<f64>,
    /// Open loop: writes per second of all machines together
    #[arg(long, value_name = "N")]
    pub(crate) writes: Option<f64>,
    /// Seconds of each phase
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) seconds: u32,
    /// Seconds after connecting in which nothing is written, so that the server applies and tidies what
    /// that left; of idle-many a phase of its own, 60, and 1 more for every 50 machines
    #[arg(long, value_name = "S", overrides_with = "settle", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) settle: Option<u32>,
    /// Two phases: all machines at --rate (default 1 MiB/s each), then the first one as fast as it can
    #[arg(long, conflicts_with_all = ["flat_out", "trace", "outage"])]
    pub(crate) loud: bool,
    /// Behind the first phase, half of its rate while the store of the embedded server is offline for
    /// so long, and until it has caught up
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["config", "trace", "flat_out"])]
    pub(crate) outage: Option<u32>,
    /// Seconds of the first phase that are run before it and not counted: a cache makes its segments
    /// once and uses them again and again
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) warm_up: u32,
    /// Threads that send
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) threads: u8,
    /// How machines are connected
    #[arg(long, value_enum, default_value = "tcp")]
    pub(crate) transport: Transport,
    /// Afterwards read every disk back from the store and compare every byte
    #[arg(long)]
    pub(crate) audit: bool,
    /// Send one write with other bytes than the audit expects: it must fail with exit code 3
    #[arg(long, requires = "audit", hide = true)]
    pub(crate) tamper: bool,
    /// Seconds between bookmarks; 5, with --loud 1
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) bookmark_interval: Option<u32>,
    /// What the server may fold
    #[arg(long, value_enum, default_value = "bookmark")]
    pub(crate) granularity: Granularity,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw throughput and ack latency over time
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// A running site instead of an embedded one; its settings file, on this machine
    #[arg(long, value_name = "FILE", conflicts_with_all = ["set", "directory", "keep"])]
    pub(crate) config: Option<PathBuf>,
    /// A setting of the embedded server, such as seal.level=3
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_setting)]
    pub(crate) set: Vec<Setting>,
    /// Where the embedded site lives while it runs
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    pub(crate) directory: PathBuf,
    /// Keep site, store and logs
    #[arg(long)]
    pub(crate) keep: bool,
}

/// The options alone, as another command of this program gives them.
#[derive(clap::Parser)]
#[command(name = "holdfast-loadtest")]
struct Alone {
    #[command(flatten)]
    args: Args,
}

impl Args {
    /// Seconds before the idle time of idle-many.
    pub(crate) fn settle_s(&self) -> u32 {
        self.settle.unwrap_or(60 + self.machines / 50)
    }

    /// Seconds between bookmarks. An RPO is at least that: among quiet machines a long interval would
    /// hide how long publishing takes.
    pub(crate) fn bookmark_interval_s(&self) -> u32 {
        self.bookmark_interval.unwrap_or(if self.loud { 1 } else { 5 })
    }

    /// From words that this program wrote.
    pub(crate) fn of(words: &[String]) -> Self {
        Self::parsed(words).expect("the words of a command of this program are its options")
    }

    /// From words that somebody gave.
    pub(crate) fn parsed(words: &[String]) -> Result<Self, crate::error::LoadError> {
        let all = std::iter::once("holdfast-loadtest").chain(words.iter().map(String::as_str));
        let parsed = <Alone as clap::Parser>::try_parse_from(all);
        let wrong = |error: clap::Error| crate::error::LoadError::Usage(error.to_string());
        parsed.map(|alone| alone.args).map_err(wrong)
    }
}
