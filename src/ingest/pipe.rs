//! The two halves of an upgraded connection: wire frames in, wire frames out.
//!
//! Owns: framing, and telling [`Patience`] who waits for whom. Does not own: what frames mean. A
//! payload is read into its own buffer, which travels on as it is: nothing above TLS copies it.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::patience::Patience;
use crate::clock::Clock;
use crate::format::wire::{self, FromServer, HEADER_BYTES};

/// Frames from the peer.
#[derive(Debug)]
pub(super) struct Inbox<R> {
    reader: R,
}

impl<R: AsyncRead + Unpin> Inbox<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader }
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
            match self.reader.read(&mut header[filled..]).await? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
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
            let missing = length - payload.len();
            let mut rest = (&mut payload).limit(missing); // the allocator may have given more
            if self.reader.read_buf(&mut rest).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        patience.received();
        Ok(payload.freeze())
    }

    /// Reads and forgets until the peer ends, so that closing does not reset the connection while
    /// our last words are still on their way.
    pub(super) async fn discard(&mut self) {
        let mut waste = vec![0; 16 << 10];
        while let Ok(1..) = self.reader.read(&mut waste).await {}
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
