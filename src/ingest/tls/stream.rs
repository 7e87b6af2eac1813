//! An upgraded connection: its socket, read into the arena and opened there.
//!
//! Owns: how much is read, and where to; sending what is sealed. Does not own: records
//! ([`super::record`]) and the memory ([`crate::ingest::arena`]).
//!
//! A record is never moved: reads end before the last record's worth of a piece, and only the record
//! that has begun by then is read into the rest, exactly to its end.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::handshake::Handshaken;
use super::record::{
    HEADER_BYTES, Opened, Opener, RECORD_BYTES_MAX, RecordError, Sealer, record_bytes,
};
use crate::budget::Permit;
use crate::clock::Clock;
use crate::ingest::arena::Arena;
use crate::ingest::chunks::Chunks;
use crate::ingest::patience::Patience;

/// Most bytes of one read: what is opened next is still in the core's cache.
const READ_BYTES_MAX: usize = 128 << 10;
/// Most bytes that are sealed before some are sent.
const SEALED_BYTES_MAX: usize = 64 << 10;

/// The peer's direction.
pub(in crate::ingest) struct Reader {
    socket: OwnedReadHalf,
    opener: Opener,
    arena: Arc<Arena>,
    patience: Arc<Patience>,
    clock: Arc<dyn Clock>,
    /// What rustls had opened already.
    early: Bytes,
    held: Held,
    ended: bool,
}

/// Received and not opened yet. Behind the first record that is not whole nothing has been read
/// but its own bytes, or what has room for a whole record more.
#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    /// In the arena.
    Piece(BytesMut),
    /// A part of one record, in memory of its own: others needed the piece.
    Apart(BytesMut),
}

/// Our direction.
pub(in crate::ingest) struct Writer {
    socket: OwnedWriteHalf,
    sealer: Sealer,
    sealed: Vec<u8>,
    sent: usize,
}

/// What stands first in what was received.
enum First {
    Data(Bytes),
    Part,
    End,
}

/// Takes an upgraded connection over from rustls; `early` was read from it already.
///
/// # Errors
/// When the peer goes.
pub(in crate::ingest) async fn take_over(
    tls: Handshaken,
    early: Bytes,
    arena: Arc<Arena>,
    patience: Arc<Patience>,
    clock: Arc<dyn Clock>,
) -> io::Result<(Reader, Writer)> {
    let parts = tls.into_parts(early).await?;
    let (read, write) = parts.socket.into_split();
    let held = match parts.incoming.as_slice() {
        [] => Held::Nothing,
        incoming => Held::Apart(incoming.into()),
    };
    let reader = Reader {
        socket: read,
        opener: parts.opener,
        arena,
        patience,
        clock,
        early: parts.early,
        held,
        ended: false,
    };
    let writer = Writer { socket: write, sealer: parts.sealer, sealed: Vec::new(), sent: 0 };
    Ok((reader, writer))
}

impl Chunks for Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.data(false).await
    }

    async fn next_to_copy(&mut self) -> io::Result<Option<Bytes>> {
        self.data(true).await
    }

    async fn pay(&mut self, _: u64) -> Permit {
        Permit::none() // the arena itself is the bound
    }

    fn arena(&self) -> Option<&Arc<Arena>> {
        Some(&self.arena)
    }
}

impl Reader {
    /// The next data; `apart` when it need not lie in the arena.
    async fn data(&mut self, apart: bool) -> io::Result<Option<Bytes>> {
        if !self.early.is_empty() {
            self.arena.count_copy(self.early.len());
            return Ok(Some(std::mem::take(&mut self.early)));
        }
        while !self.ended {
            match self.open_first().map_err(invalid)? {
                First::Data(data) => return Ok(Some(data)),
                First::End => self.ended = true,
                First::Part => self.read(apart).await?,
            }
        }
        Ok(None)
    }

    fn open_first(&mut self) -> Result<First, RecordError> {
        loop {
            let received = match &mut self.held {
                Held::Nothing => return Ok(First::Part),
                Held::Piece(bytes) | Held::Apart(bytes) => bytes,
            };
            let length = record_bytes(received).inspect_err(|error| self.opener.fail(error))?;
            let Some(length) = length.filter(|length| *length <= received.len()) else {
                return Ok(First::Part);
            };
            let mut record = received.split_to(length);
            match self.opener.open(&mut record)? {
                Opened::Nothing => {}
                Opened::End => return Ok(First::End),
                Opened::Data(place) => {
                    record.truncate(place.end);
                    record.advance(place.start);
                    return Ok(First::Data(record.freeze()));
                }
            }
        }
    }

    /// Reads what there is, at least a byte.
    async fn read(&mut self, apart: bool) -> io::Result<()> {
        loop {
            self.give_back_empty();
            self.readable().await?;
            let (into, want) = match (&mut self.held, apart) {
                (Held::Piece(piece), _) => {
                    let want = room_to_fill(piece);
                    (piece, want)
                }
                (Held::Apart(part), true) => {
                    let want = missing(part);
                    part.reserve(want);
                    (part, want)
                }
                (Held::Nothing, true) => {
                    self.held = Held::Apart(BytesMut::new());
                    continue;
                }
                (Held::Nothing | Held::Apart(_), false) => {
                    self.take_piece().await;
                    continue;
                }
            };
            match read_now(&mut self.socket, into, want) {
                None => {}
                Some(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(read) => return read.map(|_| ()),
            }
        }
    }

    /// A connection that waits for its peer holds nothing, if it can.
    fn give_back_empty(&mut self) {
        let empty = match &self.held {
            Held::Nothing => true,
            Held::Piece(bytes) | Held::Apart(bytes) => bytes.is_empty(),
        };
        if empty && let Held::Piece(piece) = std::mem::take(&mut self.held) {
            self.arena.give_back(piece);
        }
        self.arena.note_freed();
    }

    /// Waits until there is something to read. Lets go of a piece that others need.
    async fn readable(&mut self) -> io::Result<()> {
        if matches!(self.held, Held::Piece(_)) {
            tokio::select! {
                biased;
                ready = self.socket.readable() => return ready,
                () = self.arena.short() => {}
            }
            if let Held::Piece(piece) = std::mem::take(&mut self.held) {
                self.arena.count_copy(piece.len());
                self.held = Held::Apart(BytesMut::from(&piece[..]));
                self.arena.give_back(piece);
            }
        }
        self.socket.readable().await
    }

    async fn take_piece(&mut self) {
        let piece = match self.arena.try_take() {
            Some(piece) => piece,
            None => self.patience.ours(&*self.clock, self.arena.take()).await,
        };
        let mut piece = piece;
        if let Held::Apart(part) = std::mem::take(&mut self.held) {
            self.arena.count_copy(part.len());
            piece.put_slice(&part);
        }
        self.held = Held::Piece(piece);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Held::Piece(piece) = std::mem::take(&mut self.held) {
            self.arena.give_back(piece);
        }
        self.arena.note_freed();
    }
}

/// How much may be read behind what is in a piece: up to the last record's worth of it, or the rest
/// of the record that has begun.
fn room_to_fill(piece: &BytesMut) -> usize {
    let room = piece.capacity() - piece.len();
    match room.saturating_sub(RECORD_BYTES_MAX) {
        0 => missing(piece),
        before_the_last => before_the_last.min(READ_BYTES_MAX),
    }
}

/// What is missing of the record, or the header, that has begun.
fn missing(part: &BytesMut) -> usize {
    let whole = record_bytes(part).ok().flatten().unwrap_or(HEADER_BYTES);
    whole - part.len()
}

/// Reads up to `want` bytes if there are any.
fn read_now(
    socket: &mut OwnedReadHalf,
    into: &mut BytesMut,
    want: usize,
) -> Option<io::Result<usize>> {
    let mut room = into.limit(want);
    let read = pin!(socket.read_buf(&mut room));
    // The task is woken by `readable`, not by this.
    match read.poll(&mut Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(read) => Some(read),
        Poll::Pending => None,
    }
}

impl Writer {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.sealed.len() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, &self.sealed[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        (self.sealed, self.sent) = (Vec::new(), 0); // an idle connection holds none
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let writer = self.get_mut();
        ready!(writer.poll_send(cx))?;
        let part = bytes.len().min(SEALED_BYTES_MAX);
        writer.sealer.seal(&bytes[..part], &mut writer.sealed).map_err(invalid)?;
        Poll::Ready(Ok(part))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let writer = self.get_mut();
        writer.sealer.end(&mut writer.sealed).map_err(invalid)?;
        ready!(writer.poll_send(cx))?;
        Pin::new(&mut writer.socket).poll_shutdown(cx)
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
