//! Cache segments. Layout: `docs/formats/cache-segment.md`.

use crate::model::{DiskIndex, Incarnation, MachineKey, Sequence};

/// Bytes of a segment's header; the first record begins here.
pub const SEGMENT_HEADER_BYTES: u64 = 4096;
/// Bytes of a record's header; the payload follows at once.
pub const RECORD_HEADER_BYTES: usize = 96;
/// Records begin at multiples of this.
pub const RECORD_ALIGN: u64 = 64;

/// First bytes of a segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which shard's log this is.
    pub shard: u16,
    /// Position of the segment in the log; grows by one with each segment begun.
    pub ordinal: u64,
    /// This life of the file: a recycled file gets a new one, and every record's checksum covers
    /// it, so that an older life's records can never be taken for this one's.
    pub incarnation: Incarnation,
    /// The file's size.
    pub segment_bytes: u64,
}

/// Fixed part of a record.
///
/// `crc` covers incarnation, the header's other bytes and the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Bytes of payload.
    pub payload_bytes: u32,
    /// What the payload is: the code of [`crate::format::change`].
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
    /// Offset of this record in its segment: a record in the wrong place is no record.
    pub position: u64,
    /// Everything before this offset of this segment was known to be on disk when this record was
    /// written. A bad record below a later record's `durable_before` is damage, not a torn tail.
    pub durable_before: u64,
    /// Checksum of the record before this one in the segment (0 for the first): the chain.
    pub previous_crc: u32,
}
