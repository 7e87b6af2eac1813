//! Append, sync, prove: the only file where a `Durable` is minted.
//!
//! Owns: the order of these three. Does not own: what is in an append (`log`), when one is made
//! (`writer`), and what recovery may believe (`recovery`).

use std::ops::Range;
use std::sync::Arc;

use super::durable::{Durable, DurableChange};
use super::error::CacheError;
use super::file::{Appender, Slot};
use super::log::{Batch, Layout};
use super::segment::Segment;
use crate::format::segment::SegmentHeader;
use crate::model::{MachineKey, Sequence};

/// The segment that is being written.
pub(super) struct Open {
    pub(super) layout: Layout,
    slot: Slot,
    segment: Arc<Segment>,
    appender: Box<dyn Appender>,
}

impl Open {
    /// Begins the segment of `header`, which is on the disk.
    pub(super) fn begin(
        slot: Slot,
        header: &SegmentHeader,
        pool: tokio::sync::mpsc::UnboundedSender<Slot>,
    ) -> Result<Self, CacheError> {
        let path = slot.file.path().to_owned();
        let appender = slot.file.appender();
        let segment = Segment::in_slot(slot.clone(), pool);
        Ok(Self {
            layout: Layout::new(header),
            appender: appender.map_err(CacheError::io(&path, "opening a segment for appending"))?,
            segment: Arc::new(segment.map_err(CacheError::io(&path, "mapping a segment"))?),
            slot,
        })
    }

    /// Its records hold it; so does the writer while it is open.
    pub(super) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Appends and syncs a batch; only then are its records durable. After an error this segment
    /// must not be used again: the caller drops it.
    pub(super) async fn commit(&mut self, batch: &mut Batch) -> Result<Vec<Durable>, CacheError> {
        let offset = batch.start;
        let path = self.slot.file.path();
        let poisoned = |source| CacheError::Poisoned { path: path.to_owned(), offset, source };
        let buffers = batch.take_buffers();
        let appended = self.appender.append(buffers, offset).await;
        appended.map_err(poisoned)?;
        self.appender.sync().await.map_err(poisoned)?;

        self.layout.synced();
        self.segment.allow(self.layout.at());
        let durable = batch.entries.drain(..).map(|(entry, payload)| {
            drop(entry.permit); // its bytes are on the disk
            Durable::proven(
                entry.machine,
                entry.sequence,
                entry.change,
                payload,
                Arc::clone(&self.segment),
            )
        });
        Ok(durable.collect())
    }
}

/// A record that recovery found valid in a segment that was synced: by this process (a rewritten
/// tail), or before something later was written that proves it (an end record, the clean marker).
pub(super) fn recovered(
    machine: MachineKey,
    sequence: Sequence,
    change: DurableChange,
    payload: Range<usize>,
    segment: Arc<Segment>,
) -> Durable {
    Durable::proven(machine, sequence, change, payload, segment)
}
