//! Which source answers for which bytes of a disk: last writer wins.
//!
//! Used wherever writes overlap: coalescing in a batch, the applier's plan, reading a point.

use std::collections::BTreeMap;
use std::ops::Range;

/// A value that describes a run of bytes and can be cut.
pub trait Slice: Clone {
    /// The value for the part that begins `skip` bytes after this value's start.
    #[must_use]
    fn skip(&self, skip: u64) -> Self;
}

/// Non-overlapping ranges, each with the value that was inserted last over it.
#[derive(Clone, Debug)]
pub struct ExtentMap<V> {
    ranges: BTreeMap<u64, (u64, V)>, // start → (end, value)
}

impl<V> Default for ExtentMap<V> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new() }
    }
}

impl<V: Slice> ExtentMap<V> {
    /// Puts `value` over `range`, cutting or replacing what lay there. Empty ranges change nothing.
    pub fn insert(&mut self, range: Range<u64>, value: V) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone());
        self.ranges.insert(range.start, (range.end, value));
    }

    /// Takes `range` out, cutting what reaches into it.
    pub fn remove(&mut self, range: Range<u64>) {
        let before = self.ranges.range(..range.start).next_back();
        if let Some((&start, &(end, ref value))) = before
            && end > range.start
        {
            let value = value.clone();
            if end > range.end {
                self.ranges.insert(range.end, (end, value.skip(range.end - start)));
            }
            self.ranges.insert(start, (range.start, value));
        }
        while let Some((&start, &(end, _))) = self.ranges.range(range.clone()).next() {
            let (_, value) = self.ranges.remove(&start).expect("the key was just seen");
            if end > range.end {
                self.ranges.insert(range.end, (end, value.skip(range.end - start)));
            }
        }
    }

    /// Covers `range` completely and in order: `Some(value)` where the map answers (already cut to
    /// the part), `None` for holes.
    pub fn read(&self, range: Range<u64>) -> Vec<(Range<u64>, Option<V>)> {
        let mut parts = Vec::new();
        let mut at = range.start;
        let first = self.ranges.range(..=range.start).next_back().map_or(range.start, |(&s, _)| s);
        for (&start, &(end, ref value)) in self.ranges.range(first..range.end.max(first)) {
            if end <= at {
                continue;
            }
            if start > at {
                parts.push((at..start, None));
            }
            let from = start.max(at);
            let to = end.min(range.end);
            parts.push((from..to, Some(value.skip(from - start))));
            at = to;
        }
        if at < range.end {
            parts.push((at..range.end, None));
        }
        parts
    }

    /// All ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = (Range<u64>, &V)> {
        self.ranges.iter().map(|(&start, (end, value))| (start..*end, value))
    }

    /// Number of ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing was inserted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug, PartialEq)]
    struct At(u64);
    impl Slice for At {
        fn skip(&self, skip: u64) -> Self {
            At(self.0 + skip)
        }
    }

    proptest! {
        #[test]
        fn equals_an_array(ops in prop::collection::vec((0u64..64, 0u64..24, any::<bool>()), 0..40)) {
            let mut map = ExtentMap::default();
            let mut array = [None; 96];
            for (n, (start, len, put)) in ops.into_iter().enumerate() {
                let base = 1_000 * n as u64;
                if put { map.insert(start..start + len, At(base)); } else { map.remove(start..start + len); }
                for at in start..start + len {
                    array[at as usize] = put.then_some(base + at - start);
                }
            }
            for start in 0..96u64 {
                let mut at = start;
                for (range, value) in map.read(start..96) {
                    prop_assert_eq!(range.start, at);
                    for byte in range.clone() {
                        let expected = array[byte as usize];
                        prop_assert_eq!(value.as_ref().map(|v| v.0 + byte - range.start), expected);
                    }
                    at = range.end;
                }
                prop_assert_eq!(at, 96);
            }
        }
    }
}
