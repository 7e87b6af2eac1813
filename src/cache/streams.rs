//! Which records of a recovered log count: rows I to N of the table in
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
    /// Whether the missing ones came again, or the ones kept back were voided.
    pub(super) settled: bool,
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
    /// What was kept back at any time.
    pub(super) gaps: Vec<Gap>,
    /// Whether a record is void, or kept back, only because of another one (rows J and L).
    pub(super) again: bool,
}

#[derive(Debug)]
struct Stream {
    /// Records that are not void, ascending, each with its place in `log`. Only those after the last
    /// gap will count, unless a later record voids them and so closes it.
    kept: Vec<(Sequence, usize)>,
    last: Sequence,
    /// `Streams::damage` when the last one was kept.
    damage: u64,
    /// Place in `gaps`, while records are kept back.
    gap: Option<usize>,
}

impl Stream {
    /// Drops what is kept from `sequence` on.
    fn drop_from(&mut self, sequence: Sequence, log: &mut [Option<Found>]) {
        while let Some((_, void)) = self.kept.pop_if(|(kept, _)| *kept >= sequence) {
            log[void] = None;
        }
    }

    /// Drops what stands before the last gap: it is published (row K).
    fn drop_before_gap(&mut self, log: &mut [Option<Found>]) {
        let follows = |pair: &[(Sequence, usize)]| pair[0].0.next() == pair[1].0;
        let gap = self.kept.windows(2).rposition(|pair| !follows(pair));
        for (_, void) in self.kept.drain(..gap.map_or(0, |before| before + 1)) {
            log[void] = None;
        }
    }
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
        let stream = self.machines.entry(found.machine).or_insert_with(|| Stream {
            kept: Vec::new(),
            last: Sequence(sequence.0.saturating_sub(1)),
            damage,
            gap: None,
        });
        if sequence > stream.last.next() {
            if self.anywhere || stream.gap.is_some() || stream.damage != damage {
                return self.keep_back(&found); // L
            } // else K
        } else if sequence <= stream.last {
            self.again = true;
            stream.drop_from(sequence, &mut self.log); // J
        }
        stream.kept.push((sequence, self.log.len())); // I
        (stream.last, stream.damage) = (sequence, damage);
        if let Some(gap) = stream.gap.take() {
            self.gaps[gap].settled = true;
        }
        self.log.push(Some(found));
    }

    /// Row N: nothing of `machine` so far counts from `sequence` on.
    pub(super) fn void(&mut self, machine: MachineKey, sequence: Sequence) {
        let before = Sequence(sequence.0.saturating_sub(1));
        let Some(stream) = self.machines.get_mut(&machine) else {
            return;
        };
        self.again = true;
        if sequence <= stream.last {
            stream.drop_from(sequence, &mut self.log);
            stream.last = before;
        }
        if let Some(gap) = stream.gap.take_if(|gap| sequence <= self.gaps[*gap].first) {
            self.gaps[gap].settled = true;
        }
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
                settled: false,
            });
            self.gaps.len() - 1
        });
        let gap = &mut self.gaps[gap];
        gap.last = gap.last.max(found.sequence);
        gap.records += 1;
    }

    /// What counts of all that was taken.
    pub(super) fn finish(mut self) -> Counted {
        for stream in self.machines.values_mut() {
            stream.drop_before_gap(&mut self.log);
        }
        Counted {
            records: self.log.into_iter().flatten().collect(),
            again: self.again || !self.gaps.is_empty(),
            gaps: self.gaps,
        }
    }
}
