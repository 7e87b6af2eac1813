//! The documents of the control plane, in the store: machines, policies, points, tokens.
//!
//! Owns: their shape, their authentication (HMAC under a key derived from the key-encryption key),
//! compare-and-swap. Does not own: the manifest (a format) and who may change what.

mod documents;

pub use documents::{
    CertificateEntry, LadderStep, MachineDocument, PinDocument, PointsDocument, Policy,
    ServerDocument, SiteDocument, SnapshotDisk, SnapshotPoint, TokenDocument, WrappedKey,
};
