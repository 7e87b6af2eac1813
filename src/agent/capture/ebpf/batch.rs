//! What was read from the rings and is not told yet.
//!
//! Owns: that what is told lies in its disk, in pieces that a record of the stream may have. Does not
//! own: telling it ([`super::reader`]).

use std::ops::Range;

use bytes::Bytes;

use crate::agent::disk::cut;
use crate::agent::observed::{Seen, What};
use crate::model::{Change, DiskIndex, Extent, WRITE_BYTES_MAX, ZERO_BYTES_MAX};

/// Records and bytes told at a time: their bits reach the disk together.
const RECORDS_MAX: usize = 1024;
const BYTES_MAX: usize = 8 << 20;

/// Changes in the order in which they were seen.
pub(super) struct Batch {
    disk_bytes: Vec<u64>,
    seen: Vec<Seen>,
    bytes: usize,
}

impl Batch {
    /// An empty one, of disks of these sizes.
    pub(super) fn new(disk_bytes: Vec<u64>) -> Self {
        Self { disk_bytes, seen: Vec::new(), bytes: 0 }
    }

    /// Whether it is time to tell it.
    pub(super) fn is_full(&self) -> bool {
        self.seen.len() >= RECORDS_MAX || self.bytes >= BYTES_MAX
    }

    /// What it holds; it is empty then.
    pub(super) fn take(&mut self) -> Vec<Seen> {
        self.bytes = 0;
        std::mem::take(&mut self.seen)
    }

    pub(super) fn write(&mut self, disk: u16, range: Range<u64>, bytes: &Bytes) {
        self.bytes += bytes.len();
        let start = range.start;
        self.change(disk, range, WRITE_BYTES_MAX, |disk, extent| {
            let at = (extent.offset() - start) as usize;
            let payload = bytes.slice(at..at + extent.length() as usize).into();
            Change::Write { disk, extent, payload }
        });
    }

    pub(super) fn zero(&mut self, disk: u16, range: Range<u64>) {
        self.change(disk, range, ZERO_BYTES_MAX, |disk, extent| Change::Zero { disk, extent });
    }

    pub(super) fn unknown(&mut self, disk: u16, range: Range<u64>, why: &'static str) {
        // A disk that is none of ours has no size.
        let size = self.disk_bytes.get(usize::from(disk)).copied().unwrap_or_default();
        let range = range.start.min(size)..range.end.min(size);
        if range.start < range.end {
            let what = What::Unordered(why);
            self.seen.push(Seen { disk: DiskIndex(disk), range, what });
        }
    }

    fn change(
        &mut self,
        disk: u16,
        range: Range<u64>,
        most: u32,
        change: impl Fn(DiskIndex, Extent) -> Change,
    ) {
        let size = self.disk_bytes.get(usize::from(disk)).copied().unwrap_or_default();
        if range.end > size {
            self.unknown(disk, range.start..size, "a write passed the end of the disk");
            return;
        }
        let disk = DiskIndex(disk);
        let parts = cut(range.start, range.end - range.start, most);
        self.seen.extend(parts.map(|extent| {
            let what = What::Change(change(disk, extent));
            Seen { disk, range: extent.range(), what }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_lies_in_its_disk_in_pieces_of_the_stream() {
        let disk = u64::from(WRITE_BYTES_MAX) + 8192;
        let mut batch = Batch::new(vec![512, disk]);
        let bytes: Vec<u8> = (0..disk - 4096).map(|at| (at / 512) as u8).collect();
        batch.write(1, 4096..disk, &bytes.clone().into());
        batch.zero(1, 0..512);
        batch.zero(1, disk - 512..disk + 512); // it has shrunk, or is another
        batch.unknown(1, disk - 1024..disk + 512, "unknown");
        batch.unknown(1, disk..disk + 512, "nothing of it is ours");
        batch.write(2, 0..512, &Bytes::from(vec![0; 512])); // nor is this disk
        let seen = batch.take();
        let mut written = Vec::new();
        let places: Vec<_> = seen.iter().map(|one| (one.disk.0, one.range.clone())).collect();
        for one in &seen {
            match &one.what {
                What::Change(Change::Write { disk, extent, payload }) => {
                    assert_eq!((*disk, extent.range()), (one.disk, one.range.clone()));
                    written.extend_from_slice(&payload.to_bytes());
                }
                What::Change(Change::Zero { .. }) => assert_eq!(one.range, 0..512),
                What::Change(other) => panic!("{other:?}"),
                What::Unordered(_) => assert!(one.range.start >= disk - 1024),
            }
        }
        let cut = 4096 + u64::from(WRITE_BYTES_MAX);
        let expected = [4096..cut, cut..disk, 0..512, disk - 512..disk, disk - 1024..disk];
        assert_eq!(places, expected.map(|range| (1, range)));
        assert!(written == bytes && batch.take().is_empty());
    }
}
