//! `holdfast demo`: the whole product on this machine.

use std::path::PathBuf;

use super::output::{print, print_json, print_table, step_spinner, table};
use super::{Failure, block_on, files};
use crate::control::words;
use crate::demo::{self, DemoError, Report, Source};
use crate::settings::{StoreUrl, store_url};

/// Replicate a real disk under live writes, recover two points and compare every byte
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Disk to replicate; an ext4 image of this machine's files when left out
    #[arg(long, value_name = "PATH")]
    pub disk: Option<PathBuf>,
    /// Where the cloud log and the seed disks shall live; in the demo's directory when left out
    #[arg(long, value_name = "dir:PATH|azure:URL")]
    pub store: Option<String>,
    /// Keep everything here afterwards
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the demo. Its directory is removed afterwards unless it is kept.
///
/// # Errors
/// [`Failure::Difference`] when a recovered byte differs.
pub fn run(args: &Args) -> Result<(), Failure> {
    let kept = match &args.keep {
        Some(directory) => {
            files::make_directory(directory)?;
            None
        }
        None => Some(tempfile::tempdir()?),
    };
    let work = kept.as_ref().map(|kept| kept.path().to_owned()).or_else(|| args.keep.clone());
    let work = std::path::absolute(work.unwrap_or_default())?;
    let here = std::env::current_dir()?;
    let store = match &args.store {
        Some(text) => store_url(text, &here)?,
        None => StoreUrl::Dir(work.join("store")),
    };
    let source = args.disk.clone().map_or(Source::Made, Source::Given);
    let steps = step_spinner();
    let say = |line: &str| tell(&steps, line);
    let told = block_on(async { Ok(demo::run(&work, source, &store, &say).await) })?;
    steps.finish_and_clear();
    let report = match told {
        Ok(report) => report,
        Err(error @ (DemoError::Difference { .. } | DemoError::NotWhole { .. })) => {
            return Err(Failure::Difference(error.into()));
        }
        Err(error) => return Err(error.into()),
    };
    if args.json {
        return print_json(&report);
    }
    print_table(&facts(&report))?;
    print("verified")
}

fn tell(steps: &indicatif::ProgressBar, line: &str) {
    if steps.is_hidden() {
        eprintln!("{line}");
    } else {
        steps.set_message(line.to_owned());
        steps.enable_steady_tick(std::time::Duration::from_millis(100));
    }
}

fn facts(report: &Report) -> comfy_table::Table {
    let mut rows = table(&["", ""]);
    let seconds = |value: f64| format!("{value:.2} s");
    rows.add_row(["disk", &words::bytes(report.disk_bytes)]);
    rows.add_row(["written live", &words::bytes(report.live_bytes)]);
    rows.add_row([
        "initial replication",
        &format!(
            "{}, {:.0} MB/s of disk",
            seconds(report.replication_seconds),
            report.replication_mb_per_second
        ),
    ]);
    let acks = format!(
        "{:.1} ms / {:.1} ms",
        report.ack_p50_us as f64 / 1e3,
        report.ack_p99_us as f64 / 1e3
    );
    rows.add_row(["durable ack p50 / p99", &acks]);
    let stored = format!(
        "{} for {} of writes, {:.1} to 1",
        words::bytes(report.published_bytes),
        words::bytes(report.source_bytes),
        report.compression
    );
    rows.add_row(["in the cloud log", &stored]);
    rows.add_row(["RPO (bookmark to recoverable)", &seconds(report.rpo_seconds)]);
    rows.add_row(["mount to first block", &seconds(report.mount_seconds)]);
    for point in &report.points {
        let row = format!("point {:?} at {}, by {}", point.name, point.sequence, point.read_by);
        rows.add_row([row.as_str(), &format!("SHA-256 {}… equal", &point.sha256[..16])]);
    }
    let checked = match report.file_system_checked {
        true => "whole, by e2fsck",
        false => "not checked",
    };
    rows.add_row(["recovered file systems", checked]);
    rows
}
