//! Sizes of page blobs that this store met: a write that reaches over the end is refused here.
//!
//! A page blob is never resized by this product; who removes or makes one says so.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ObjectName;

#[derive(Default)]
pub(super) struct Sizes(Mutex<HashMap<ObjectName, u64>>);

impl Sizes {
    fn known(&self) -> MutexGuard<'_, HashMap<ObjectName, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, name: &ObjectName) -> Option<u64> {
        self.known().get(name).copied()
    }

    pub(super) fn learn(&self, name: &ObjectName, size: u64) {
        self.known().insert(name.clone(), size);
    }

    pub(super) fn forget(&self, name: &ObjectName) {
        self.known().remove(name);
    }
}
