//! Waiting that an end of the agent ends.
//!
//! Owns: stopping, and being woken. Does not own: what is waited for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where the thread of a scan waits.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    state: Mutex<State>,
    woken: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    woken: bool,
}

impl Pauses {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every wait, now and later.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.woken.notify_all();
    }

    /// Whether the agent stops.
    pub(super) fn stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Ends the next [`Self::wait`], or the one that runs.
    pub(super) fn wake(&self) {
        self.lock().woken = true;
        self.woken.notify_all();
    }

    /// Waits so long, or until somebody wakes or stops.
    pub(super) fn wait(&self, time: Duration) {
        let state = self.lock();
        let asleep = |state: &mut State| !state.stopped && !state.woken;
        let waited = self.woken.wait_timeout_while(state, time, asleep);
        waited.unwrap_or_else(PoisonError::into_inner).0.woken = false;
    }

    /// Waits so long, or until somebody stops.
    pub(super) fn rest(&self, time: Duration) {
        let asleep = |state: &mut State| !state.stopped;
        let waited = self.woken.wait_timeout_while(self.lock(), time, asleep);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}
