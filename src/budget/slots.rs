//! Slots that are held and given back, and whose number may change meanwhile.
//!
//! Fewer slots: those that are free go at once, the rest as their holders give them back, before
//! anybody who waits gets one. Nobody who holds one is disturbed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// A number of slots that several holders share. Clones share them.
#[derive(Clone, Debug)]
pub struct Slots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    semaphore: Arc<Semaphore>,
    count: watch::Sender<u32>,
    /// Slots that must not come back: their number was lowered while they were held.
    debt: AtomicUsize,
    /// Held while `debt` and `count` change.
    changing: Mutex<()>,
}

/// Slots held; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    held: Option<OwnedSemaphorePermit>, // `None` only while dropping
    shared: Arc<Shared>,
}

impl Slots {
    /// `count` slots, at least one.
    #[must_use]
    pub fn new(count: u32) -> Self {
        let count = count.max(1);
        Self {
            shared: Arc::new(Shared {
                semaphore: Arc::new(Semaphore::new(count as usize)),
                count: watch::Sender::new(count),
                debt: AtomicUsize::new(0),
                changing: Mutex::new(()),
            }),
        }
    }

    /// How many there are, held or free.
    #[must_use]
    pub fn count(&self) -> u32 {
        *self.shared.count.borrow()
    }

    /// How many are free now.
    #[must_use]
    pub fn free(&self) -> u32 {
        u32::try_from(self.shared.semaphore.available_permits()).unwrap_or(u32::MAX)
    }

    /// Waits for `wanted` slots; for all of them when there are fewer.
    pub async fn acquire(&self, wanted: u32) -> Slot {
        let mut count = self.shared.count.subscribe();
        loop {
            // Fewer slots than a waiter asks for would let it wait for ever: it asks anew.
            let wanted = wanted.min(*count.borrow_and_update());
            let permit = Arc::clone(&self.shared.semaphore).acquire_many_owned(wanted);
            tokio::select! {
                biased;
                held = permit => {
                    let held = held.expect("the semaphore is never closed");
                    return self.slot(held);
                }
                // What the question had collected came back with it.
                Ok(()) = count.changed() => self.shared.pay_from_free(),
            }
        }
    }

    /// Takes `wanted` slots, all there are when there are fewer, if they are free now.
    #[must_use]
    pub fn try_acquire(&self, wanted: u32) -> Option<Slot> {
        let wanted = wanted.min(self.count());
        let held = Arc::clone(&self.shared.semaphore).try_acquire_many_owned(wanted);
        held.ok().map(|held| self.slot(held))
    }

    /// Changes how many there are; at least one.
    pub fn resize(&self, count: u32) {
        let shared = &self.shared;
        let _changing = shared.changing();
        let before = shared.count.send_replace(count.max(1)) as usize;
        let count = count.max(1) as usize;
        if count < before {
            shared.debt.fetch_add(before - count, Ordering::SeqCst);
            shared.forget_free();
        } else {
            let more = count - before;
            let paid = more.min(shared.debt.load(Ordering::SeqCst));
            shared.debt.fetch_sub(paid, Ordering::SeqCst);
            shared.semaphore.add_permits(more - paid);
        }
    }

    fn slot(&self, held: OwnedSemaphorePermit) -> Slot {
        Slot { held: Some(held), shared: Arc::clone(&self.shared) }
    }
}

impl Shared {
    fn changing(&self) -> std::sync::MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pay_from_free(&self) {
        if self.debt.load(Ordering::SeqCst) > 0 {
            let _changing = self.changing();
            self.forget_free();
        }
    }

    fn forget_free(&self) {
        let forgotten = self.semaphore.forget_permits(self.debt.load(Ordering::SeqCst));
        self.debt.fetch_sub(forgotten, Ordering::SeqCst);
    }
}

impl Slot {
    /// How many slots are held.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.held.as_ref().map_or(0, |held| u32::try_from(held.num_permits()).unwrap_or(u32::MAX))
    }

    /// Gives back all but `count`.
    pub fn shrink_to(&mut self, count: u32) {
        let spare = self.count().saturating_sub(count) as usize;
        let split = self.held.as_mut().and_then(|held| held.split(spare));
        drop(Self { held: split, shared: Arc::clone(&self.shared) });
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(mut held) = self.held.take() else { return };
        let shared = &self.shared;
        if shared.debt.load(Ordering::SeqCst) > 0 {
            let _changing = shared.changing();
            let paid = held.num_permits().min(shared.debt.load(Ordering::SeqCst));
            if let Some(paid_by) = held.split(paid) {
                paid_by.forget();
                shared.debt.fetch_sub(paid, Ordering::SeqCst);
            }
        }
        drop(held);
        // A debt that was made between the question and the return: the slot is free by now.
        shared.pay_from_free();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn fewer_slots_are_taken_from_who_gives_back_before_who_waits() {
        let slots = Slots::new(4);
        let mut held: Vec<_> = (0..4).map(|_| slots.try_acquire(1).unwrap()).collect();
        let mut waiting = pin!(slots.acquire(1));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        slots.resize(2);
        held.truncate(2);
        assert!(waiting.as_mut().poll(&mut context).is_pending(), "two of two are held");
        held.truncate(1);
        assert!(waiting.as_mut().poll(&mut context).is_ready());
        drop(held);
        assert_eq!((slots.count(), slots.free()), (2, 2), "the one that waited is gone again");
    }

    #[test]
    fn more_slots_pay_a_debt_first() {
        let slots = Slots::new(4);
        let held = slots.try_acquire(4).unwrap();
        slots.resize(1);
        slots.resize(3);
        assert_eq!(slots.free(), 0);
        drop(held);
        assert_eq!((slots.count(), slots.free()), (3, 3));
        slots.resize(5);
        assert_eq!(slots.free(), 5);
        slots.resize(0);
        assert_eq!((slots.count(), slots.free()), (1, 1), "never none");
    }

    #[test]
    fn who_waits_for_more_than_there_are_is_not_forgotten() {
        let slots = Slots::new(8);
        let one = slots.try_acquire(1).unwrap();
        let mut waiting = pin!(slots.acquire(8));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        slots.resize(2);
        drop(one);
        let Poll::Ready(all) = waiting.as_mut().poll(&mut context) else { panic!("it waits") };
        assert_eq!(all.count(), 2);
        assert!(now(slots.acquire(1)).is_none());
    }

    #[test]
    fn part_of_what_is_held_pays_too() {
        let slots = Slots::new(8);
        let mut slot = slots.try_acquire(8).unwrap();
        slots.resize(6);
        slot.shrink_to(3);
        assert_eq!(slots.free(), 3, "two of the five went with the debt");
        drop(slot);
        assert_eq!(slots.free(), 6);
    }
}
