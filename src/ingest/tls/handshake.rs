//! TLS until the upgrade: rustls's unbuffered server behind `AsyncRead` and `AsyncWrite`.
//!
//! Owns: the handshake, and the few kilobytes of HTTP behind it. Copies as it likes. Does not own:
//! what comes after the upgrade ([`super::stream`]), which is why it is unbuffered: only such a
//! connection hands its keys over.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::record::{self, Opener, Sealer};

/// What is read at a time: little may be left over when the connection is upgraded.
const READ_BYTES: usize = 4 << 10;
/// A handshake message has at most 64 KiB, the records around it a little more.
const INCOMING_BYTES_MAX: usize = 68 << 10;
/// Sealed and not yet taken by the socket; more is not taken from above.
const OUTGOING_BYTES_MAX: usize = 64 << 10;

/// A connection that proves itself and speaks HTTP.
pub(in crate::ingest) struct Handshaken {
    socket: TcpStream,
    connection: UnbufferedServerConnection,
    /// Received and not yet opened.
    incoming: Vec<u8>,
    /// Opened and not yet read.
    plain: BytesMut,
    /// Sealed and not yet sent.
    outgoing: BytesMut,
    /// The peer has ended its direction.
    ended: bool,
    /// We have ended ours.
    shut: bool,
}

/// A connection behind its upgrade.
pub(super) struct Parts {
    pub(super) socket: TcpStream,
    pub(super) opener: Opener,
    pub(super) sealer: Sealer,
    /// Plaintext that came already.
    pub(super) early: Bytes,
    /// The beginning of the next record.
    pub(super) incoming: Vec<u8>,
}

/// What is to be sealed.
#[derive(Clone, Copy)]
enum Seal<'a> {
    Nothing,
    Data(&'a [u8]),
    End,
}

impl Handshaken {
    /// Runs the handshake.
    ///
    /// # Errors
    /// When the peer goes, or proves nothing; it is told why.
    pub(in crate::ingest) async fn accept(
        socket: TcpStream,
        config: Arc<ServerConfig>,
    ) -> io::Result<Self> {
        let connection = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        let mut tls = Self {
            socket,
            connection,
            incoming: Vec::new(),
            plain: BytesMut::new(),
            outgoing: BytesMut::new(),
            ended: false,
            shut: false,
        };
        loop {
            let processed = tls.process(Seal::Nothing);
            // An error has left its alert to be sent.
            let sent = tls.flush().await;
            processed.and(sent)?;
            if !tls.connection.is_handshaking() {
                return Ok(tls);
            }
            std::future::poll_fn(|cx| tls.poll_fill(cx)).await?;
        }
    }

    /// What the peer proved itself with.
    pub(in crate::ingest) fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.connection.peer_certificates().and_then(<[_]>::first)
    }

    /// Takes the connection apart; `early` was read from it already.
    ///
    /// # Errors
    /// When the peer goes.
    pub(super) async fn into_parts(mut self, early: Bytes) -> io::Result<Parts> {
        self.process(Seal::Nothing)?;
        self.flush().await?;
        let mut all = BytesMut::from(early);
        all.unsplit(self.plain);
        let (opener, sealer) = record::take_over(self.connection).map_err(io::Error::other)?;
        let (socket, incoming) = (self.socket, self.incoming);
        Ok(Parts { socket, opener, sealer, early: all.freeze(), incoming })
    }

    /// Opens what is there, seals what is given.
    fn process(&mut self, mut seal: Seal<'_>) -> io::Result<()> {
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.connection.process_tls_records(&mut self.incoming);
            let mut through = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        self.plain.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut message)) => {
                    append(&mut self.outgoing, |to| match message.encode(to) {
                        Err(EncodeError::InsufficientSize(size)) => Err(Some(size.required_size)),
                        Err(EncodeError::AlreadyEncoded) => Err(None),
                        Ok(bytes) => Ok(bytes),
                    })?;
                }
                // `outgoing` is sent in order, so for this purpose it is sent.
                Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(),
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    through = true;
                    let sealing = std::mem::replace(&mut seal, Seal::Nothing);
                    append(&mut self.outgoing, |to| {
                        let sealed = match sealing {
                            Seal::Nothing => return Ok(0),
                            Seal::Data(data) => traffic.encrypt(data, to),
                            Seal::End => traffic.queue_close_notify(to),
                        };
                        match sealed {
                            Err(EncryptError::InsufficientSize(size)) => {
                                Err(Some(size.required_size))
                            }
                            Err(EncryptError::EncryptExhausted) => Err(None),
                            Ok(bytes) => Ok(bytes),
                        }
                    })?;
                }
                Ok(ConnectionState::PeerClosed) => self.ended = true,
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => through = true,
                Ok(_) => return Err(io::Error::other("early data, which is off")),
                Err(error) => {
                    self.encode_alert();
                    return Err(invalid(error));
                }
            }
            self.incoming.drain(..discard);
            if through {
                return Ok(());
            }
        }
    }

    /// After an error: what rustls wants to tell the peer.
    fn encode_alert(&mut self) {
        while let Ok(ConnectionState::EncodeTlsData(mut alert)) =
            self.connection.process_tls_records(&mut []).state
        {
            let encoded = append(&mut self.outgoing, |to| match alert.encode(to) {
                Err(EncodeError::InsufficientSize(size)) => Err(Some(size.required_size)),
                Err(EncodeError::AlreadyEncoded) => Err(None),
                Ok(bytes) => Ok(bytes),
            });
            if encoded.is_err() {
                return;
            }
        }
    }

    /// Reads some more of the peer's.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.incoming.len() >= INCOMING_BYTES_MAX {
            return Poll::Ready(Err(invalid("a handshake message that is too long")));
        }
        let mut bytes = [0; READ_BYTES];
        let mut read = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
        match read.filled() {
            [] => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            filled => {
                self.incoming.extend_from_slice(filled);
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, &self.outgoing))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.outgoing.advance(sent),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Handshaken {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let tls = self.get_mut();
        loop {
            if !tls.plain.is_empty() {
                let part = tls.plain.len().min(to.remaining());
                to.put_slice(&tls.plain.split_to(part));
                return Poll::Ready(Ok(()));
            }
            if tls.ended {
                return Poll::Ready(Ok(()));
            }
            ready!(tls.poll_fill(cx))?;
            if let Err(error) = tls.process(Seal::Nothing) {
                // The peer's last word from us; whether it takes it or not.
                let _ = tls.poll_send(cx);
                return Poll::Ready(Err(error));
            }
        }
    }
}

impl AsyncWrite for Handshaken {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let tls = self.get_mut();
        if tls.outgoing.len() >= OUTGOING_BYTES_MAX {
            ready!(tls.poll_send(cx))?;
        }
        let part = bytes.len().min(OUTGOING_BYTES_MAX);
        tls.process(Seal::Data(&bytes[..part]))?;
        Poll::Ready(Ok(part))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tls = self.get_mut();
        if !std::mem::replace(&mut tls.shut, true) {
            tls.process(Seal::End)?;
        }
        ready!(tls.poll_send(cx))?;
        Pin::new(&mut tls.socket).poll_shutdown(cx)
    }
}

/// Appends what `encode` writes, in as much room as it asks for; 0 bytes when it has nothing.
fn append(
    to: &mut BytesMut,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> io::Result<()> {
    let start = to.len();
    let mut room = 0;
    loop {
        to.put_bytes(0, room);
        match encode(&mut to[start..]) {
            Ok(written) => {
                to.truncate(start + written);
                return Ok(());
            }
            Err(Some(required)) if required > room => {
                to.truncate(start);
                room = required;
            }
            Err(_) => {
                to.truncate(start);
                return Err(io::Error::other("nothing can be sealed any more"));
            }
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
