//! A connection's plaintext, in the pieces in which its transport delivers it.
//!
//! Owns: the seam between transports and frames. A chunk is shared memory: whoever cuts a payload
//! out of it copies nothing, and it is given back when the last part of it is dropped.

use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::arena::Arena;
use crate::budget::Permit;
use crate::format::wire::Refuse;
use crate::model::Sequence;

/// Bytes from a peer.
pub(super) trait Chunks {
    /// The next bytes, never none of them; `None` when the peer has ended its direction in order.
    /// Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;

    /// The peer is welcomed; its next record follows `durable`.
    fn welcomed(&mut self, _durable: Sequence) {}

    /// As [`Chunks::next`], for a caller that copies the bytes at once, so that they need not lie in
    /// the arena.
    fn next_to_copy(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;

    /// Waits until a record of so many bytes may be received, and pays for it.
    fn pay(&mut self, bytes: u64) -> impl Future<Output = Permit> + Send;

    /// What the chunks lie in, when that has to be shared with other connections.
    fn arena(&self) -> Option<&Arc<Arena>>;
}

/// A peer that broke the protocol where its frames do not show it; travels in an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.text)]
pub(super) struct Breach(pub(super) Refuse);
