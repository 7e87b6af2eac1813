//! What ingest needs of the rest of the process server: a link to a machine, or the reason why not.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::machine::MachineLink;
use super::session::refuse;
use crate::format::wire::{FromServer, Redirect, Refusal, Refuse};
use crate::model::MachineId;
use crate::store::StoreError;

/// SHA-256 of a certificate's DER form; shown as hexadecimal digits, as machine documents list it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The machines that this process server serves.
#[async_trait]
pub trait Machines: Send + Sync + 'static {
    /// The link to a machine whose agent has come, made when it comes first: claims the manifest,
    /// loads the policy, follows what recovery found. Called once for each connection, so that a
    /// revoked certificate is refused at the next one.
    async fn open(
        &self,
        machine: &MachineId,
        certificate: &Fingerprint,
    ) -> Result<Arc<MachineLink>, OpenError>;

    /// Whether the certificate still speaks for the machine: asked now and then while a session lasts,
    /// which [`OpenError::Revoked`] and [`OpenError::Unknown`] end, and nothing else.
    async fn knows(&self, machine: &MachineId, certificate: &Fingerprint) -> Result<(), OpenError>;
}

/// Why a machine is not served here.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// It was never enrolled.
    #[error("machine {machine} is not enrolled on this site")]
    Unknown {
        /// Which.
        machine: MachineId,
    },
    /// Its certificate was revoked, or never issued for it.
    #[error("certificate {certificate} is not good for machine {machine} any more")]
    Revoked {
        /// Which machine.
        machine: MachineId,
        /// Which certificate.
        certificate: Fingerprint,
    },
    /// Another process server owns it, or this one drains.
    #[error("machine {machine} is not served here: {reason}")]
    NotOwner {
        /// Which.
        machine: MachineId,
        /// Why, in words.
        reason: String,
    },
    /// Another process server serves it.
    #[error("machine {machine} is served elsewhere: {reason}")]
    Elsewhere {
        /// Which.
        machine: MachineId,
        /// `host:port` of that server, at least one.
        addresses: Vec<String>,
        /// Who, in words.
        reason: String,
    },
    /// It is being claimed, and that takes its time.
    #[error("machine {machine} is not claimed yet: {reason}")]
    Late {
        /// Which.
        machine: MachineId,
        /// What it waits for, in words.
        reason: String,
    },
    /// Its documents or its manifest cannot be read or written now.
    #[error("machine {machine} cannot be claimed")]
    Store {
        /// Which.
        machine: MachineId,
        /// What the store said.
        #[source]
        source: StoreError,
    },
}

/// The last that an agent is told on a connection, and why it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastWord {
    /// Not here, or not now.
    Refuse(Refuse),
    /// Somebody else serves the machine.
    Redirect(Redirect),
}

impl From<Refuse> for LastWord {
    fn from(refuse: Refuse) -> Self {
        Self::Refuse(refuse)
    }
}

impl From<LastWord> for FromServer {
    fn from(word: LastWord) -> Self {
        match word {
            LastWord::Refuse(refuse) => Self::Refuse(refuse),
            LastWord::Redirect(redirect) => Self::Redirect(redirect),
        }
    }
}

impl OpenError {
    /// What the agent is told. Causes inside the store stay in our log.
    #[must_use]
    pub fn last_word(&self) -> LastWord {
        let code = match self {
            Self::Unknown { .. } | Self::Revoked { .. } => Refusal::Identity,
            Self::NotOwner { .. } => Refusal::NotOwner,
            Self::Late { .. } | Self::Store { .. } => Refusal::Busy,
            Self::Elsewhere { addresses, reason, .. } => {
                let (addresses, reason) = (addresses.clone(), reason.clone());
                return LastWord::Redirect(Redirect { addresses, reason });
            }
        };
        refuse(code, self).into()
    }
}
