//! Frames to the server, over one byte stream or over several QUIC streams.
//!
//! Owns: gathering small frames, and how records are laid out over streams. Does not own: which
//! frames there are, and when. Records carry their sequence, so the server puts them back in order;
//! everything else travels on the control stream.

use std::fmt;
use std::io;

use bytes::Bytes;
use futures_util::FutureExt;
use quinn::{SendStream, VarInt, WriteError};
use tokio::io::{AsyncWrite, AsyncWriteExt, BufWriter};

use crate::format::wire::{Frame, FrameHeader, FrameKind};

/// Small frames are gathered up to this before they are written.
const WRITE_BUFFER_BYTES: usize = 256 << 10;
/// Consecutive records on one stream before the next stream's turn: long enough that a stream's
/// frames fill packets, short enough that all streams' windows are used.
const RUN_BYTES: usize = 256 << 10;
/// Record streams that are opened when the server allows that many.
const STREAMS_MAX: usize = 15;

/// The direction to the server.
pub struct Outgoing(Lanes);

enum Lanes {
    /// Everything in one stream.
    Bytes(BufWriter<Box<dyn AsyncWrite + Send + Unpin>>),
    /// A control stream, and streams of records beside it.
    Quic(Streams),
}

/// The sending half of a QUIC connection. Dropping it ends the connection.
struct Streams {
    connection: quinn::Connection,
    control: SendStream,
    records: Vec<SendStream>,
    /// The stream whose turn it is, and what it got in this turn.
    turn: usize,
    run: usize,
}

impl Outgoing {
    pub(super) fn bytes(writer: Box<dyn AsyncWrite + Send + Unpin>) -> Self {
        Self(Lanes::Bytes(BufWriter::with_capacity(WRITE_BUFFER_BYTES, writer)))
    }

    pub(super) fn quic(connection: quinn::Connection, control: SendStream) -> Self {
        let streams = Streams { connection, control, records: Vec::new(), turn: 0, run: 0 };
        Self(Lanes::Quic(streams))
    }

    /// Takes a frame; it leaves with the next flush at the latest.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn send(&mut self, frame: Frame) -> io::Result<()> {
        match &mut self.0 {
            Lanes::Bytes(writer) => {
                writer.write_all(&frame.header).await?;
                for fragment in frame.payload.fragments() {
                    writer.write_all(fragment).await?;
                }
                Ok(())
            }
            Lanes::Quic(streams) => match FrameHeader::decode(&frame.header) {
                Ok(header) if matches!(header.kind(), FrameKind::Record(_)) => {
                    streams.record(frame).await
                }
                Ok(header) if header.kind() == FrameKind::Goodbye => {
                    // The server takes the goodbye once all records before it have come.
                    for mut stream in streams.records.drain(..) {
                        stream.finish().map_err(io::Error::other)?;
                    }
                    write(&mut streams.control, frame).await
                }
                Ok(_) => write(&mut streams.control, frame).await,
                Err(error) => Err(io::Error::new(io::ErrorKind::InvalidInput, error)),
            },
        }
    }

    pub(super) async fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Lanes::Bytes(writer) => writer.flush().await,
            Lanes::Quic(_) => Ok(()), // quinn sends what it has
        }
    }

    /// Ends our direction behind everything that was sent.
    ///
    /// # Errors
    /// When the connection is gone already.
    pub async fn close(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Lanes::Bytes(writer) => writer.shutdown().await,
            Lanes::Quic(streams) => {
                streams.control.finish().map_err(io::Error::other)?;
                // Dropping the connection forgets what is not acknowledged. The server hangs up on
                // a goodbye, so an error here is the end that was asked for.
                drop(streams.control.stopped().await);
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").finish_non_exhaustive()
    }
}

impl Streams {
    async fn record(&mut self, frame: Frame) -> io::Result<()> {
        if self.records.is_empty() || self.run >= RUN_BYTES {
            self.next_turn().await?;
        }
        self.run += frame.header.len() + frame.payload.len();
        write(&mut self.records[self.turn], frame).await
    }

    /// Opens streams one by one as long as the server allows more, then goes round.
    async fn next_turn(&mut self) -> io::Result<()> {
        self.run = 0;
        let fresh = match self.records.len() {
            0 => Some(self.connection.open_uni().await),
            STREAMS_MAX.. => None,
            _ => self.connection.open_uni().now_or_never(),
        };
        match fresh {
            Some(stream) => {
                self.records.push(stream?);
                self.turn = self.records.len() - 1;
            }
            None => self.turn = (self.turn + 1) % self.records.len(),
        }
        Ok(())
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

/// Hands a frame over without copying its payload.
async fn write(stream: &mut SendStream, frame: Frame) -> io::Result<()> {
    let mut parts = vec![Bytes::copy_from_slice(&frame.header)];
    parts.extend(frame.payload.fragments().iter().cloned());
    match stream.write_all_chunks(&mut parts).await {
        Ok(()) => Ok(()),
        // The server takes no more of this stream: what it has to say stands on the control stream.
        Err(WriteError::Stopped(_)) => std::future::pending().await,
        Err(error) => Err(error.into()),
    }
}
