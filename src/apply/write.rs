//! A plan onto the seed disks: frames fetched and opened, page writes in bounded parallel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
///
/// When a write fails no further one begins, and those that have begun are waited for: one that
/// was left on its way could land after a newer write to the same place.
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
    let stopped = AtomicBool::new(false);
    let mut writing: Vec<BoxFuture<'_, Result<u64, StoreError>>> = Vec::new();
    for (disk, part) in batches {
        let (frames, stopped) = (&frames, &stopped);
        writing.push(Box::pin(async move {
            if stopped.load(Ordering::Relaxed) {
                return Ok(0);
            }
            let writes: Vec<PageWrite> = part.iter().map(|p| page_write(p, frames)).collect();
            let done = store.write_pages(&disk.object, &writes, seed.guard()).await;
            stopped.fetch_or(done.is_err(), Ordering::Relaxed);
            done.map(|()| part.iter().map(|p| p.range.end - p.range.start).sum::<u64>())
        }));
    }
    let ended: Vec<_> = stream::iter(writing).buffer_unordered(streams).collect().await;
    let written = ended.into_iter().sum::<Result<u64, StoreError>>();
    written.map_err(|source| ApplyError::Store { machine: machine.clone(), source })
}

/// Consecutive writes of about [`BATCH_BYTES`]. Zeros count as much as bytes do: a store may have
/// to keep for its snapshots all that they cover, under the lock of one call.
fn split(planned: &[Planned]) -> Vec<&[Planned]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, write) in planned.iter().enumerate() {
        let cost = write.range.end - write.range.start;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_fill_a_batch_as_bytes_do() {
        let mib = 1_u64 << 20;
        let zeros = |start: u64, length: u64| {
            let range = start * mib..(start + length) * mib;
            Planned { range: range.clone(), parts: vec![(range, Source::Zero)] }
        };
        let planned = [zeros(0, 64), zeros(64, 64), zeros(200, 3), zeros(210, 3), zeros(220, 3)];
        let sizes: Vec<usize> = split(&planned).iter().map(|part| part.len()).collect();
        assert_eq!(sizes, [1, 1, 2, 1]);
    }
}
