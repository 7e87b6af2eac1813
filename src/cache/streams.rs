//! Which records of a recovered log count: rows I to M of the table in
//! `docs/formats/cache-segment.md`. Pure.

use std::collections::HashMap;
use std::ops::Range;

use super::durable::DurableChange;
use crate::model::{MachineKey, Sequence};

/// A record that counts, or did until a later one took its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) machine: MachineKey,
    pub(super) sequence: Sequence,
    pub(super) change: DurableChange,
    /// Where its payload lies in its segment.
    pub(super) payload: Range<usize>,
    /// Which segment.
    pub(super) segment: usize,
    /// Where it begins there.
    pub(super) position: u64,
}

/// Records of one machine that are kept back behind a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) machine: MachineKey,
    pub(super) missing: Sequence,
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    pub(super) records: u64,
    /// Segment of the first one, and its place there.
    pub(super) segment: usize,
    pub(super) position: u64,
}

/// Takes the log in order: records, and damage where it lies between them.
#[derive(Debug, Default)]
pub(super) struct Streams {
    log: Vec<Option<Found>>,
    machines: HashMap<MachineKey, Stream>,
    /// Damaged places so far.
    damage: u64,
    /// Damage whose place in the log is not known.
    anywhere: bool,
    gaps: Vec<Gap>,
    /// Whether any stream began again at an earlier sequence.
    again: bool,
}

/// What counts of a log.
#[derive(Debug)]
pub(super) struct Counted {
    /// In log order.
    pub(super) records: Vec<Found>,
    /// What is kept back.
    pub(super) gaps: Vec<Gap>,
    /// Whether a record is void, or kept back, only because of another one (rows J and L).
    pub(super) again: bool,
}

#[derive(Debug)]
struct Stream {
    /// Places in `log` of the records that count, ascending by sequence without a gap.
    kept: Vec<usize>,
    last: Sequence,
    /// `Streams::damage` when the last one was kept.
    damage: u64,
    /// Place in `gaps`, while records are kept back.
    gap: Option<usize>,
}

impl Streams {
    /// Records may be missing here.
    pub(super) fn damage(&mut self) {
        self.damage += 1;
    }

    /// Records may be missing between any two.
    pub(super) fn damage_anywhere(&mut self) {
        self.anywhere = true;
    }

    /// The next valid record.
    pub(super) fn record(&mut self, found: Found) {
        let (sequence, damage) = (found.sequence, self.damage);
        let stream = self
            .machines
            .entry(found.machine)
            .or_insert_with(|| Stream {
                kept: Vec::new(),
                last: Sequence(sequence.0.saturating_sub(1)),
                damage,
                gap: None,
            });
        if sequence > stream.last.next() {
            if self.anywhere || stream.gap.is_some() || stream.damage != damage {
                return self.keep_back(&found); // L
            }
            for void in stream.kept.drain(..) {
                self.log[void] = None; // K
            }
        } else if sequence <= stream.last {
            self.again = true;
            let voids = (stream.last.0 - sequence.0).saturating_add(1);
            let voids = usize::try_from(voids).unwrap_or(usize::MAX);
            let kept = stream.kept.len().saturating_sub(voids);
            for void in stream.kept.drain(kept..) {
                self.log[void] = None; // J
            }
        }
        stream.kept.push(self.log.len()); // I
        (stream.last, stream.damage, stream.gap) = (sequence, damage, None);
        self.log.push(Some(found));
    }

    fn keep_back(&mut self, found: &Found) {
        let stream = self.machines.get_mut(&found.machine);
        let stream = stream.expect("the caller has just seen this machine");
        let gap = *stream.gap.get_or_insert_with(|| {
            self.gaps.push(Gap {
                machine: found.machine,
                missing: stream.last.next(),
                first: found.sequence,
                last: found.sequence,
                records: 0,
                segment: found.segment,
                position: found.position,
            });
            self.gaps.len() - 1
        });
        let gap = &mut self.gaps[gap];
        gap.last = gap.last.max(found.sequence);
        gap.records += 1;
    }

    /// What counts of all that was taken.
    pub(super) fn finish(self) -> Counted {
        Counted {
            records: self.log.into_iter().flatten().collect(),
            again: self.again || !self.gaps.is_empty(),
            gaps: self.gaps,
        }
    }
}
