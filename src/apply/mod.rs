//! `Published` → `Applied` → `RecoveryPoint`: the cloud log onto the seed disks.
//!
//! One [`Applier`] per machine. A *run* is the stretch of deltas from the applied watermark to the
//! next bookmark that becomes a snapshot (or to a byte limit). Each run: announce it in the points
//! document, write its coalesced pages, flush, snapshot every disk if the bookmark is due, record
//! it. Redo is idempotent; the seed disks are fenced by their own lease and sequence number. The
//! decision tables stand in `docs/durability.md`.
//!
//! Does not own: the manifest (upload changes it; [`retention`] only says what may go).

mod applier;
mod bodies;
mod checkpoint;
mod due;
mod error;
mod pins;
pub mod plan;
mod retain;
pub mod retention;
mod seed;
mod witness;
mod write;

pub use applier::{Applier, ApplierContext, Step};
pub use bodies::Bodies;
pub use checkpoint::{Applied, RecoveryPoint};
pub use error::ApplyError;
pub use pins::PinsSeen;
