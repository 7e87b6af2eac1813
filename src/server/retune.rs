//! Settings that changed, brought to what all machines share.
//!
//! Owns: the values that somebody must be told. Does not own: those that are read where they are
//! used (batches, applying, credit).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::watch;

use crate::budget::Slots;
use crate::seal::SealPool;
use crate::settings::ServerSettings;

/// What is told.
pub(super) struct Retune {
    pub(super) settings: watch::Receiver<Arc<ServerSettings>>,
    pub(super) drain: watch::Receiver<bool>,
    pub(super) pool: Arc<SealPool>,
    pub(super) streams: Slots,
    pub(super) block_bytes: Arc<AtomicU32>,
}

impl Retune {
    /// Runs until the server drains.
    pub(super) async fn run(mut self) {
        loop {
            let settings = Arc::clone(&self.settings.borrow_and_update());
            self.pool.set_level(settings.seal.level);
            self.pool.set_budget(sealed_bytes(&settings));
            self.streams.resize(streams(&settings));
            self.block_bytes.store(settings.upload.block_bytes, Ordering::Relaxed);
            tokio::select! {
                changed = self.settings.changed() => if changed.is_err() { return },
                _ = self.drain.wait_for(|drain| *drain) => return,
            }
        }
    }
}

/// Objects that are held until they are uploaded: one may be twice a batch at its worst; as many as
/// there are streams are held at once.
pub(super) fn sealed_bytes(settings: &ServerSettings) -> u64 {
    (settings.upload.streams as u64).saturating_mul(settings.batch.bytes_max)
}

pub(super) fn streams(settings: &ServerSettings) -> u32 {
    u32::try_from(settings.upload.streams).unwrap_or(u32::MAX)
}
