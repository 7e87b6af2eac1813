//! What each disk must hold: every write that was sent, the last one over each byte.

use bytes::Bytes;
use holdfast::model::{ExtentMap, Slice};

use super::content::{Content, Place};

/// What a run of bytes must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Zero,
    Content(Place),
}

impl Slice for Held {
    fn skip(&self, skip: u64) -> Self {
        match *self {
            Self::Zero => Self::Zero,
            Self::Content(place) => Self::Content(place.behind(skip)),
        }
    }
}

/// The disks of one machine. What was never written is zeros.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    disks: Vec<ExtentMap<Held>>,
}

impl Ledger {
    pub(crate) fn new(disks: usize) -> Self {
        Self { disks: vec![ExtentMap::default(); disks] }
    }

    /// Remembers a write.
    pub(crate) fn note(&mut self, disk: usize, offset: u64, length: u64, held: Held) {
        self.disks[disk].insert(offset..offset + length, held);
    }

    /// Places of a disk that something was written to, ascending.
    pub(crate) fn written(&self, disk: usize) -> impl Iterator<Item = std::ops::Range<u64>> {
        self.disks[disk].iter().map(|(range, _)| range)
    }

    /// First byte of `found`, which was read from `offset`, that is not what was written there last.
    pub(crate) fn difference(
        &self,
        disk: usize,
        offset: u64,
        found: &Bytes,
        content: &Content,
    ) -> Option<u64> {
        let parts = self.disks[disk].read(offset..offset + found.len() as u64);
        parts.into_iter().find_map(|(range, held)| {
            let found = &found[(range.start - offset) as usize..(range.end - offset) as usize];
            let wrong = match held {
                Some(Held::Content(place)) => {
                    let expected = content.at(place, found.len());
                    if found == expected {
                        return None; // whole runs at once; only a difference is looked for
                    }
                    found.iter().zip(expected).position(|(found, expected)| found != expected)
                }
                Some(Held::Zero) | None => found.iter().position(|byte| *byte != 0),
            };
            wrong.map(|at| range.start + at as u64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The disk as an honest product would give it back.
    fn disk(content: &Content) -> (Ledger, Vec<u8>) {
        let mut ledger = Ledger::new(1);
        let mut bytes = vec![0; 64 << 10];
        let mut write = |offset: usize, length: usize, number| {
            let place = content.place(number);
            ledger.note(0, offset as u64, length as u64, Held::Content(place));
            bytes[offset..offset + length].copy_from_slice(content.at(place, length));
        };
        write(0, 16 << 10, 3);
        write(4096, 512, 9); // over the middle of the first
        write(32 << 10, 8192, 77);
        ledger.note(0, 34 << 10, 1024, Held::Zero);
        bytes[34 << 10..35 << 10].fill(0);
        (ledger, bytes)
    }

    #[test]
    fn an_honest_disk_passes_wherever_it_is_read() {
        let content = Content::random(4 << 20, 1);
        let (ledger, bytes) = disk(&content);
        for start in (0..bytes.len()).step_by(512) {
            for length in [512, 4096, bytes.len() - start] {
                let end = (start + length).min(bytes.len());
                let read = Bytes::copy_from_slice(&bytes[start..end]);
                assert_eq!(ledger.difference(0, start as u64, &read, &content), None);
            }
        }
    }

    #[test]
    fn every_changed_byte_is_found() {
        let content = Content::random(4 << 20, 1);
        let (ledger, bytes) = disk(&content);
        for at in (0..bytes.len()).step_by(101) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let found = ledger.difference(0, 0, &changed.into(), &content);
            assert_eq!(found, Some(at as u64));
        }
    }

    #[test]
    fn a_lost_write_and_an_older_one_in_its_place_are_found() {
        let content = Content::random(4 << 20, 1);
        let (ledger, bytes) = disk(&content);
        let mut lost = bytes.clone();
        lost[32 << 10..34 << 10].fill(0);
        assert!(ledger.difference(0, 0, &lost.into(), &content).is_some());
        let mut older = bytes;
        older[4096..4608].copy_from_slice(content.at(content.place(3).behind(4096), 512));
        assert_eq!(ledger.difference(0, 0, &older.into(), &content), Some(4096));
    }
}
