//! One connection's bytes: frames into sealed records, records into messages.
//!
//! Owns: what waits in either direction. Works on a socket that blocks (while dialling) and on one
//! that does not.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use holdfast::format::wire::{Frame, FrameHeader, FromServer, HEADER_BYTES, decode_from_server};

use crate::tls::{RecordError, RecordKey, SEALED_BYTES_MAX, Sealer, open};

/// Sealed bytes that are composed before they are written: a system call costs the same for few.
pub(crate) const WRITE_BYTES: usize = 1 << 20;

/// A connection that cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("a message cannot be read")]
    Message(#[from] holdfast::format::bytes::FormatError),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server did not answer in time")]
    Late,
}

/// A connection.
pub(crate) struct Link {
    socket: TcpStream,
    sealing: RecordKey,
    opening: RecordKey,
    /// Sealed and not yet written, from `written` on.
    outgoing: Vec<u8>,
    written: usize,
    /// Received and not yet opened.
    incoming: Vec<u8>,
    inbox: Inbox,
}

/// Bytes of the server, opened and not yet read as messages.
#[derive(Default)]
pub(crate) struct Inbox {
    pub(crate) plain: Vec<u8>,
}

impl Link {
    pub(crate) fn new(socket: TcpStream, sealing: RecordKey, opening: RecordKey) -> Self {
        let (outgoing, incoming, inbox) = (Vec::new(), Vec::new(), Inbox::default());
        Self { socket, sealing, opening, outgoing, written: 0, incoming, inbox }
    }

    pub(crate) fn set_nonblocking(&self) -> std::io::Result<()> {
        self.socket.set_nonblocking(true)
    }

    /// Seals one frame into the buffer, with a record of its own.
    pub(crate) fn push(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let mut sealer = self.sealer();
        sealer.push_frame(frame)?;
        Ok(sealer.seal()?)
    }

    /// Seals frames into the buffer, records full; they must be sealed at the end.
    pub(crate) fn sealer(&mut self) -> Sealer<'_> {
        Sealer::new(&mut self.sealing, &mut self.outgoing)
    }

    /// Whether something is still to be written.
    pub(crate) fn is_blocked(&self) -> bool {
        self.written < self.outgoing.len()
    }

    /// Writes as much as the socket takes; false when it takes no more now.
    pub(crate) fn flush(&mut self) -> Result<bool, LinkError> {
        while self.is_blocked() {
            match self.socket.write(&self.outgoing[self.written..]) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.outgoing.clear();
        self.written = 0;
        Ok(true)
    }

    /// Composes in `scratch`'s memory from now on: thousands of idle machines need none of their own.
    pub(crate) fn swap_buffer(&mut self, scratch: &mut Vec<u8>) {
        std::mem::swap(&mut self.outgoing, scratch);
    }

    /// Gives the memory back unless something in it is still to be written.
    pub(crate) fn return_buffer(&mut self, scratch: &mut Vec<u8>) {
        if !self.is_blocked() {
            std::mem::swap(&mut self.outgoing, scratch);
        } else if scratch.capacity() < WRITE_BYTES {
            scratch.reserve(WRITE_BYTES + SEALED_BYTES_MAX);
        }
    }

    /// Reads once; false when nothing is there now.
    pub(crate) fn receive(&mut self) -> Result<bool, LinkError> {
        let filled = self.incoming.len();
        self.incoming.resize(filled + SEALED_BYTES_MAX, 0);
        let read = self.socket.read(&mut self.incoming[filled..]);
        self.incoming.truncate(filled + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(LinkError::Closed),
            Ok(_) => self.open_all().map(|()| true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn open_all(&mut self) -> Result<(), LinkError> {
        let mut at = 0;
        while let Some((length, inside)) = open(&mut self.opening, &mut self.incoming[at..])? {
            self.inbox.plain.extend_from_slice(&self.incoming[at..][inside]);
            at += length;
        }
        self.incoming.drain(..at);
        if self.incoming.is_empty() {
            self.incoming.shrink_to(0);
        }
        Ok(())
    }

    /// The next whole message.
    pub(crate) fn next_message(&mut self) -> Result<Option<FromServer>, LinkError> {
        self.inbox.next_message()
    }
}

impl Inbox {
    /// The next whole message.
    pub(crate) fn next_message(&mut self) -> Result<Option<FromServer>, LinkError> {
        let Some(header) = self.plain.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = FrameHeader::decode(header)?;
        let end = HEADER_BYTES + header.payload_length() as usize;
        let Some(payload) = self.plain.get(HEADER_BYTES..end) else { return Ok(None) };
        let message = decode_from_server(&header, payload)?;
        self.plain.drain(..end);
        Ok(Some(message))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
