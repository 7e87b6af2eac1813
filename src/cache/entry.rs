//! A change as a record of the log, and back.

use super::durable::DurableChange;
use crate::format::bytes::{FormatError, Writer};
use crate::format::change::{ChangeKind, decode_mark, encode_mark};
use crate::format::segment::RecordHeader;
use crate::model::{
    Change, DiskIndex, Extent, ExtentError, Payload, Sequence, WRITE_BYTES_MAX, ZERO_BYTES_MAX,
};

/// What a change is once its payload lies in a segment, and that payload.
pub(super) fn split(change: Change) -> (DurableChange, Payload) {
    match change {
        Change::Write { disk, extent, payload } => {
            assert!(
                payload.len() == extent.length() as usize && extent.length() <= WRITE_BYTES_MAX,
                "a write of {} bytes to {extent} was admitted",
                payload.len()
            );
            (DurableChange::Write { disk, extent }, payload)
        }
        Change::Zero { disk, extent } => (DurableChange::Zero { disk, extent }, Payload::default()),
        mark => {
            let mut body = Writer::new();
            encode_mark(&mark, &mut body);
            (DurableChange::mark(mark), body.0.into())
        }
    }
}

/// Kind code, disk and extent as they stand in a record's header.
pub(super) fn header_fields(change: &DurableChange) -> (u8, DiskIndex, u64, u32) {
    match change {
        DurableChange::Write { disk, extent } => {
            (ChangeKind::Write.code(), *disk, extent.offset(), extent.length())
        }
        DurableChange::Zero { disk, extent } => {
            (ChangeKind::Zero.code(), *disk, extent.offset(), extent.length())
        }
        DurableChange::Mark(mark) => (ChangeKind::of(mark).code(), DiskIndex(0), 0, 0),
    }
}

/// The change of a valid record.
pub(super) fn decode(header: &RecordHeader, payload: &[u8]) -> Result<DurableChange, FormatError> {
    let disk = header.disk;
    if header.sequence == Sequence::ZERO {
        return Err(FormatError::value("sequence", 0, "1 or more"));
    }
    match ChangeKind::from_code(header.kind)? {
        ChangeKind::Write => {
            let extent = extent(header, WRITE_BYTES_MAX)?;
            if payload.len() != extent.length() as usize {
                let expected = format_args!("the extent's length, {}", extent.length());
                return Err(FormatError::value("payload_bytes", payload.len(), expected));
            }
            Ok(DurableChange::Write { disk, extent })
        }
        ChangeKind::Zero if payload.is_empty() => {
            let extent = extent(header, ZERO_BYTES_MAX)?;
            Ok(DurableChange::Zero { disk, extent })
        }
        ChangeKind::Zero => Err(FormatError::value("payload_bytes", payload.len(), "0 for a zero")),
        mark => decode_mark(mark, payload).map(DurableChange::mark),
    }
}

fn extent(header: &RecordHeader, max: u32) -> Result<Extent, FormatError> {
    let (offset, bytes) = (header.offset, header.extent_bytes);
    Extent::new(offset, u64::from(bytes), max).map_err(|rule: ExtentError| {
        FormatError::value("extent", format_args!("{offset}+{bytes}"), rule)
    })
}
