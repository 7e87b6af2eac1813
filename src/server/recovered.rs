//! Records that the cache log kept over a restart, until their machine is claimed.

use std::collections::{HashMap, VecDeque};

use crate::cache::Durable;
use crate::ingest::{StreamError, StreamState};
use crate::model::MachineKey;

/// Unpublished records by machine, each machine's in stream order.
#[derive(Debug, Default)]
pub(super) struct Kept {
    by_machine: HashMap<MachineKey, VecDeque<Durable>>,
}

impl Kept {
    pub(super) fn add(&mut self, records: Vec<Durable>) {
        for record in records {
            self.by_machine.entry(record.machine()).or_default().push_back(record);
        }
    }

    /// Machines that have records here.
    pub(super) fn machines(&self) -> Vec<MachineKey> {
        self.by_machine.keys().copied().collect()
    }

    /// Gives a machine's records up: they are another owner's to know.
    pub(super) fn forget(&mut self, machine: MachineKey) {
        self.by_machine.remove(&machine);
    }

    /// Takes a machine's records that follow `state`, moving `state` behind them. What is published
    /// already is dropped: its segments become free. What does not follow is dropped, too, with the
    /// reason: it lies behind a gap, so the agent sends it again (it keeps all that is not
    /// published).
    pub(super) fn take(
        &mut self,
        machine: MachineKey,
        state: &mut StreamState,
    ) -> (Vec<Durable>, Option<StreamError>) {
        let mut follow = Vec::new();
        for record in self.by_machine.remove(&machine).unwrap_or_default() {
            if record.sequence() <= state.sequence {
                continue;
            }
            if let Err(error) = state.follow(record.sequence(), record.change()) {
                return (follow, Some(error));
            }
            follow.push(record);
        }
        (follow, None)
    }
}
