//! The record layer of an upgraded connection, sans-io: records are opened where they lie.
//!
//! Owns: record headers, the order of keys and sequence numbers, key updates in both directions,
//! alerts. Does not own: the handshake and the keys' derivation, which are rustls's
//! ([`rustls::kernel`]), the ciphers, which are the provider's, and the socket.
//!
//! Everything a peer may send behind the handshake (RFC 8446, 4.6, 5 and 6) has its answer here:
//! data, `close_notify`, a key update, a fatal alert; and an alert of ours for the rest.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundPlainMessage,
    Tls13AeadAlgorithm,
};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion,
    SupportedCipherSuite,
};

/// Bytes of a record's header.
pub(super) const HEADER_BYTES: usize = 5;
/// Longest record: header, 2^14 bytes of data, and 256 of type, padding and tag.
pub(in crate::ingest) const RECORD_BYTES_MAX: usize = HEADER_BYTES + DATA_BYTES_MAX + 256;
/// Most data of one record.
const DATA_BYTES_MAX: usize = 1 << 14;
/// Records in a row that carry no data: a peer that sends nothing else only costs us time.
const IDLE_RECORDS_MAX: u32 = 32;
/// Past this no key is used in either direction; nobody gets here without updating it.
const SEQUENCE_MAX: u64 = u64::MAX - (1 << 16);
/// Records left under a key when we update it: more than one flush writes.
const UPDATE_MARGIN: u64 = 1 << 10;

const KEY_UPDATE: u8 = 24;
const KEY_UPDATE_BYTES: usize = 5;
const UPDATE_NOT_REQUESTED: [u8; KEY_UPDATE_BYTES] = [KEY_UPDATE, 0, 0, 1, 0];
const LEVEL_WARNING: u8 = 1;
const LEVEL_FATAL: u8 = 2;
const NO_ALERT: u8 = u8::MAX;

/// What a peer did that ends its connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    /// The peer says that it failed.
    #[error("the peer sent a fatal alert: {0:?}")]
    Alert(AlertDescription),
    /// A record that is no protected one, or longer than any may be.
    #[error("a record of type {kind} and {length} bytes")]
    Header {
        /// Its type.
        kind: u8,
        /// Its length.
        length: usize,
    },
    /// A record that does not open, or whose content is malformed.
    #[error("a record that does not open")]
    Sealed(#[source] Error),
    /// Content that has no place on a live connection.
    #[error("{0} where only data and key updates may come")]
    Unexpected(&'static str),
    /// A key update that asks for something unknown.
    #[error("a key update with request {0}")]
    Request(u8),
    /// The next key cannot be made.
    #[error("no further key")]
    Key(#[source] Error),
}

impl RecordError {
    /// What the peer is told; nothing when it knows.
    fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Alert(_) => None,
            Self::Header { length, .. } if *length > RECORD_BYTES_MAX - HEADER_BYTES => {
                Some(AlertDescription::RecordOverflow)
            }
            Self::Header { .. } | Self::Unexpected(_) => Some(AlertDescription::UnexpectedMessage),
            Self::Sealed(Error::PeerSentOversizedRecord) => Some(AlertDescription::RecordOverflow),
            Self::Sealed(Error::PeerMisbehaved(_)) => Some(AlertDescription::UnexpectedMessage),
            Self::Sealed(_) => Some(AlertDescription::BadRecordMac),
            Self::Request(_) => Some(AlertDescription::IllegalParameter),
            Self::Key(_) => Some(AlertDescription::InternalError),
        }
    }
}

/// What both directions share.
struct Keys {
    kernel: Mutex<KernelConnection<ServerConnectionData>>,
    aead: &'static dyn Tls13AeadAlgorithm,
    /// The peer asked us to update our key, too: before the next data.
    owed: AtomicBool,
    /// The alert that ends the connection, once there is one.
    alert: AtomicU8,
}

/// The peer's direction.
pub(super) struct Opener {
    keys: Arc<Keys>,
    decrypter: Box<dyn MessageDecrypter>,
    sequence: u64,
    idle_records: u32,
    /// A key update of which a part has come.
    partial: Vec<u8>,
}

/// Our direction.
pub(super) struct Sealer {
    keys: Arc<Keys>,
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
    /// Records that one key may seal.
    limit: u64,
    ended: bool,
}

/// What a record was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// Data, here in the record; at least a byte.
    Data(Range<usize>),
    /// Nothing for anybody above.
    Nothing,
    /// The peer's end of its direction.
    End,
}

/// Takes the record layer over from rustls.
///
/// # Errors
/// When the connection is not through its handshake, or still has something to send.
pub(super) fn take_over(connection: UnbufferedServerConnection) -> Result<(Opener, Sealer), Error> {
    let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
    let SupportedCipherSuite::Tls13(suite) = kernel.negotiated_cipher_suite() else {
        return Err(Error::General("only TLS 1.3 is offered here".to_owned()));
    };
    let aead = suite.aead_alg;
    let decrypter = decrypter(aead, secrets.rx.1)?;
    let encrypter = encrypter(aead, secrets.tx.1)?;
    let keys = Arc::new(Keys {
        kernel: Mutex::new(kernel),
        aead,
        owed: AtomicBool::new(false),
        alert: AtomicU8::new(NO_ALERT),
    });
    let opener = Opener {
        keys: Arc::clone(&keys),
        decrypter,
        sequence: secrets.rx.0,
        idle_records: 0,
        partial: Vec::new(),
    };
    let limit = suite.common.confidentiality_limit.min(SEQUENCE_MAX);
    Ok((opener, Sealer { keys, encrypter, sequence: secrets.tx.0, limit, ended: false }))
}

/// The length of the record that begins here, header and all; `None` while the header is not there.
///
/// # Errors
/// When no record may begin like this.
pub(super) fn record_bytes(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some(&[kind, _, _, high, low]) = bytes.first_chunk() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    // The version field means nothing any more (RFC 8446, 5.1).
    if ContentType::from(kind) != ContentType::ApplicationData
        || HEADER_BYTES + length > RECORD_BYTES_MAX
    {
        return Err(RecordError::Header { kind, length });
    }
    Ok(Some(HEADER_BYTES + length))
}

impl Opener {
    /// Opens a whole record in place.
    ///
    /// # Errors
    /// When the connection must end; our direction then ends with the alert that belongs to it.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<Opened, RecordError> {
        let opened = self.open_record(record);
        if let Err(error) = &opened {
            self.fail(error);
        }
        opened
    }

    /// Our direction ends with the alert that belongs to `error`.
    pub(super) fn fail(&self, error: &RecordError) {
        if let Some(alert) = error.alert() {
            self.keys.alert.store(alert.into(), Ordering::Relaxed);
        }
    }

    fn open_record(&mut self, record: &mut [u8]) -> Result<Opened, RecordError> {
        if self.sequence >= SEQUENCE_MAX {
            return Err(RecordError::Unexpected("one record more than a key is good for"));
        }
        let sealed = InboundOpaqueMessage::new(
            ContentType::ApplicationData,
            ProtocolVersion::TLSv1_2,
            &mut record[HEADER_BYTES..],
        );
        let plain = self.decrypter.decrypt(sealed, self.sequence).map_err(RecordError::Sealed)?;
        self.sequence += 1;
        if !self.partial.is_empty() && plain.typ != ContentType::Handshake {
            return Err(RecordError::Unexpected("another record inside a handshake message"));
        }
        match plain.typ {
            ContentType::ApplicationData if !plain.payload.is_empty() => {
                self.idle_records = 0;
                return Ok(Opened::Data(HEADER_BYTES..HEADER_BYTES + plain.payload.len()));
            }
            ContentType::ApplicationData => {}
            ContentType::Alert => match *plain.payload {
                [_, description] => match AlertDescription::from(description) {
                    AlertDescription::CloseNotify => return Ok(Opened::End),
                    AlertDescription::UserCanceled => {}
                    fatal => return Err(RecordError::Alert(fatal)),
                },
                _ => return Err(RecordError::Unexpected("no alert, or more than one")),
            },
            ContentType::Handshake => {
                let request = key_update(&mut self.partial, plain.payload)?;
                if let Some(request) = request {
                    self.update(request)?;
                }
            }
            _ => return Err(RecordError::Unexpected("a record of another type")),
        }
        self.idle_records += 1;
        match self.idle_records > IDLE_RECORDS_MAX {
            true => Err(RecordError::Unexpected("record after record without data")),
            false => Ok(Opened::Nothing),
        }
    }

    fn update(&mut self, requested: bool) -> Result<(), RecordError> {
        let next = self.keys.kernel().update_rx_secret();
        let (sequence, secrets) = next.map_err(RecordError::Key)?;
        self.decrypter = decrypter(self.keys.aead, secrets).map_err(RecordError::Key)?;
        self.sequence = sequence;
        if requested {
            self.keys.owed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The request in a key update, when all of it is there. It is the only handshake message that an
/// agent may send, and nothing may follow it under the old key.
fn key_update(partial: &mut Vec<u8>, fragment: &[u8]) -> Result<Option<bool>, RecordError> {
    let whole = partial.len() + fragment.len();
    if fragment.is_empty() || whole > KEY_UPDATE_BYTES {
        return Err(RecordError::Unexpected("no key update"));
    }
    partial.extend_from_slice(fragment);
    let head = KEY_UPDATE_BYTES - 1;
    if partial[..whole.min(head)] != UPDATE_NOT_REQUESTED[..whole.min(head)] {
        return Err(RecordError::Unexpected("another handshake message"));
    }
    if whole < KEY_UPDATE_BYTES {
        return Ok(None);
    }
    let request = partial[head];
    partial.clear();
    match request {
        0 => Ok(Some(false)),
        1 => Ok(Some(true)),
        other => Err(RecordError::Request(other)),
    }
}

impl Sealer {
    /// Seals data into records behind `to`, after a key update when one is due.
    ///
    /// # Errors
    /// When no key can be made.
    pub(super) fn seal(&mut self, data: &[u8], to: &mut Vec<u8>) -> Result<(), Error> {
        for part in data.chunks(DATA_BYTES_MAX) {
            let worn = self.sequence >= self.limit.saturating_sub(UPDATE_MARGIN);
            if self.keys.owed.swap(false, Ordering::Relaxed) || worn {
                self.update(to)?;
            }
            self.put(ContentType::ApplicationData, part, to)?;
        }
        Ok(())
    }

    /// Ends our direction: with the alert that ends the connection, or in order.
    ///
    /// # Errors
    /// When the alert cannot be sealed.
    pub(super) fn end(&mut self, to: &mut Vec<u8>) -> Result<(), Error> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let alert = match self.keys.alert.load(Ordering::Relaxed) {
            NO_ALERT => [LEVEL_WARNING, AlertDescription::CloseNotify.into()],
            alert => [LEVEL_FATAL, alert],
        };
        self.put(ContentType::Alert, &alert, to)
    }

    fn update(&mut self, to: &mut Vec<u8>) -> Result<(), Error> {
        self.put(ContentType::Handshake, &UPDATE_NOT_REQUESTED, to)?;
        let (sequence, secrets) = self.keys.kernel().update_tx_secret()?;
        self.encrypter = encrypter(self.keys.aead, secrets)?;
        self.sequence = sequence;
        Ok(())
    }

    fn put(&mut self, typ: ContentType, data: &[u8], to: &mut Vec<u8>) -> Result<(), Error> {
        let version = ProtocolVersion::TLSv1_3;
        let plain = OutboundPlainMessage { typ, version, payload: data.into() };
        let sealed = self.encrypter.encrypt(plain, self.sequence)?;
        self.sequence += 1;
        to.extend_from_slice(&sealed.encode());
        Ok(())
    }
}

impl Keys {
    fn kernel(&self) -> std::sync::MutexGuard<'_, KernelConnection<ServerConnectionData>> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decrypter(
    aead: &dyn Tls13AeadAlgorithm,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, Error> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok(aead.decrypter(key, iv)),
        _ => Err(Error::General("a cipher suite without known secrets".into())),
    }
}

fn encrypter(
    aead: &dyn Tls13AeadAlgorithm,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageEncrypter>, Error> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok(aead.encrypter(key, iv)),
        _ => Err(Error::General("a cipher suite without known secrets".into())),
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
