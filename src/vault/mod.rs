//! The documents of the control plane, in the store: machines, policies, points, tokens.
//!
//! Owns: their shape, their authentication (HMAC under a key derived from the key-encryption key),
//! compare-and-swap. Does not own: the manifest (a format) and who may change what.

mod documents;
mod envelope;
mod error;
mod machines;
mod policy;
mod servers;
mod site;
#[cfg(test)]
mod tests;
mod tokens;
#[allow(clippy::module_inception, reason = "the room's main thing has the room's name")]
mod vault;

pub use documents::{
    AssignmentDocument, CertificateEntry, LadderStep, MachineDocument, PinDocument, PointsDocument,
    Policy, ServerDocument, ServerLoad, SiteDocument, SnapshotDisk, SnapshotPoint, TokenDocument,
    WrappedKey,
};
pub use error::{PolicyViolation, VaultError};
pub use policy::PolicyBounds;
pub use servers::LEASE_SECONDS;
pub use tokens::{Token, TokenError};
pub use vault::Vault;
