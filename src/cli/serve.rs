//! `holdfast serve`: process server and applier.

use super::output::print;
use super::site::ConfigArgs;
use super::{Failure, stopped};
use crate::clock::System;
use crate::notify::{self, Notify};
use crate::server::ProcessServer;
use crate::settings::load_tuning;
use crate::turns::behind_acks;

/// Run the process server, and the applier unless apply.enabled is false
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which site
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Serves until SIGTERM or Ctrl-C, then drains.
///
/// # Errors
/// When it cannot start, or the cache log can no longer be trusted.
pub fn run(args: &Args) -> Result<(), Failure> {
    let settings = load_tuning(&args.config.config)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // Shards are started by this thread, which is none of the runtime's.
    runtime.enable_all().on_thread_start(behind_acks);
    runtime.build()?.block_on(async {
        let mut server = ProcessServer::start(settings, System::clock(), System::entropy()).await?;
        let addresses = server.addresses();
        let (data, metrics) = (addresses.data, addresses.metrics);
        print(&format!("serving on {data}; metrics on http://{metrics}/metrics"))?;
        let notify = Notify::of_environment();
        notify.tell(notify::READY);
        tokio::select! {
            asked = stopped() => asked?,
            error = server.failed() => return Err(error.into()),
        }
        notify.tell(notify::STOPPING);
        tracing::info!("draining");
        Ok(server.drain().await?)
    })
}
