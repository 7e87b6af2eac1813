//! A point → a disk. Needs the store and the key: no process server, no agent, no sidecar.
//!
//! Owns: what a recovery point is ([`Recovery::points`]), what it needs ([`Recovery::resolve`]),
//! reading any byte of it ([`DiskReader`]), serving it over NBD ([`Mounted`]), writing it out
//! ([`export`], [`export_onto`]), proving it ([`verify`]), keeping retention from it meanwhile ([`Pin`]). Does not
//! own: making points, changing the log or the seed disks.
//!
//! ```text
//! PointSpec ──▶ ResolvedPoint ──▶ DiskReader ──▶ Mounted (NBD) | export (raw, VHD, device) | verify
//!                 + Pin
//! ```

mod base;
mod error;
mod export;
mod frames;
mod list;
mod mount;
mod onto;
mod overlay;
mod pin;
mod point;
mod reader;
mod recovery;
mod resolve;
mod verify;

#[cfg(test)]
mod tests;

pub use error::RecoverError;
pub use export::{ExportFormat, Exported, Progress, export};
pub use list::{Point, Stored};
pub use mount::Mounted;
pub use onto::export_onto;
pub use pin::Pin;
pub use point::PointSpec;
pub use reader::{CACHE_BYTES, DiskReader};
pub use recovery::Recovery;
pub use resolve::ResolvedPoint;
pub use verify::{Failure, PointReport, VerifyReport, verify};
