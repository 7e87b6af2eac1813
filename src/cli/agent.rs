//! `holdfast agent`: the mobility agent.

use std::path::PathBuf;

/// Run the mobility agent of this machine until told to stop
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Settings of the agent
    #[arg(long, value_name = "AGENTDIR/agent.toml", default_value = "agent.toml")]
    pub config: PathBuf,
}
