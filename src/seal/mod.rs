//! `Durable` → `Batch` → `Sealed` and back: coalesce, compress, encrypt, open.

mod document;
mod encrypt;
mod error;
mod key;

pub use document::{open_document, seal_document};
pub use error::{Disbelief, SealError};
pub use key::{DataKey, KeyEncryptionKey, KeyRing};
