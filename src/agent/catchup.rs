//! Catching up: dirty chunks are read again and placed in the stream, beside live writes. Initial
//! replication is the same with every chunk dirty.
//!
//! Owns: what is read and in which pieces. Does not own: when it may ([`Stream::may_repair`]).

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Clock;
use crate::model::{Change, DiskIndex, Extent, WRITE_BYTES_MAX, ZERO_BYTES_MAX};

use super::beats::returned;
use super::bitmap::Teller;
use super::buffer::cost;
use super::disk::{Disk, cut};
use super::locks::Held;
use super::stream::Stream;

/// Bytes read at a time: a live write into the range waits that long.
const READ_BYTES: u64 = 512 << 10;
/// All-zero runs shorter than this are sent as they are.
const ZERO_PIECE_BYTES: usize = 16 << 10;
/// Pause after the source refused to be read.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Where the next look at the disks begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    disk: usize,
    offset: u64,
}

/// What one step did.
pub(super) enum Step {
    /// A piece is in the stream; go on here.
    Placed(Place),
    /// The stream took nothing; wait.
    Wait(Place),
}

/// Bytes of one read: a quarter of the buffer at most, a chunk at least.
fn read_bytes(stream: &Stream) -> u64 {
    let chunk = |disk: &Arc<Disk>| u64::from(disk.bitmap.identity().chunk_bytes);
    let chunk = stream.disks.first().map_or(READ_BYTES, chunk);
    READ_BYTES.min(stream.lock().buffer.bytes_max() / 4).max(chunk)
}

/// Repairs whatever is dirty, for as long as the agent lives.
pub(super) async fn run(stream: Arc<Stream>, clock: Arc<dyn Clock>) {
    let most = read_bytes(&stream);
    // A read becomes many records when data and zeros alternate.
    let room = most + cost(0) * (most / ZERO_PIECE_BYTES as u64 + 1);
    let mut place = Place::default();
    let mut refused = None;
    loop {
        if !stream.may_repair(room) {
            stream.to_repair.notified().await;
            continue;
        }
        let shared = Arc::clone(&stream);
        let outcome = tokio::task::spawn_blocking(move || step(&shared, place, most)).await;
        let Some(outcome) = returned(outcome) else { return };
        match outcome {
            Ok(step) => {
                let (next, waits) = match step {
                    Step::Placed(next) => (next, false),
                    Step::Wait(next) => (next, true),
                };
                place = next;
                note(&stream, &mut refused, None);
                if waits {
                    stream.to_repair.notified().await;
                }
            }
            Err((disk, error)) => {
                let why = format!("disk {} cannot be read: {error}", disk.name);
                // Its observer has said why already: a guest that is off, for instance.
                let known = stream.lock().withheld.contains_key(&disk.index);
                tracing::debug!(why, known, "the catch-up waits");
                note(&stream, &mut refused, (!known).then_some(why));
                let released = async {
                    while stream.lock().withheld.contains_key(&disk.index) {
                        stream.to_repair.notified().await;
                    }
                };
                tokio::select! {
                    () = clock.sleep(RETRY_PAUSE) => {}
                    () = released, if known => {}
                }
            }
        }
    }
}

/// Says once that a disk cannot be read, and in the status as long as it is so.
fn note(stream: &Stream, refused: &mut Option<String>, why: Option<String>) {
    if *refused == why {
        return;
    }
    if let Some(why) = &why {
        tracing::error!(why, "the catch-up waits");
    }
    stream.note_trouble(why.clone());
    *refused = why;
}

/// Reads and places the next dirty piece; ends the catch-up when there is none.
pub(super) fn step(
    stream: &Stream,
    from: Place,
    most: u64,
) -> Result<Step, (Arc<Disk>, io::Error)> {
    let Some((disk, run)) = next_dirty(stream, from) else {
        stream.end_catch_up();
        return Ok(Step::Wait(Place::default()));
    };
    let named = |error| (Arc::clone(disk), error);
    let index = disk.index;
    let hole = hole_end(disk, &run).map_err(named)?;
    let end = if hole > run.start { hole } else { run.end.min(run.start + most) };
    let held = held_back(disk, run.start..end);
    stream.begin_reading(index, run.start..end);
    // What was a hole may have been written before the reading began.
    let still = hole_end(disk, &(run.start..end)).map_err(named)?;
    let range =
        if still > run.start { run.start..still } else { run.start..end.min(run.start + most) };
    let changes = if still > run.start {
        zeros(index, &range).collect()
    } else {
        read(disk, &range).map_err(named)?
    };
    let placed = stream.tee_repair(index, range.clone(), changes);
    drop(held);
    let disk = usize::from(index.0);
    Ok(if placed {
        let offset = range.end;
        Step::Placed(Place { disk, offset })
    } else {
        let offset = range.start;
        Step::Wait(Place { disk, offset })
    })
}

/// Writes of the range wait until this is dropped, where they come to the agent first. Not those of a
/// guest: its QEMU may be waiting for them, and take no read before it has the answer. They are on the
/// guest's disk when they come, so what is read is as old as they are, or is cut out.
fn held_back(disk: &Disk, range: Range<u64>) -> Option<Held<'_>> {
    let waits = disk.bitmap.identity().teller != Teller::Guest;
    waits.then(|| disk.locks.hold(range))
}

/// The next dirty run at or after `from`, round once.
fn next_dirty(stream: &Stream, from: Place) -> Option<(&Arc<Disk>, Range<u64>)> {
    let disks = stream.disks.len();
    (0..=disks).find_map(|turn| {
        let disk = &stream.disks[(from.disk + turn) % disks];
        let offset = if turn == 0 { from.offset } else { 0 };
        let run = disk.bitmap.next_dirty(offset, u64::from(ZERO_BYTES_MAX))?;
        Some((disk, run))
    })
}

/// End of the whole chunks at the start of `run` of which the file system knows that they were
/// never written; `run.start` when there are none.
fn hole_end(disk: &Disk, run: &Range<u64>) -> io::Result<u64> {
    let data = disk.source.next_data(run.start, run.end)?;
    if data == run.end {
        return Ok(data);
    }
    let chunk = u64::from(disk.bitmap.identity().chunk_bytes);
    Ok(data - data % chunk)
}

fn zeros(disk: DiskIndex, range: &Range<u64>) -> impl Iterator<Item = Change> + use<> {
    let length = range.end - range.start;
    cut(range.start, length, ZERO_BYTES_MAX).map(move |extent| Change::Zero { disk, extent })
}

/// Reads a range into writes, and zeros where it holds nothing else.
fn read(disk: &Disk, range: &Range<u64>) -> io::Result<Vec<Change>> {
    let mut content = vec![0; (range.end - range.start) as usize];
    disk.source.read_at(range.start, &mut content)?;
    let pieces: Vec<(bool, usize)> =
        content.chunks(ZERO_PIECE_BYTES).map(|piece| (is_zero(piece), piece.len())).collect();
    let mut changes = Vec::new();
    let mut at = 0;
    for run in pieces.chunk_by(|one, next| one.0 == next.0) {
        let length: usize = run.iter().map(|piece| piece.1).sum();
        let offset = range.start + at as u64;
        if run[0].0 {
            changes.extend(zeros(disk.index, &(offset..offset + length as u64)));
        } else {
            // Copied, so that a record holds its own bytes and not the whole read.
            let data = Bytes::copy_from_slice(&content[at..at + length]);
            changes.extend(cut(offset, length as u64, WRITE_BYTES_MAX).map(|extent: Extent| {
                let start = (extent.offset() - offset) as usize;
                Change::Write {
                    disk: disk.index,
                    extent,
                    payload: data.slice(start..start + extent.length() as usize).into(),
                }
            }));
        }
        at += length;
    }
    Ok(changes)
}

/// Whether all bytes are zero, a cache line at a time.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}
