//! Why a machine's turn did not end well.

use crate::apply::ApplyError;
use crate::cloud_log::CloudLogError;
use crate::model::MachineId;
use crate::seal::SealError;
use crate::store::Class;
use crate::upload::UploadError;
use crate::vault::VaultError;

/// Why a turn did not end well.
#[derive(Debug, thiserror::Error)]
pub(super) enum TurnError {
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("retention of machine {machine}")]
    Upload {
        machine: MachineId,
        #[source]
        source: UploadError,
    },
    #[error("machine {machine}")]
    Vault {
        machine: MachineId,
        #[source]
        source: VaultError,
    },
    #[error("keys of machine {machine}")]
    Keys {
        machine: MachineId,
        #[source]
        source: SealError,
    },
    #[error("cloud log of machine {machine}")]
    Log {
        machine: MachineId,
        #[source]
        source: CloudLogError,
    },
}

impl TurnError {
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Apply(source) => source.class(),
            // The manifest changed hands since it was read: that concerns uploading, not applying.
            Self::Upload { source, .. } if source.class() == Class::Fence => Class::Retry,
            Self::Upload { source, .. } => source.class(),
            Self::Vault { source, .. } => source.class(),
            Self::Keys { source, .. } => source.class(),
            Self::Log { source, .. } => source.class(),
        }
    }
}
