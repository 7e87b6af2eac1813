//! The one writer of a shard's log.
//!
//! Owns: when an append is made and what goes into it, and when the log moves to the next segment.
//! Does not own: what makes a record durable (`flush`), where segments come from (`pool`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::durable::Durable;
use super::error::CacheError;
use super::flush::Open;
use super::lineage::Lineage;
use super::log::{Batch, Entry};
use super::pool::Pool;
use crate::clock::Clock;
use crate::ingest::Admitted;
use crate::observe::{Meter, Metrics, Stage};

/// Takes admitted records, makes them durable in groups, hands them on in order.
pub struct Writer {
    pub(super) pool: Pool,
    pub(super) lineage: Lineage,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
}

impl Writer {
    /// Runs until `admitted` is closed and everything in it is durable, then closes the log
    /// cleanly. Must be polled on a tokio-uring runtime.
    ///
    /// While the cache is full it waits and takes nothing from `admitted`: permits are not given
    /// back, credits end, agents stop. Do not drop the future before it has finished: what it has
    /// taken would be neither durable nor refused (buffers given to the kernel stay valid even
    /// then).
    ///
    /// # Errors
    /// [`CacheError::Poisoned`] when an append or a sync did not succeed, [`CacheError::Header`] when a
    /// segment was needed and none can be prepared any more. Nothing after the last call of `on_durable`
    /// is durable, and nothing can become so without opening the log anew.
    pub async fn run(
        self,
        admitted: mpsc::Receiver<Admitted>,
        on_durable: impl FnMut(Vec<Durable>),
    ) -> Result<(), CacheError> {
        let meter = Meter::new(&self.metrics, Stage::Cache);
        meter.run(self.write(admitted, on_durable)).await
    }

    async fn write(
        mut self,
        mut admitted: mpsc::Receiver<Admitted>,
        mut on_durable: impl FnMut(Vec<Durable>),
    ) -> Result<(), CacheError> {
        let mut open = None;
        let mut left_over = None;
        loop {
            let first = match left_over.take() {
                Some(entry) => entry,
                None => match admitted.recv().await {
                    Some(admitted) => Entry::from(admitted),
                    None => break,
                },
            };
            let mut segment = match open.take() {
                Some(segment) => segment,
                None => self.next_segment(&first).await?,
            };
            let (mut batch, rest) = gather(&mut segment, first, &mut admitted);
            left_over = rest;
            let durable = self.commit(&mut segment, &mut batch).await?;
            if !durable.is_empty() {
                on_durable(durable);
            }
            if !batch.closes {
                open = Some(segment);
            }
        }
        if let Some(mut segment) = open.filter(|segment| !segment.layout.is_empty()) {
            let mut end = Batch::end(&mut segment.layout);
            self.commit(&mut segment, &mut end).await?;
        }
        Ok(())
    }

    async fn next_segment(&mut self, first: &Entry) -> Result<Open, CacheError> {
        let prepared = self.pool.next().await?;
        let open = Open::begin(prepared.slot, &prepared.header, self.pool.freed.clone())?;
        if !open.layout.fits(first.payload.len()) {
            return Err(CacheError::TooLarge {
                machine: first.machine,
                sequence: first.sequence,
                payload_bytes: first.payload.len(),
                segment_bytes: prepared.header.segment_bytes,
            });
        }
        self.lineage.begin(open.segment());
        Ok(open)
    }

    async fn commit(
        &mut self,
        segment: &mut Open,
        batch: &mut Batch,
    ) -> Result<Vec<Durable>, CacheError> {
        self.lineage.append(batch);
        let appended = segment.layout.at() - batch.start;
        let received: Vec<_> = batch.entries.iter().map(|(entry, _)| entry.received_at).collect();
        let durable = segment.commit(batch).await?;
        let now = self.clock.monotonic();
        let payload_bytes = durable.iter().map(Durable::payload_bytes).sum();
        let waited = received.into_iter().map(|at| now.saturating_sub(at));
        self.metrics.latencies(Stage::Cache, waited);
        self.metrics.moved(Stage::Cache, payload_bytes, appended);
        self.metrics.cache_commits.fetch_add(1, Ordering::Relaxed);
        Ok(durable)
    }
}

/// Everything that is waiting and fits one append, or the end record if the first does not fit the
/// segment. What does not fit is given back.
pub(super) fn gather(
    segment: &mut Open,
    first: Entry,
    admitted: &mut mpsc::Receiver<Admitted>,
) -> (Batch, Option<Entry>) {
    let layout = &mut segment.layout;
    if !layout.takes(&first) {
        return (Batch::end(layout), Some(first));
    }
    let mut batch = Batch::new(layout);
    batch.add(layout, first);
    while let Some(entry) = admitted.try_recv().ok().map(Entry::from) {
        if batch.is_full_for(&entry, layout) || !layout.takes(&entry) {
            return (batch, Some(entry));
        }
        batch.add(layout, entry);
    }
    (batch, None)
}
