//! A connection's plaintext, in the pieces in which its transport delivers it.
//!
//! Owns: the seam between transports and frames. A piece is shared memory: whoever cuts a payload
//! out of it copies nothing, and it is given back when the last part of it is dropped.

use std::future::Future;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::format::wire::Refuse;
use crate::model::Sequence;

/// Bytes from a peer.
pub(super) trait Chunks {
    /// The next bytes, never none of them; `None` when the peer has ended its direction in order.
    /// Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;

    /// The peer is welcomed; its next record follows `durable`.
    fn welcomed(&mut self, _durable: Sequence) {}
}

/// A peer that broke the protocol where its frames do not show it; travels in an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.text)]
pub(super) struct Breach(pub(super) Refuse);

/// What is read at a time.
const READ_BYTES: usize = 64 << 10;

/// The chunks of anything that can be read.
#[derive(Debug)]
pub(super) struct Read<R> {
    early: Bytes,
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin + Send> Read<R> {
    /// `early` was read from `reader` already.
    pub(super) fn new(early: Bytes, reader: R) -> Self {
        Self { early, reader, buffer: BytesMut::new() }
    }
}

impl<R: AsyncRead + Unpin + Send> Chunks for Read<R> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if !self.early.is_empty() {
            return Ok(Some(std::mem::take(&mut self.early)));
        }
        self.buffer.reserve(READ_BYTES);
        match self.reader.read_buf(&mut self.buffer).await? {
            0 => Ok(None),
            _ => Ok(Some(self.buffer.split().freeze())),
        }
    }
}
