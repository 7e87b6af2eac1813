//! The two halves of an upgraded connection: wire frames in, wire frames out.
//!
//! Owns: framing, and telling [`Patience`] who waits for whom. Does not own: what frames mean. A
//! payload is read into its own buffer, which travels on as it is: nothing above TLS copies it.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::patience::Patience;
use crate::clock::Clock;
use crate::format::wire::{self, FromServer, HEADER_BYTES, Refuse};
use crate::model::Sequence;

/// What a peer sends, in pieces as they come.
pub(super) trait Chunks {
    /// The next piece, never empty; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<Bytes>>;

    /// The peer is welcomed; its next record follows `durable`.
    fn welcomed(&mut self, _durable: Sequence) {}
}

/// A peer that broke the protocol where frames do not show it; travels inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.text)]
pub(super) struct Breach(pub(super) Refuse);

/// A byte stream in pieces.
pub(super) struct Reader<R>(pub(super) R);

impl<R: AsyncRead + Unpin> Chunks for Reader<R> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut piece = BytesMut::with_capacity(64 << 10);
        let count = self.0.read_buf(&mut piece).await?;
        Ok((count > 0).then(|| piece.freeze()))
    }
}

/// Frames from the peer.
#[derive(Debug)]
pub(super) struct Inbox<C> {
    chunks: C,
    rest: Bytes,
}

impl<C: Chunks> Inbox<C> {
    pub(super) fn new(chunks: C) -> Self {
        Self { chunks, rest: Bytes::new() }
    }

    pub(super) fn welcomed(&mut self, durable: Sequence) {
        self.chunks.welcomed(durable);
    }

    async fn fill(&mut self) -> io::Result<bool> {
        if self.rest.is_empty() {
            match self.chunks.next().await? {
                Some(piece) => self.rest = piece,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The next header; `None` at an end between frames. Silence and a trickled header are the
    /// same thing here: forty bytes have to come in time.
    pub(super) async fn header(
        &mut self,
        patience: &Patience,
        clock: &dyn Clock,
    ) -> io::Result<Option<[u8; HEADER_BYTES]>> {
        patience.expect(clock.monotonic(), HEADER_BYTES as u32);
        let mut header = [0; HEADER_BYTES];
        let mut filled = 0;
        while filled < HEADER_BYTES {
            match self.fill().await? {
                false if filled == 0 => return Ok(None),
                false => return Err(io::ErrorKind::UnexpectedEof.into()),
                true => {
                    let count = self.rest.len().min(HEADER_BYTES - filled);
                    header[filled..filled + count].copy_from_slice(&self.rest.split_to(count));
                    filled += count;
                }
            }
        }
        patience.received();
        Ok(Some(header))
    }

    /// The payload behind a header that was checked.
    pub(super) async fn payload(
        &mut self,
        length: u32,
        patience: &Patience,
        clock: &dyn Clock,
    ) -> io::Result<Bytes> {
        patience.expect(clock.monotonic(), length);
        let length = length as usize;
        let mut payload = BytesMut::with_capacity(length);
        while payload.len() < length {
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = self.rest.len().min(length - payload.len());
            payload.put_slice(&self.rest.split_to(count));
        }
        patience.received();
        Ok(payload.freeze())
    }

    /// Reads and forgets until the peer ends, so that closing does not reset the connection while
    /// our last words are still on their way.
    pub(super) async fn discard(&mut self) {
        while let Ok(Some(_)) = self.chunks.next().await {}
    }
}

/// Frames to the peer. What was pushed is written whole, even when a flush is cancelled half-way
/// and another follows.
#[derive(Debug)]
pub(super) struct Outbox<W> {
    writer: W,
    unsent: BytesMut,
}

impl<W: AsyncWrite + Unpin> Outbox<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer, unsent: BytesMut::new() }
    }

    pub(super) fn push(&mut self, message: &FromServer) {
        let frame = wire::encode_from_server(message);
        self.unsent.put_slice(&frame.header);
        self.unsent.put_slice(&frame.payload);
    }

    pub(super) async fn flush(&mut self, patience: &Patience, clock: &dyn Clock) -> io::Result<()> {
        patience.offer(clock.monotonic());
        while !self.unsent.is_empty() {
            if self.writer.write_buf(&mut self.unsent).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        self.writer.flush().await?;
        patience.taken();
        Ok(())
    }

    /// Ends our direction in order.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        self.writer.shutdown().await
    }
}
