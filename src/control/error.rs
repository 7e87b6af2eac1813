//! What can go wrong in the control plane.

use std::path::PathBuf;

use crate::cloud_log::CloudLogError;
use crate::model::{MachineId, ServerId};
use crate::recover::RecoverError;
use crate::seal::SealError;
use crate::vault::{TokenError, VaultError};

/// A control operation that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A file of keys or certificates cannot be read.
    #[error("{path}: cannot be read; `holdfast init` makes it, [tls] in the settings names it", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file holds no certificate or key in PEM.
    #[error("{path}: holds no usable {what} in PEM", path = path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// A certificate could not be made.
    #[error("certificate for {subject}")]
    Certificate {
        /// For whom.
        subject: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A certificate signing request is not usable.
    #[error("the certificate signing request is not usable: {reason}")]
    SigningRequest {
        /// Why.
        reason: String,
    },
    /// Certificate and key do not go together, or TLS does not take them.
    #[error("{path}: TLS does not take this certificate with its key", path = path.display())]
    Tls {
        /// The certificate.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
    /// A server cannot be reached.
    #[error("{url}: not reachable; is `holdfast serve` running there, and the port open?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A server was reached and the conversation broke.
    #[error("{url}: the connection broke")]
    Broken {
        /// What was asked.
        url: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A server took too long.
    #[error("{url}: no answer within {seconds} s; look at its log and `holdfast status`")]
    Timeout {
        /// What was asked.
        url: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A server refused.
    #[error("{url}: {message}{gap}{cure}", gap = if cure.is_empty() { "" } else { "; " })]
    Refused {
        /// What was asked.
        url: String,
        /// HTTP status.
        status: u16,
        /// For programs.
        code: String,
        /// What is wrong.
        message: String,
        /// What to do.
        cure: String,
    },
    /// A server answered something else than was expected.
    #[error("{url}: the answer is not understood; do both sides run the same version?")]
    Answer {
        /// What was asked.
        url: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A machine that nobody enrolled.
    #[error("machine {machine} is not enrolled; `holdfast enroll {machine}` does it")]
    UnknownMachine {
        /// Which.
        machine: MachineId,
    },
    /// A bookmark that is no recovery point of the machine.
    #[error(
        "machine {machine} has no recovery point {bookmark}; `holdfast points {machine}` lists them"
    )]
    UnknownPoint {
        /// Which machine.
        machine: MachineId,
        /// What was asked for.
        bookmark: String,
    },
    /// No certificate of the machine, or several.
    #[error(
        "{fingerprint:?} does not name one certificate of machine {machine}: give 8 digits or more of one that \
         `holdfast revoke {machine}` lists"
    )]
    UnknownCertificate {
        /// Which machine.
        machine: MachineId,
        /// What was asked for.
        fingerprint: String,
    },
    /// No process server owns the machine yet.
    #[error("no process server owns machine {machine} yet; start `holdfast serve`")]
    NoOwner {
        /// Which.
        machine: MachineId,
    },
    /// The process server that owns the machine cannot be asked to give it up.
    #[error(
        "{owner}, which has machine {machine}, does not answer: as soon as its agent comes to another \
         one, that one takes it over. `holdfast assign {machine} {to}` makes it {to}"
    )]
    OwnerGone {
        /// Which machine.
        machine: MachineId,
        /// Whose it is.
        owner: ServerId,
        /// Where it should go.
        to: ServerId,
        /// What happened.
        #[source]
        source: Box<ControlError>,
    },
    /// A socket cannot be listened on.
    #[error("{address}: cannot listen there; is the port taken? sidecar.listen sets another")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The cloud log.
    #[error(transparent)]
    CloudLog(#[from] CloudLogError),
    /// The recovery points.
    #[error(transparent)]
    Recover(#[from] RecoverError),
}
