//! What of a batch is worth keeping: last writer wins, zeros cost nothing.
//!
//! Owns: folding overlapping writes (unless every write is kept), recognising zeros.
//! Does not own: frames, bytes on their way out.

use std::collections::BTreeMap;

use super::batch::Batch;
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

/// Splits a batch into the pieces that a delta keeps, ascending by sequence (within one record by
/// place), and its marks.
pub(super) fn coalesce(batch: &Batch, keep_every_write: bool) -> (Vec<Piece<'_>>, Vec<Mark>) {
    let mut marks = Vec::new();
    let mut written = Vec::with_capacity(batch.items().len());
    for item in batch.items() {
        match item.change() {
            DurableChange::Mark(change) => {
                marks.push(Mark { sequence: item.sequence(), change: change.clone() })
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

/// Whether all bytes are zeros. Looks at the first few alone, where most other content ends it.
fn is_zero(bytes: &[u8]) -> bool {
    let none_set = |part: &[u8]| part.iter().fold(0, |seen, byte| seen | byte) == 0;
    none_set(&bytes[..bytes.len().min(16)]) && bytes.chunks(256).all(none_set)
}

#[cfg(test)]
#[path = "coalesce_tests.rs"]
mod tests;
