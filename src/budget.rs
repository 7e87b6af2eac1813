//! Byte budgets: what is in memory carries its permit and gives it back when dropped.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory of a kind of its own that is lent out; told when a share of it is not needed any more.
pub trait Lease: std::fmt::Debug + Send + Sync {
    /// One share is not needed any more.
    fn give_back(&self);
}

/// Bytes per semaphore permit: tokio counts permits in 32 bits at a time, budgets are larger.
const GRAIN: u64 = 512;

/// A bound on bytes that several holders share.
#[derive(Clone, Debug)]
pub struct Budget {
    semaphore: Arc<Semaphore>,
    grains: u32,
}

/// A share of a [`Budget`], or of lent memory; travels inside the item it pays for, and is dropped
/// after what it pays for.
#[derive(Debug, Default)]
pub struct Permit {
    held: Option<OwnedSemaphorePermit>,
    lease: Option<Arc<dyn Lease>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Budget {
    /// A budget of about `bytes` (rounded up to 512, at least 512).
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let grains = u32::try_from(bytes.div_ceil(GRAIN).max(1)).unwrap_or(u32::MAX >> 3);
        Self { semaphore: Arc::new(Semaphore::new(grains as usize)), grains }
    }

    /// Waits until `bytes` are free. An item larger than the whole budget takes all of it.
    pub async fn acquire(&self, bytes: u64) -> Permit {
        let held = Arc::clone(&self.semaphore)
            .acquire_many_owned(self.grains_of(bytes))
            .await
            .expect("the semaphore is never closed");
        Permit { held: Some(held), lease: None }
    }

    /// Takes `bytes` if they are free now.
    #[must_use]
    pub fn try_acquire(&self, bytes: u64) -> Option<Permit> {
        let held = Arc::clone(&self.semaphore).try_acquire_many_owned(self.grains_of(bytes));
        held.ok().map(|held| Permit { held: Some(held), lease: None })
    }

    /// Bytes that are free now.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.semaphore.available_permits() as u64 * GRAIN
    }

    fn grains_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(GRAIN)).unwrap_or(u32::MAX).min(self.grains)
    }
}

impl Permit {
    /// For items that cost nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// A share of lent memory.
    #[must_use]
    pub fn leased(lease: Arc<dyn Lease>) -> Self {
        Self { held: None, lease: Some(lease) }
    }

    /// Gives back what is not needed for `bytes`: the item turned out smaller than it might have.
    pub fn shrink_to(&mut self, bytes: u64) {
        let grains = usize::try_from(bytes.div_ceil(GRAIN)).unwrap_or(usize::MAX);
        if let Some(held) = &mut self.held {
            let spare = held.num_permits().saturating_sub(grains);
            drop(held.split(spare));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Budget;

    #[test]
    fn a_permit_shrinks_to_what_its_item_needs_and_never_grows() {
        let budget = Budget::new(4096);
        let mut permit = budget.try_acquire(4096).unwrap();
        permit.shrink_to(513);
        assert_eq!(budget.free(), 4096 - 1024);
        permit.shrink_to(4096);
        assert_eq!(budget.free(), 4096 - 1024);
        drop(permit);
        assert_eq!(budget.free(), 4096);
    }

    #[test]
    fn bytes_come_back_when_the_item_is_dropped() {
        let budget = Budget::new(1024);
        let first = budget.try_acquire(600).unwrap(); // two grains of 512
        assert!(budget.try_acquire(1).is_none());
        drop(first);
        assert_eq!(budget.free(), 1024);
        assert!(budget.try_acquire(1 << 40).is_some(), "an oversized item takes the whole budget");
    }
}
