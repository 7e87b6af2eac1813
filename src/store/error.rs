//! What can go wrong in a store, sorted by what the caller may do about it.

use std::sync::Arc;
use std::time::Duration;

/// A store call that did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing of that name.
    #[error("{store}: no object {name}")]
    NotFound {
        /// Which store.
        store: String,
        /// Which object.
        name: String,
    },
    /// A create-only write found something.
    #[error("{store}: object {name} exists already")]
    AlreadyExists {
        /// Which store.
        store: String,
        /// Which object.
        name: String,
    },
    /// The version named by the condition is not the present one.
    #[error("{store}: object {name} was changed by somebody else")]
    Precondition {
        /// Which store.
        store: String,
        /// Which object.
        name: String,
    },
    /// Lease or sequence number belong to a newer owner.
    #[error("{store}: {name} belongs to another owner now: {detail}")]
    Fenced {
        /// Which store.
        store: String,
        /// Which object.
        name: String,
        /// What the store holds and what was asked.
        detail: String,
    },
    /// The object ends before the range.
    #[error("{store}: object {name} has {length} bytes, no range {offset}+{wanted}")]
    OutOfRange {
        /// Which store.
        store: String,
        /// Which object.
        name: String,
        /// Its length.
        length: u64,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        wanted: u64,
    },
    /// The store has no room.
    #[error("{store}: no space left for {name}; free space there, nothing is lost meanwhile")]
    Full {
        /// Which store.
        store: String,
        /// Which object.
        name: String,
        /// The cause.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The effect did not happen; the same call may succeed later.
    #[error("{store}: {name} is not reachable now")]
    Transient {
        /// Which store.
        store: String,
        /// Which object.
        name: String,
        /// The cause.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The store asks to come again later: it is busy, or we ask too much. No effect.
    #[error("{store}: busy: {name} must wait")]
    Throttled {
        /// Which store.
        store: String,
        /// Which object.
        name: String,
        /// How long the store wants to be left alone, if it says so (`Retry-After`).
        retry_after: Option<Duration>,
    },
    /// The answer was lost: the effect may or may not have happened.
    #[error("{store}: the answer for {name} was lost")]
    Ambiguous {
        /// Which store.
        store: String,
        /// Which object.
        name: String,
        /// The cause.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Somebody has to let us in, or make what we are let into. No effect.
    #[error("{store}: {name}: {detail}")]
    Denied {
        /// Which store.
        store: String,
        /// Which object.
        name: String,
        /// Why, and the cure.
        detail: String,
    },
    /// What is stored cannot be what was written.
    #[error("{store}: {name} is damaged: {detail}")]
    Damaged {
        /// Which store.
        store: String,
        /// Which object.
        name: String,
        /// Where and how.
        detail: String,
    },
    /// The call itself breaks the store's rules.
    #[error("{store}: {name}: {detail}")]
    Refused {
        /// Which store.
        store: String,
        /// Which object.
        name: String,
        /// The rule.
        detail: String,
    },
    /// The operating system said no in a way that needs a human.
    #[error("{store}: {name}: {action}")]
    Io {
        /// Which store.
        store: String,
        /// Which object or path.
        name: String,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: Arc<std::io::Error>,
    },
}

/// What a caller does about an error: the only input to policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The same again, later, with back-off.
    Retry,
    /// The request is wrong; repeating changes nothing.
    Reject,
    /// A newer owner exists: stop touching this.
    Fence,
    /// What is stored is not what was written: never use it, raise an alarm.
    Poison,
    /// Our own mistake.
    Bug,
}

impl StoreError {
    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Full { .. }
            | Self::Transient { .. }
            | Self::Throttled { .. }
            | Self::Denied { .. }
            | Self::Ambiguous { .. }
            | Self::Io { .. } => Class::Retry,
            Self::NotFound { .. } | Self::AlreadyExists { .. } | Self::Precondition { .. } => {
                Class::Reject
            }
            Self::Fenced { .. } => Class::Fence,
            Self::Damaged { .. } | Self::OutOfRange { .. } => Class::Poison,
            Self::Refused { .. } => Class::Bug,
        }
    }

    /// How long the store wants to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
