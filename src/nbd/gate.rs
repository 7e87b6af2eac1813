//! A bound on the bytes that one connection holds in memory, for threads that may block.
//!
//! (`budget::Budget` is for tasks; here a reader thread waits for worker threads.)

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Lets through so many bytes at a time.
#[derive(Debug)]
pub(super) struct Gate {
    free: Mutex<u32>,
    freed: Condvar,
    total: u32,
}

/// A share of the gate; given back when dropped.
#[derive(Debug)]
pub(super) struct Hold<'a> {
    gate: &'a Gate,
    bytes: u32,
}

impl Gate {
    pub(super) fn new(total: u32) -> Self {
        Self { free: Mutex::new(total), freed: Condvar::new(), total }
    }

    /// Waits until `bytes` are free; more than the whole is the whole.
    pub(super) fn take(&self, bytes: u32) -> Hold<'_> {
        let bytes = bytes.min(self.total);
        let free = self.lock();
        let waited = self.freed.wait_while(free, |free| *free < bytes);
        *waited.unwrap_or_else(PoisonError::into_inner) -= bytes;
        Hold { gate: self, bytes }
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        *self.gate.lock() += self.bytes;
        self.gate.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::Gate;

    #[test]
    fn bytes_come_back_when_the_hold_is_dropped() {
        let gate = Gate::new(100);
        let first = gate.take(1000); // the whole
        std::thread::scope(|scope| {
            let second = scope.spawn(|| gate.take(60).bytes);
            drop(first);
            assert_eq!(second.join().unwrap(), 60);
        });
        assert_eq!(*gate.lock(), 100);
    }
}
