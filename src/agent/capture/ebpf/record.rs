//! What the program puts into its rings.
//!
//! Owns: the layout of a record (`struct head` of `program/capture.bpf.c`), and joining the pieces of
//! a request. Does not own: what is done with it.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

/// Bytes before the payload.
const HEAD_BYTES: usize = 48;
/// Requests whose pieces may be awaited at once: one a CPU, and those that never get their last piece.
const OPEN_MAX: usize = 4096;

/// One record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// A part of what a request writes.
    Piece(Piece<'a>),
    /// The range reads as zeros from here on.
    Zero(u16, Range<u64>),
    /// The request's bytes are not known.
    Unknown(u64, u16, Range<u64>),
    /// The device did not do what was seen before.
    Failed(u16, Range<u64>),
    /// A command that names no range which we could read.
    PassedBy(u16, Range<u64>),
    /// Everything issued before it stands before it.
    Marker(u64),
}

/// Part of a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub(super) id: u64,
    pub(super) disk: u16,
    /// Of the whole request.
    pub(super) range: Range<u64>,
    /// Of this piece, in the request.
    pub(super) at: u64,
    pub(super) bytes: &'a [u8],
}

/// Reads a record; `None` when it is none.
pub(super) fn parse(record: &[u8]) -> Option<Record<'_>> {
    let head = record.get(..HEAD_BYTES)?;
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or_default());
    let (id, start, length, at) = (word(0), word(8), word(16), word(24));
    let piece = u32::from_le_bytes(head[32..36].try_into().ok()?) as usize;
    let disk = u16::from_le_bytes(head[36..38].try_into().ok()?);
    let range = start..start.checked_add(length)?;
    Some(match head[38] {
        1 => {
            let bytes = record[HEAD_BYTES..].get(..piece)?;
            if at.checked_add(piece as u64)? > length {
                return None;
            }
            Record::Piece(Piece { id, disk, range, at, bytes })
        }
        2 => Record::Zero(disk, range),
        3 => Record::Unknown(id, disk, range),
        4 => Record::Failed(disk, range),
        5 => Record::PassedBy(disk, range),
        6 => Record::Marker(id),
        _ => return None,
    })
}

/// Requests of which pieces are still to come.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    open: HashMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    disk: u16,
    range: Range<u64>,
    bytes: Vec<u8>,
}

/// What a piece led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Joined {
    /// More is to come.
    Waits,
    /// The whole write.
    Whole(u16, Range<u64>, Bytes),
    /// Pieces were lost: what stands there is not known.
    Broken(u16, Range<u64>),
}

impl Assembly {
    /// Adds the next piece of its request.
    pub(super) fn add(&mut self, piece: &Piece<'_>) -> Joined {
        let Piece { id, disk, range, at, bytes } = piece;
        let length = range.end - range.start;
        if *at == 0 && bytes.len() as u64 == length {
            return Joined::Whole(*disk, range.clone(), Bytes::copy_from_slice(bytes));
        }
        if *at == 0 {
            let open = Open { disk: *disk, range: range.clone(), bytes: bytes.to_vec() };
            self.open.insert(*id, open);
            return Joined::Waits;
        }
        let Some(open) = self.open.get_mut(id) else {
            return Joined::Broken(*disk, range.clone());
        };
        if open.bytes.len() as u64 != *at || open.range != *range {
            self.open.remove(id);
            return Joined::Broken(*disk, range.clone());
        }
        open.bytes.extend_from_slice(bytes);
        if open.bytes.len() as u64 != length {
            return Joined::Waits;
        }
        match self.open.remove(id) {
            Some(open) => Joined::Whole(open.disk, open.range, open.bytes.into()),
            None => Joined::Broken(*disk, range.clone()),
        }
    }

    /// The request's last piece will not come.
    pub(super) fn forget(&mut self, id: u64) {
        self.open.remove(&id);
    }

    /// Nobody knows whose last pieces were lost. Of what comes later a piece is missing then.
    pub(super) fn forget_all(&mut self) {
        self.open = HashMap::new();
    }

    /// Gives up what waits, when it is more than can be on its way: those ranges are unknown.
    pub(super) fn shed(&mut self) -> Vec<(u16, Range<u64>)> {
        if self.open.len() <= OPEN_MAX {
            return Vec::new();
        }
        self.open.drain().map(|(_, open)| (open.disk, open.range)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: u8, at: u64, piece: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [9, 4096, 12, at] {
            bytes.extend_from_slice(&u64::to_le_bytes(word));
        }
        bytes.extend_from_slice(&piece.to_le_bytes());
        bytes.extend_from_slice(&[3, 0, kind, 0]);
        bytes.extend_from_slice(&[0; 8]);
        bytes
    }

    #[test]
    fn pieces_become_a_write_and_a_missing_one_makes_it_unknown() {
        let piece = |at: u64, text: &[u8]| {
            let mut record = head(1, at, text.len() as u32);
            record.extend_from_slice(text);
            record.extend_from_slice(b"rest of a slot");
            record
        };
        let records = [piece(0, b"abcde"), piece(5, b"fgh"), piece(8, b"ijkl")];
        let add = |assembly: &mut Assembly, record: &[u8]| match parse(record) {
            Some(Record::Piece(piece)) => assembly.add(&piece),
            other => panic!("{other:?}"),
        };
        let mut assembly = Assembly::default();
        assert_eq!(add(&mut assembly, &records[0]), Joined::Waits);
        assert_eq!(add(&mut assembly, &records[1]), Joined::Waits);
        let whole = Joined::Whole(3, 4096..4108, Bytes::from_static(b"abcdefghijkl"));
        assert_eq!(add(&mut assembly, &records[2]), whole);
        for (first, second) in [(0, 2), (1, 2)] {
            let _first = add(&mut assembly, &records[first]);
            assert_eq!(add(&mut assembly, &records[second]), Joined::Broken(3, 4096..4108));
        }
        let _first = add(&mut assembly, &records[0]);
        assembly.forget_all();
        assert_eq!(add(&mut assembly, &records[1]), Joined::Broken(3, 4096..4108));
        // Longer than its request, longer than its record, of no kind, cut short.
        assert_eq!(parse(&piece(8, b"ijklm")), None);
        assert_eq!(parse(&head(1, 0, 12)), None);
        assert_eq!(parse(&head(7, 0, 0)), None);
        assert_eq!(parse(&head(2, 0, 0)[..47]), None);
        assert_eq!(parse(&head(2, 0, 0)), Some(Record::Zero(3, 4096..4108)));
        assert_eq!(parse(&head(6, 0, 0)), Some(Record::Marker(9)));
    }
}
