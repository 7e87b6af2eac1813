//! One machine's way from `Durable` to `Published`: batch, seal on the CPU threads, upload.
//!
//! Owns: the chain of delta ids, and what becomes of records that could not be published. Does not
//! own: order of publishing (upload), when a batch closes (the batcher).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};

use super::applying::News;
use crate::cache::Durable;
use crate::clock::random16;
use crate::format::wire::{Refusal, Refuse};
use crate::ingest::MachineLink;
use crate::model::{DeltaId, MachineKey};
use crate::observe::{MachineMetrics, Meter, Stage, error_chain};
use crate::seal::{Batcher, DataKey, Lineage, SealError, SealPool, Sealed, StreamState, Unsealed};
use crate::settings::ServerSettings;
use crate::store::Class;
use crate::upload::{Claim, Published, Upload, UploadContext, UploadError};

/// Batches of one machine that are sealed at once.
const SEALING_MAX: usize = 4;

/// What a machine's pipeline works with.
pub(super) struct Pipeline {
    pub(super) context: UploadContext,
    pub(super) claim: Claim,
    pub(super) key: DataKey,
    pub(super) pool: Arc<SealPool>,
    /// The settings in force: when batches close.
    pub(super) settings: watch::Receiver<Arc<ServerSettings>>,
    pub(super) keep_every_write: Arc<AtomicBool>,
    /// Dropped with the registry when the server drains.
    pub(super) link: Weak<MachineLink>,
    pub(super) metrics: Arc<MachineMetrics>,
    /// Turns true when the server drains: a pipeline that cannot go on ends then.
    pub(super) drain: watch::Receiver<bool>,
    /// Tells the applier.
    pub(super) news: Arc<News>,
}

type Sealing = BoxFuture<'static, Result<Sealed, Box<Unsealed>>>;

/// Why a pipeline stopped before its queue was closed.
#[derive(Debug, thiserror::Error)]
enum Stop {
    /// Holds the batch: its records lie in the cache log as long as it does.
    #[error("a batch could not be sealed")]
    Seal(#[source] Box<Unsealed>),
    #[error("records cannot be batched")]
    Batch(#[source] SealError),
    #[error(transparent)]
    Upload(#[from] UploadError),
}

impl Stop {
    fn class(&self) -> Class {
        match self {
            Self::Seal(unsealed) => unsealed.source.class(),
            Self::Batch(source) => source.class(),
            Self::Upload(source) => source.class(),
        }
    }
}

impl Pipeline {
    /// Runs until `durable` is closed and everything is published, or this server is fenced.
    /// Whatever else stops it keeps every record in the cache log and says so: after a restart they
    /// are sealed and published again.
    pub(super) async fn run(self, mut durable: mpsc::UnboundedReceiver<Durable>) {
        let (to_upload, mut sealed) = mpsc::channel(1);
        let upload = Upload::new(self.context.clone(), self.claim.clone());
        let uploading = async {
            let ended = upload.run(&mut sealed, |published| self.published(&published)).await;
            match ended {
                Ok(_) => Ok(()),
                Err(stopped) => Err((Stop::from(stopped.error), stopped.unpublished)),
            }
        };
        let meter = |stage| Meter::new(&self.context.metrics, stage);
        let sealing = meter(Stage::Seal).run(self.seal_all(&mut durable, to_upload));
        let mut sealing = std::pin::pin!(sealing);
        let mut uploading = std::pin::pin!(meter(Stage::Upload).run(uploading));
        let mut sealing_done = false;
        let (stop, _held) = loop {
            tokio::select! {
                ended = &mut uploading => match ended {
                    Ok(()) => return,
                    Err(stopped) => break stopped,
                },
                ended = &mut sealing, if !sealing_done => match ended {
                    Ok(()) => sealing_done = true,
                    Err(stop) => break (stop, Vec::new()),
                },
            }
        };
        self.stopped(&stop).await;
    }

    /// Seals batch after batch, each chained to the one before; deltas leave in any order.
    async fn seal_all(
        &self,
        durable: &mut mpsc::UnboundedReceiver<Durable>,
        to_upload: mpsc::Sender<Sealed>,
    ) -> Result<(), Stop> {
        let clock = &self.context.clock;
        let machine = MachineKey::of(self.context.log.machine());
        let state = StreamState::after(&self.claim.manifest);
        let mut settings = self.settings.clone();
        let batch = settings.borrow_and_update().batch.clone();
        let mut batcher = Batcher::new(machine, state, batch);
        let mut previous = self.claim.manifest.last_delta;
        let mut sealing = FuturesUnordered::<Sealing>::new();
        let mut open = true;
        loop {
            while sealing.len() < SEALING_MAX
                && let Some(batch) = batcher.poll(clock.monotonic())
            {
                let lineage = self.lineage(&mut previous);
                let (pool, key) = (Arc::clone(&self.pool), self.key.clone());
                let keep = self.keep_every_write.load(Ordering::Relaxed);
                sealing.push(Box::pin(async move { pool.run(batch, lineage, key, keep).await }));
            }
            if !open && sealing.is_empty() {
                return Ok(());
            }
            let room = sealing.len() < SEALING_MAX;
            let deadline = batcher.deadline().filter(|_| room);
            let wait = deadline.map(|at| at.saturating_sub(clock.monotonic()));
            tokio::select! {
                biased;
                Some(sealed) = sealing.next() => {
                    // A closed channel: the upload has stopped and says why itself.
                    drop(to_upload.send(sealed.map_err(Stop::Seal)?).await);
                }
                item = durable.recv(), if open && room => match item {
                    Some(item) => batcher.push(item, clock.monotonic()).map_err(Stop::Batch)?,
                    None => {
                        open = false;
                        batcher.drain();
                    }
                },
                Ok(()) = settings.changed() => {
                    batcher.tune(settings.borrow_and_update().batch.clone());
                }
                () = clock.sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    fn lineage(&self, previous: &mut Option<DeltaId>) -> Lineage {
        let id = DeltaId(random16(self.context.entropy.as_ref()));
        Lineage {
            machine: self.context.log.machine().clone(),
            generation: self.claim.manifest.generation,
            id,
            previous: previous.replace(id),
            created: self.context.clock.wall(),
        }
    }

    fn published(&self, published: &Published) {
        if let Some(link) = self.link.upgrade() {
            link.published_through(published.through());
        }
        self.news.published(self.context.log.machine());
        let bytes: u64 = published.entries().iter().map(|entry| entry.source_bytes).sum();
        self.metrics.backlog_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    async fn stopped(&self, stop: &Stop) {
        let machine = self.context.log.machine();
        let text = error_chain(stop);
        self.metrics.set_trouble(Some(text.clone()));
        let fenced = stop.class() == Class::Fence;
        let (code, why) = if fenced {
            tracing::warn!(%machine, %text, "fenced: another process server has the machine");
            (Refusal::NotOwner, "another process server has the machine")
        } else {
            tracing::error!(%machine, %text, "upload stopped; restart the server once it is cured");
            (Refusal::Busy, "uploads of the machine have stopped; see the process server's log")
        };
        if let Some(link) = self.link.upgrade() {
            link.end(Refuse { code, text: why.to_owned() });
        }
        if !fenced {
            // Dropping records would free cache segments that hold their only copy.
            let mut drain = self.drain.clone();
            drop(drain.wait_for(|drain| *drain).await);
        }
    }
}
