//! Byte budgets: what is in memory carries its permit and gives it back when dropped.

mod slots;

use std::sync::Arc;

pub use slots::{Slot, Slots};

/// Memory of a kind of its own that is lent out; told when a share of it is not needed any more.
pub trait Lease: std::fmt::Debug + Send + Sync {
    /// One share is not needed any more.
    fn give_back(&self);
}

/// Bytes per slot: slots are counted in 32 bits, budgets are larger.
const GRAIN: u64 = 512;

/// A bound on bytes that several holders share.
#[derive(Clone, Debug)]
pub struct Budget {
    grains: Slots,
}

/// A share of a [`Budget`], or of lent memory; travels inside the item it pays for, and is dropped
/// after what it pays for.
#[derive(Debug, Default)]
pub struct Permit {
    held: Option<Slot>,
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
        Self { grains: Slots::new(all_grains(bytes)) }
    }

    /// Changes the budget. What is held stays held; a smaller budget takes hold as it comes back.
    pub fn resize(&self, bytes: u64) {
        self.grains.resize(all_grains(bytes));
    }

    /// Waits until `bytes` are free. An item larger than the whole budget takes all of it.
    pub async fn acquire(&self, bytes: u64) -> Permit {
        Permit { held: Some(self.grains.acquire(grains(bytes)).await), lease: None }
    }

    /// Takes `bytes` if they are free now.
    #[must_use]
    pub fn try_acquire(&self, bytes: u64) -> Option<Permit> {
        self.grains.try_acquire(grains(bytes)).map(|held| Permit { held: Some(held), lease: None })
    }

    /// Bytes that are free now.
    #[must_use]
    pub fn free(&self) -> u64 {
        u64::from(self.grains.free()) * GRAIN
    }

    /// Bytes of the whole budget.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.grains.count()) * GRAIN
    }
}

fn grains(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(GRAIN)).unwrap_or(u32::MAX)
}

/// No more than a semaphore counts.
fn all_grains(bytes: u64) -> u32 {
    grains(bytes).clamp(1, u32::MAX >> 3)
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
        if let Some(held) = &mut self.held {
            held.shrink_to(grains(bytes));
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
