//! `Durable` → `Batch` → `Sealed` and back: batch, coalesce, compress, encrypt, open.
//!
//! Owns: which records make a delta, every key, everything that is sealed or opened. Does not own:
//! layouts (`format::delta`), what is uploaded when, what a manifest says.

mod batch;
mod coalesce;
mod compress;
mod document;
mod encrypt;
mod error;
mod fold;
mod frames;
mod key;
mod level;
mod memory;
mod open;
mod pool;
mod probe;
mod sealer;
#[cfg(test)]
mod testing;

pub use batch::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Batch, Batcher, ClosedBy, StreamState};
pub use document::{open_document, seal_document};
pub use error::{Disbelief, Part, SealError};
pub use key::{DataKey, KeyEncryptionKey, KeyRing};
pub use level::{LevelControl, Load};
pub use open::{Expected, OpenDelta};
pub use pool::SealPool;
pub use sealer::{Lineage, Sealed, Unsealed, seal};
