//! `holdfast apply`: the applier alone.

use super::site::ConfigArgs;

/// Run the applier alone: the cloud log into seed disks and recovery points
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which site
    #[command(flatten)]
    pub config: ConfigArgs,
}
