//! Parallel uploads, ordered retirement.
//!
//! Owns: the records of every delta that is not published yet; they stay here while their bytes
//! travel. Does not own: uploading, the manifest.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cache::{Durable, DurableChange};
use crate::format::manifest::{DeltaEntry, EpochEntry};
use crate::model::{Change, DeltaId, Sequence};

/// A delta that no manifest names yet, with the records that only the cache log keeps.
#[derive(Debug)]
pub struct Unpublished {
    /// What the manifest will say of it.
    pub entry: DeltaEntry,
    /// Its records; dropping them frees their cache segments.
    pub records: Vec<Durable>,
    /// The delta that it chains to.
    pub(super) previous: Option<DeltaId>,
    /// Whether its object stands in the store.
    pub(super) uploaded: bool,
    /// Monotonic time at which it was accepted.
    pub(super) accepted_at: Duration,
}

impl Unpublished {
    /// The epoch that begins in it.
    pub(super) fn epoch_begin(&self) -> Option<EpochEntry> {
        self.marks().find_map(|(first, change)| match change {
            Change::EpochBegin(begin) => Some(EpochEntry {
                epoch: begin.epoch,
                first,
                disks: begin.disks.clone(),
            }),
            _ => None,
        })
    }

    /// Whether the stream is inside a catch-up after it, given that it was (or not) before it.
    pub(super) fn catching_up(&self, before: bool) -> bool {
        self.marks().fold(before, |inside, (_, change)| match change {
            Change::CatchUpBegin(_) => true,
            Change::CatchUpEnd | Change::EpochBegin(_) => false,
            _ => inside,
        })
    }

    fn marks(&self) -> impl Iterator<Item = (Sequence, &Change)> {
        self.records.iter().filter_map(|record| match record.change() {
            DurableChange::Mark(change) => Some((record.sequence(), change)),
            DurableChange::Write { .. } | DurableChange::Zero { .. } => None,
        })
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
    waiting: BTreeMap<Sequence, Unpublished>,
}

impl Queue {
    /// Takes a delta in; gives it back when its records overlap those of another.
    pub(super) fn admit(&mut self, delta: Unpublished) -> Result<(), Box<Unpublished>> {
        let (first, last) = (delta.entry.first, delta.entry.last);
        let neighbour = self.waiting.range(..=last).next_back();
        if neighbour.is_some_and(|(_, before)| before.entry.last >= first) {
            return Err(Box::new(delta));
        }
        self.waiting.insert(first, delta);
        Ok(())
    }

    /// Notes that the object of the delta that begins at `first` stands in the store.
    pub(super) fn uploaded(&mut self, first: Sequence) {
        let delta = self.waiting.get_mut(&first);
        delta.expect("only what was admitted is uploaded").uploaded = true;
    }

    /// Takes out what may be published now.
    pub(super) fn retire(&mut self, published: Sequence) -> Vec<Unpublished> {
        let places = self.waiting.values().map(|delta| Place {
            first: delta.entry.first,
            last: delta.entry.last,
            uploaded: delta.uploaded,
        });
        let count = publishable(published, places);
        (0..count)
            .filter_map(|_| self.waiting.pop_first())
            .map(|(_, delta)| delta)
            .collect()
    }

    /// Takes back what was taken out and could not be published.
    pub(super) fn put_back(&mut self, run: Vec<Unpublished>) {
        for delta in run {
            self.waiting.insert(delta.entry.first, delta);
        }
    }

    /// The first waiting delta.
    pub(super) fn first(&self) -> Option<Place> {
        self.waiting.values().next().map(|delta| Place {
            first: delta.entry.first,
            last: delta.entry.last,
            uploaded: delta.uploaded,
        })
    }

    /// Everything that waits, in order.
    pub(super) fn into_unpublished(self) -> Vec<Unpublished> {
        self.waiting.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(first: u64, last: u64, uploaded: bool) -> Place {
        let (first, last) = (Sequence(first), Sequence(last));
        Place {
            first,
            last,
            uploaded,
        }
    }

    /// Every subset of uploaded among five deltas, with and without one missing: what is published
    /// is exactly the gapless uploaded prefix, computed here in another way.
    #[test]
    fn only_the_gapless_uploaded_prefix_goes() {
        for uploaded in 0..32_u32 {
            for missing in 0..=5 {
                for published in [0, 1, 2, 10] {
                    let all = (0..5_u64).map(|n| place(2 * n + 1, 2 * n + 2, uploaded >> n & 1 == 1));
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
