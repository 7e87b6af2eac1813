//! The fixed header that stands before every payload, and the checksum over both.

use super::{CONTROL_BYTES_MAX, HEADER_BYTES, MAGIC, PAYLOAD_BYTES_MAX};
use crate::format::bytes::{FormatError, Reader, Writer};
use crate::format::change::ChangeKind;
use crate::model::{Checksum, DiskIndex, Extent, Payload, Sequence, ZERO_BYTES_MAX};

/// Bytes of the header that the checksum covers: all but itself.
const COVERED_BYTES: usize = HEADER_BYTES - 4;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// The next record of the stream; agent.
    Record(ChangeKind),
    /// First frame of a connection; agent.
    Hello,
    /// How the agent is; agent.
    Progress,
    /// What became of a bookmark request; agent.
    BookmarkReply,
    /// Orderly end; agent.
    Goodbye,
    /// How well a disk's changes are known; agent.
    Capture,
    /// Answer to the hello; server.
    Welcome,
    /// Watermarks and credit; server.
    Ack,
    /// Put a bookmark into the stream; server.
    BookmarkRequest,
    /// The connection ends, and why; server.
    Refuse,
    /// The connection ends, and who serves the machine; server.
    Redirect,
}

impl FrameKind {
    /// Its code in the header: records have their change's code, agents 0x1_, servers 0x2_.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Record(kind) => kind.code(),
            Self::Hello => 0x10,
            Self::Progress => 0x11,
            Self::BookmarkReply => 0x12,
            Self::Goodbye => 0x13,
            Self::Capture => 0x14,
            Self::Welcome => 0x20,
            Self::Ack => 0x21,
            Self::BookmarkRequest => 0x22,
            Self::Refuse => 0x23,
            Self::Redirect => 0x24,
        }
    }

    fn from_code(code: u8) -> Result<Self, FormatError> {
        Ok(match code {
            1..=6 => Self::Record(ChangeKind::from_code(code)?),
            0x10 => Self::Hello,
            0x11 => Self::Progress,
            0x12 => Self::BookmarkReply,
            0x13 => Self::Goodbye,
            0x14 => Self::Capture,
            0x20 => Self::Welcome,
            0x21 => Self::Ack,
            0x22 => Self::BookmarkRequest,
            0x23 => Self::Refuse,
            0x24 => Self::Redirect,
            other => {
                let found = format_args!("{other:#04x}");
                return Err(FormatError::value(
                    "frame type",
                    found,
                    "1 to 6, 0x10 to 0x14, 0x20 to 0x24",
                ));
            }
        })
    }
}

/// A header that passed every check that needs no payload, so that what it claims may be
/// allocated and read. Its checksum is not checked yet: that needs the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    kind: FrameKind,
    payload_length: u32,
    sequence: Sequence,
    disk: DiskIndex,
    extent: Option<Extent>,
    crc: u32,
    /// What the checksum covers of it.
    covered: [u8; COVERED_BYTES],
}

/// An encoded message: the header's bytes and the payload, which was not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// First on the wire.
    pub header: [u8; HEADER_BYTES],
    /// Follows at once.
    pub payload: Payload,
}

impl Frame {
    pub(super) fn new(kind: FrameKind, place: Place, payload: Payload) -> Self {
        let length = u32::try_from(payload.len()).expect("payloads are at most PAYLOAD_BYTES_MAX");
        let mut bytes = Writer(Vec::with_capacity(HEADER_BYTES));
        bytes.u16(MAGIC).u8(kind.code()).u8(0);
        bytes.u32(length).u64(place.sequence.0);
        bytes.u16(place.disk.0).u16(0).u32(place.extent_length);
        bytes.u64(place.offset).u32(0);
        let crc = payload.checksum().behind(&bytes.0);
        bytes.u32(crc);
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&bytes.0);
        Self { header, payload }
    }
}

/// The header's fields that records use; all zero for other frames.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub(super) sequence: Sequence,
    pub(super) disk: DiskIndex,
    pub(super) extent_length: u32,
    pub(super) offset: u64,
}

impl FrameHeader {
    /// Checks a header: magic, type, lengths, alignment, and zeros wherever its kind has no field.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FormatError> {
        let mut from = Reader::new(bytes);
        let magic = from.u16("magic")?;
        if magic != MAGIC {
            let (found, expected) = (format_args!("{magic:#06x}"), format_args!("{MAGIC:#06x}"));
            return Err(FormatError::value("magic", found, expected));
        }
        let kind = FrameKind::from_code(from.u8("frame type")?)?;
        zero("flags", from.u8("flags")?)?;
        let payload_length = from.u32("payload length")?;
        let sequence = Sequence(from.u64("sequence")?);
        let disk = DiskIndex(from.u16("disk")?);
        zero("reserved field", from.u16("reserved field")?)?;
        let extent_length = from.u32("extent length")?;
        let offset = from.u64("offset")?;
        zero("reserved field", from.u32("reserved field")?)?;
        let crc = from.u32("checksum")?;
        let place = Place { sequence, disk, extent_length, offset };
        let mut covered = [0; COVERED_BYTES];
        covered.copy_from_slice(&bytes[..COVERED_BYTES]);
        Ok(Self {
            kind,
            payload_length,
            sequence,
            disk,
            extent: place.checked(kind, payload_length)?,
            crc,
            covered,
        })
    }

    /// What follows.
    #[must_use]
    pub fn kind(&self) -> FrameKind {
        self.kind
    }

    /// Bytes that follow; bounded by [`PAYLOAD_BYTES_MAX`].
    #[must_use]
    pub fn payload_length(&self) -> u32 {
        self.payload_length
    }

    /// Header and payload together: what a record frame costs of the credit.
    #[must_use]
    pub fn frame_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.payload_length)
    }

    /// Place in the stream; zero for frames that are no records.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// Disk and extent of a write or zero.
    pub(super) fn extent(&self) -> Result<(DiskIndex, Extent), FormatError> {
        let extent = self
            .extent
            .ok_or_else(|| FormatError::value("extent", "absent", "present in writes and zeros"))?;
        Ok((self.disk, extent))
    }

    /// Checks that `payload` is the one that was sent behind this header.
    pub(super) fn verify(&self, payload: Checksum) -> Result<(), FormatError> {
        if payload.bytes() != u64::from(self.payload_length) {
            let (found, expected) = (payload.bytes(), self.payload_length);
            return Err(FormatError::value("payload", found, format_args!("{expected} bytes")));
        }
        let computed = payload.behind(&self.covered);
        if computed != self.crc {
            return Err(FormatError::Checksum { what: "wire frame", found: self.crc, computed });
        }
        Ok(())
    }
}

impl Place {
    /// Checks the fields against what `kind` allows; the extent of a write or zero.
    fn checked(self, kind: FrameKind, payload_length: u32) -> Result<Option<Extent>, FormatError> {
        match kind {
            FrameKind::Record(_) if self.sequence == Sequence::ZERO => {
                return Err(FormatError::value("sequence", 0, "1 or more in a record"));
            }
            FrameKind::Record(_) => {}
            _ => zero("sequence", self.sequence.0)?,
        }
        let (extent_max, payload_max) = match kind {
            FrameKind::Record(ChangeKind::Write) => (PAYLOAD_BYTES_MAX, self.extent_length),
            FrameKind::Record(ChangeKind::Zero) => (ZERO_BYTES_MAX, 0),
            _ => {
                zero("disk", self.disk.0)?;
                zero("extent length", self.extent_length)?;
                zero("offset", self.offset)?;
                return at_most(payload_length, CONTROL_BYTES_MAX).map(|()| None);
            }
        };
        let extent = Extent::new(self.offset, u64::from(self.extent_length), extent_max)
            .map_err(|error| FormatError::value("extent", error, "a place that a disk has"))?;
        if payload_length == payload_max {
            Ok(Some(extent))
        } else {
            Err(FormatError::value("payload length", payload_length, payload_max))
        }
    }
}

fn at_most(payload_length: u32, max: u32) -> Result<(), FormatError> {
    if payload_length <= max {
        return Ok(());
    }
    let expected = format_args!("at most {max}");
    Err(FormatError::value("payload length", payload_length, expected))
}

fn zero(field: &'static str, value: impl Into<u64>) -> Result<(), FormatError> {
    match value.into() {
        0 => Ok(()),
        found => Err(FormatError::value(field, found, "0 here")),
    }
}
