//! A plan onto the seed disks: frames fetched and opened, page writes in bounded parallel.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::bodies::Bodies;
use super::error::ApplyError;
use super::plan::{Plan, Planned, Source};
use super::seed::{SeedDisk, SeedDisks};
use crate::model::MachineId;
use crate::places::{Place, reached};
use crate::seal::{OpenDelta, SealError};
use crate::store::{PageBody, PageWrite, Store, StoreError};

/// Opened frames of a run by (delta, frame).
type Frames = BTreeMap<(usize, u32), Bytes>;
/// Some of them, just opened.
type Fetched = Result<Vec<((usize, u32), Bytes)>, SealError>;

/// Writes one batch of page writes of this many bytes at a time.
const BATCH_BYTES: u64 = 8 << 20;
/// Sealed frames are fetched so many bytes at a time.
const FETCH_BYTES: u64 = 1 << 20;

/// What bounds the memory of a run's writes.
#[derive(Clone, Copy)]
pub(super) struct Memory<'a> {
    /// In flight at once.
    pub(super) streams: usize,
    /// Joined in these.
    pub(super) bodies: &'a Bodies,
}

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
    memory: Memory<'_>,
) -> Result<u64, ApplyError> {
    let Memory { streams, bodies } = memory;
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
            let body = |planned| page_write(planned, frames, bodies);
            let writes: Vec<PageWrite> = part.iter().map(body).collect();
            reached(Place::WritePages);
            let done = store.write_pages(&disk.object, &writes, seed.guard()).await;
            bodies.give_back(writes);
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

/// Fetches exactly the frames that survive coalescing, neighbours in one request.
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
    let sealed_bytes = |delta: usize, frame: u32| {
        let entry = deltas[delta].index().frames.get(frame as usize);
        entry.map_or(0, |entry| u64::from(entry.sealed_bytes))
    };
    let mut fetching: Vec<BoxFuture<'_, Fetched>> = Vec::new();
    for (delta, range) in neighbours(&wanted, sealed_bytes) {
        fetching.push(Box::pin(async move {
            let opened = deltas[delta].frames_range(store.as_ref(), range.clone()).await?;
            Ok(range.map(|frame| (delta, frame)).zip(opened).collect())
        }));
    }
    let fetched = stream::iter(fetching).buffer_unordered(streams);
    let fetched = fetched.try_collect::<Vec<Vec<_>>>().await;
    let fetched =
        fetched.map_err(|source| ApplyError::Frame { machine: machine.clone(), source })?;
    Ok(fetched.into_iter().flatten().collect())
}

/// Frames that follow each other in one delta, as long as they are about [`FETCH_BYTES`] together.
fn neighbours(
    wanted: &BTreeSet<(usize, u32)>,
    sealed_bytes: impl Fn(usize, u32) -> u64,
) -> Vec<(usize, Range<u32>)> {
    let mut runs: Vec<(usize, Range<u32>)> = Vec::new();
    let mut bytes = 0;
    for &(delta, frame) in wanted {
        let more = sealed_bytes(delta, frame);
        match runs.last_mut() {
            Some((of, run)) if (*of, run.end) == (delta, frame) && bytes + more <= FETCH_BYTES => {
                run.end += 1;
                bytes += more;
            }
            _ => {
                runs.push((delta, frame..frame + 1));
                bytes = more;
            }
        }
    }
    runs
}

/// The body of one page write: the frame's own bytes where one part suffices, else joined.
fn page_write(planned: &Planned, frames: &Frames, bodies: &Bodies) -> PageWrite {
    let slice = |range: &Range<u64>, source: Source| match source {
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
    let mut body = bodies.take((planned.range.end - offset) as usize);
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

    #[test]
    fn neighbours_are_fetched_together_and_gaps_are_not_read() {
        let wanted = [(0, 0), (0, 1), (0, 3), (0, 4), (0, 5), (1, 6), (1, 7)].into();
        let runs = |bytes: u64| neighbours(&wanted, move |_, _| bytes);
        assert_eq!(runs(1), [(0, 0..2), (0, 3..6), (1, 6..8)]);
        assert_eq!(runs(FETCH_BYTES / 2), [(0, 0..2), (0, 3..5), (0, 5..6), (1, 6..8)]);
        assert_eq!(runs(2 * FETCH_BYTES).len(), 7, "one that is longer goes alone");
    }
}
