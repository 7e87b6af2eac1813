//! One machine's way from `Durable` to `Published`: batch and seal (`sealing`), upload.
//!
//! Owns: when the machine is let go from memory, and what becomes of records that could not be
//! published. Does not own: the chain of deltas (`sealing`), order of publishing (upload).
//!
//! A machine on which nothing happens keeps nothing here but its queue and its generation: the
//! manifest is up to some hundred KiB, and thousands of machines are idle. The first record after a
//! pause costs one read of the manifest, which also finds out at once whether this server was
//! fenced meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::applying::News;
use super::sealing::Sealing;
use crate::cache::Durable;
use crate::format::wire::{Refusal, Refuse};
use crate::ingest::MachineLink;
use crate::model::Generation;
use crate::observe::{MachineMetrics, Meter, Stage, error_chain};
use crate::seal::{DataKey, SealError, SealPool, Sealed, Unsealed};
use crate::settings::ServerSettings;
use crate::store::Class;
use crate::upload::{self, Published, Upload, UploadContext, UploadError};

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
    /// Tells the applier.
    pub(super) news: Arc<News>,
    /// Set when it stops for another reason than being fenced.
    pub(super) stuck: Arc<AtomicBool>,
}

/// How a time of being awake ended.
enum Woken {
    /// Nothing came for a while, or the queue was closed; all is published.
    Quiet,
    /// It cannot go on.
    Stopped(Stopped),
}

/// A pipeline that cannot go on.
#[derive(Debug)]
struct Stopped {
    fenced: bool,
    /// Durable here and not published, in any order.
    held: Vec<Durable>,
}

/// How a pipeline ended: its queue was closed in every case.
#[derive(Debug)]
pub(super) struct Ended {
    /// Another process server took the machine: what was held was given away at once.
    pub(super) fenced: bool,
    /// Durable here and not published, in stream order: they may be the only copies.
    pub(super) held: Vec<Durable>,
}

/// Why a pipeline stopped before its queue was closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
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

    /// Another process server has the machine.
    fn is_fenced(&self) -> bool {
        self.class() == Class::Fence
    }

    /// The records that lie in the reason itself.
    fn into_records(self) -> Vec<Durable> {
        match self {
            Self::Seal(unsealed) => unsealed.batch.items().to_vec(),
            Self::Batch(_) | Self::Upload(_) => Vec::new(),
        }
    }
}

impl Pipeline {
    /// Runs until `durable` is closed, and everything is published unless something stopped it. Then it
    /// says so and keeps every record in the cache log; nothing that other machines could use is kept
    /// meanwhile. When it was fenced, `detach` sees to it that the queue is closed, and `give` is told what is
    /// durable and not published, in stream order: at once, because the last records may wait in the log's queue
    /// for the very room that the first ones take.
    pub(super) async fn run(
        self,
        mut durable: mpsc::UnboundedReceiver<Durable>,
        give: impl Fn(Vec<Durable>),
        detach: impl Future<Output = ()>,
    ) -> Ended {
        let mut stopped = Stopped { fenced: false, held: Vec::new() };
        while let Some(first) = durable.recv().await {
            // Boxed, so that the task of an idle machine is small.
            if let Woken::Stopped(woken) = Box::pin(self.awake(first, &mut durable)).await {
                stopped = woken;
                break;
            }
        }
        let Stopped { fenced, mut held } = stopped;
        held.sort_by_key(Durable::sequence);
        if fenced {
            give(std::mem::take(&mut held));
            let rest = async {
                while let Some(record) = durable.recv().await {
                    give(vec![record]);
                }
            };
            tokio::join!(detach, rest);
        }
        while let Some(record) = durable.recv().await {
            held.push(record); // later ones than those
        }
        // What is left is another server's to publish, or the next life's.
        self.metrics.backlog_bytes.store(0, Ordering::Relaxed);
        Ended { fenced, held }
    }

    /// From the first record after a pause until nothing came for a while and all is published.
    async fn awake(&self, first: Durable, durable: &mut mpsc::UnboundedReceiver<Durable>) -> Woken {
        let claim = match upload::resume(&self.context, self.generation).await {
            Ok(claim) => claim,
            Err(error) => {
                let stop = Stop::from(error);
                self.tell(&stop);
                let fenced = stop.is_fenced();
                return Woken::Stopped(Stopped { fenced, held: vec![first] });
            }
        };
        let (to_upload, mut sealed) = mpsc::channel(1);
        let mut seals = Sealing::after(&claim.manifest, self);
        let upload = Upload::new(self.context.clone(), claim);
        let uploading = async {
            let ended = upload.run(&mut sealed, |published| self.published(&published)).await;
            let Err(stopped) = ended else { return Ok(()) };
            let mut held = stopped.unpublished;
            held.extend(std::iter::from_fn(|| sealed.try_recv().ok()));
            // The records are what must be held; the objects' memory belongs to the other machines.
            held.iter_mut().for_each(Sealed::forget_object);
            Err((Stop::from(stopped.error), held))
        };
        let meter = |stage| Meter::new(&self.context.metrics, stage);
        let mut uploading = std::pin::pin!(meter(Stage::Upload).run(uploading));
        let (stop, held) = {
            let sealing = meter(Stage::Seal).run(seals.run(first, durable, to_upload));
            let mut sealing = std::pin::pin!(sealing);
            let mut sealing_done = false;
            loop {
                tokio::select! {
                    ended = &mut uploading => match ended {
                        Ok(()) => return Woken::Quiet,
                        Err((stop, held)) => break (stop, Some(held)),
                    },
                    ended = &mut sealing, if !sealing_done => match ended {
                        Ok(()) => sealing_done = true,
                        Err(stop) => break (stop, None),
                    },
                }
            }
        };
        self.tell(&stop);
        let (then, held) = match held {
            Some(held) => (None, held),
            // Sealing stopped: what was sealed before can be published yet.
            None => match tokio::join!(uploading, seals.settle()).0 {
                Ok(()) => (None, Vec::new()),
                Err((stop, held)) => (Some(stop), held),
            },
        };
        seals.settle().await;
        let fenced = stop.is_fenced() || then.as_ref().is_some_and(Stop::is_fenced);
        let mut records = seals.into_records();
        records.extend(held.iter().flat_map(|sealed| sealed.items().to_vec()));
        records.extend([Some(stop), then].into_iter().flatten().flat_map(Stop::into_records));
        Woken::Stopped(Stopped { fenced, held: records })
    }

    fn published(&self, published: &Published) {
        self.published.fetch_max(published.through().0, Ordering::Relaxed);
        let bytes: u64 = published.entries().iter().map(|entry| entry.source_bytes).sum();
        // Before the session hears of it: its credit may depend on what is left.
        self.metrics.backlog_bytes.fetch_sub(bytes, Ordering::Release);
        if let Some(link) = self.link.upgrade() {
            link.published_through(published.through());
        }
        self.news.published(self.context.log.machine());
    }

    /// Says what it is, here and to the agent.
    fn tell(&self, stop: &Stop) {
        let machine = self.context.log.machine();
        let text = error_chain(stop);
        self.metrics.set_trouble(Some(text.clone()));
        let (code, why) = if stop.is_fenced() {
            tracing::warn!(%machine, %text, "fenced: another process server has the machine");
            (Refusal::NotOwner, "another process server has the machine; connect again")
        } else {
            self.stuck.store(true, Ordering::Release);
            tracing::error!(%machine, %text, "upload stopped; restart the server once it is cured");
            (Refusal::Busy, "uploads of the machine have stopped; see the process server's log")
        };
        if let Some(link) = self.link.upgrade() {
            link.end(Refuse { code, text: why.to_owned() });
        }
    }
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
