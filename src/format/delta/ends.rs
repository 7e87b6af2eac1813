//! Bytes of header and trailer, and what authenticates a frame.

use super::{
    DeltaHeader, DeltaTrailer, FrameEntry, HEADER_BYTES, INDEX_PLAIN_BYTES_MAX, TAG_BYTES,
    TRAILER_BYTES,
};
use crate::format::bytes::{FormatError, Reader, Writer};
use crate::model::{DeltaId, Epoch, Generation, MachineKey, Sequence, Timestamp};

const HEADER_MAGIC: [u8; 8] = *b"HOLDFDLT";
const TRAILER_MAGIC: [u8; 8] = *b"HOLDFEND";
const VERSION: u32 = 1;
const COMPRESSED: u32 = 1;

/// The nonce number of the index; frames count from 0 and never come near.
pub const INDEX_NUMBER: u64 = u64::MAX;

impl DeltaHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut to = Writer(Vec::with_capacity(HEADER_BYTES));
        to.put(&HEADER_MAGIC).u32(VERSION).u32(self.data_key);
        to.put(&self.salt).put(&self.commitment);
        to.put(&self.machine.0).put(&self.id.0);
        to.put(&self.previous.map_or([0; 16], |id| id.0));
        to.u64(self.generation.0).u64(self.first.0).u64(self.last.0);
        to.i64(self.created.0).u32(self.epoch.0);
        to.u32(u32::from(self.previous.is_some()));
        to.0.try_into().expect("the fields above have 168 bytes together")
    }

    /// Reads a header; what it says is not authenticated yet.
    ///
    /// # Errors
    /// When the bytes are no header of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut from = Reader::new(bytes);
        magic(from.array("magic")?, HEADER_MAGIC)?;
        let version = from.u32("version")?;
        if version != VERSION {
            return Err(FormatError::value("version", version, VERSION));
        }
        let data_key = from.u32("data key")?;
        let (salt, commitment) = (from.array("salt")?, from.array("commitment")?);
        let machine = MachineKey(from.array("machine")?);
        let id = DeltaId(from.array("id")?);
        let previous = DeltaId(from.array("previous")?);
        let generation = Generation(from.u64("generation")?);
        let (first, last) = (from.u64("first")?, from.u64("last")?);
        let created = Timestamp(from.i64("created")?);
        let epoch = Epoch(from.u32("epoch")?);
        let previous = match (from.u32("has previous")?, previous) {
            (0, DeltaId(id)) if id == [0; 16] => None,
            (1, id) => Some(id),
            (flag, id) => {
                let found = format_args!("{flag} with id {id}");
                return Err(FormatError::value("has previous", found, "0 (id zeros) or 1"));
            }
        };
        from.finish("the header")?;
        if first == 0 || first > last {
            let found = format_args!("{first} to {last}");
            return Err(FormatError::value("sequences", found, "1 or more, ascending"));
        }
        if epoch == Epoch(0) {
            return Err(FormatError::value("epoch", epoch, "1 or more"));
        }
        Ok(Self {
            machine,
            generation,
            epoch,
            id,
            previous,
            first: Sequence(first),
            last: Sequence(last),
            created,
            data_key,
            salt,
            commitment,
        })
    }
}

impl DeltaTrailer {
    /// The trailer's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut to = Writer(Vec::with_capacity(TRAILER_BYTES));
        to.u64(self.index.offset).u32(self.index.sealed_bytes);
        to.u32(self.index.plain_bytes).u32(self.index.flags());
        to.u64(self.object_bytes).put(&TRAILER_MAGIC);
        let crc = crc32fast::hash(&to.0);
        to.u32(crc);
        to.0.try_into().expect("the fields above have 40 bytes together")
    }

    /// Reads a trailer and checks that index and trailer end where the object does.
    ///
    /// # Errors
    /// When the bytes are no trailer, or describe an index that cannot be there.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut from = Reader::new(bytes);
        let offset = from.u64("index offset")?;
        let sealed_bytes = from.u32("sealed bytes of the index")?;
        let plain_bytes = from.u32("plain bytes of the index")?;
        let compressed = flags(from.u32("flags of the index")?)?;
        let object_bytes = from.u64("object bytes")?;
        magic(from.array("magic of the trailer")?, TRAILER_MAGIC)?;
        let found = from.u32("checksum of the trailer")?;
        from.finish("the trailer")?;
        let computed = crc32fast::hash(&bytes[..TRAILER_BYTES - 4]);
        if found != computed {
            let what = "the trailer";
            return Err(FormatError::Checksum { what, found, computed });
        }
        let index = FrameEntry { offset, sealed_bytes, plain_bytes, compressed };
        index.check(INDEX_PLAIN_BYTES_MAX)?;
        let end = offset
            .checked_add(u64::from(sealed_bytes))
            .and_then(|end| end.checked_add(TRAILER_BYTES as u64));
        if offset < HEADER_BYTES as u64 || end != Some(object_bytes) {
            let found = format_args!("{offset}+{sealed_bytes} of {object_bytes}");
            return Err(FormatError::value("place of the index", found, "just before the trailer"));
        }
        Ok(Self { index, object_bytes })
    }
}

impl FrameEntry {
    /// The flags as they stand in index, trailer and AAD.
    #[must_use]
    pub fn flags(&self) -> u32 {
        if self.compressed { COMPRESSED } else { 0 }
    }

    /// First byte after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.sealed_bytes))
    }

    /// Its lengths can be: stored means exactly tag and plaintext, compressed means less.
    pub(super) fn check(&self, plain_bytes_max: u32) -> Result<(), FormatError> {
        if self.plain_bytes == 0 || self.plain_bytes > plain_bytes_max {
            let expected = format_args!("1 to {plain_bytes_max}");
            return Err(FormatError::value("plain bytes", self.plain_bytes, expected));
        }
        let stored = self.plain_bytes + TAG_BYTES;
        let good = match self.compressed {
            false => self.sealed_bytes == stored,
            true => (TAG_BYTES + 1..stored).contains(&self.sealed_bytes),
        };
        if !good {
            let expected = match self.compressed {
                false => format!("{stored}, stored"),
                true => format!("less than {stored}, compressed"),
            };
            return Err(FormatError::value("sealed bytes", self.sealed_bytes, expected));
        }
        Ok(())
    }

    /// What authenticates frame (or index) `number` beside its ciphertext.
    #[must_use]
    pub fn aad(&self, header: &[u8; HEADER_BYTES], number: u64) -> [u8; HEADER_BYTES + 16] {
        let mut to = Writer(Vec::with_capacity(HEADER_BYTES + 16));
        to.put(header).u64(number).u32(self.plain_bytes).u32(self.flags());
        to.0.try_into().expect("the fields above have 184 bytes together")
    }
}

fn magic(found: [u8; 8], expected: [u8; 8]) -> Result<(), FormatError> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.escape_ascii(), expected.escape_ascii());
    Err(FormatError::value("magic", found, expected))
}

pub(super) fn flags(flags: u32) -> Result<bool, FormatError> {
    match flags {
        0 => Ok(false),
        COMPRESSED => Ok(true),
        other => Err(FormatError::value("flags", other, "0 or 1")),
    }
}
