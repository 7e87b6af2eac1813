//! TLS 1.3 records, sealed and opened where they lie.
//!
//! Owns: AES-256-GCM records (RFC 8446, 5.2) under keys that a handshake agreed on. Does not own: the
//! handshake. The generator shares its cores with the server that it measures, so it seals with one
//! copy and no allocation; the roofline receives with the same code.

use holdfast::format::wire::Frame;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// Plain bytes of a full record.
pub(crate) const RECORD_BYTES: usize = 16 << 10;
const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
/// A full record on the wire.
pub(crate) const SEALED_BYTES_MAX: usize = HEADER_BYTES + RECORD_BYTES + 1 + TAG_BYTES;
/// A peer may add padding: RFC 8446 allows 256 bytes beyond the plaintext.
const BODY_BYTES_MAX: usize = RECORD_BYTES + 256;
const APPLICATION_DATA: u8 = 23;
const ALERT: u8 = 21;
/// Records under one key: RFC 8446, 5.5 (2^24.5 full ones for AES-GCM).
const RECORDS_MAX: u64 = 1 << 24;

/// A record that cannot be believed, or the peer's end.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("a record of type {0} and {1} bytes is none of TLS 1.3")]
    Header(u8, usize),
    #[error("a record was altered")]
    Tag,
    #[error("the peer closed the connection (TLS alert)")]
    Closed,
    #[error("the peer sent a TLS message of type {0}, which this program does not speak")]
    Message(u8),
    #[error("{RECORDS_MAX} records were sent under one key (256 GiB); run for fewer --seconds")]
    KeyUsedUp,
}

/// One direction's key.
pub(crate) struct RecordKey {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl RecordKey {
    /// From the secrets of a handshake, `sequence` records after it; `None` for another cipher's.
    pub(crate) fn new(key: &[u8], iv: &[u8], sequence: u64) -> Option<Self> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
        Some(Self { key, iv: iv.try_into().ok()?, sequence })
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, of_sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of_sequence;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Composes records at the end of a buffer.
pub(crate) struct Sealer<'a> {
    key: &'a mut RecordKey,
    out: &'a mut Vec<u8>,
    /// Where the open record begins.
    open: Option<usize>,
}

impl<'a> Sealer<'a> {
    pub(crate) fn new(key: &'a mut RecordKey, out: &'a mut Vec<u8>) -> Self {
        Self { key, out, open: None }
    }

    /// Adds bytes; full records are sealed at once.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<(), RecordError> {
        while !bytes.is_empty() {
            let start = *self.open.get_or_insert_with(|| {
                let start = self.out.len();
                self.out.extend_from_slice(&[0; HEADER_BYTES]);
                start
            });
            let room = RECORD_BYTES - (self.out.len() - start - HEADER_BYTES);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.out.extend_from_slice(now);
            bytes = later;
            if now.len() == room {
                self.seal()?;
            }
        }
        Ok(())
    }

    /// Adds a wire frame.
    pub(crate) fn push_frame(&mut self, frame: &Frame) -> Result<(), RecordError> {
        self.push(&frame.header)?;
        frame.payload.fragments().iter().try_for_each(|fragment| self.push(fragment))
    }

    /// Seals what is open.
    pub(crate) fn seal(&mut self) -> Result<(), RecordError> {
        let Some(start) = self.open.take() else { return Ok(()) };
        if self.key.sequence >= RECORDS_MAX {
            return Err(RecordError::KeyUsedUp);
        }
        self.out.push(APPLICATION_DATA);
        let (head, body) = self.out[start..].split_at_mut(HEADER_BYTES);
        let length = (body.len() + TAG_BYTES) as u16;
        head[..3].copy_from_slice(&[APPLICATION_DATA, 3, 3]);
        head[3..].copy_from_slice(&length.to_be_bytes());
        let nonce = self.key.nonce();
        let sealed = self.key.key.seal_in_place_separate_tag(nonce, Aad::from(&*head), body);
        let tag = sealed.expect("a record is far below the cipher's limit");
        self.out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// Opens the first record of `bytes` where it lies: how long it is on the wire, and where its plain
/// bytes are. `None` when it is not all there yet.
pub(crate) fn open(
    key: &mut RecordKey,
    bytes: &mut [u8],
) -> Result<Option<(usize, std::ops::Range<usize>)>, RecordError> {
    let Some((head, rest)) = bytes.split_first_chunk_mut::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
    let legal = (TAG_BYTES + 1..=BODY_BYTES_MAX + TAG_BYTES).contains(&length);
    if head[0] != APPLICATION_DATA || !legal {
        return Err(RecordError::Header(head[0], length));
    }
    let Some(body) = rest.get_mut(..length) else { return Ok(None) };
    let nonce = key.nonce();
    let opened = key.key.open_in_place(nonce, Aad::from(&*head), body);
    let plain = opened.map_err(|_| RecordError::Tag)?;
    // The type stands behind the content, zeros of padding behind it.
    let end = plain.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Tag)?;
    match plain[end] {
        APPLICATION_DATA => {}
        ALERT => return Err(RecordError::Closed),
        other => return Err(RecordError::Message(other)),
    }
    Ok(Some((HEADER_BYTES + length, HEADER_BYTES..HEADER_BYTES + end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (RecordKey, RecordKey) {
        let key = || RecordKey::new(&[7; 32], &[9; 12], 0).unwrap();
        (key(), key())
    }

    #[test]
    fn what_was_sealed_opens_in_order_and_nothing_else() {
        let (mut sealing, mut opening) = keys();
        let plain: Vec<u8> = (0..50_000u32).map(|n| n as u8).collect();
        let mut wire = Vec::new();
        let mut sealer = Sealer::new(&mut sealing, &mut wire);
        for piece in plain.chunks(7001) {
            sealer.push(piece).unwrap();
        }
        sealer.seal().unwrap();
        sealer.seal().unwrap(); // nothing open: nothing sent
        let (mut at, mut found) = (0, Vec::new());
        while at < wire.len() {
            let (length, inside) = open(&mut opening, &mut wire[at..]).unwrap().unwrap();
            assert!(length <= SEALED_BYTES_MAX);
            found.extend_from_slice(&wire[at..][inside]);
            at += length;
        }
        assert_eq!(found, plain);
    }

    #[test]
    fn parts_wait_and_changes_are_found() {
        let (mut sealing, mut opening) = keys();
        let mut wire = Vec::new();
        let mut sealer = Sealer::new(&mut sealing, &mut wire);
        sealer.push(b"hello").unwrap();
        sealer.seal().unwrap();
        for cut in 0..wire.len() {
            assert_eq!(open(&mut opening, &mut wire.clone()[..cut]), Ok(None));
        }
        let mut changed = wire.clone();
        changed[7] ^= 1;
        let again = || RecordKey::new(&[7; 32], &[9; 12], 0).unwrap();
        assert_eq!(open(&mut again(), &mut changed), Err(RecordError::Tag));
        assert!(open(&mut again(), &mut wire).unwrap().is_some());
        assert!(matches!(open(&mut opening, &mut [22, 3, 3, 1, 0]), Err(RecordError::Header(..))));
    }
}
