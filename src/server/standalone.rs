//! `holdfast apply`: the applier without a process server. It needs the store and the key.

use std::sync::Arc;

use tokio::sync::watch;

use super::applying::{Applying, News};
use super::error::ServerError;
use super::process::open_vault;
use crate::apply::Bodies;
use crate::clock::{Clock, Entropy};
use crate::observe::Metrics;
use crate::seal::KeyEncryptionKey;
use crate::settings::{ServerSettings, Tuning};
use crate::upload::Uplink;

/// Applies every machine of the site until `drain` turns true.
///
/// # Errors
/// When the key or the store cannot be opened.
pub async fn apply(
    mut settings: ServerSettings,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    drain: watch::Receiver<bool>,
) -> Result<(), ServerError> {
    let kek = KeyEncryptionKey::load(&settings.key_file)?;
    let metrics = Arc::new(Metrics::default());
    let vault = open_vault(&settings, &kek, &metrics).await?;
    // `apply.enabled` is about the process server: who starts the applier means it.
    settings.apply.enabled = true;
    let uplink = Uplink::new(
        settings.upload.streams,
        settings.upload.rate.clone(),
        Arc::clone(&clock),
        Arc::clone(&entropy),
        Arc::clone(&metrics),
    );
    let tuning = Tuning::from(settings);
    let kek = Arc::new(kek);
    let (publisher, news) = (None, Arc::new(News::default()));
    let applying = Applying {
        vault,
        kek,
        clock,
        entropy,
        metrics,
        tuning,
        uplink,
        drain,
        publisher,
        peers: None,
        news,
        bodies: Bodies::default(),
    };
    Arc::new(applying).run().await;
    Ok(())
}
