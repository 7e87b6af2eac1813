//! Cache segments. Layout, and why it is in that order: `docs/formats/cache-segment.md`.

use crate::format::bytes::{FormatError, Reader, Writer};
use crate::model::{
    Checksum, DiskIndex, Generation, Incarnation, MachineKey, Sequence, WRITE_BYTES_MAX,
};

/// Bytes of a segment before the first record.
pub const SEGMENT_HEADER_BYTES: u64 = 4096;
/// Bytes of those that are written and read: one sector, which no power cut splits.
pub const SEGMENT_HEADER_SECTOR: usize = 512;
/// Bytes of a record's header; the payload follows at once.
pub const RECORD_HEADER_BYTES: usize = 96;
/// Records begin at multiples of this.
pub const RECORD_ALIGN: u64 = 64;
/// Kind of the record that closes a segment; changes have the codes of [`crate::format::change`].
pub const KIND_END: u8 = 255;
/// Kind of a record that voids: whatever stands before it in the log of its machine, at its sequence
/// or later, does not count.
pub const KIND_VOID: u8 = 254;

const SEGMENT_MAGIC: [u8; 8] = *b"HOLDSEGM";
const RECORD_MAGIC: [u8; 4] = *b"HREC";
const RECORD_CRC_AT: usize = RECORD_HEADER_BYTES - 4;

const _: () = assert!(SEGMENT_HEADER_BYTES.is_multiple_of(RECORD_ALIGN));
const _: () = assert!(SEGMENT_HEADER_SECTOR as u64 <= SEGMENT_HEADER_BYTES);
const _: () = assert!(crate::format::change::MARK_BYTES_MAX <= WRITE_BYTES_MAX as usize);

/// How a segment is laid out; the variants are the changelog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Version {
    /// First.
    V1 = 1,
}

/// First bytes of a segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which shard's log this is.
    pub shard: u16,
    /// Position of the segment in the log, from 1; grows by one with each segment prepared.
    pub ordinal: u64,
    /// This life of the file: a recycled file gets a new one, and every record carries it under
    /// its checksum, so that an older life's records can never be taken for this one's.
    pub incarnation: Incarnation,
    /// The file's size.
    pub segment_bytes: u64,
    /// Ordinal of the segment whose records recovery copied into this one.
    pub copy_of: Option<u64>,
}

/// Fixed part of a record.
///
/// `crc` covers incarnation, the header's other bytes and the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Bytes of payload.
    pub payload_bytes: u32,
    /// What the payload is: the code of [`crate::format::change`], or [`KIND_END`].
    pub kind: u8,
    /// Which disk (writes and zeros; else 0).
    pub disk: DiskIndex,
    /// Bytes that the extent covers (writes and zeros; else 0).
    pub extent_bytes: u32,
    /// Where on the disk (writes and zeros; else 0).
    pub offset: u64,
    /// Whose stream.
    pub machine: MachineKey,
    /// Place in that stream.
    pub sequence: Sequence,
    /// The ownership of the machine under which it was admitted (changes; else 0).
    pub generation: Generation,
    /// Offset of this record in its segment: a record in the wrong place is no record.
    pub position: u64,
    /// Everything before this offset of this segment was known to be on disk when this record was
    /// written. A bad record below a later record's `durable_before` is damage, not a torn tail.
    pub durable_before: u64,
    /// Checksum of the record before this one in the segment (0 for the first): the chain.
    pub previous_crc: u32,
}

/// Bytes from the start of a record to the start of the next.
#[must_use]
pub const fn record_bytes(payload_bytes: u32) -> u64 {
    (RECORD_HEADER_BYTES as u64 + payload_bytes as u64).next_multiple_of(RECORD_ALIGN)
}

/// The checksum in an encoded record header.
#[must_use]
pub fn record_crc(header: &[u8; RECORD_HEADER_BYTES]) -> u32 {
    let [.., a, b, c, d] = *header;
    u32::from_le_bytes([a, b, c, d])
}

impl SegmentHeader {
    /// The header's sector.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_SECTOR] {
        let mut to = Writer::new();
        to.put(&SEGMENT_MAGIC)
            .u16(Version::V1 as u16)
            .u16(self.shard)
            .u32(0)
            .put(&self.incarnation.0)
            .u64(self.ordinal)
            .u64(self.segment_bytes)
            .u64(self.copy_of.unwrap_or(0));
        let mut sector = [0; SEGMENT_HEADER_SECTOR];
        let (content, crc) = sector.split_at_mut(SEGMENT_HEADER_SECTOR - 4);
        content[..to.0.len()].copy_from_slice(&to.0);
        crc.copy_from_slice(&crc32fast::hash(content).to_le_bytes());
        sector
    }

    /// Reads the header's sector; `None` if the segment is blank.
    ///
    /// # Errors
    /// When it is neither a header of a known version nor blank.
    pub fn decode(sector: &[u8]) -> Result<Option<Self>, FormatError> {
        let mut from = Reader::new(sector);
        let sector: [u8; SEGMENT_HEADER_SECTOR] = from.array("segment header")?;
        from.finish("segment header")?;
        if sector == [0; SEGMENT_HEADER_SECTOR] {
            return Ok(None);
        }
        let mut from = checked(&sector)?;
        let version = from.u16("segment version")?;
        if version != Version::V1 as u16 {
            return Err(FormatError::value("segment version", version, "1"));
        }
        let shard = from.u16("shard")?;
        zeros(&mut from, 4)?;
        let incarnation = Incarnation(from.array("incarnation")?);
        let ordinal = from.u64("ordinal")?;
        if ordinal == 0 {
            return Err(FormatError::value("ordinal", ordinal, "1 or more"));
        }
        let segment_bytes = from.u64("segment_bytes")?;
        let copy_of = Some(from.u64("copy_of")?).filter(|&ordinal| ordinal != 0);
        let left = from.left();
        zeros(&mut from, left)?;
        Ok(Some(Self { shard, ordinal, incarnation, segment_bytes, copy_of }))
    }
}

impl RecordHeader {
    /// The header of a record with this payload in a segment of this incarnation.
    #[must_use]
    pub fn encode(&self, incarnation: Incarnation, payload: Checksum) -> [u8; RECORD_HEADER_BYTES] {
        debug_assert_eq!(payload.bytes(), u64::from(self.payload_bytes));
        let mut to = [0; RECORD_HEADER_BYTES];
        to[..4].copy_from_slice(&RECORD_MAGIC);
        to[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        to[8..24].copy_from_slice(&incarnation.0);
        to[24..32].copy_from_slice(&self.position.to_le_bytes());
        to[32..40].copy_from_slice(&self.durable_before.to_le_bytes());
        to[40..44].copy_from_slice(&self.previous_crc.to_le_bytes());
        to[44..48].copy_from_slice(&self.extent_bytes.to_le_bytes());
        to[48..64].copy_from_slice(&self.machine.0);
        to[64..72].copy_from_slice(&self.sequence.0.to_le_bytes());
        to[72..80].copy_from_slice(&self.offset.to_le_bytes());
        to[80..82].copy_from_slice(&self.disk.0.to_le_bytes());
        to[82] = self.kind;
        to[84..92].copy_from_slice(&self.generation.0.to_le_bytes());
        let crc = payload.behind(&to[..RECORD_CRC_AT]);
        to[RECORD_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        to
    }

    /// Whether a record of this incarnation may begin `bytes`: cheap, for scanning. Says nothing
    /// about the rest.
    #[must_use]
    pub fn may_begin(bytes: &[u8], incarnation: Incarnation) -> bool {
        bytes.starts_with(&RECORD_MAGIC) && bytes.get(8..24) == Some(&incarnation.0)
    }

    /// Reads the record that should stand at `position` of a segment. `bytes` run from there to
    /// the segment's end. Gives its header, checksum and payload.
    ///
    /// # Errors
    /// When no record of this incarnation belongs there.
    pub fn decode(
        bytes: &[u8],
        incarnation: Incarnation,
        position: u64,
    ) -> Result<(Self, u32, &[u8]), FormatError> {
        let mut from = Reader::new(bytes);
        let header: [u8; RECORD_HEADER_BYTES] = from.array("record header")?;
        let mut fields = Reader::new(&header);
        expect("record magic", fields.array("record magic")?, RECORD_MAGIC)?;
        let payload_bytes = fields.u32("payload_bytes")?;
        if payload_bytes > WRITE_BYTES_MAX {
            let expected = format_args!("at most {WRITE_BYTES_MAX}");
            return Err(FormatError::value("payload_bytes", payload_bytes, expected));
        }
        let found = Incarnation(fields.array("incarnation")?);
        if found != incarnation {
            return Err(FormatError::value("incarnation", found, incarnation));
        }
        let found = fields.u64("position")?;
        if found != position {
            return Err(FormatError::value("position", found, position));
        }
        let payload = from.take(payload_bytes as usize, "record payload")?;
        let computed = Checksum::of(payload).behind(&header[..RECORD_CRC_AT]);
        let found = record_crc(&header);
        if found != computed {
            let what = "record";
            return Err(FormatError::Checksum { what, found, computed });
        }
        let decoded = Self::fields(payload_bytes, position, &mut fields)?;
        Ok((decoded, computed, payload))
    }

    /// The fields behind the position, and the rules between them.
    fn fields(
        payload_bytes: u32,
        position: u64,
        from: &mut Reader<'_>,
    ) -> Result<Self, FormatError> {
        let durable_before = from.u64("durable_before")?;
        if durable_before > position {
            let expected = format_args!("at most the record's position, {position}");
            return Err(FormatError::value("durable_before", durable_before, expected));
        }
        let previous_crc = from.u32("previous_crc")?;
        let extent_bytes = from.u32("extent_bytes")?;
        let machine = MachineKey(from.array("machine")?);
        let sequence = Sequence(from.u64("sequence")?);
        let offset = from.u64("offset")?;
        let disk = DiskIndex(from.u16("disk")?);
        let kind = from.u8("kind")?;
        zeros(from, 1)?;
        let generation = Generation(from.u64("generation")?);
        Ok(Self {
            payload_bytes,
            kind,
            disk,
            extent_bytes,
            offset,
            machine,
            sequence,
            generation,
            position,
            durable_before,
            previous_crc,
        })
    }

    /// Whether this record voids earlier ones.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.kind == KIND_VOID
    }

    /// Whether this record closes its segment.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.kind == KIND_END
    }
}

/// A reader of a header's fields between magic and checksum, both of which are right.
fn checked(sector: &[u8; SEGMENT_HEADER_SECTOR]) -> Result<Reader<'_>, FormatError> {
    let what = "segment header";
    let (content, crc) = sector.split_at(SEGMENT_HEADER_SECTOR - 4);
    let mut from = Reader::new(content);
    expect("segment magic", from.array(what)?, SEGMENT_MAGIC)?;
    let found = Reader::new(crc).u32("checksum")?;
    let computed = crc32fast::hash(content);
    if found != computed {
        return Err(FormatError::Checksum { what, found, computed });
    }
    Ok(from)
}

fn expect<const N: usize>(
    field: &'static str,
    found: [u8; N],
    magic: [u8; N],
) -> Result<(), FormatError> {
    if found != magic {
        let (found, magic) = (found.escape_ascii(), magic.escape_ascii());
        return Err(FormatError::value(field, found, magic));
    }
    Ok(())
}

fn zeros(from: &mut Reader<'_>, count: usize) -> Result<(), FormatError> {
    if from.take(count, "reserved bytes")?.iter().any(|&b| b != 0) {
        return Err(FormatError::value("reserved bytes", "not zero", "zero"));
    }
    Ok(())
}
