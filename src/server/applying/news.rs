//! What the applier is told: which machines have something new in the cloud log, and which exist.
//!
//! Bounded by the number of machines: each stands here once, however often there is news of it.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::model::MachineId;

/// From the pipelines and the reader of the roll to the applier.
#[derive(Debug, Default)]
pub(in crate::server) struct News {
    told: Mutex<Told>,
    notify: Notify,
}

/// Everything since it was asked for last.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Machines of which something was published.
    pub(super) published: HashSet<MachineId>,
    /// Machines on the roll, in its order.
    pub(super) enrolled: Vec<MachineId>,
    /// Machines that another one may have to apply now.
    pub(super) again: Vec<MachineId>,
}

impl News {
    /// Something of the machine was published, or it was claimed: the applier shall look.
    pub(in crate::server) fn published(&self, machine: &MachineId) {
        let mut told = self.told();
        if !told.published.contains(machine) {
            told.published.insert(machine.clone());
        }
        drop(told);
        self.notify.notify_one();
    }

    /// The roll was read.
    pub(super) fn enrolled(&self, machines: Vec<MachineId>) {
        self.told().enrolled = machines;
        self.notify.notify_one();
    }

    /// A process server came or went.
    pub(super) fn look_again(&self, machines: Vec<MachineId>) {
        self.told().again = machines;
        self.notify.notify_one();
    }

    /// Waits for news.
    pub(super) async fn next(&self) -> Told {
        self.notify.notified().await;
        std::mem::take(&mut *self.told())
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
