//! One machine's records from `Durable` to `Sealed`: batched, then sealed side by side.
//!
//! Owns: every record that the upload has not taken yet, whatever becomes of the upload; the chain
//! of delta ids. Does not own: when a batch closes (the batcher), order of publishing (upload).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::pipeline::{Pipeline, QUIET, Stop};
use crate::cache::Durable;
use crate::clock::{Clock, random16};
use crate::format::manifest::Manifest;
use crate::model::{DeltaId, MachineKey, Sequence};
use crate::observe::error_chain;
use crate::seal::{Batch, Batcher, DataKey, Lineage, SealPool, Sealed, StreamState, Unsealed};
use crate::store::Class;

/// Before a batch is tried again that only the machine's lack of memory kept from being sealed.
const AGAIN: Duration = Duration::from_secs(1);
/// Batches of one machine that are sealed at once.
const SEALING_MAX: usize = 4;

type Attempt = Result<Sealed, Box<Unsealed>>;

/// Seals batch after batch, each chained to the one before; deltas leave in any order.
///
/// What it holds lies here and not in a future's frame: [`Sealing::run`] may be dropped at any
/// await, and no record goes with it.
pub(super) struct Sealing<'a> {
    pipeline: &'a Pipeline,
    batcher: Batcher,
    previous: Option<DeltaId>,
    attempts: FuturesUnordered<BoxFuture<'static, Attempt>>,
    /// Sealed, and not handed over.
    left: Vec<Sealed>,
    /// Could not be sealed; only after a stop, before it the first one is the reason.
    unsealed: Vec<Unsealed>,
}

impl<'a> Sealing<'a> {
    /// Goes on behind what `manifest` names.
    pub(super) fn after(manifest: &Manifest, pipeline: &'a Pipeline) -> Self {
        let machine = MachineKey::of(pipeline.context.log.machine());
        let settings = pipeline.settings.borrow().batch.clone();
        Self {
            pipeline,
            batcher: Batcher::new(machine, StreamState::after(manifest), settings),
            previous: manifest.last_delta,
            attempts: FuturesUnordered::new(),
            left: Vec::new(),
            unsealed: Vec::new(),
        }
    }

    /// From `first` until nothing came for a while and all is published, or `durable` is closed and
    /// all is sealed.
    pub(super) async fn run(
        &mut self,
        first: Durable,
        durable: &mut mpsc::UnboundedReceiver<Durable>,
        to_upload: mpsc::Sender<Sealed>,
    ) -> Result<(), Stop> {
        let pipeline = self.pipeline;
        let clock = &pipeline.context.clock;
        let mut settings = pipeline.settings.clone();
        self.follow_policy();
        self.take(first)?;
        let mut open = true;
        loop {
            self.follow_policy();
            self.begin();
            if !open && self.attempts.is_empty() {
                return Ok(());
            }
            let room = self.attempts.len() < SEALING_MAX;
            let deadline = self.batcher.deadline();
            let quiet = open && self.attempts.is_empty() && deadline.is_none();
            let wait = deadline.filter(|_| room).map(|at| at.saturating_sub(clock.monotonic()));
            tokio::select! {
                biased;
                Some(sealed) = self.attempts.next() => {
                    self.left.push(sealed.map_err(Stop::Seal)?);
                    self.hand_over(&to_upload).await;
                }
                item = durable.recv(), if open && room => match item {
                    Some(item) => self.take(item)?,
                    None => {
                        open = false;
                        self.batcher.drain();
                    }
                },
                Ok(()) = settings.changed() => {
                    self.batcher.tune(settings.borrow_and_update().batch.clone());
                }
                () = clock.sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                () = clock.sleep(QUIET), if quiet => {
                    let published = pipeline.published.load(Ordering::Relaxed);
                    if Sequence(published).next() == self.batcher.state().next {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// After a stop. No batch is begun any more; those under way come to their end, because unpolled
    /// they would keep memory and threads from other machines for as long as this one waits. Their
    /// objects are let go. The records of all of them stay held until this is dropped.
    pub(super) async fn settle(&mut self) {
        self.left.iter_mut().for_each(Sealed::forget_object);
        while let Some(ended) = self.attempts.next().await {
            match ended {
                Ok(mut sealed) => {
                    sealed.forget_object();
                    self.left.push(sealed);
                }
                Err(unsealed) => self.unsealed.push(*unsealed),
            }
        }
    }

    /// All records that it holds; in any order.
    pub(super) fn into_records(self) -> Vec<Durable> {
        let sealed = self.left.iter().flat_map(|sealed| sealed.items().to_vec());
        let unsealed = self.unsealed.iter().flat_map(|unsealed| unsealed.batch.items().to_vec());
        sealed.chain(unsealed).chain(self.batcher.into_items()).collect()
    }

    fn follow_policy(&mut self) {
        let keep = self.pipeline.keep_every_write.load(Ordering::Relaxed);
        self.batcher.keep_every_write(keep);
    }

    fn take(&mut self, record: Durable) -> Result<(), Stop> {
        let now = self.pipeline.context.clock.monotonic();
        self.batcher.push(record, now).map_err(Stop::Batch)
    }

    /// Begins to seal what is due, as far as there is room.
    fn begin(&mut self) {
        let now = self.pipeline.context.clock.monotonic();
        while self.attempts.len() < SEALING_MAX
            && let Some(batch) = self.batcher.poll(now)
        {
            let lineage = self.lineage();
            let (pool, key) = (Arc::clone(&self.pipeline.pool), self.pipeline.key.clone());
            let clock = Arc::clone(&self.pipeline.context.clock);
            self.attempts.push(Box::pin(seal(pool, clock, batch, lineage, key)));
        }
    }

    /// Waits for room at the upload first: while it waits the delta lies here. An upload that is gone
    /// says why itself.
    async fn hand_over(&mut self, to_upload: &mpsc::Sender<Sealed>) {
        if let Ok(room) = to_upload.reserve().await
            && let Some(sealed) = self.left.pop()
        {
            room.send(sealed);
        }
    }

    fn lineage(&mut self) -> Lineage {
        let context = &self.pipeline.context;
        let id = DeltaId(random16(context.entropy.as_ref()));
        Lineage {
            machine: context.log.machine().clone(),
            generation: self.pipeline.generation,
            id,
            previous: self.previous.replace(id),
            created: context.clock.wall(),
        }
    }
}

/// Seals a batch, however often the system says that it has no memory for it now.
async fn seal(
    pool: Arc<SealPool>,
    clock: Arc<dyn Clock>,
    mut batch: Batch,
    lineage: Lineage,
    key: DataKey,
) -> Attempt {
    loop {
        match pool.run(batch, lineage.clone(), key.clone()).await {
            Err(unsealed) if unsealed.source.class() == Class::Retry => {
                let (machine, text) = (&lineage.machine, error_chain(&unsealed.source));
                tracing::warn!(%machine, %text, "a batch is sealed later");
                batch = unsealed.batch;
                clock.sleep(AGAIN).await;
            }
            ended => return ended,
        }
    }
}
