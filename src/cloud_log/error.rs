//! What stops a reader or a changer of the cloud log.

use crate::format::bytes::FormatError;
use crate::model::{MachineId, Sequence};
use crate::seal::SealError;
use crate::store::{Class, ObjectName, StoreError};

/// The cloud log of a machine could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum CloudLogError {
    /// The store did not do it.
    #[error("cloud log of machine {machine}: {name}")]
    Store {
        /// Whose log.
        machine: MachineId,
        /// Which object.
        name: ObjectName,
        /// The cause.
        #[source]
        source: Box<StoreError>,
    },
    /// An object of the log does not open under the machine's keys.
    #[error("cloud log of machine {machine}: {name} is not what was written")]
    Sealed {
        /// Whose log.
        machine: MachineId,
        /// Which object.
        name: ObjectName,
        /// The cause.
        #[source]
        source: Box<SealError>,
    },
    /// An object opened, and is no manifest or page.
    #[error("cloud log of machine {machine}: {name} breaks its format")]
    Format {
        /// Whose log.
        machine: MachineId,
        /// Which object.
        name: ObjectName,
        /// The cause.
        #[source]
        source: Box<FormatError>,
    },
    /// A valid object in the place of another: swapped, or of another machine.
    #[error("cloud log of machine {machine}: {name}: {field} is {found}, expected {expected}")]
    Mismatch {
        /// Whose log.
        machine: MachineId,
        /// Which object.
        name: ObjectName,
        /// What was compared.
        field: &'static str,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },
    /// An object that the manifest names is not there.
    #[error("cloud log of machine {machine}: {name}, named by the manifest, does not exist")]
    Missing {
        /// Whose log.
        machine: MachineId,
        /// Which object.
        name: ObjectName,
    },
    /// Entries that were asked for were truncated.
    #[error("cloud log of machine {machine} begins after {truncated}; {asked} was asked for")]
    Truncated {
        /// Whose log.
        machine: MachineId,
        /// Everything through here is gone.
        truncated: Sequence,
        /// Entries after here were asked for.
        asked: Sequence,
    },
    /// The manifest that was to be written breaks a rule.
    #[error("cloud log of machine {machine}: the next manifest would break its format")]
    Next {
        /// Whose log.
        machine: MachineId,
        /// The rule.
        #[source]
        source: Box<FormatError>,
    },
    /// Somebody else changed the manifest: read it again and decide.
    #[error("the manifest of machine {machine} was changed by somebody else")]
    Changed {
        /// Whose.
        machine: MachineId,
    },
    /// Whether the manifest was changed is not known: read it again before anything else.
    #[error("whether the manifest of machine {machine} was written is not known")]
    Unsettled {
        /// Whose.
        machine: MachineId,
        /// The answer to the write.
        #[source]
        source: Box<StoreError>,
    },
}

impl CloudLogError {
    /// Whether the store has no room for it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Store { source, .. } if matches!(**source, StoreError::Full { .. }))
    }

    /// The object that cannot be believed, where it is one.
    #[must_use]
    pub fn object(&self) -> Option<&ObjectName> {
        match self {
            Self::Store { name, .. }
            | Self::Sealed { name, .. }
            | Self::Format { name, .. }
            | Self::Mismatch { name, .. }
            | Self::Missing { name, .. } => Some(name),
            Self::Truncated { .. }
            | Self::Next { .. }
            | Self::Changed { .. }
            | Self::Unsettled { .. } => None,
        }
    }

    /// What the store said, where that is the cause.
    #[must_use]
    pub fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store { source, .. } | Self::Unsettled { source, .. } => Some(source),
            _ => None,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Store { source, .. } => source.class(),
            // A key that is not loaded is the operator's to give; all else is not ours to believe.
            Self::Sealed { source, .. } => source.class(),
            Self::Format { .. } | Self::Mismatch { .. } | Self::Missing { .. } => Class::Poison,
            Self::Truncated { .. } => Class::Reject,
            Self::Next { .. } => Class::Bug,
            Self::Changed { .. } | Self::Unsettled { .. } => Class::Retry,
        }
    }
}
