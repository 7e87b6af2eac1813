//! What stops an applier, each with the thing it is about.

use crate::cloud_log::CloudLogError;
use crate::model::{DiskIndex, Epoch, MachineId, ObjectName, Sequence};
use crate::seal::SealError;
use crate::store::{Class, StoreError};
use crate::vault::VaultError;

/// An apply run that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The cloud log could not be read.
    #[error("cloud log of machine {machine}")]
    Log {
        /// Whose.
        machine: MachineId,
        /// The cause.
        #[source]
        source: CloudLogError,
    },
    /// A frame of a delta could not be fetched or opened.
    #[error("cloud log of machine {machine}")]
    Frame {
        /// Whose.
        machine: MachineId,
        /// The cause.
        #[source]
        source: SealError,
    },
    /// A seed disk could not be written.
    #[error("seed disks of machine {machine}")]
    Store {
        /// Whose.
        machine: MachineId,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// The points document could not be read or written.
    #[error("points document of machine {machine}")]
    Points {
        /// Whose.
        machine: MachineId,
        /// The cause.
        #[source]
        source: VaultError,
    },
    /// Another applier took over.
    #[error(
        "machine {machine} is applied by another applier now: generation {theirs}, ours is {ours}"
    )]
    Fenced {
        /// Whose seed disks.
        machine: MachineId,
        /// Our generation.
        ours: u64,
        /// The present one.
        theirs: u64,
    },
    /// The lease on a seed disk ended during a run, and no other applier took over: it ran out, a
    /// failed sync gave it up, or somebody broke it. The run is done again under a new one.
    #[error("the lease on a seed disk of machine {machine} ended during a run")]
    LeaseLost {
        /// Whose seed disk.
        machine: MachineId,
        /// The refusal.
        #[source]
        source: StoreError,
    },
    /// The log was cut beyond what is applied.
    #[error(
        "machine {machine} is applied through {applied}, but its log begins after {truncated}: \
         the seed disks cannot be brought forward; resync the machine"
    )]
    Gap {
        /// Whose.
        machine: MachineId,
        /// Applied watermark.
        applied: Sequence,
        /// Where the log begins.
        truncated: Sequence,
    },
    /// The log is not the one that was applied: it was set back, and may have gone on since.
    #[error(
        "the manifest of machine {machine} was set back: record {applied} was applied, and {witness}. \
         Put the newer one back, or resync the machine once its log has passed record {applied}: the \
         disks of epoch {epoch} are not used again"
    )]
    SetBack {
        /// Whose.
        machine: MachineId,
        /// Where the points document stands.
        applied: Sequence,
        /// Its epoch.
        epoch: Epoch,
        /// What tells.
        witness: String,
    },
    /// A seed disk holds what the points document does not know of: a snapshot of it would hold
    /// writes from after its bookmark.
    #[error(
        "seed disk {object} of machine {machine} is ahead of the points document: {witness}. The \
         document was set back; resync the machine: the disks of epoch {epoch} are not used again"
    )]
    Ahead {
        /// Whose.
        machine: MachineId,
        /// Which disk.
        object: ObjectName,
        /// Its epoch.
        epoch: Epoch,
        /// What tells.
        witness: String,
    },
    /// A seed disk is gone: one that is made in its place would hold what is applied next, and nothing of
    /// what was before.
    #[error(
        "seed disk {object} of machine {machine} is not there, and everything through record {applied} was \
         applied to it. Resync the machine: the disks of epoch {epoch} are not used again"
    )]
    Missing {
        /// Whose.
        machine: MachineId,
        /// Which disk.
        object: ObjectName,
        /// Its epoch.
        epoch: Epoch,
        /// Where the points document stands.
        applied: Sequence,
    },
    /// What the next run needs is gone or altered. What was applied before stays as it is.
    #[error(
        "machine {machine} is not applied beyond record {applied}: put back the object that is named \
         here, or resync the machine (then the rest of epoch {epoch} is passed over)"
    )]
    Damaged {
        /// Whose.
        machine: MachineId,
        /// Where the points document stands.
        applied: Sequence,
        /// The epoch of what comes next.
        epoch: Epoch,
        /// What is wrong.
        #[source]
        source: Box<ApplyError>,
    },
    /// A delta names a disk or an epoch that the manifest does not.
    #[error(
        "delta through {sequence} of machine {machine} names disk {disk}, which epoch {epoch} does not have"
    )]
    UnknownDisk {
        /// Whose.
        machine: MachineId,
        /// Where in the stream.
        sequence: Sequence,
        /// Named by the delta.
        disk: DiskIndex,
        /// Its epoch.
        epoch: Epoch,
    },
    /// An epoch without an entry in the manifest.
    #[error("manifest of machine {machine} names no disks for epoch {epoch}")]
    UnknownEpoch {
        /// Whose.
        machine: MachineId,
        /// Which.
        epoch: Epoch,
    },
}

impl ApplyError {
    /// Whether something that was stored is not what it was, so that trying again is no use.
    #[must_use]
    pub(super) fn is_damage(&self) -> bool {
        let stored = matches!(
            self,
            Self::Log { .. }
                | Self::Frame { .. }
                | Self::Store { .. }
                | Self::UnknownDisk { .. }
                | Self::UnknownEpoch { .. }
        );
        stored && self.class() == Class::Poison
    }

    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Log { source, .. } => source.class(),
            Self::Frame { source, .. } => source.class(),
            Self::Store { source, .. } => source.class(),
            Self::Points { source, .. } => source.class(),
            Self::Fenced { .. } => Class::Fence,
            Self::LeaseLost { .. } => Class::Retry,
            Self::Gap { .. }
            | Self::Ahead { .. }
            | Self::Missing { .. }
            | Self::SetBack { .. }
            | Self::Damaged { .. }
            | Self::UnknownDisk { .. }
            | Self::UnknownEpoch { .. } => Class::Poison,
        }
    }
}
