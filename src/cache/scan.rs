//! What stands in one segment, and which of its bad places are damage. Pure.

use std::ops::Range;

use super::durable::DurableChange;
use super::entry::decode;
use crate::format::bytes::FormatError;
use crate::format::segment::{
    RECORD_ALIGN, RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES, SegmentHeader,
    record_bytes,
};
use crate::model::{Generation, MachineKey, Sequence};

/// A valid record.
#[derive(Clone, Debug)]
pub(super) struct Valid {
    pub(super) machine: MachineKey,
    pub(super) generation: Generation,
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
            generation: record.generation,
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
    /// records, which proves that this one was closed; `unreadable` places (row G) are damage always.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::log::{Layout, padding};
    use crate::model::{Change, Checksum, Incarnation};

    const HEADER: SegmentHeader = SegmentHeader {
        shard: 0,
        ordinal: 1,
        incarnation: Incarnation([9; 16]),
        segment_bytes: 16384,
        copy_of: None,
    };

    /// A segment with one append per number, of so many records; closed if asked. And where the
    /// records begin.
    fn segment(appends: &[usize], closed: bool) -> (Vec<u8>, Vec<u64>) {
        let mut layout = Layout::new(&HEADER);
        let (mut bytes, mut starts) = (vec![0; 16384], Vec::new());
        let mut put = |at: u64, header: &[u8]| {
            let at = at as usize;
            bytes[at..at + header.len()].copy_from_slice(header);
        };
        for &records in appends {
            for _ in 0..records {
                let (at, sequence) = (layout.at(), Sequence(starts.len() as u64 + 1));
                let mark = DurableChange::mark(Change::CatchUpEnd);
                let (header, _) = layout.add(
                    (MachineKey([1; 16]), Generation(1)),
                    sequence,
                    &mark,
                    Checksum::default(),
                );
                put(at, &header);
                starts.push(at);
            }
            layout.synced();
        }
        if closed {
            let at = layout.at();
            put(at, &layout.end());
        }
        (bytes, starts)
    }

    #[test]
    fn every_bad_place_is_damage_or_torn_as_the_table_says() {
        // Appends of 2, 3 and 2 records: each record bad in turn, in each standing.
        for closed in [false, true] {
            for followed in [false, true] {
                for bad in 0..7 {
                    let (mut bytes, starts) = segment(&[2, 3, 2], closed);
                    bytes[starts[bad] as usize + 70] ^= 4;
                    let scan = scan(&bytes, &HEADER);
                    assert_eq!(scan.records.len(), 6);
                    let verdict = scan.judge(followed, &[]);
                    let is_last_append = bad >= 5;
                    let last_record = bad == 6 && !closed; // nothing valid follows it
                    let torn = !followed && !closed && is_last_append;
                    let damaged = match (torn, last_record && !followed) {
                        (true, _) | (_, true) => 0,
                        (false, false) => 1,
                    };
                    let case = format!("closed {closed}, followed {followed}, record {bad}");
                    // An unclosed segment that is followed has lost its end record as well.
                    let lost_end = usize::from(followed && !closed && !last_record);
                    assert_eq!(verdict.damaged.len(), damaged + lost_end, "{case}");
                    let expected = (torn && !last_record).then_some(starts[bad]);
                    assert_eq!(verdict.torn, expected, "{case}");
                }
            }
        }
    }

    #[test]
    fn what_the_disk_cannot_read_is_damage_even_in_the_last_append() {
        let (mut bytes, starts) = segment(&[1, 3], false);
        let hole = starts[2]..starts[2] + 128;
        bytes[hole.start as usize..hole.end as usize].fill(0);
        let verdict = scan(&bytes, &HEADER).judge(false, std::slice::from_ref(&(4096..8192)));
        assert_eq!(verdict.damaged, [hole]);
    }

    #[test]
    fn the_chain_keeps_out_a_record_of_another_history() {
        let (one, starts) = segment(&[2, 2], false);
        let (other, _) = segment(&[4], false); // same places, other `durable_before`
        let mut bytes = one;
        let at = starts[3] as usize;
        bytes[at..at + 96].copy_from_slice(&other[at..at + 96]);
        assert_eq!(scan(&bytes, &HEADER).records.len(), 3);
    }

    #[test]
    fn padding_ends_at_the_next_record() {
        for payload in [0usize, 1, 31, 32, 33, 512, 4096] {
            let end = RECORD_HEADER_BYTES + payload + padding(payload);
            assert_eq!(end as u64, record_bytes(payload as u32));
        }
    }
}
