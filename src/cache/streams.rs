//! Which records of a recovered log count: rows I to N of the table in
//! `docs/formats/cache-segment.md`. Pure.

use std::collections::HashMap;
use std::ops::Range;

use super::durable::DurableChange;
use crate::model::{Generation, MachineKey, Sequence};

/// A record that counts, or did until a later one took its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) machine: MachineKey,
    /// The ownership under which it was admitted.
    pub(super) generation: Generation,
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
    /// Streams with damage behind a record, or a gap, that no void record settles; each with the sequence after
    /// the last record that counts.
    pub(super) unsettled: Vec<(MachineKey, Sequence)>,
    /// Whether a record is void, or kept back, only because of another one (rows J and L).
    pub(super) again: bool,
}

#[derive(Debug)]
struct Stream {
    /// Records that are not void, ascending, each with its place in `log`. Only those after the last
    /// gap will count, unless a later record voids them and so closes it.
    kept: Vec<(Sequence, usize)>,
    last: Sequence,
    /// `Streams::damage` when the last one was kept, or voided.
    damage: u64,
    /// `Streams::damage` when the first one came, or one was voided: damage since then lies behind a record,
    /// and will seem to have torn the gap when what is behind it now is recycled.
    settled: u64,
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
            settled: damage,
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

    /// Row N: nothing of `machine` so far counts from `sequence` on. Damage that lies before is settled: what
    /// follows was admitted by who knew of it. A gap that begins below `sequence` stays open: it was none when
    /// this was written, and nothing between is recycled before what stands in front of it. So it was damaged since.
    pub(super) fn void(&mut self, machine: MachineKey, sequence: Sequence) {
        let before = Sequence(sequence.0.saturating_sub(1));
        let Some(stream) = self.machines.get_mut(&machine) else {
            return;
        };
        self.again = true;
        // Otherwise the record before it was damaged since, in the same way.
        if sequence <= stream.last.next() {
            (stream.damage, stream.settled) = (self.damage, self.damage);
        }
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
        let open = |stream: &Stream| stream.gap.is_some() || stream.settled != self.damage;
        let open = self.machines.iter().filter(|(_, stream)| open(stream));
        let mut unsettled: Vec<_> = open.map(|(key, stream)| (*key, stream.last.next())).collect();
        unsettled.sort_unstable();
        Counted {
            records: self.log.into_iter().flatten().collect(),
            again: self.again || !self.gaps.is_empty() || !unsettled.is_empty(),
            unsettled,
            gaps: self.gaps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, DiskIndex, Extent};

    const MACHINE: MachineKey = MachineKey([1; 16]);

    #[derive(Clone, Copy, Debug)]
    enum Log {
        Record(u64),
        Void(u64),
        Damage,
    }
    use Log::{Damage, Record, Void};

    /// A sequence and its place in the log.
    type Kept = (u64, u64);
    /// Missing, first, last, settled.
    type Gaps = (u64, u64, u64, bool);

    fn taken(log: &[Log]) -> Counted {
        let mut streams = Streams::default();
        for (at, entry) in log.iter().enumerate() {
            match *entry {
                Record(sequence) => streams.record(Found {
                    machine: MACHINE,
                    generation: Generation(1),
                    sequence: Sequence(sequence),
                    change: DurableChange::mark(Change::CatchUpEnd),
                    payload: 0..0,
                    segment: 0,
                    position: at as u64,
                }),
                Void(sequence) => streams.void(MACHINE, Sequence(sequence)),
                Damage => streams.damage(),
            }
        }
        streams.finish()
    }

    fn counted(log: &[Log]) -> (Vec<Kept>, Vec<Gaps>) {
        let counted = taken(log);
        let records = counted.records.iter().map(|f| (f.sequence.0, f.position));
        let gaps = counted.gaps.iter();
        (records.collect(), gaps.map(|g| (g.missing.0, g.first.0, g.last.0, g.settled)).collect())
    }

    #[test]
    fn each_row_of_the_table() {
        type Rows<'a> = &'a [(&'a str, &'a [Log], &'a [(u64, u64)], &'a [(u64, u64, u64, bool)])];
        let rows: Rows<'_> = &[
            ("I", &[Record(5), Record(6)], &[(5, 0), (6, 1)], &[]),
            ("I", &[Damage, Record(5)], &[(5, 1)], &[]),
            ("J", &[Record(5), Record(6), Record(7), Record(6)], &[(5, 0), (6, 3)], &[]),
            ("J", &[Record(5), Record(6), Record(3)], &[(3, 2)], &[]),
            ("J", &[Record(5), Damage, Record(5)], &[(5, 2)], &[]),
            ("K", &[Record(1), Record(2), Record(9), Record(10)], &[(9, 2), (10, 3)], &[]),
            ("K", &[Record(1), Damage, Record(2), Record(9)], &[(9, 3)], &[]),
            ("L", &[Record(1), Damage, Record(3), Record(4)], &[(1, 0)], &[(2, 3, 4, false)]),
            (
                "L, then sent again",
                &[Record(1), Damage, Record(3), Record(2), Record(3)],
                &[(1, 0), (2, 3), (3, 4)],
                &[(2, 3, 3, true)],
            ),
            ("N", &[Record(1), Record(2), Record(3), Void(2)], &[(1, 0)], &[]),
            ("N", &[Record(1), Damage, Record(3), Void(2)], &[(1, 0)], &[(2, 3, 3, true)]),
            (
                "N voids too little: what is missing was damaged since",
                &[Record(1), Damage, Record(3), Record(4), Void(5), Record(5)],
                &[(1, 0)],
                &[(2, 3, 5, false)],
            ),
            (
                "N brings back what only seemed published (K)",
                &[Record(1), Record(3), Void(2), Record(2)],
                &[(1, 0), (2, 3)],
                &[],
            ),
            (
                "N settles nothing when the record before it is gone",
                &[Record(1), Damage, Void(3), Record(3)],
                &[(1, 0)],
                &[(2, 3, 3, false)],
            ),
            ("N of a machine not seen", &[Void(4), Record(7)], &[(7, 1)], &[]),
            ("K, for N settles damage", &[Record(1), Damage, Void(2), Record(9)], &[(9, 3)], &[]),
            (
                "L, for N settles no later damage",
                &[Record(1), Void(2), Damage, Record(9)],
                &[(1, 0)],
                &[(2, 9, 9, false)],
            ),
        ];
        for (row, log, records, gaps) in rows {
            let (found, found_gaps) = counted(log);
            assert_eq!((&found[..], &found_gaps[..]), (*records, *gaps), "{row}: {log:?}");
        }
    }

    #[test]
    fn damage_behind_a_stream_is_unsettled_until_it_is_voided() {
        for (log, unsettled) in [
            (&[Record(1), Record(2)][..], None),
            (&[Damage, Record(1)], None),
            (&[Record(1), Damage, Record(2)], Some(3)),
            (&[Record(1), Damage, Record(2), Void(3)], None),
            (&[Record(1), Record(2), Damage], Some(3)),
            (&[Record(1), Damage, Record(3)], Some(2)),
            (&[Record(1), Record(2), Damage, Void(3)], None),
            (&[Record(1), Damage, Record(3), Void(2)], None),
            (&[Record(1), Damage, Record(3), Void(4)], Some(2)),
        ] {
            let unsettled: Vec<_> =
                unsettled.map(|next| (MACHINE, Sequence(next))).into_iter().collect();
            assert_eq!(taken(log).unsettled, unsettled, "{log:?}");
        }
    }

    #[test]
    fn damage_of_unknown_place_stands_before_every_gap() {
        let mut streams = Streams::default();
        streams.damage_anywhere();
        let extent = Extent::new(0, 512, 512).unwrap();
        for sequence in [1, 2, 4] {
            streams.record(Found {
                machine: MACHINE,
                generation: Generation(1),
                sequence: Sequence(sequence),
                change: DurableChange::Zero { disk: DiskIndex(0), extent },
                payload: 0..0,
                segment: 0,
                position: sequence,
            });
        }
        let counted = streams.finish();
        assert_eq!(counted.records.len(), 2);
        assert_eq!(counted.gaps.len(), 1);
    }
}
