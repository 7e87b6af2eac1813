//! What stops a machine's upload.

use crate::cloud_log::CloudLogError;
use crate::model::{DeltaId, Epoch, Generation, MachineId, Sequence, ServerId};
use crate::store::{Class, ObjectName, StoreError};

/// Uploading, publishing or tidying of one machine's log ended.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The store refused for good.
    #[error("upload of {name} of machine {machine}")]
    Store {
        /// Whose.
        machine: MachineId,
        /// Which object.
        name: ObjectName,
        /// The cause.
        #[source]
        source: Box<StoreError>,
    },
    /// The manifest or a page could not be read or written.
    #[error("manifest of machine {machine}")]
    Log {
        /// Whose.
        machine: MachineId,
        /// The cause.
        #[source]
        source: Box<CloudLogError>,
    },
    /// Under the write-once name of our delta stands something that we did not write.
    #[error("{name} of machine {machine} holds {found}, expected our {expected} bytes")]
    Foreign {
        /// Whose.
        machine: MachineId,
        /// Which object.
        name: ObjectName,
        /// What stands there.
        found: String,
        /// Length of what we sent.
        expected: u64,
    },
    /// Another process server owns the machine.
    #[error(
        "machine {machine} belongs to {their_owner} (generation {theirs}) now; \
         ours was generation {ours}"
    )]
    Fenced {
        /// Which machine.
        machine: MachineId,
        /// Our generation.
        ours: Generation,
        /// The present one.
        theirs: Generation,
        /// The present owner.
        their_owner: ServerId,
    },
    /// The manifest is gone, or names something else in the place of what we published.
    #[error("manifest of machine {machine}: {detail}")]
    Contradiction {
        /// Whose.
        machine: MachineId,
        /// What and where.
        detail: String,
    },
    /// A delta whose records do not follow what there is.
    #[error("delta {first}..={last} of machine {machine} does not follow {expected}")]
    Place {
        /// Whose.
        machine: MachineId,
        /// Its first record.
        first: Sequence,
        /// Its last record.
        last: Sequence,
        /// The record that its first should follow.
        expected: Sequence,
    },
    /// A delta that was sealed onto another one than the newest published.
    #[error("delta {id} of machine {machine} chains to {found:?}, the newest is {expected:?}")]
    Chain {
        /// Whose.
        machine: MachineId,
        /// Which.
        id: DeltaId,
        /// What its header names.
        found: Option<DeltaId>,
        /// What it should.
        expected: Option<DeltaId>,
    },
    /// A delta that was sealed under another ownership than the one that uploads it.
    #[error("delta {id} of machine {machine} is of generation {found}, ours is {ours}")]
    Generation {
        /// Whose.
        machine: MachineId,
        /// Which.
        id: DeltaId,
        /// Under which it was sealed.
        found: Generation,
        /// The one we hold.
        ours: Generation,
    },
    /// A delta of an epoch that did not begin in it and that the manifest does not name.
    #[error("delta {id} of machine {machine} is of epoch {epoch}, which never began")]
    Epoch {
        /// Whose.
        machine: MachineId,
        /// Which.
        id: DeltaId,
        /// Its epoch.
        epoch: Epoch,
    },
}

impl UploadError {
    /// What to do about it. `Retry` comes only out of tidying ([`super::truncate()`],
    /// [`super::remove_orphans`]): uploading and publishing try again by themselves.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Store { source, .. } => source.class(),
            Self::Log { source, .. } => source.class(),
            Self::Foreign { .. } | Self::Fenced { .. } => Class::Fence,
            Self::Contradiction { .. } => Class::Poison,
            Self::Place { .. }
            | Self::Chain { .. }
            | Self::Generation { .. }
            | Self::Epoch { .. } => Class::Bug,
        }
    }

    /// Whether the store has no room: said at once, because only a human can help.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Store { source, .. } => matches!(**source, StoreError::Full { .. }),
            Self::Log { source, .. } => source.is_full(),
            _ => false,
        }
    }

    /// What the store said, where that is the cause.
    pub(super) fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store { source, .. } => Some(source),
            Self::Log { source, .. } => source.store_error(),
            _ => None,
        }
    }

    /// About the manifest or a page of `machine`.
    pub(super) fn log(machine: &MachineId, source: CloudLogError) -> Self {
        Self::Log { machine: machine.clone(), source: Box::new(source) }
    }
}
