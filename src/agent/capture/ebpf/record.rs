//! What the program puts into its rings.
//!
//! Owns: the layout of a record (`struct head` of `program/capture.bpf.c`), and joining the pieces of
//! a request. Does not own: what is done with it.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use bytes::Bytes;

/// Bytes before the payload.
const HEAD_BYTES: usize = 48;
/// Bytes of requests that wait for more: of one a CPU, and of those that never get their last piece.
const OPEN_BYTES_MAX: usize = if cfg!(test) { 1 << 20 } else { 64 << 20 };
/// Requests that are refused. The second ring holds fewer records.
const REFUSED_MAX: usize = 8192;

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
    open_bytes: usize,
    /// Their last pieces will not come, and their first ones may.
    refused: BTreeSet<u64>,
}

#[derive(Debug)]
pub(super) struct Open {
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
    /// It is told already that what stands there is not known.
    Refused,
}

impl Assembly {
    /// Adds the next piece of its request.
    pub(super) fn add(&mut self, piece: &Piece<'_>) -> Joined {
        let Piece { id, disk, range, at, bytes } = piece;
        let length = range.end - range.start;
        if *at == 0 && bytes.len() as u64 == length {
            return Joined::Whole(*disk, range.clone(), Bytes::copy_from_slice(bytes));
        }
        if self.refused.contains(id) {
            return Joined::Refused;
        }
        if *at == 0 {
            self.forget(*id);
            let open = Open { disk: *disk, range: range.clone(), bytes: bytes.to_vec() };
            self.open_bytes += bytes.len();
            self.open.insert(*id, open);
            return Joined::Waits;
        }
        let Some(open) = self.open.get_mut(id) else {
            return Joined::Broken(*disk, range.clone());
        };
        if open.bytes.len() as u64 != *at || open.range != *range {
            self.forget(*id);
            return Joined::Broken(*disk, range.clone());
        }
        open.bytes.extend_from_slice(bytes);
        self.open_bytes += bytes.len();
        if open.bytes.len() as u64 != length {
            return Joined::Waits;
        }
        match self.forget(*id) {
            Some(open) => Joined::Whole(open.disk, open.range, open.bytes.into()),
            None => Joined::Broken(*disk, range.clone()),
        }
    }

    /// The request's last piece will not come; all its others did.
    pub(super) fn forget(&mut self, id: u64) -> Option<Open> {
        let open = self.open.remove(&id)?;
        self.open_bytes -= open.bytes.len();
        Some(open)
    }

    /// The request's last piece will not come, and others may still stand in the first ring.
    pub(super) fn refuse(&mut self, id: u64) {
        self.forget(id);
        self.refused.insert(id);
        while self.refused.len() > REFUSED_MAX {
            self.refused.pop_first(); // the oldest: they count up
        }
    }

    /// Nobody knows whose last pieces were lost. Of what comes later a piece is missing then.
    pub(super) fn forget_all(&mut self) {
        self.open = HashMap::new();
        self.open_bytes = 0;
    }

    /// Whether more waits than can be on its way.
    pub(super) fn is_full(&self) -> bool {
        self.open_bytes > OPEN_BYTES_MAX
    }

    /// Gives up what waits, when it is more than can be on its way: those ranges are unknown.
    pub(super) fn shed(&mut self) -> Vec<(u16, Range<u64>)> {
        if !self.is_full() {
            return Vec::new();
        }
        self.open_bytes = 0;
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

    fn first_piece(id: u64, bytes: &[u8]) -> Piece<'_> {
        Piece { id, disk: 3, range: 0..2 * bytes.len() as u64, at: 0, bytes }
    }

    #[test]
    fn what_waits_for_pieces_that_never_come_is_bounded() {
        let (mut assembly, bytes) = (Assembly::default(), vec![1; 65536]);
        let mut ids = 0..;
        while !assembly.is_full() {
            assert_eq!(assembly.shed(), []);
            let id = ids.next().unwrap();
            assert!(id < 1000, "{} bytes wait", id << 16);
            assert_eq!(assembly.add(&first_piece(id, &bytes)), Joined::Waits);
        }
        let shed = assembly.shed();
        assert_eq!(shed.len() as u64, ids.next().unwrap());
        assert!(shed.iter().all(|one| *one == (3, 0..131_072)));
        assert!(!assembly.is_full() && assembly.shed().is_empty());
        // Nor does what came to its end count.
        for id in 0..1000 {
            assert_eq!(assembly.add(&first_piece(id, &bytes)), Joined::Waits);
            let rest = Piece { at: 65536, ..first_piece(id, &bytes) };
            match id % 3 {
                0 => assert!(matches!(assembly.add(&rest), Joined::Whole(..))),
                1 => assert!(assembly.forget(id).is_some()),
                _ => assembly.refuse(id),
            }
            assert!(!assembly.is_full());
        }
    }

    #[test]
    fn pieces_whose_rest_is_known_to_be_lost_do_not_wait_for_it() {
        let mut assembly = Assembly::default();
        for id in 0..2 * REFUSED_MAX as u64 {
            assembly.refuse(id);
        }
        let newest = 2 * REFUSED_MAX as u64 - 1;
        assert_eq!(assembly.add(&first_piece(newest, &[1; 512])), Joined::Refused);
        assert_eq!(assembly.add(&first_piece(newest + 1, &[1; 512])), Joined::Waits);
        assert_eq!(assembly.refused.len(), REFUSED_MAX);
    }
}
