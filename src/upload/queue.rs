//! Parallel uploads, ordered retirement.
//!
//! Owns: the records of every delta that is not published yet; they stay here while their bytes
//! travel. Does not own: uploading, the manifest.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::Sequence;
use crate::seal::Sealed;

/// A delta that no manifest names yet, with the records that only the cache log keeps.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) sealed: Sealed,
    /// Whether its object stands in the store.
    pub(super) uploaded: bool,
    /// Monotonic time at which it was accepted.
    pub(super) accepted_at: Duration,
}

impl Waiting {
    pub(super) fn place(&self) -> Place {
        let entry = self.sealed.entry();
        Place { first: entry.first, last: entry.last, uploaded: self.uploaded }
    }
}

/// Where a waiting delta is and whether its object stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    pub(super) uploaded: bool,
}

/// How many of `waiting` (ascending) may be published now: the longest run that begins right after
/// `published`, has no gap, and stands in the store. The only rule of what may overtake what.
pub(super) fn publishable(published: Sequence, waiting: impl Iterator<Item = Place>) -> usize {
    let mut end = published;
    let mut count = 0;
    for place in waiting {
        if !place.uploaded || place.first != end.next() {
            break;
        }
        end = place.last;
        count += 1;
    }
    count
}

/// All deltas of one machine that are not published, by first record.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: BTreeMap<Sequence, Waiting>,
}

impl Queue {
    /// Takes a delta in; gives it back when its records overlap those of another.
    pub(super) fn admit(&mut self, delta: Waiting) -> Result<(), Box<Waiting>> {
        let place = delta.place();
        let neighbour = self.waiting.range(..=place.last).next_back();
        if neighbour.is_some_and(|(_, before)| before.place().last >= place.first) {
            return Err(Box::new(delta));
        }
        self.waiting.insert(place.first, delta);
        Ok(())
    }

    /// Notes that the object of the delta that begins at `first` stands in the store: its bytes
    /// are let go, its records are not.
    pub(super) fn uploaded(&mut self, first: Sequence) {
        let delta = self.waiting.get_mut(&first);
        let delta = delta.expect("only what was admitted is uploaded");
        delta.sealed.forget_object();
        delta.uploaded = true;
    }

    /// Takes out what may be published now.
    pub(super) fn retire(&mut self, published: Sequence) -> Vec<Waiting> {
        let places = self.waiting.values().map(Waiting::place);
        let count = publishable(published, places);
        (0..count).filter_map(|_| self.waiting.pop_first()).map(|(_, delta)| delta).collect()
    }

    /// Takes back what was taken out and could not be published.
    pub(super) fn put_back(&mut self, run: Vec<Waiting>) {
        for delta in run {
            self.waiting.insert(delta.place().first, delta);
        }
    }

    /// The first waiting delta.
    pub(super) fn first(&self) -> Option<Place> {
        self.waiting.values().next().map(Waiting::place)
    }

    /// Everything that waits, in order.
    pub(super) fn into_sealed(self) -> Vec<Sealed> {
        let waiting = self.waiting.into_values();
        waiting.map(|delta| delta.sealed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(first: u64, last: u64, uploaded: bool) -> Place {
        let (first, last) = (Sequence(first), Sequence(last));
        Place { first, last, uploaded }
    }

    /// Every subset of uploaded among five deltas, with and without one missing: what is published
    /// is exactly the gapless uploaded prefix, computed here in another way.
    #[test]
    fn only_the_gapless_uploaded_prefix_goes() {
        for uploaded in 0..32_u32 {
            for missing in 0..=5 {
                for published in [0, 1, 2, 10] {
                    let all =
                        (0..5_u64).map(|n| place(2 * n + 1, 2 * n + 2, uploaded >> n & 1 == 1));
                    let there: Vec<_> = all.enumerate().filter(|(n, _)| *n != missing).collect();
                    let mut records: Vec<(u64, bool)> = Vec::new();
                    for (_, p) in &there {
                        records.extend((p.first.0..=p.last.0).map(|r| (r, p.uploaded)));
                    }
                    let through = (published + 1..)
                        .zip(&records)
                        .take_while(|(wanted, (record, up))| wanted == record && *up)
                        .count();
                    let places = there.iter().map(|(_, p)| *p);
                    assert_eq!(publishable(Sequence(published), places) * 2, through);
                }
            }
        }
    }
}
