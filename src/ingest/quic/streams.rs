//! The streams of one connection as one sequence of frames.
//!
//! Owns: reading heads and payloads, opening record streams at the welcome, the windows. Does not
//! own: the order ([`super::order`]), what frames mean, and what they cost (the session's credit,
//! the receive budget).

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use quinn::{Connection, RecvStream, VarInt};

use super::QuicBudgets;
use super::order::{Head, Misplaced, choose};
use crate::budget::{Budget, Permit};
use crate::format::wire::{FrameHeader, FrameKind, HEADER_BYTES, Refusal};
use crate::ingest::arena::Arena;
use crate::ingest::chunks::{Breach, Chunks};
use crate::ingest::session::refuse;
use crate::model::Sequence;

/// What may wait in one stream.
pub(super) const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// What may wait in a connection before its welcome, and on the control stream behind it.
pub(super) const CONTROL_WINDOW_BYTES: u32 = 64 << 10;
/// Record streams beside the control stream.
const STREAMS_MAX: u64 = 15;
/// The window of a connection for which nothing is left.
const WINDOW_BYTES_MIN: u64 = 256 << 10;
/// A connection takes at most this part of what is left, so that those after it get some.
const SHARE: u64 = 4;

const _: () = assert!(STREAMS_MAX * STREAM_WINDOW_BYTES as u64 <= 16 << 20);

/// Frames from the peer.
pub(super) struct Streams {
    connection: Connection,
    control: Lane,
    records: Vec<Lane>,
    /// Record streams that may be open at once; none before the welcome.
    streams_max: usize,
    /// The record that must come next.
    next: Sequence,
    /// The stream whose payload is being read, and what is missing of it. 0: the control stream.
    current: usize,
    left: usize,
    /// A frame stood where it must not stand.
    misplaced: bool,
    budgets: QuicBudgets,
    wanted_bytes: u64,
    /// What this connection took of the windows.
    _window: Permit,
}

/// One stream and the beginning of its next frame.
struct Lane {
    stream: RecvStream,
    bytes: [u8; HEADER_BYTES],
    filled: usize,
    head: Head,
    payload_length: usize,
    ended: bool,
}

impl Streams {
    /// `wanted_bytes`: what the agent may have in flight.
    pub(super) fn new(
        connection: Connection,
        control: RecvStream,
        budgets: QuicBudgets,
        wanted_bytes: u64,
    ) -> Self {
        Self {
            connection,
            control: Lane::new(control),
            records: Vec::new(),
            streams_max: 0,
            next: Sequence::ZERO,
            current: 0,
            left: 0,
            misplaced: false,
            budgets,
            wanted_bytes,
            _window: Permit::none(),
        }
    }

    /// Lets the agent open streams for the records behind `durable`.
    fn open(&mut self, durable: Sequence) {
        let (permit, streams, bytes) = window(&self.budgets.windows, self.wanted_bytes);
        self._window = permit;
        self.next = durable.next();
        self.streams_max = streams as usize;
        let window = VarInt::try_from(bytes + u64::from(CONTROL_WINDOW_BYTES));
        self.connection.set_receive_window(window.unwrap_or(VarInt::MAX));
        let streams = VarInt::try_from(streams).unwrap_or(VarInt::MAX);
        self.connection.set_max_concurrent_uni_streams(streams);
    }

    /// A header, or the next piece of the payload behind the last one.
    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        if self.left > 0 {
            return self.payload().await.map(Some);
        }
        if self.misplaced {
            // It was refused, and there is no order in what follows: its end is all that matters.
            self.connection.closed().await;
            return Ok(None);
        }
        loop {
            let heads: Vec<Head> = self.records.iter().map(|lane| lane.head).collect();
            match choose(self.control.head, &heads, self.next, self.streams_max) {
                Ok(Some(at)) => return Ok(Some(self.begin(at))),
                Ok(None) if self.control.ended => return Ok(None),
                Ok(None) => self.wait().await?,
                Err(misplaced) => {
                    self.misplaced = true;
                    return Err(breach(misplaced));
                }
            }
        }
    }

    fn lane(&mut self, at: usize) -> &mut Lane {
        match at.checked_sub(1) {
            None => &mut self.control,
            Some(record) => &mut self.records[record],
        }
    }

    /// Takes the header at the head of a stream; its payload is read next.
    fn begin(&mut self, at: usize) -> Bytes {
        let lane = self.lane(at);
        let header = Bytes::copy_from_slice(&lane.bytes);
        let (head, left) = (lane.head, lane.payload_length);
        (lane.filled, lane.head) = (0, Head::Missing);
        (self.current, self.left) = (at, left);
        if let Head::Frame(FrameKind::Record(_), sequence) = head {
            self.next = sequence.next();
        }
        header
    }

    async fn payload(&mut self) -> io::Result<Bytes> {
        let (at, left) = (self.current, self.left);
        let chunk = self.lane(at).stream.read_chunk(left, true).await?;
        let chunk = chunk.ok_or(io::ErrorKind::UnexpectedEof)?.bytes;
        self.left -= chunk.len();
        Ok(chunk)
    }

    /// Until some stream has a head that it did not have, or there is another stream.
    async fn wait(&mut self) -> io::Result<()> {
        let Self { connection, control, records, .. } = self;
        let more = records.len() < self.streams_max;
        tokio::select! {
            biased;
            read = poll_fn(|context| poll_heads(control, records, context)) => read?,
            stream = connection.accept_uni(), if more => {
                let stream = stream?;
                self.records.push(Lane::new(stream));
            }
        }
        self.records.retain(|lane| !lane.ended);
        Ok(())
    }
}

impl Chunks for Streams {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.piece().await
    }

    async fn next_to_copy(&mut self) -> io::Result<Option<Bytes>> {
        self.piece().await
    }

    async fn pay(&mut self, bytes: u64) -> Permit {
        self.budgets.received.acquire(bytes).await
    }

    fn arena(&self) -> Option<&Arc<Arena>> {
        None // every datagram has memory of its own
    }

    fn welcomed(&mut self, durable: Sequence) {
        self.open(durable);
    }
}

impl Lane {
    fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            bytes: [0; HEADER_BYTES],
            filled: 0,
            head: Head::Missing,
            payload_length: 0,
            ended: false,
        }
    }

    /// Reads on towards a head; ready when it is there, or the stream ended.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.filled < HEADER_BYTES {
            let rest = &mut self.bytes[self.filled..];
            match ready!(self.stream.poll_read(context, rest)) {
                Ok(0) if self.filled == 0 => {
                    self.ended = true;
                    return Poll::Ready(Ok(()));
                }
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.filled += count,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        (self.head, self.payload_length) = match FrameHeader::decode(&self.bytes) {
            Ok(header) => {
                let head = Head::Frame(header.kind(), header.sequence());
                (head, header.payload_length() as usize)
            }
            Err(_) => (Head::Nonsense, 0),
        };
        Poll::Ready(Ok(()))
    }
}

/// Ready when a stream got its head or ended; every other one wakes us when it can be read.
fn poll_heads(
    control: &mut Lane,
    records: &mut [Lane],
    context: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut read = false;
    for lane in std::iter::once(control).chain(records) {
        if lane.ended || lane.head != Head::Missing {
            continue;
        }
        if let Poll::Ready(result) = lane.poll_head(context) {
            result?;
            read = true;
        }
    }
    if read { Poll::Ready(Ok(())) } else { Poll::Pending }
}

/// A connection's share of what is left of the windows: permit, streams, bytes.
fn window(windows: &Budget, wanted_bytes: u64) -> (Permit, u64, u64) {
    let stream = u64::from(STREAM_WINDOW_BYTES);
    let wanted = (wanted_bytes / stream).clamp(1, STREAMS_MAX);
    let free = windows.free() / stream;
    let streams = (free / SHARE).clamp(1, wanted);
    match windows.try_acquire(streams * stream).filter(|_| free >= streams) {
        Some(permit) => (permit, streams, streams * stream),
        None => (Permit::none(), 1, WINDOW_BYTES_MIN),
    }
}

fn breach(misplaced: Misplaced) -> io::Error {
    io::Error::other(Breach(refuse(Refusal::Protocol, misplaced)))
}
