//! Range locks of one disk: whoever writes, zeroes or re-reads a range has it alone.
//!
//! Owns: that [intent + source write + sequence] of overlapping ranges is one unit, also against
//! catch-up reads. Does not own: what is done under the lock.

use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

/// Byte ranges held or waited for, in order of arrival: an overlapping later one waits, so nobody
/// starves, and a holder never asks for a second range, so nobody deadlocks.
#[derive(Debug, Default)]
pub(super) struct RangeLocks {
    queue: Mutex<Queue>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    entries: Vec<(u64, Range<u64>)>,
}

/// A range held; given back when dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    locks: &'a RangeLocks,
    number: u64,
}

impl RangeLocks {
    /// Waits until nobody who came before holds or wants any byte of `range`.
    pub(super) fn hold(&self, range: Range<u64>) -> Held<'_> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let number = queue.next;
        queue.next += 1;
        queue.entries.push((number, range.clone()));
        while queue
            .entries
            .iter()
            .take_while(|(earlier, _)| *earlier != number)
            .any(|(_, other)| other.start < range.end && range.start < other.end)
        {
            queue = self.released.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        Held { locks: self, number }
    }

    /// Every range that is held or waited for now.
    pub(super) fn ranges(&self) -> Vec<Range<u64>> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.entries.iter().map(|(_, range)| range.clone()).collect()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let queue = self.locks.queue.lock();
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        queue.entries.retain(|(number, _)| *number != self.number);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn an_overlapping_range_waits_and_another_does_not() {
        let locks = RangeLocks::default();
        let first = locks.hold(0..4096);
        drop(locks.hold(4096..8192)); // would hang if it had to wait
        assert_eq!(locks.ranges(), vec![0..4096]);
        drop(first);
        drop(locks.hold(0..1));
        assert!(locks.ranges().is_empty());
    }

    #[test]
    fn a_counter_behind_overlapping_ranges_never_tears() {
        let locks = Arc::new(RangeLocks::default());
        let counter = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let (locks, counter) = (Arc::clone(&locks), Arc::clone(&counter));
                std::thread::spawn(move || {
                    for _ in 0..500 {
                        let _held = locks.hold(thread * 512..4096); // all overlap at the end
                        let seen = counter.load(Ordering::Relaxed);
                        std::thread::yield_now();
                        counter.store(seen + 1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(counter.load(Ordering::Relaxed), 2000);
    }
}
