//! `holdfast points`: the recovery points of a machine.

use super::site::ConfigArgs;
use crate::model::MachineId;

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
