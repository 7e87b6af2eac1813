//! Threads that seal.
//!
//! Owns: how many batches are sealed at once, whose is next, what their memory may be, what a panic
//! becomes.
//! Does not own: the order in which deltas are published.
//!
//! Memory: `room` (objects from before they are sealed until they are uploaded, at their worst
//! size while being sealed, after that at their true size or what an earlier object touched of the
//! same memory, at most twice as much) + `threads` × (two objects' memory, kept for the next ones,
//! and about 2 MiB: the zstd context and allocator slack). Records lie in the cache log and are not
//! counted here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::oneshot;

use super::batch::Batch;
use super::error::SealError;
use super::key::DataKey;
use super::memory::{Draft, Shelf};
use super::sealer::{Lineage, Made, Sealed, Unsealed, bytes_max, make};
use crate::clock::{Clock, Entropy};
use crate::observe::{CpuTimer, Metrics, Stage};
use crate::settings::SealSettings;
use crate::turns::{Turn, Turns, behind_acks};

/// Objects whose memory is kept for each thread: the one after this one, and one that was uploaded
/// meanwhile.
const KEPT: usize = 2;

/// A fixed number of threads that turn batches into deltas. Dropping it seals what is queued, then
/// joins the threads.
pub struct SealPool {
    jobs: Option<Sender<Job>>, // `None` only while dropping
    slots: Turns,
    threads: Vec<JoinHandle<()>>,
    settings: SealSettings,
    level: AtomicI32,
    compress: AtomicBool,
    room: Turns,
    shelf: Shelf,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
}

struct Job {
    batch: Arc<Batch>,
    lineage: Lineage,
    key: DataKey,
    settings: SealSettings,
    object: Draft,
    reply: oneshot::Sender<Result<Made, SealError>>,
    slot: Turn,
}

impl SealPool {
    /// Starts `settings.threads` threads (at least one).
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(
        settings: SealSettings,
        room: Turns,
        metrics: Arc<Metrics>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, SealError> {
        let wanted = settings.threads.max(1);
        let queued = 2 * wanted; // one to work on, one to go on with
        let (jobs, queue) = crossbeam_channel::bounded(queued);
        let mut pool = Self {
            jobs: Some(jobs),
            slots: Turns::new(queued as u64, 1),
            level: AtomicI32::new(settings.level),
            compress: AtomicBool::new(settings.compress),
            threads: Vec::with_capacity(wanted),
            settings,
            room,
            shelf: Shelf::keeping(KEPT * wanted),
            metrics,
            clock,
        };
        for number in 0..wanted {
            let (queue, entropy) = (Receiver::clone(&queue), Arc::clone(&entropy));
            let metrics = Arc::clone(&pool.metrics);
            let thread = std::thread::Builder::new()
                .name(format!("seal-{number}"))
                .spawn(move || work(&queue, &metrics, &*entropy))
                .map_err(|source| SealError::Threads { threads: wanted, source })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Changes how many bytes of objects are held until they are uploaded, and how many of them are
    /// kept for machines that hold none.
    pub fn set_room(&self, bytes: u64, reserve: u64) {
        self.room.resize(bytes, reserve);
        self.shelf.clear();
    }

    /// Seals the batches that come from now on at this level.
    pub fn set_level(&self, level: i32) {
        self.level.store(level, Ordering::Relaxed);
    }

    /// Whether batches that come from now on are compressed.
    pub fn set_compress(&self, compress: bool) {
        self.compress.store(compress, Ordering::Relaxed);
    }

    /// Batches that wait for a thread.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.slots.waiting() + usize::try_from(self.slots.in_use()).unwrap_or(usize::MAX)
    }

    /// Writes down what it does now.
    pub fn observe(&self) {
        let pacing = &self.metrics.pacing;
        pacing.level.store(self.level.load(Ordering::Relaxed).into(), Ordering::Relaxed);
        pacing.seals_waiting.store(self.waiting() as u64, Ordering::Relaxed);
        pacing.sealed_bytes.store(self.room.in_use(), Ordering::Relaxed);
        pacing.sealed_bytes_max.store(self.room.capacity(), Ordering::Relaxed);
    }

    /// Seals a batch on one of the threads. Waits while memory or the queue is full.
    ///
    /// # Errors
    /// As [`super::seal`], or when sealing panicked; the batch is given back.
    pub async fn run(
        &self,
        batch: Batch,
        lineage: Lineage,
        key: DataKey,
    ) -> Result<Sealed, Box<Unsealed>> {
        let asked = self.clock.monotonic();
        let level = self.level.load(Ordering::Relaxed);
        let compress = self.compress.load(Ordering::Relaxed);
        let settings = SealSettings { compress, level, ..self.settings.clone() };
        let (who, most) = (batch.machine(), bytes_max(&batch, &settings));
        let mut room = self.room.take(who, most, most).await;
        let slot = self.slots.take(who, 1, batch.payload_bytes()).await;
        // Held here, too: whatever becomes of the job, the records are not lost with it.
        let batch = Arc::new(batch);
        let (reply, made) = oneshot::channel();
        let object = self.shelf.draft(most);
        let (shared, lineage_too) = (Arc::clone(&batch), lineage.clone());
        let job = Job { batch: shared, lineage: lineage_too, key, settings, object, reply, slot };
        let jobs = self.jobs.as_ref().expect("taken away by drop only");
        // Does not block: there are as many slots as places in the queue.
        drop(jobs.send(job)); // without receivers the reply is gone, too
        let made = made
            .await
            .unwrap_or_else(|_| Err(panicked(&batch, &lineage, "its thread is gone".to_owned())));
        let batch = Arc::unwrap_or_clone(batch);
        let (made, held) = match made {
            Ok(made) => {
                let held = made.held;
                (made.of(batch, &lineage), held)
            }
            Err(source) => return Err(Box::new(Unsealed { batch, source })),
        };
        let (bytes_in, bytes_out) = (made.entry().source_bytes, made.object().len() as u64);
        self.metrics.moved(Stage::Seal, bytes_in, bytes_out);
        let spent = self.clock.monotonic().saturating_sub(asked);
        self.metrics.latency(Stage::Seal, spent);
        room.shrink_to(held); // mostly a third of the worst
        Ok(made.paid_by(room))
    }
}

impl Drop for SealPool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            drop(thread.join()); // a panic was answered to its job already
        }
    }
}

fn work(queue: &Receiver<Job>, metrics: &Metrics, entropy: &dyn Entropy) {
    behind_acks();
    for job in queue {
        drop(job.slot); // its place in the queue is free
        let timer = CpuTimer::start();
        let (batch, lineage, settings) = (job.batch, job.lineage, job.settings);
        let keep = batch.keeps_every_write();
        let (key, object) = (job.key, job.object);
        let attempt = || make(&batch, &lineage, &key, &settings, keep, entropy, object);
        let made = catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|panic| {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("without a message");
            Err(panicked(&batch, &lineage, message.to_owned()))
        });
        metrics.cpu(Stage::Seal, timer.spent());
        let passed_over = made.as_ref().map_or(0, |made| made.passed_over);
        metrics.pacing.frames_passed_over.fetch_add(passed_over, Ordering::Relaxed);
        drop(batch); // before the answer, so that its receiver is the only holder
        drop(job.reply.send(made)); // nobody waits any more: the delta was never named, nothing is lost
    }
}

fn panicked(batch: &Batch, lineage: &Lineage, message: String) -> SealError {
    SealError::Panicked {
        machine: lineage.machine.clone(),
        first: batch.first(),
        last: batch.last(),
        message,
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
