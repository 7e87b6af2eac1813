//! What stands in one segment, and which of its bad places are damage. Pure.

use std::ops::Range;

use super::durable::DurableChange;
use super::entry::decode;
use crate::format::bytes::FormatError;
use crate::format::segment::{
    RECORD_ALIGN, RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES, SegmentHeader,
    record_bytes,
};
use crate::model::{MachineKey, Sequence};

/// A valid record.
#[derive(Clone, Debug)]
pub(super) struct Valid {
    pub(super) machine: MachineKey,
    pub(super) sequence: Sequence,
    pub(super) content: Content,
    /// Where it begins.
    pub(super) position: u64,
    /// Where its payload lies.
    pub(super) payload: Range<usize>,
}

/// What a valid record says.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Change(DurableChange),
    /// Earlier records from its sequence on do not count.
    Void,
    /// Nothing that means anything.
    Unknown(FormatError),
}

/// All valid records of a segment, and the places between them where none is.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    pub(super) records: Vec<Valid>,
    /// Bad places between valid records, ascending.
    bad: Vec<Range<u64>>,
    /// First byte after the last valid record.
    stop: u64,
    /// Where the end record stands, if it does.
    pub(super) end: Option<u64>,
    /// Everything before this was on the disk when the last append was made.
    durable: u64,
    segment_bytes: u64,
}

/// What to make of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Places that were on the disk once and are not valid any more.
    pub(super) damaged: Vec<Range<u64>>,
    /// Where the log ends inside a torn append; nothing from here on counts.
    pub(super) torn: Option<u64>,
}

/// Reads `bytes`, a whole segment, through.
pub(super) fn scan(bytes: &[u8], header: &SegmentHeader) -> Scan {
    let mut scan = Scan {
        records: Vec::new(),
        bad: Vec::new(),
        stop: SEGMENT_HEADER_BYTES,
        end: None,
        durable: SEGMENT_HEADER_BYTES,
        segment_bytes: bytes.len() as u64,
    };
    let mut at = SEGMENT_HEADER_BYTES;
    let mut previous = Some(0); // checksum of the record before; unknown after a bad place
    while scan.end.is_none() && at + RECORD_HEADER_BYTES as u64 <= bytes.len() as u64 {
        match valid_at(bytes, header, at, previous) {
            Some((record, crc, payload)) => {
                if at > scan.stop {
                    scan.bad.push(scan.stop..at);
                }
                let next = at + record_bytes(record.payload_bytes);
                scan.push(&record, payload);
                (at, previous, scan.stop) = (next, Some(crc), next);
            }
            None => (at, previous) = (at + RECORD_ALIGN, None),
        }
    }
    scan
}

/// The valid record at `at`, its checksum and payload.
fn valid_at<'a>(
    bytes: &'a [u8],
    header: &SegmentHeader,
    at: u64,
    previous: Option<u32>,
) -> Option<(RecordHeader, u32, &'a [u8])> {
    let bytes = bytes.get(usize::try_from(at).ok()?..)?;
    if !RecordHeader::may_begin(bytes, header.incarnation) {
        return None;
    }
    RecordHeader::decode(bytes, header.incarnation, at)
        .ok()
        .filter(|(record, ..)| previous.is_none_or(|crc| crc == record.previous_crc))
}

impl Scan {
    /// Whether anything was ever appended in this life of the segment.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.end.is_none()
    }

    fn push(&mut self, record: &RecordHeader, payload: &[u8]) {
        self.durable = self.durable.max(record.durable_before);
        if record.is_end() {
            self.end = Some(record.position);
            return;
        }
        let start = usize::try_from(record.position).expect("it was found at this offset")
            + RECORD_HEADER_BYTES;
        self.records.push(Valid {
            machine: record.machine,
            sequence: record.sequence,
            content: match decode(record, payload) {
                _ if record.is_void() => Content::Void,
                Ok(change) => Content::Change(change),
                Err(reason) => Content::Unknown(reason),
            },
            position: record.position,
            payload: start..start + payload.len(),
        });
    }

    /// Rows E to H of the table in `docs/formats/cache-segment.md`. `followed` if a later segment has
    /// records, which proves that this one was closed; `unreadable` places (row U) are damage always.
    pub(super) fn judge(&self, followed: bool, unreadable: &[Range<u64>]) -> Verdict {
        let mut verdict = Verdict::default();
        for bad in &self.bad {
            let lost = |hole: &Range<u64>| hole.start < bad.end && bad.start < hole.end;
            // An end record's `durable_before` is its own place: before it, all is damage.
            if followed || bad.start < self.durable || unreadable.iter().any(lost) {
                verdict.damaged.push(bad.clone());
            } else {
                verdict.torn = Some(bad.start);
                return verdict;
            }
        }
        if followed && self.end.is_none() {
            verdict.damaged.push(self.stop..self.segment_bytes);
        }
        verdict
    }
}
