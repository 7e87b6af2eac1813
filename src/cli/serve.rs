//! `holdfast serve`: process server and applier.

use super::site::ConfigArgs;

/// Run the process server, and the applier unless apply.enabled is false
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which site
    #[command(flatten)]
    pub config: ConfigArgs,
}
