//! `holdfast points`: the recovery points of a machine.

use serde::Serialize;

use super::output::{print, print_json, print_table, table};
use super::site::{ConfigArgs, Site};
use super::{Failure, block_on};
use crate::model::{BookmarkKind, MachineId};
use crate::recover::Point;

/// List recovery points
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which machine
    pub machine: MachineId,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Which site
    #[command(flatten)]
    pub config: ConfigArgs,
}

#[derive(Serialize)]
struct Points<'a> {
    machine: &'a MachineId,
    points: &'a [Point],
}

/// Lists the points, oldest first. Needs only the store and the key.
///
/// # Errors
/// When the machine is unknown or its documents cannot be believed.
pub fn run(args: &Args) -> Result<(), Failure> {
    let site = Site::open(&args.config.config)?;
    let points = block_on(async { Ok(site.recovery(&args.machine).await?.points().await?) })?;
    if args.json {
        return print_json(&Points { machine: &args.machine, points: &points });
    }
    if points.is_empty() {
        return print(&format!("machine {} has no recovery point yet", args.machine));
    }
    let mut rows = table(&["TIME", "NAME", "SEQUENCE", "CONSISTENCY", "KEPT AS", "PINNED"]);
    for point in &points {
        let kind = match point.kind {
            BookmarkKind::CrashConsistent => "crash",
            BookmarkKind::ApplicationConsistent => "application",
        };
        rows.add_row([
            point.time.to_string(),
            point.name.clone(),
            point.sequence.to_string(),
            kind.to_owned(),
            point.stored.to_string(),
            if point.pinned { "yes" } else { "" }.to_owned(),
        ]);
    }
    print_table(&rows)
}
