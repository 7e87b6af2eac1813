//! The cloud log as it is read and changed: manifest, its pages, deltas. Shared by upload, apply
//! and recover.
//!
//! Owns: reading and believing (every byte is opened under the machine's keys and every hash and
//! name is compared), the manifest's compare-and-swap with its answer for a lost answer, moving
//! old entries to pages. Does not own: who may change the manifest ([`crate::upload`]), time and
//! retries (callers look at [`CloudLogError::class`]).
//!
//! | face | for |
//! |---|---|
//! | [`LogStore::manifest`], [`LogStore::entries`], [`LogStore::open_delta`] | apply, recover |
//! | [`LogStore::legible`]: what is left when a page cannot be read | apply, recover, tidying |
//! | [`LogStore::replace`], [`LogStore::page_out`] | upload |

mod error;
mod legible;
mod log_store;
mod page;
mod replace;
#[cfg(test)]
mod tests;

pub use error::CloudLogError;
pub use legible::{Legible, UnreadPage};
pub use log_store::LogStore;
pub use page::ENTRIES_MAX;
