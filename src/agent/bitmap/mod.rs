//! The write-intent bitmap of one disk: what may differ from what is published.
//!
//! Owns: that a bit is on disk before its chunk is written, and is cleared only when nothing of
//! the chunk can be lost any more. Does not own: when something is published ([`super::stream`])
//! or when the source is synced ([`super::clearing`]).

mod commit;
mod identity;
mod intents;
mod layout;
mod open;
#[cfg(test)]
mod tests;

pub(super) use identity::{Identity, Teller};
pub(super) use intents::Bitmap;
pub(super) use open::{Found, open};
#[cfg(test)]
pub(super) use open::{blank, load};
