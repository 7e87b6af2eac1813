//! Settings that changed, brought to what all machines share.
//!
//! Owns: the values that somebody must be told. Does not own: those that are read where they are
//! used (batches, applying, credit, the level).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::watch;

use crate::seal::SealPool;
use crate::settings::ServerSettings;
use crate::upload::Uplink;

/// What is told.
pub(super) struct Retune {
    pub(super) settings: watch::Receiver<Arc<ServerSettings>>,
    pub(super) drain: watch::Receiver<bool>,
    pub(super) pool: Arc<SealPool>,
    pub(super) uplink: Arc<Uplink>,
    pub(super) block_bytes: Arc<AtomicU32>,
}

impl Retune {
    /// Runs until the server drains.
    pub(super) async fn run(mut self) {
        loop {
            let settings = Arc::clone(&self.settings.borrow_and_update());
            let (bytes, reserve) = sealed_bytes(&settings);
            self.pool.set_room(bytes, reserve);
            self.pool.set_compress(settings.seal.compress);
            self.uplink.follow(settings.upload.streams, settings.upload.rate.clone());
            self.block_bytes.store(settings.upload.block_bytes, Ordering::Relaxed);
            tokio::select! {
                changed = self.settings.changed() => if changed.is_err() { return },
                _ = self.drain.wait_for(|drain| *drain) => return,
            }
        }
    }
}

/// Bytes of objects that are held until they are uploaded, of as many batches as there are streams;
/// and how many of them are kept for machines that hold none: one batch, so that a loud machine
/// cannot keep the others from sealing.
pub(super) fn sealed_bytes(settings: &ServerSettings) -> (u64, u64) {
    let (batch, streams) = (settings.batch.bytes_max, u64::from(settings.upload.streams.max));
    (streams.saturating_mul(batch), if streams > 2 { batch } else { 0 })
}
