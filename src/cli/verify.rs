//! `holdfast verify`: whether points can be recovered.

use std::sync::Arc;

use super::output::{byte_bar, print, print_json};
use super::site::{ConfigArgs, Site};
use super::{Failure, block_on};
use crate::clock::System;
use crate::control::words;
use crate::model::MachineId;
use crate::recover::{PointSpec, Progress, VerifyReport, verify};

/// What verification found.
#[derive(Debug, thiserror::Error)]
#[error("{bad} of {points} points of machine {machine} cannot be recovered as they were")]
struct Difference {
    machine: MachineId,
    bad: usize,
    points: usize,
}

/// Read everything that recovery points need and check every seal and chain
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which machine
    pub machine: MachineId,
    /// latest, latest-processed, latest-app, name:NAME, seq:N or time:RFC3339; all points when left out
    #[arg(long, value_name = "POINT")]
    pub point: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Which site
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Verifies one point or all.
///
/// # Errors
/// [`Failure::Difference`] when something is wrong with a point.
pub fn run(args: &Args) -> Result<(), Failure> {
    let spec = args.point.as_deref().map(str::parse::<PointSpec>).transpose();
    let spec = spec.map_err(Failure::usage)?;
    let site = Site::open(&args.config.config)?;
    let report = block_on(async {
        let recovery = Arc::new(site.recovery(&args.machine).await?);
        let bar = byte_bar(0, "verify");
        let progress = |now: Progress| {
            bar.set_length(now.total_bytes);
            bar.set_position(now.done_bytes);
        };
        let clock = System::clock();
        let report = verify(&recovery, spec.as_ref(), &clock, &System, &progress).await;
        bar.finish_and_clear();
        Ok(report?)
    })?;
    if args.json {
        print_json(&report)?;
    } else {
        tell(&report)?;
    }
    if report.good() {
        return Ok(());
    }
    Err(Failure::Difference(Box::new(Difference {
        machine: report.machine.clone(),
        bad: report.points.iter().filter(|point| !point.good).count(),
        points: report.points.len(),
    })))
}

fn tell(report: &VerifyReport) -> Result<(), Failure> {
    for failure in &report.failures {
        print(&format!("{}: {}", failure.object, failure.reason))?;
    }
    print(&format!(
        "machine {}: {} points, {} deltas ({} frames, {}), {} disk snapshots ({}) checked{}",
        report.machine,
        report.points.len(),
        report.deltas,
        report.frames,
        words::bytes(report.delta_bytes),
        report.snapshots,
        words::bytes(report.snapshot_bytes),
        if report.good() { ": all good" } else { "" }
    ))
}
