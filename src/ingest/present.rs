//! Connections whose peer has proven which machine it is.
//!
//! Owns: how many one machine may have, and which goes when there are too many: the oldest, which an
//! agent that comes back has mostly lost. Without it one machine's certificate could take the places of
//! all. Does not own: an operator's, whose certificate is the site's own, and shared by its servers, its
//! sidecar and its people.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::model::MachineId;

/// Connections of one machine, over TCP and QUIC together: an agent's life beside the one before, both
/// ways at once.
pub(super) const CONNECTIONS_OF_ONE_MAX: usize = 4;

type Machines = HashMap<MachineId, VecDeque<Arc<Notify>>>;

/// All of a process server.
#[derive(Clone, Debug, Default)]
pub(super) struct Present(Arc<Mutex<Machines>>);

/// One connection; dropped when it is over.
#[derive(Debug)]
pub(super) struct Presence {
    all: Present,
    machine: MachineId,
    leave: Arc<Notify>,
}

impl Present {
    /// One more of `machine`.
    pub(super) fn enter(&self, machine: &MachineId) -> Presence {
        let leave = Arc::new(Notify::new());
        let mut all = self.lock();
        let its = all.entry(machine.clone()).or_default();
        if its.len() >= CONNECTIONS_OF_ONE_MAX
            && let Some(oldest) = its.pop_front()
        {
            oldest.notify_one();
        }
        its.push_back(Arc::clone(&leave));
        Presence { all: self.clone(), machine: machine.clone(), leave }
    }

    fn lock(&self) -> MutexGuard<'_, Machines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Presence {
    /// Completes when this connection has to go for a newer one.
    pub(super) async fn crowded_out(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(its) = all.get_mut(&self.machine) {
            its.retain(|other| !Arc::ptr_eq(other, &self.leave));
            if its.is_empty() {
                all.remove(&self.machine);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_oldest_of_too_many_goes_and_no_other_machines() {
        let present = Present::default();
        let (one, two): (MachineId, MachineId) =
            ("web-1".parse().unwrap(), "web-2".parse().unwrap());
        let other = present.enter(&two);
        let mut its: VecDeque<_> =
            (0..CONNECTIONS_OF_ONE_MAX).map(|_| present.enter(&one)).collect();
        drop(its.remove(2)); // one that ended by itself gives its place back
        its.push_back(present.enter(&one));
        let goes = |presence: &Presence| presence.crowded_out().now_or_never().is_some();
        assert!(!its.iter().any(goes));
        its.push_back(present.enter(&one));
        let gone: Vec<bool> = its.iter().map(goes).collect();
        assert_eq!(gone, [true, false, false, false, false]);
        assert!(!goes(&other));
        drop((its, other));
        assert!(present.lock().is_empty());
    }
}
