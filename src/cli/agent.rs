//! `holdfast agent`: the mobility agent.

use std::path::PathBuf;

use super::{Failure, block_on};
use crate::agent::{self, Stopped};
use crate::settings::load_agent;

/// Run the mobility agent of this machine until told to stop
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Settings of the agent
    #[arg(long, value_name = "AGENTDIR/agent.toml", default_value = "agent.toml")]
    pub config: PathBuf,
}

/// Serves the machine's disks and replicates them until SIGTERM or Ctrl-C.
///
/// # Errors
/// When a disk, a certificate or the state directory cannot be used.
pub fn run(args: &Args) -> Result<(), Failure> {
    let settings = load_agent(&args.config)?;
    let stopped = block_on(async { Ok(agent::run(settings).await?) })?;
    if stopped == Stopped::Unsettled {
        tracing::warn!("stopped before everything was published: the next start sends the rest");
    }
    Ok(())
}
