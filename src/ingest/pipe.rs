//! The two halves of an upgraded connection: wire frames in, wire frames out.
//!
//! Owns: framing, and telling [`Patience`] who waits for whom. Does not own: what frames mean, and
//! where the bytes lie ([`super::chunks`]). A payload is cut out of what came: nothing copies it.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::arena::Arena;
use super::chunks::Chunks;
use super::patience::Patience;
use crate::budget::Permit;
use crate::clock::Clock;
use crate::format::wire::{self, FrameHeader, FromServer, HEADER_BYTES};
use crate::model::{Payload, Sequence};

/// Frames from the peer. A dropped future of these loses what it has taken of its frame: the
/// connection ends with it.
#[derive(Debug)]
pub(super) struct Inbox<C> {
    chunks: C,
    /// What came behind the last frame.
    rest: Bytes,
}

impl<C: Chunks> Inbox<C> {
    pub(super) fn new(chunks: C) -> Self {
        Self { chunks, rest: Bytes::new() }
    }

    /// The peer is welcomed; its next record follows `durable`.
    pub(super) fn welcomed(&mut self, durable: Sequence) {
        self.chunks.welcomed(durable);
    }

    /// Whether everything that came was taken.
    pub(super) fn is_dry(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next header; `None` at an end between frames. Silence and a trickled header are the
    /// same thing here: forty bytes have to come in time.
    pub(super) async fn header(
        &mut self,
        patience: &Patience,
        clock: &dyn Clock,
    ) -> io::Result<Option<[u8; HEADER_BYTES]>> {
        let mut header = [0; HEADER_BYTES];
        let mut filled = 0;
        while filled < HEADER_BYTES {
            if self.rest.is_empty() && !self.more(HEADER_BYTES as u32, patience, clock).await? {
                return match filled {
                    0 => Ok(None),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            let part = self.rest.split_to(self.rest.len().min(HEADER_BYTES - filled));
            header[filled..filled + part.len()].copy_from_slice(&part);
            filled += part.len();
        }
        patience.received();
        Ok(Some(header))
    }

    /// The payload behind a record's header, which was checked, in the pieces in which it came; and
    /// what it holds of the memory that was paid for.
    pub(super) async fn record(
        &mut self,
        header: &FrameHeader,
        patience: &Patience,
        clock: &dyn Clock,
    ) -> io::Result<(Payload, Permit)> {
        let paid = self.chunks.pay(header.frame_bytes()).await;
        let (payload, spare) = self.gather(header.payload_length(), patience, clock).await?;
        let permit = match (spare, self.chunks.arena()) {
            (Some(spare), _) => spare,
            (None, Some(arena)) => arena.lease(),
            (None, None) => paid,
        };
        Ok((payload, permit))
    }

    /// The payload behind any other header that was checked.
    pub(super) async fn payload(
        &mut self,
        length: u32,
        patience: &Patience,
        clock: &dyn Clock,
    ) -> io::Result<Payload> {
        self.gather(length, patience, clock).await.map(|(payload, _)| payload)
    }

    async fn gather(
        &mut self,
        length: u32,
        patience: &Patience,
        clock: &dyn Clock,
    ) -> io::Result<(Payload, Option<Permit>)> {
        let whole = length as usize;
        let (mut payload, mut spare) = (Gathered::default(), None);
        while payload.len() < whole {
            if self.rest.is_empty() {
                patience.expect(clock, length);
                match self.wait(&payload).await? {
                    Came::Chunk(chunk) => self.rest = chunk,
                    Came::End => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Came::Shortage(arena) => {
                        let room = arena.spare(u64::from(length));
                        spare = Some(patience.ours(clock, room).await);
                        payload.join(whole);
                        arena.count_copy(payload.len());
                        arena.note_freed();
                        continue;
                    }
                }
            }
            let missing = whole - payload.len();
            let copied = payload.take(self.rest.split_to(self.rest.len().min(missing)), whole);
            if let Some(arena) = self.chunks.arena() {
                arena.count_copy(copied);
            }
        }
        patience.received();
        Ok((payload.finish(), spare))
    }

    /// Waits for the rest of a payload; or, when others need the memory that it lies in, for that.
    async fn wait(&mut self, payload: &Gathered) -> io::Result<Came> {
        let chunk = match (payload, self.chunks.arena().cloned()) {
            (Gathered::Joined(_), _) => self.chunks.next_to_copy().await?,
            (Gathered::Pieces(pieces), Some(arena)) if !pieces.is_empty() => tokio::select! {
                biased;
                chunk = self.chunks.next() => chunk?,
                () = arena.short() => return Ok(Came::Shortage(Arc::clone(&arena))),
            },
            (Gathered::Pieces(_), _) => self.chunks.next().await?,
        };
        Ok(chunk.map_or(Came::End, Came::Chunk))
    }

    /// Waits for the peer, which owes `bytes` since it was first waited for; false at the end.
    async fn more(
        &mut self,
        bytes: u32,
        patience: &Patience,
        clock: &dyn Clock,
    ) -> io::Result<bool> {
        patience.expect(clock, bytes);
        match self.chunks.next().await? {
            Some(bytes) => {
                self.rest = bytes;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Reads and forgets until the peer ends, so that closing does not reset the connection while
    /// our last words are still on their way.
    pub(super) async fn discard(&mut self) {
        while let Ok(Some(_)) = self.chunks.next().await {}
    }
}

/// What a frame that is on its way in waited for.
enum Came {
    Chunk(Bytes),
    End,
    /// Others need the memory.
    Shortage(Arc<Arena>),
}

/// A payload on its way in. Pieces stay where they are, unless there are far too many of them: a
/// peer that sends a byte at a time would have each byte cost as much as a piece.
#[derive(Debug)]
enum Gathered {
    Pieces(Payload),
    Joined(BytesMut),
}

/// Pieces that a payload may always come in.
const PIECES_MIN: usize = 4;
/// Beyond those, how long pieces have to be on the average.
const PIECE_BYTES_MIN: usize = 2048;

impl Default for Gathered {
    fn default() -> Self {
        Self::Pieces(Payload::default())
    }
}

impl Gathered {
    fn len(&self) -> usize {
        match self {
            Self::Pieces(payload) => payload.len(),
            Self::Joined(bytes) => bytes.len(),
        }
    }

    /// Takes the next piece of a payload of `length`; the bytes that were copied for it.
    fn take(&mut self, piece: Bytes, length: usize) -> usize {
        match self {
            Self::Joined(bytes) => {
                bytes.put_slice(&piece);
                piece.len()
            }
            Self::Pieces(payload) => {
                payload.push(piece);
                let many = PIECES_MIN + payload.len() / PIECE_BYTES_MIN;
                if payload.fragments().len() <= many {
                    return 0;
                }
                self.join(length);
                self.len()
            }
        }
    }

    /// Copies what came into one run, and whatever comes.
    fn join(&mut self, length: usize) {
        if let Self::Pieces(payload) = self {
            let mut joined = BytesMut::with_capacity(length);
            payload.fragments().iter().for_each(|piece| joined.put_slice(piece));
            *self = Self::Joined(joined);
        }
    }

    fn finish(self) -> Payload {
        match self {
            Self::Pieces(payload) => payload,
            Self::Joined(bytes) => bytes.freeze().into(),
        }
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
        frame.payload.fragments().iter().for_each(|fragment| self.unsent.put_slice(fragment));
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use super::*;
    use crate::clock::System;

    struct Pieces(VecDeque<Bytes>);

    impl Chunks for Pieces {
        async fn next(&mut self) -> io::Result<Option<Bytes>> {
            Ok(self.0.pop_front())
        }

        async fn next_to_copy(&mut self) -> io::Result<Option<Bytes>> {
            self.next().await
        }

        async fn pay(&mut self, _: u64) -> Permit {
            Permit::none()
        }

        fn arena(&self) -> Option<&Arc<Arena>> {
            None
        }
    }

    fn inbox(bytes: &Bytes, piece: usize) -> Inbox<Pieces> {
        let starts = (0..bytes.len()).step_by(piece);
        Inbox::new(Pieces(starts.map(|at| bytes.slice(at..bytes.len().min(at + piece))).collect()))
    }

    #[tokio::test]
    async fn frames_come_out_whole_however_they_came_in() {
        let bytes: Bytes = (0..3 * (40 + 5000_u32)).map(|n| (n % 251) as u8).collect();
        let (patience, clock) = (Patience::new(Duration::from_secs(60)), System);
        for piece in [1, 7, 39, 40, 41, 1000, 5040, 16384] {
            let mut inbox = inbox(&bytes, piece);
            for frame in bytes.chunks(5040) {
                let header = inbox.header(&patience, &clock).await.unwrap().unwrap();
                assert_eq!(header, frame[..40]);
                let payload = inbox.payload(5000, &patience, &clock).await.unwrap();
                assert_eq!(payload, frame[40..], "in pieces of {piece}");
                assert!(payload.fragments().len() <= PIECES_MIN + 5000 / PIECE_BYTES_MIN);
            }
            assert_eq!(inbox.header(&patience, &clock).await.unwrap(), None);
        }
        for left in [1, 39, 41, 5039] {
            let mut inbox = inbox(&bytes.slice(..left), 64);
            let end = match inbox.header(&patience, &clock).await {
                Ok(_) => inbox.payload(5000, &patience, &clock).await.unwrap_err(),
                Err(error) => error,
            };
            assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof, "after {left} bytes");
        }
    }

    #[tokio::test]
    async fn a_payload_is_where_it_came_in() {
        let bytes: Bytes = vec![7; 40 + 4096].into();
        let (patience, clock) = (Patience::new(Duration::from_secs(60)), System);
        let mut inbox = inbox(&bytes, 3000);
        inbox.header(&patience, &clock).await.unwrap();
        let payload = inbox.payload(4096, &patience, &clock).await.unwrap();
        let places = payload.fragments().iter().map(|piece| piece.as_ptr());
        assert!(places.eq([bytes[40..].as_ptr(), bytes[3000..].as_ptr()]));
    }
}
