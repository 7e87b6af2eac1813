//! `holdfast verify`: whether points can be recovered.

use super::site::ConfigArgs;
use crate::model::MachineId;

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
