//! One machine's way from `Durable` to `Published`: batch, seal on the CPU threads, upload.
//!
//! Owns: the chain of delta ids, and what becomes of records that could not be published. Does not
//! own: order of publishing (upload), when a batch closes (the batcher).
//!
//! A machine on which nothing happens keeps nothing here but its queue and its generation: the
//! manifest is up to some hundred KiB, and thousands of machines are idle. The first record after a
//! pause costs one read of the manifest, which also finds out at once whether this server was
//! fenced meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};

use super::applying::News;
use crate::cache::Durable;
use crate::clock::random16;
use crate::format::manifest::Manifest;
use crate::format::wire::{Refusal, Refuse};
use crate::ingest::MachineLink;
use crate::model::{DeltaId, Generation, MachineKey, Sequence};
use crate::observe::{MachineMetrics, Meter, Stage, error_chain};
use crate::seal::{Batcher, DataKey, Lineage, SealError, SealPool, Sealed, StreamState, Unsealed};
use crate::settings::ServerSettings;
use crate::store::Class;
use crate::upload::{self, Published, Upload, UploadContext, UploadError};

/// Batches of one machine that are sealed at once.
const SEALING_MAX: usize = 4;
/// A machine that was quiet for so long, with all of it published, is let go from memory.
pub(super) const QUIET: Duration = Duration::from_secs(60);

/// What a machine's pipeline works with.
pub(super) struct Pipeline {
    pub(super) context: UploadContext,
    /// The ownership under which everything is published.
    pub(super) generation: Generation,
    /// Through here everything is; from the manifest of the claim on.
    pub(super) published: AtomicU64,
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

/// How a time of being awake ended.
enum Woken {
    /// Nothing came for a while, or the queue was closed; all is published.
    Quiet,
    /// It cannot go on.
    Stopped,
}

/// Where the stream goes on.
struct Position {
    state: StreamState,
    last_delta: Option<DeltaId>,
}

impl Position {
    fn after(manifest: &Manifest) -> Self {
        Self { state: StreamState::after(manifest), last_delta: manifest.last_delta }
    }
}

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
        while let Some(first) = durable.recv().await {
            // Boxed, so that the task of an idle machine is small.
            match Box::pin(self.awake(first, &mut durable)).await {
                Woken::Quiet => {}
                Woken::Stopped => return,
            }
        }
    }

    /// From the first record after a pause until nothing came for a while and all is published.
    async fn awake(&self, first: Durable, durable: &mut mpsc::UnboundedReceiver<Durable>) -> Woken {
        let claim = match upload::resume(&self.context, self.generation).await {
            Ok(claim) => claim,
            Err(error) => {
                self.stopped(&Stop::from(error)).await;
                drop(first); // held until then: it may be the only copy
                return Woken::Stopped;
            }
        };
        let (to_upload, mut sealed) = mpsc::channel(1);
        let stream = Position::after(&claim.manifest);
        let upload = Upload::new(self.context.clone(), claim);
        let uploading = async {
            let ended = upload.run(&mut sealed, |published| self.published(&published)).await;
            match ended {
                Ok(_) => Ok(()),
                Err(stopped) => Err((Stop::from(stopped.error), stopped.unpublished)),
            }
        };
        let meter = |stage| Meter::new(&self.context.metrics, stage);
        let sealing = meter(Stage::Seal).run(self.seal_all(stream, first, durable, to_upload));
        let mut sealing = std::pin::pin!(sealing);
        let mut uploading = std::pin::pin!(meter(Stage::Upload).run(uploading));
        let mut sealing_done = false;
        let (stop, mut held) = loop {
            tokio::select! {
                ended = &mut uploading => match ended {
                    Ok(()) => return Woken::Quiet,
                    Err(stopped) => break stopped,
                },
                ended = &mut sealing, if !sealing_done => match ended {
                    Ok(()) => sealing_done = true,
                    Err(stop) => break (stop, Vec::new()),
                },
            }
        };
        // The records are what must be held; the objects' memory belongs to the other machines.
        held.iter_mut().for_each(Sealed::forget_object);
        self.stopped(&stop).await;
        drop(held);
        Woken::Stopped
    }

    /// Seals batch after batch, each chained to the one before; deltas leave in any order.
    async fn seal_all(
        &self,
        stream: Position,
        first: Durable,
        durable: &mut mpsc::UnboundedReceiver<Durable>,
        to_upload: mpsc::Sender<Sealed>,
    ) -> Result<(), Stop> {
        let clock = &self.context.clock;
        let machine = MachineKey::of(self.context.log.machine());
        let mut settings = self.settings.clone();
        let batch = settings.borrow_and_update().batch.clone();
        let mut batcher = Batcher::new(machine, stream.state, batch);
        let mut previous = stream.last_delta;
        batcher.keep_every_write(self.keep_every_write.load(Ordering::Relaxed));
        batcher.push(first, clock.monotonic()).map_err(Stop::Batch)?;
        let mut sealing = FuturesUnordered::<Sealing>::new();
        let mut open = true;
        loop {
            batcher.keep_every_write(self.keep_every_write.load(Ordering::Relaxed));
            while sealing.len() < SEALING_MAX
                && let Some(batch) = batcher.poll(clock.monotonic())
            {
                let lineage = self.lineage(&mut previous);
                let (pool, key) = (Arc::clone(&self.pool), self.key.clone());
                sealing.push(Box::pin(async move { pool.run(batch, lineage, key).await }));
            }
            if !open && sealing.is_empty() {
                return Ok(());
            }
            let room = sealing.len() < SEALING_MAX;
            let quiet = open && sealing.is_empty() && batcher.deadline().is_none();
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
                () = clock.sleep(QUIET), if quiet => {
                    let published = self.published.load(Ordering::Relaxed);
                    if Sequence(published).next() == batcher.state().next {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn lineage(&self, previous: &mut Option<DeltaId>) -> Lineage {
        let id = DeltaId(random16(self.context.entropy.as_ref()));
        Lineage {
            machine: self.context.log.machine().clone(),
            generation: self.generation,
            id,
            previous: previous.replace(id),
            created: self.context.clock.wall(),
        }
    }

    fn published(&self, published: &Published) {
        self.published.fetch_max(published.through().0, Ordering::Relaxed);
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

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
