//! Records that the cache log kept over a restart, until their machine is claimed.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::cache::{Durable, Survivor};
use crate::format::manifest::Manifest;
use crate::ingest::{Order, StreamError, StreamState};
use crate::model::{Generation, MachineKey, Sequence, ServerId};

/// Why records that were kept are not taken up.
#[derive(Debug, thiserror::Error)]
pub(super) enum GivenUp {
    /// Another server had the machine meanwhile: its agent may have gone on there with other records
    /// under the same sequences.
    #[error(
        "record {sequence} was taken under generation {generation}, and the machine is this \
         server's without a break only since {since}"
    )]
    Other {
        /// The first of them.
        sequence: Sequence,
        /// Its ownership.
        generation: Generation,
        /// The oldest ownership that counts.
        since: Generation,
    },
    /// Another process had the machine while this one ran; one of this server's name, too, which the
    /// manifest does not tell from this one.
    #[error("record {sequence} was durable here when another process took the machine")]
    Fenced {
        /// The first of them.
        sequence: Sequence,
    },
    /// They lie behind a gap.
    #[error(transparent)]
    Gap(#[from] StreamError),
}

/// What becomes of records that are durable here and not published: the table in
/// docs/scale-out.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Rows K1: the machine is claimed, they are published.
    Claim,
    /// Row K4: they are published by somebody else.
    GiveUp,
    /// Rows K3 and K5: they stay.
    Hold,
}

/// Unpublished records by machine, each machine's in stream order.
#[derive(Debug, Default)]
pub(super) struct Kept {
    by_machine: HashMap<MachineKey, VecDeque<Survivor>>,
    /// Machines that somebody else took while their records were here.
    fenced: HashSet<MachineKey>,
}

impl Kept {
    pub(super) fn add(&mut self, survivors: Vec<Survivor>) {
        for one in survivors {
            self.by_machine.entry(one.record.machine()).or_default().push_back(one);
        }
    }

    /// Records that could not be published; `fenced` when another process took their machine.
    pub(super) fn hold(&mut self, records: Vec<Durable>, generation: Generation, fenced: bool) {
        if fenced {
            self.fenced.extend(records.iter().map(Durable::machine));
        }
        self.add(records.into_iter().map(|record| Survivor { record, generation }).collect());
    }

    /// How many records wait.
    pub(super) fn records(&self) -> usize {
        self.by_machine.values().map(VecDeque::len).sum()
    }

    /// How many of one machine.
    pub(super) fn records_of(&self, machine: MachineKey) -> usize {
        self.by_machine.get(&machine).map_or(0, VecDeque::len)
    }

    /// What becomes of a machine's records when `present` is its manifest and `us` this server.
    pub(super) fn fate(
        &self,
        machine: MachineKey,
        present: Option<&Manifest>,
        us: &ServerId,
    ) -> Fate {
        let Some(kept) = self.by_machine.get(&machine) else { return Fate::GiveUp };
        let Some(present) = present else { return Fate::Claim }; // K1
        if present.owner == *us {
            if self.fenced.contains(&machine) {
                return Fate::Hold; // K3: by whom, only they know
            }
            let unbroken = |one: &Survivor| one.generation >= present.owned_since;
            let mut left = kept.iter().filter(|one| one.record.sequence() > present.published);
            return if left.all(unbroken) { Fate::Claim } else { Fate::Hold }; // K1, K3
        }
        let last = kept.back().map_or(Sequence::ZERO, |one| one.record.sequence());
        // Right behind the begin of an epoch nothing of it is copied: that state can be no point either.
        let ordered = StreamState::published(present).order == Order::Ordered;
        match present.published >= last && ordered {
            true => Fate::GiveUp,
            false => Fate::Hold, // K5
        }
    }

    /// Lets a machine's records go: their segments become free.
    pub(super) fn give_up(&mut self, machine: MachineKey) {
        self.fenced.remove(&machine);
        self.by_machine.remove(&machine);
    }

    /// Machines that have records here.
    pub(super) fn machines(&self) -> Vec<MachineKey> {
        self.by_machine.keys().copied().collect()
    }

    /// Takes a machine's records that continue `claimed`, the manifest of the claim, moving `state`
    /// behind them. What is published already is dropped: its segments become free. What does not
    /// continue it is dropped, too, with the reason; the agent sends it again (it keeps all that is
    /// not published).
    pub(super) fn take(
        &mut self,
        claimed: &Manifest,
        state: &mut StreamState,
    ) -> (Vec<Durable>, Option<GivenUp>) {
        let mut follow = Vec::new();
        let machine = MachineKey::of(&claimed.machine);
        let fenced = self.fenced.remove(&machine);
        let kept = self.by_machine.remove(&machine).unwrap_or_default();
        for Survivor { record, generation } in kept {
            let sequence = record.sequence();
            if sequence <= state.sequence {
                continue;
            }
            if fenced {
                return (follow, Some(GivenUp::Fenced { sequence }));
            }
            let since = claimed.owned_since;
            if !(since..claimed.generation).contains(&generation) {
                return (follow, Some(GivenUp::Other { sequence, generation, since }));
            }
            if let Err(error) = state.follow(sequence, record.change()) {
                return (follow, Some(GivenUp::Gap(error)));
            }
            follow.push(record);
        }
        (follow, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::manifest::EpochEntry;
    use crate::model::{
        CatchUp, Change, DiskIndex, DiskSpec, Epoch, EpochBegin, MachineId, Record,
    };

    fn machine() -> MachineId {
        "web-1".parse().unwrap()
    }

    fn server(name: &str) -> ServerId {
        name.parse().unwrap()
    }

    /// Records 1 to 4 of a stream, each admitted under the generation at its place.
    fn kept(generations: [u64; 4]) -> Kept {
        let disk =
            DiskSpec { index: DiskIndex(0), name: "root".parse().unwrap(), size_bytes: 1 << 20 };
        let changes = [
            Change::EpochBegin(EpochBegin { epoch: Epoch(1), disks: vec![disk] }),
            Change::CatchUpBegin(CatchUp::InitialReplication),
            Change::CatchUpEnd,
            Change::CatchUpBegin(CatchUp::Dirty),
        ];
        let records = changes.into_iter().zip(generations).zip(1..);
        let durable = records.map(|((change, generation), sequence)| {
            let record = Record { sequence: Sequence(sequence), change };
            let record = Durable::never_written(MachineKey::of(&machine()), record);
            Survivor { record, generation: Generation(generation) }
        });
        let mut kept = Kept::default();
        kept.add(durable.collect());
        kept
    }

    fn taken(mut kept: Kept, generation: u64, owned_since: u64) -> (Vec<u64>, Option<String>) {
        let claimed = Manifest {
            generation: Generation(generation),
            owned_since: Generation(owned_since),
            ..Manifest::first(machine(), server("ps-a"))
        };
        let mut state = StreamState::published(&claimed);
        let (records, given_up) = kept.take(&claimed, &mut state);
        let again = kept.take(&claimed, &mut StreamState::published(&claimed)).0;
        assert!(again.is_empty(), "what was taken or given up is not kept");
        let sequences: Vec<_> = records.iter().map(|record| record.sequence().0).collect();
        assert_eq!(state.sequence.0, sequences.last().copied().unwrap_or(0));
        (sequences, given_up.map(|why| why.to_string()))
    }

    #[test]
    fn records_of_one_ownership_after_another_of_the_same_server_are_taken_up() {
        assert_eq!(taken(kept([1, 1, 1, 1]), 2, 1), (vec![1, 2, 3, 4], None));
        assert_eq!(taken(kept([1, 1, 2, 3]), 4, 1), (vec![1, 2, 3, 4], None));
    }

    #[test]
    fn records_from_before_another_owner_are_given_up_at_every_start() {
        let why = "record 1 was taken under generation 1, and the machine is this server's without \
                   a break only since 3";
        // Another server had generation 2; 3 and 4 are this one's: the records lie in its log still.
        for generation in [3, 4] {
            let (records, given_up) = taken(kept([1, 1, 1, 1]), generation, 3);
            assert_eq!((records, given_up.as_deref()), (Vec::new(), Some(why)));
        }
    }

    #[test]
    fn each_row_of_the_table_of_kept_records() {
        let manifest = |owner: &str, generation, owned_since, published, catching_up| Manifest {
            generation: Generation(generation),
            owned_since: Generation(owned_since),
            published: Sequence(published),
            catching_up,
            epochs: vec![
                EpochEntry { epoch: Epoch(1), first: Sequence(1), disks: Vec::new() },
                EpochEntry { epoch: Epoch(2), first: Sequence(20), disks: Vec::new() },
            ]
            .into_iter()
            .filter(|epoch| epoch.first.0 <= published)
            .collect(),
            ..Manifest::first(machine(), server(owner))
        };
        let rows = [
            ("K1", None, Fate::Claim),
            ("K1", Some(manifest("ps-a", 2, 1, 0, false)), Fate::Claim),
            ("K3", Some(manifest("ps-a", 4, 3, 0, false)), Fate::Hold),
            ("K3, but published", Some(manifest("ps-a", 4, 3, 4, false)), Fate::Claim),
            ("K4", Some(manifest("ps-b", 2, 2, 4, false)), Fate::GiveUp),
            ("K4", Some(manifest("ps-b", 2, 2, 9, false)), Fate::GiveUp),
            ("K5, behind", Some(manifest("ps-b", 2, 2, 3, false)), Fate::Hold),
            ("K4, copied anew", Some(manifest("ps-b", 2, 2, 22, false)), Fate::GiveUp),
            ("K5, begun anew", Some(manifest("ps-b", 2, 2, 20, false)), Fate::Hold),
            ("K5, repaired", Some(manifest("ps-b", 2, 2, 9, true)), Fate::Hold),
        ];
        for (row, present, expected) in rows {
            let kept = kept([1, 1, 2, 2]);
            let found = kept.fate(MachineKey::of(&machine()), present.as_ref(), &server("ps-a"));
            assert_eq!(found, expected, "{row}");
        }
    }

    #[test]
    fn a_machine_that_begins_anew_has_no_records() {
        let (records, given_up) = taken(kept([1, 1, 1, 1]), 1, 1);
        assert!(records.is_empty() && given_up.is_some());
    }
}
