//! `holdfast sidecar`: the control API.

use super::site::{ConfigArgs, Site};
use super::{Failure, block_on, stopped};
use crate::control::Sidecar;
use crate::notify::{self, Notify};

/// Serve the control API
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Serves until the process is asked to stop.
///
/// # Errors
/// When it cannot listen, or a certificate or the store cannot be used.
pub fn run(args: &Args) -> Result<(), Failure> {
    let site = Site::open(&args.config.config)?;
    let (registrar, client) = (site.registrar()?, site.client()?);
    block_on(async {
        let sidecar = Sidecar::listen(&site.settings, site.sources, registrar, client).await?;
        let notify = Notify::of_environment();
        notify.tell(notify::READY);
        tracing::info!(address = %sidecar.address(), "the control API listens");
        sidecar
            .run(async {
                if stopped().await.is_err() {
                    tracing::error!("signals cannot be watched: stopping");
                }
                notify.tell(notify::STOPPING);
            })
            .await;
        tracing::info!("the control API has stopped");
        Ok(())
    })
}
