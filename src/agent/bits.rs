//! A set of chunk numbers, stored as the bitmap file stores it: pages of whole words.

use std::ops::Range;

/// Words of a page of the bitmap file: 512 bytes less its 8-byte header.
pub(super) const PAGE_WORDS: usize = 63;
/// Chunks of a page.
pub(super) const PAGE_CHUNKS: u64 = PAGE_WORDS as u64 * 64;

/// A set of chunk numbers below a fixed length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    words: Vec<u64>,
    length: u64,
    count: u64,
}

impl Bits {
    /// The empty set of numbers below `length`.
    pub(super) fn new(length: u64) -> Self {
        let pages = length.div_ceil(PAGE_CHUNKS) as usize;
        Self { words: vec![0; pages * PAGE_WORDS], length, count: 0 }
    }

    /// How many numbers are in it.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// One past the largest number that can be in it.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Pages it is made of.
    pub(super) fn pages(&self) -> u32 {
        (self.words.len() / PAGE_WORDS) as u32
    }

    /// Whether every number of `range` is in it.
    pub(super) fn contains_all(&self, range: Range<u64>) -> bool {
        masks(range).all(|(word, mask)| self.words[word] & mask == mask)
    }

    /// Puts every number of `range` in.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        let range = range.start..range.end.min(self.length);
        for (word, mask) in masks(range) {
            self.count += u64::from((mask & !self.words[word]).count_ones());
            self.words[word] |= mask;
        }
    }

    /// Takes every number of `range` out.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        for (word, mask) in masks(range) {
            self.count -= u64::from((mask & self.words[word]).count_ones());
            self.words[word] &= !mask;
        }
    }

    /// Puts every possible number in.
    pub(super) fn fill(&mut self) {
        self.insert(0..self.length);
    }

    /// Empties it.
    pub(super) fn clear(&mut self) {
        self.words.fill(0);
        self.count = 0;
    }

    /// Becomes equal to `other`.
    pub(super) fn copy_from(&mut self, other: &Self) {
        self.words.copy_from_slice(&other.words);
        self.count = other.count;
    }

    /// First run of numbers in it at or after `from`, at most `most` long.
    pub(super) fn next_run(&self, from: u64, most: u64) -> Option<Range<u64>> {
        let mut word = (from / 64) as usize;
        let mut left = *self.words.get(word)? & (u64::MAX << (from % 64));
        while left == 0 {
            word += 1;
            left = *self.words.get(word)?;
        }
        let start = word as u64 * 64 + u64::from(left.trailing_zeros());
        let limit = start.saturating_add(most).min(self.length);
        let mut end = start;
        while end < limit {
            let ones =
                u64::from((!(self.words[(end / 64) as usize] >> (end % 64))).trailing_zeros());
            let reached = end + ones.min(64 - end % 64);
            if reached == end {
                break;
            }
            end = reached;
        }
        Some(start..end.min(limit))
    }

    /// The words of one page.
    pub(super) fn page(&self, page: u32) -> &[u64] {
        let start = page as usize * PAGE_WORDS;
        &self.words[start..start + PAGE_WORDS]
    }

    /// Replaces the words of one page; numbers that cannot be in the set stay out.
    pub(super) fn replace_page(&mut self, page: u32, words: &[u64]) {
        let first = u64::from(page) * PAGE_CHUNKS;
        self.remove(first..(first + PAGE_CHUNKS).min(self.length));
        let start = page as usize * PAGE_WORDS;
        for (at, &value) in words.iter().enumerate() {
            let base = (start + at) as u64 * 64;
            let possible = match self.length.saturating_sub(base) {
                0 => 0,
                1..64 => (1 << (self.length - base)) - 1,
                _ => u64::MAX,
            };
            self.words[start + at] = value & possible;
            self.count += u64::from((value & possible).count_ones());
        }
    }
}

/// The words that a range touches, with the bits it touches in each.
fn masks(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let words = if range.is_empty() { 0..0 } else { range.start / 64..range.end.div_ceil(64) };
    words.map(move |word| {
        let from = range.start.saturating_sub(word * 64).min(63);
        let to = (range.end - word * 64).min(64);
        let upper = if to == 64 { u64::MAX } else { (1 << to) - 1 };
        (word as usize, upper & (u64::MAX << from))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn equals_a_set_of_numbers(
            ops in prop::collection::vec((0u64..9000, 0u64..300, any::<bool>()), 0..40),
            from in 0u64..9000, most in 1u64..200,
        ) {
            let (mut bits, mut model) = (Bits::new(8100), BTreeSet::new());
            for (start, length, put) in ops {
                let range = start.min(8100)..(start + length).min(8100);
                if put {
                    bits.insert(range.clone());
                    model.extend(range.clone());
                    prop_assert!(bits.contains_all(range));
                } else {
                    bits.remove(range.clone());
                    model.retain(|n| !range.contains(n));
                }
                prop_assert_eq!(bits.count(), model.len() as u64);
            }
            let expected = model.range(from..).next().map(|&start| {
                let end = (start..).find(|n| !model.contains(n)).unwrap();
                start..end.min(start + most)
            });
            prop_assert_eq!(bits.next_run(from, most), expected);
            let mut copy = Bits::new(8100);
            for page in 0..bits.pages() {
                copy.replace_page(page, bits.page(page));
            }
            prop_assert_eq!(copy, bits);
        }
    }
}
