//! `holdfast apply`: the applier alone.

use tokio::sync::watch;

use super::site::ConfigArgs;
use super::{Failure, block_on, stopped};
use crate::clock::System;
use crate::server;
use crate::settings::load_server;

/// Run the applier alone: the cloud log onto the seed disks
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which site
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Applies until SIGTERM or Ctrl-C; ends between two runs.
///
/// # Errors
/// When the store or the key cannot be opened.
pub fn run(args: &Args) -> Result<(), Failure> {
    let settings = load_server(&args.config.config)?;
    block_on(async {
        let (stop, drain) = watch::channel(false);
        let applying = server::apply(settings, System::clock(), System::entropy(), drain);
        let mut applying = std::pin::pin!(applying);
        tokio::select! {
            asked = stopped() => asked?,
            ended = &mut applying => return Ok(ended?),
        }
        stop.send_replace(true);
        Ok(applying.await?)
    })
}
