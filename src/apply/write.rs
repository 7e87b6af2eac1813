//! A plan onto the seed disks: frames fetched and opened, page writes in bounded parallel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::error::ApplyError;
use super::plan::{Plan, Planned, Source};
use super::seed::{SeedDisk, SeedDisks};
use crate::model::MachineId;
use crate::seal::{OpenDelta, SealError};
use crate::store::{PageBody, PageWrite, Store, StoreError};

/// Opened frames of a run by (delta, frame).
type Frames = BTreeMap<(usize, u32), Bytes>;
/// One of them, just opened.
type Fetched = Result<((usize, u32), Bytes), SealError>;

/// Writes one batch of page writes of this many bytes at a time.
const BATCH_BYTES: u64 = 8 << 20;

/// Writes the plan. Returns the bytes written. Nothing is durable before the caller flushes.
pub(super) async fn write(
    store: &Arc<dyn Store>,
    machine: &MachineId,
    seed: &SeedDisks,
    deltas: &[OpenDelta],
    plan: &Plan,
    streams: usize,
) -> Result<u64, ApplyError> {
    let frames = fetch(store, machine, deltas, plan, streams).await?;
    let mut batches: Vec<(&SeedDisk, &[Planned])> = Vec::new();
    for (index, planned) in &plan.disks {
        let disk = seed.disk(*index).ok_or_else(|| ApplyError::UnknownDisk {
            machine: machine.clone(),
            sequence: deltas.last().map_or(Default::default(), |d| d.header().last),
            disk: *index,
            epoch: seed.epoch,
        })?;
        batches.extend(split(planned).into_iter().map(|part| (disk, part)));
    }
    let mut writing: Vec<BoxFuture<'_, Result<u64, StoreError>>> = Vec::new();
    for (disk, part) in batches {
        let frames = &frames;
        writing.push(Box::pin(async move {
            let writes: Vec<PageWrite> = part.iter().map(|p| page_write(p, frames)).collect();
            store.write_pages(&disk.object, &writes, seed.guard()).await?;
            Ok(part.iter().map(|p| p.range.end - p.range.start).sum::<u64>())
        }));
    }
    let written = stream::iter(writing)
        .buffer_unordered(streams)
        .try_fold(0, |sum, bytes| async move { Ok(sum + bytes) })
        .await;
    written.map_err(|source| ApplyError::Store { machine: machine.clone(), source })
}

/// Consecutive writes of about [`BATCH_BYTES`] (zeros count nothing: they are cleared, not sent).
fn split(planned: &[Planned]) -> Vec<&[Planned]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, write) in planned.iter().enumerate() {
        let cost = if write.is_zero() { 0 } else { write.range.end - write.range.start };
        if at > start && bytes + cost > BATCH_BYTES {
            parts.push(&planned[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += cost;
    }
    parts.push(&planned[start..]);
    parts
}

/// Fetches exactly the frames that survive coalescing.
async fn fetch(
    store: &Arc<dyn Store>,
    machine: &MachineId,
    deltas: &[OpenDelta],
    plan: &Plan,
    streams: usize,
) -> Result<Frames, ApplyError> {
    let sources = plan.disks.values().flatten().flat_map(|planned| &planned.parts);
    let wanted: BTreeSet<(usize, u32)> = sources
        .filter_map(|(_, source)| match *source {
            Source::Zero => None,
            Source::Frame { delta, frame, .. } => Some((delta, frame)),
        })
        .collect();
    let mut fetching: Vec<BoxFuture<'_, Fetched>> = Vec::new();
    for (delta, frame) in wanted {
        fetching.push(Box::pin(async move {
            let opened = deltas[delta].frame(store.as_ref(), frame).await?;
            Ok(((delta, frame), opened))
        }));
    }
    let fetched = stream::iter(fetching).buffer_unordered(streams).try_collect().await;
    fetched.map_err(|source| ApplyError::Frame { machine: machine.clone(), source })
}

/// The body of one page write: the frame's own bytes where one part suffices, else joined.
fn page_write(planned: &Planned, frames: &Frames) -> PageWrite {
    let slice = |range: &std::ops::Range<u64>, source: Source| match source {
        Source::Zero => Bytes::new(),
        Source::Frame { delta, frame, offset } => {
            let start = offset as usize;
            let length = (range.end - range.start) as usize;
            // The index was checked against the frame's plaintext length when it was opened.
            frames[&(delta, frame)].slice(start..start + length)
        }
    };
    let offset = planned.range.start;
    if planned.is_zero() {
        return PageWrite { offset, body: PageBody::Clear(planned.range.end - offset) };
    }
    if let [(range, source)] = planned.parts.as_slice() {
        return PageWrite { offset, body: PageBody::Data(slice(range, *source)) };
    }
    let mut body = BytesMut::with_capacity((planned.range.end - offset) as usize);
    for (range, source) in &planned.parts {
        body.extend_from_slice(&slice(range, *source));
    }
    PageWrite { offset, body: PageBody::Data(body.freeze()) }
}
