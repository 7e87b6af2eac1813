//! Queues and budgets: how much of each is taken, of how much.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is taken now, and the most that may be.
type Level = Box<dyn Fn() -> (u64, u64) + Send + Sync>;

/// A bounded queue or budget that can be looked at.
pub struct Queue {
    name: &'static str,
    bytes: bool,
    level: Level,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Queue {
    /// One that is counted in bytes; `level` gives what is taken and the most.
    pub fn bytes(
        name: &'static str,
        level: impl Fn() -> (u64, u64) + Send + Sync + 'static,
    ) -> Self {
        Self { name, bytes: true, level: Box::new(level) }
    }

    /// One that is counted in items.
    pub fn items(
        name: &'static str,
        level: impl Fn() -> (u64, u64) + Send + Sync + 'static,
    ) -> Self {
        Self { name, bytes: false, level: Box::new(level) }
    }

    pub(super) fn facts(&self) -> QueueFacts {
        let (taken, most) = (self.level)();
        QueueFacts { queue: self.name.to_owned(), bytes: self.bytes, taken, most }
    }
}

/// A queue or budget at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueFacts {
    /// Which.
    pub queue: String,
    /// Whether it is counted in bytes, not in items.
    pub bytes: bool,
    /// Taken now.
    pub taken: u64,
    /// Most that may be taken.
    pub most: u64,
}
