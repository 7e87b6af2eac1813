//! Records that the cache log kept over a restart, until their machine is claimed.

use std::collections::{HashMap, VecDeque};

use crate::cache::{Durable, Survivor};
use crate::format::manifest::Manifest;
use crate::ingest::{StreamError, StreamState};
use crate::model::{Generation, MachineKey, Sequence};

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
    /// They lie behind a gap.
    #[error(transparent)]
    Gap(#[from] StreamError),
}

/// Unpublished records by machine, each machine's in stream order.
#[derive(Debug, Default)]
pub(super) struct Kept {
    by_machine: HashMap<MachineKey, VecDeque<Survivor>>,
}

impl Kept {
    pub(super) fn add(&mut self, survivors: Vec<Survivor>) {
        for one in survivors {
            self.by_machine.entry(one.record.machine()).or_default().push_back(one);
        }
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
        let kept = self.by_machine.remove(&MachineKey::of(&claimed.machine)).unwrap_or_default();
        for Survivor { record, generation } in kept {
            let sequence = record.sequence();
            if sequence <= state.sequence {
                continue;
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
    use crate::model::{
        CatchUp, Change, DiskIndex, DiskSpec, Epoch, EpochBegin, MachineId, Record, ServerId,
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
    fn a_machine_that_begins_anew_has_no_records() {
        let (records, given_up) = taken(kept([1, 1, 1, 1]), 1, 1);
        assert!(records.is_empty() && given_up.is_some());
    }
}
