//! Which segment must outlive which.
//!
//! A machine's stream may begin again at an earlier sequence: another server owned it in between, or
//! its agent repaired what was damaged here. The records of the abandoned history stay in older
//! segments; what voids them (row J of `docs/formats/cache-segment.md`) is the newer record alone.
//! If the newer segment were recycled first, the next recovery would serve the abandoned ones. So
//! from such a moment on the segments up to it are recycled in log order.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::log::Batch;
use super::segment::Segment;
use crate::model::{MachineKey, Sequence};

/// Every machine's newest sequence in the log, and the segments that are not recycled, in order.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    newest: HashMap<MachineKey, Sequence>,
    live: Vec<Weak<Segment>>,
}

impl Lineage {
    /// The log goes on in `segment`.
    pub(super) fn begin(&mut self, segment: &Arc<Segment>) {
        self.live.retain(|segment| segment.strong_count() > 0);
        self.live.push(Arc::downgrade(segment));
    }

    /// A record that is in the log since before.
    pub(super) fn remember(&mut self, machine: MachineKey, sequence: Sequence) {
        let newest = self.newest.entry(machine).or_default();
        *newest = sequence.max(*newest);
    }

    /// What is about to be appended to the newest segment.
    pub(super) fn append(&mut self, batch: &Batch) {
        let mut again = false;
        for (entry, _) in &batch.entries {
            let before = self.newest.insert(entry.machine, entry.sequence);
            again |= before.is_some_and(|before| entry.sequence <= before);
        }
        if again {
            self.chain();
        }
    }

    /// From now on no segment there is is recycled before the ones before it.
    pub(super) fn chain(&self) {
        let live: Vec<_> = self.live.iter().filter_map(Weak::upgrade).collect();
        for pair in live.windows(2) {
            pair[0].outlived_by(&pair[1]);
        }
    }
}
