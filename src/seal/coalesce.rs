//! What of a batch is worth keeping: last writer wins, zeros cost nothing.
//!
//! Owns: folding overlapping writes (unless every write is kept), recognising zeros.
//! Does not own: frames, bytes on their way out.

use std::collections::BTreeMap;
use std::ops::Range;

use super::batch::{BATCH_BYTES_MAX, Batch};
use crate::cache::{Durable, DurableChange};
use crate::format::delta::Mark;
use crate::model::{DiskIndex, Extent, ExtentMap, Sequence, Slice, ZERO_BYTES_MAX};

/// One run of bytes that goes into the delta.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) sequence: Sequence,
    pub(super) disk: DiskIndex,
    pub(super) extent: Extent,
    /// `None`: zeros.
    pub(super) bytes: Option<&'a [u8]>,
}

/// Where the bytes of a surviving range come from.
#[derive(Clone, Copy)]
struct Origin<'a> {
    sequence: Sequence,
    bytes: Option<&'a [u8]>,
}

impl Slice for Origin<'_> {
    fn skip(&self, skip: u64) -> Self {
        // The map cuts values within their range, so `skip` is below the payload's length; a cut
        // at the end is applied by whoever knows the range.
        let bytes = self.bytes.map(|bytes| &bytes[skip as usize..]);
        Self { bytes, ..*self }
    }
}

/// Zeros in a payload that are worth an entry of their own: they then cost neither zstd nor a frame.
const ZERO_RUN: usize = 32 << 10;
/// Unit in which zeros are looked for; a page of most file systems.
const ZERO_UNIT: usize = 4 << 10;
/// Most pieces that runs of zeros add to a batch: each run and what follows it.
pub(super) const ZERO_PIECES_MAX: usize = 2 * (BATCH_BYTES_MAX as usize / ZERO_RUN);

/// Splits a batch into the pieces that a delta keeps, ascending by sequence (within one record by
/// place), and its marks.
pub(super) fn coalesce(batch: &Batch, keep_every_write: bool) -> (Vec<Piece<'_>>, Vec<Mark>) {
    let mut marks = Vec::new();
    let mut written = Vec::with_capacity(batch.items().len());
    for item in batch.items() {
        match item.change() {
            DurableChange::Mark(change) => {
                marks.push(Mark { sequence: item.sequence(), change: (**change).clone() })
            }
            DurableChange::Write { disk, extent } => {
                written.push(piece(item, *disk, *extent, Some(item.payload())));
            }
            DurableChange::Zero { disk, extent } => written.push(piece(item, *disk, *extent, None)),
        }
    }
    let mut pieces = match keep_every_write {
        true => written,
        false => last_writer_wins(&written),
    };
    for piece in &mut pieces {
        piece.bytes = piece.bytes.filter(|bytes| !is_zero(bytes));
    }
    if pieces.iter().any(has_zero_run) {
        pieces = pieces.iter().flat_map(without_zero_runs).collect();
    }
    (pieces, marks)
}

fn piece<'a>(
    item: &Durable,
    disk: DiskIndex,
    extent: Extent,
    bytes: Option<&'a [u8]>,
) -> Piece<'a> {
    Piece { sequence: item.sequence(), disk, extent, bytes }
}

fn last_writer_wins<'a>(written: &[Piece<'a>]) -> Vec<Piece<'a>> {
    let mut disks: BTreeMap<DiskIndex, ExtentMap<Origin<'a>>> = BTreeMap::new();
    for piece in written {
        let origin = Origin { sequence: piece.sequence, bytes: piece.bytes };
        let map = disks.entry(piece.disk).or_default();
        map.insert(piece.extent.range(), origin);
    }
    let mut pieces = Vec::with_capacity(written.len());
    for (&disk, map) in &disks {
        for (range, origin) in map.iter() {
            let length = range.end - range.start;
            let extent = Extent::new(range.start, length, ZERO_BYTES_MAX)
                .expect("a part of a legal extent, cut where legal extents begin and end");
            pieces.push(Piece {
                sequence: origin.sequence,
                disk,
                extent,
                bytes: origin.bytes.map(|bytes| &bytes[..length as usize]),
            });
        }
    }
    pieces.sort_unstable_by_key(|piece| (piece.sequence, piece.disk, piece.extent.offset()));
    pieces
}

fn has_zero_run(piece: &Piece<'_>) -> bool {
    piece.bytes.is_some_and(|bytes| zero_runs(bytes).next().is_some())
}

/// The piece, cut at its runs of zeros.
fn without_zero_runs<'a>(piece: &Piece<'a>) -> Vec<Piece<'a>> {
    let Some(bytes) = piece.bytes else { return vec![*piece] };
    let mut parts = Vec::new();
    let mut part = |range: Range<usize>, zero: bool| {
        if range.is_empty() {
            return;
        }
        let (offset, length) = (piece.extent.offset() + range.start as u64, range.len() as u64);
        let extent = Extent::new(offset, length, ZERO_BYTES_MAX)
            .expect("a part of a legal extent, cut at multiples of a page from its start");
        parts.push(Piece { extent, bytes: (!zero).then_some(&bytes[range]), ..*piece });
    };
    let mut at = 0;
    for run in zero_runs(bytes) {
        part(at..run.start, false);
        at = run.end;
        part(run, true);
    }
    part(at..bytes.len(), false);
    parts
}

/// Runs of at least [`ZERO_RUN`] zeros, in whole units.
fn zero_runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut units = (0..bytes.len() / ZERO_UNIT).map(|unit| unit * ZERO_UNIT);
    let zero = |at: usize| is_zero(&bytes[at..at + ZERO_UNIT]);
    std::iter::from_fn(move || {
        loop {
            let start = units.by_ref().find(|at| zero(*at))?;
            let more = units.by_ref().take_while(|at| zero(*at)).count();
            let end = start + (1 + more) * ZERO_UNIT;
            if end - start >= ZERO_RUN {
                return Some(start..end);
            }
        }
    })
}

/// Whether all bytes are zeros. Looks at the first few alone, where most other content ends it.
fn is_zero(bytes: &[u8]) -> bool {
    let none_set = |part: &[u8]| part.iter().fold(0, |seen, byte| seen | byte) == 0;
    none_set(&bytes[..bytes.len().min(16)]) && bytes.chunks(256).all(none_set)
}

#[cfg(test)]
#[path = "coalesce_tests.rs"]
mod tests;
