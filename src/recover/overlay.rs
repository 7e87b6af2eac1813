//! What was written to a mounted point: a sparse file that nobody else can open, and a bit for
//! each granule that it holds. The point below never changes.
//!
//! It lives as long as the mount and is meant to be lost with it, so nothing is ever synced.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{FallocateFlags, fallocate};

/// Bytes that one bit stands for: small writes stay small, 1 TiB has 32 MiB of bits, and pages of
/// bits that were never set cost nothing.
pub(super) const GRANULE_BYTES: u64 = 4096;

/// The written part of a disk.
#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    size_bytes: u64,
    written: RwLock<Bits>,
}

/// New content of a range.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    Bytes(&'a [u8]),
    Zeros(u64),
}

impl Overlay {
    pub(super) fn create(directory: &Path, size_bytes: u64) -> io::Result<Self> {
        let file = tempfile::tempfile_in(directory)?;
        file.set_len(size_bytes)?;
        Ok(Self {
            file,
            size_bytes,
            written: RwLock::new(Bits::new(size_bytes.div_ceil(GRANULE_BYTES))),
        })
    }

    /// Fills what was written; gives the ranges that are still the point's.
    pub(super) fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<Vec<Range<u64>>> {
        let range = offset..offset + target.len() as u64;
        let written = self.bits(); // held while reading: a granule is never seen half written
        let mut missing = Vec::new();
        for (part, here) in written.parts(range) {
            if here {
                let place = (part.start - offset) as usize..(part.end - offset) as usize;
                self.file.read_exact_at(&mut target[place], part.start)?;
            } else {
                missing.push(part);
            }
        }
        Ok(missing)
    }

    /// Whether each part of a range was written, in order.
    pub(super) fn parts(&self, range: Range<u64>) -> Vec<(Range<u64>, bool)> {
        self.bits().parts(range)
    }

    /// Granules that a write of `range` covers only in part and that are still the point's: their
    /// content must come along with the write.
    pub(super) fn edges(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let bits = self.bits();
        let first = range.start / GRANULE_BYTES;
        let last = (range.end - 1) / GRANULE_BYTES;
        let mut edges = Vec::new();
        for granule in [first, last] {
            let whole = self.granule(granule);
            let partly = whole.start < range.start || whole.end > range.end;
            if partly && !bits.is_set(granule) && edges.last() != Some(&whole) {
                edges.push(whole);
            }
        }
        edges
    }

    /// Writes `content` at `offset`, over the point's content of the [`Overlay::edges`].
    pub(super) fn write(
        &self,
        offset: u64,
        content: Content<'_>,
        edges: &[(u64, bytes::Bytes)],
    ) -> io::Result<()> {
        let mut bits = self.bits_mut();
        for (start, bytes) in edges {
            // Somebody may have written the granule since it was fetched: theirs is newer.
            if !bits.is_set(start / GRANULE_BYTES) {
                self.file.write_all_at(bytes, *start)?;
            }
        }
        let length = match content {
            Content::Bytes(bytes) => {
                self.file.write_all_at(bytes, offset)?;
                bytes.len() as u64
            }
            Content::Zeros(length) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&self.file, flags, offset, length)?;
                length
            }
        };
        for granule in offset / GRANULE_BYTES..(offset + length).div_ceil(GRANULE_BYTES) {
            bits.set(granule);
        }
        Ok(())
    }

    fn granule(&self, number: u64) -> Range<u64> {
        let start = number * GRANULE_BYTES;
        start..(start + GRANULE_BYTES).min(self.size_bytes)
    }

    fn bits(&self) -> RwLockReadGuard<'_, Bits> {
        self.written.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn bits_mut(&self) -> RwLockWriteGuard<'_, Bits> {
        self.written.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One bit a granule.
#[derive(Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(count: u64) -> Self {
        Self(vec![0; count.div_ceil(64) as usize])
    }

    fn is_set(&self, granule: u64) -> bool {
        self.0[(granule / 64) as usize] & (1 << (granule % 64)) != 0
    }

    fn set(&mut self, granule: u64) {
        self.0[(granule / 64) as usize] |= 1 << (granule % 64);
    }

    /// Runs of equal bits within `range`, cut to it.
    fn parts(&self, range: Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut parts: Vec<(Range<u64>, bool)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let granule = at / GRANULE_BYTES;
            let end = ((granule + 1) * GRANULE_BYTES).min(range.end);
            let set = self.is_set(granule);
            match parts.last_mut() {
                Some((last, same)) if *same == set => last.end = end,
                _ => parts.push((at..end, set)),
            }
            at = end;
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_writes_to_one_granule_both_stay() {
        let overlay = Overlay::create(&std::env::temp_dir(), GRANULE_BYTES).unwrap();
        let edges = |range| overlay.edges(&range);
        let point = |edges: Vec<Range<u64>>| -> Vec<_> {
            edges.iter().map(|edge| (edge.start, vec![9; 4096].into())).collect()
        };
        // Both fetched the granule's content before either wrote.
        let (first, second) = (point(edges(0..512)), point(edges(512..1024)));
        overlay.write(0, Content::Bytes(&[1; 512]), &first).unwrap();
        overlay.write(512, Content::Bytes(&[2; 512]), &second).unwrap();
        let mut read = [0; 1536];
        assert_eq!(overlay.read(0, &mut read).unwrap(), []);
        assert_eq!((read[0], read[512], read[1024]), (1, 2, 9));
    }
}
