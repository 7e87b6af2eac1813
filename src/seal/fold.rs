//! How many bytes of an open batch folding will leave: what its delta will hold at most.
//!
//! Owns: the ranges of each disk that its writes cover. Does not own: which write answers for them
//! (`coalesce`).

use std::collections::BTreeMap;
use std::ops::Range;

use crate::model::{DiskIndex, Extent};

/// Ranges covered by writes, disjoint and not touching.
#[derive(Clone, Debug, Default)]
pub(super) struct Coverage {
    disks: BTreeMap<DiskIndex, BTreeMap<u64, u64>>, // start → end
    bytes: u64,
}

impl Coverage {
    /// Bytes covered.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number alone: nothing more is added, so the ranges are let go.
    pub(super) fn closed(self) -> Self {
        Self { disks: BTreeMap::new(), ..self }
    }

    /// Bytes that a write to `extent` would add.
    pub(super) fn added_by(&self, disk: DiskIndex, extent: Extent) -> u64 {
        let Some(ranges) = self.disks.get(&disk) else { return u64::from(extent.length()) };
        let Range { start, end } = extent.range();
        let covered = |(&from, &to): (&u64, &u64)| to.min(end).saturating_sub(from.max(start));
        let before = ranges.range(..start).next_back().map_or(0, covered);
        u64::from(extent.length()) - before - ranges.range(start..end).map(covered).sum::<u64>()
    }

    /// A write covers `extent`.
    pub(super) fn write(&mut self, disk: DiskIndex, extent: Extent) {
        self.bytes += self.added_by(disk, extent);
        let ranges = self.disks.entry(disk).or_default();
        let Range { mut start, mut end } = extent.range();
        if let Some((&from, &to)) = ranges.range(..start).next_back()
            && to >= start
        {
            ranges.remove(&from);
            (start, end) = (from, end.max(to));
        }
        while let Some((&from, &to)) = ranges.range(start..=end).next() {
            ranges.remove(&from);
            end = end.max(to);
        }
        ranges.insert(start, end);
    }

    /// Zeros take the place of what was written to `extent`.
    pub(super) fn zero(&mut self, disk: DiskIndex, extent: Extent) {
        self.bytes -= u64::from(extent.length()) - self.added_by(disk, extent);
        let Some(ranges) = self.disks.get_mut(&disk) else { return };
        let Range { start, end } = extent.range();
        if let Some((&from, &to)) = ranges.range(..start).next_back()
            && to > start
        {
            ranges.insert(from, start);
            if to > end {
                ranges.insert(end, to);
            }
        }
        while let Some((&from, &to)) = ranges.range(start..end).next() {
            ranges.remove(&from);
            if to > end {
                ranges.insert(end, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against one flag a sector.
    #[test]
    fn counts_what_is_covered() {
        let mut state = 7_u64;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % bound
        };
        for _ in 0..200 {
            let mut coverage = Coverage::default();
            let mut sectors = [[false; 64]; 2];
            for _ in 0..60 {
                let (disk, first) = (next(2) as usize, next(60));
                let count = 1 + next((64 - first).min(12));
                let extent = Extent::new(first * 512, count * 512, 1 << 20).unwrap();
                let covered = &mut sectors[disk][first as usize..(first + count) as usize];
                let written = next(4) > 0;
                let disk = DiskIndex(disk as u16);
                if written {
                    let added = covered.iter().filter(|sector| !**sector).count() as u64 * 512;
                    assert_eq!(coverage.added_by(disk, extent), added);
                    coverage.write(disk, extent);
                } else {
                    coverage.zero(disk, extent);
                }
                covered.fill(written);
                let all = sectors.as_flattened().iter().filter(|sector| **sector).count();
                assert_eq!(coverage.bytes(), all as u64 * 512);
            }
        }
    }
}
