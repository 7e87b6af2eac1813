//! Memory of sealed objects, kept from one object to the next.
//!
//! The first touch of a page costs more than what is then written to it, so an object that is large
//! is built in memory that an earlier one was built in. It begins at a page: a store that moves whole
//! blocks past the page cache takes them from where they lie.
//!
//! Owns: which memory is used again, and how much of it is kept. Does not own: what pays for an
//! object's memory (pool). Memory: as many kept pieces as [`Shelf::keeping`] says, each no larger than
//! the largest object.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Objects begin at multiples of this: the page, and the block of most file systems.
const ALIGN: usize = 4096;
/// An object that cannot become so large is built in memory of its own: the allocator keeps that.
const LEAST: usize = 1 << 20;

/// Memory that no object is in.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    kept: Arc<Mutex<Vec<Piece>>>, // the last one was used last
    most: usize,
}

/// Empty memory, of which so many bytes were written to: its pages are there.
#[derive(Debug, Default)]
struct Piece {
    memory: Vec<u8>,
    touched: usize,
}

/// An object that is being written, then the memory that its bytes lie in.
#[derive(Debug)]
pub(super) struct Draft {
    memory: Vec<u8>,
    start: usize,
    touched: usize,
    home: Option<Shelf>,
}

impl Shelf {
    /// Keeps at most so many pieces.
    pub(super) fn keeping(most: usize) -> Self {
        Self { kept: Arc::default(), most }
    }

    /// Memory for an object of at most `bytes_max`. What is already touched of it is paid for, too.
    pub(super) fn draft(&self, bytes_max: u64) -> Draft {
        let wanted = usize::try_from(bytes_max).unwrap_or(usize::MAX / 2);
        if wanted < LEAST {
            return Draft::alone(bytes_max);
        }
        let fits =
            |piece: &Piece| piece.memory.capacity() >= wanted + ALIGN && piece.touched <= wanted;
        let found = {
            let mut kept = self.kept();
            kept.iter().rposition(fits).map(|at| kept.remove(at))
        };
        let Piece { mut memory, touched } = found.unwrap_or_else(|| {
            let room = wanted.next_multiple_of(LEAST) + ALIGN; // pages not reached cost nothing
            Piece { memory: Vec::with_capacity(room), touched: 0 }
        });
        let start = memory.as_ptr().align_offset(ALIGN);
        memory.resize(start, 0);
        Draft { memory, start, touched, home: Some(self.clone()) }
    }

    /// Lets go what is kept: objects have another size from now on.
    pub(super) fn clear(&self) {
        self.kept().clear();
    }

    #[cfg(test)]
    pub(super) fn pieces(&self) -> usize {
        self.kept().len()
    }

    fn put_back(&self, piece: Piece) {
        let mut kept = self.kept();
        kept.push(piece);
        if kept.len() > self.most {
            kept.remove(0); // not wanted for the longest time
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Piece>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Draft {
    /// In memory of its own.
    pub(super) fn alone(bytes_max: u64) -> Self {
        let room = usize::try_from(bytes_max).unwrap_or(0);
        Self { memory: Vec::with_capacity(room), start: 0, touched: 0, home: None }
    }

    /// Bytes of the object so far.
    pub(super) fn length(&self) -> usize {
        self.memory.len() - self.start
    }

    /// Where bytes are appended. What stands there already is not the object's alone.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.memory
    }

    /// The object, and how much memory it holds: its size, or what was touched before if that is
    /// more, but never twice its size.
    pub(super) fn finish(mut self) -> (Bytes, u64) {
        self.touched = self.touched.max(self.memory.len());
        if self.home.is_none() || self.touched > 2 * self.memory.len() {
            self.home = None;
            self.memory.shrink_to_fit();
            self.touched = self.memory.len();
        }
        let held = self.touched as u64;
        (Bytes::from_owner(self), held)
    }
}

impl AsRef<[u8]> for Draft {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..]
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let mut memory = std::mem::take(&mut self.memory);
        let touched = self.touched.max(memory.len());
        memory.clear();
        home.put_back(Piece { memory, touched });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn object(shelf: &Shelf, bytes_max: usize, length: usize) -> (Bytes, u64) {
        let mut draft = shelf.draft(bytes_max as u64);
        let end = draft.buffer().len() + length;
        draft.buffer().resize(end, 7);
        assert_eq!(draft.length(), length);
        draft.finish()
    }

    fn touched(shelf: &Shelf) -> Vec<usize> {
        shelf.kept().iter().map(|piece| piece.touched / MIB).collect()
    }

    #[test]
    fn memory_comes_back_with_the_last_clone_and_the_next_object_begins_at_its_page() {
        let shelf = Shelf::keeping(2);
        let (first, held) = object(&shelf, 8 * MIB, 3 * MIB);
        let place = first.as_ptr();
        assert_eq!((place.align_offset(ALIGN), first.len()), (0, 3 * MIB));
        assert!((3 * MIB as u64..3 * MIB as u64 + ALIGN as u64).contains(&held));
        let clone = first.slice(5..);
        drop(first);
        assert_eq!(touched(&shelf), [0; 0], "somebody reads it yet");
        drop(clone);
        assert_eq!(touched(&shelf), [3]);
        let (second, held) = object(&shelf, 8 * MIB, 2 * MIB);
        assert_eq!((second.as_ptr(), second.len()), (place, 2 * MIB));
        assert!(second.iter().all(|byte| *byte == 7));
        assert!(held >= 3 * MIB as u64, "what was touched before is held, too: {held}");
    }

    #[test]
    fn an_object_holds_less_than_twice_its_size() {
        let shelf = Shelf::keeping(2);
        drop(object(&shelf, 8 * MIB, 5 * MIB));
        let (small, held) = object(&shelf, 8 * MIB, 2 * MIB);
        assert!(held < 2 * MIB as u64 + ALIGN as u64, "{held}");
        assert!(small.iter().all(|byte| *byte == 7));
        drop(small);
        assert_eq!(touched(&shelf), [0; 0], "it was cut");
    }

    #[test]
    fn only_memory_that_is_paid_for_is_used_and_only_so_much_is_kept() {
        let shelf = Shelf::keeping(2);
        let three: Vec<_> = (1..=3).map(|n| object(&shelf, 8 * MIB, n * MIB + 1)).collect();
        drop(three);
        assert_eq!(touched(&shelf), [2, 3], "the oldest goes");
        drop(object(&shelf, 3 * MIB / 2, MIB));
        assert_eq!(touched(&shelf), [3, 1], "more was touched of both than is paid for");
        drop(object(&shelf, 4 * MIB, 3 * MIB));
        assert_eq!(touched(&shelf), [1, 3], "one has too little room");
        drop(object(&shelf, MIB / 2, MIB / 4));
        assert_eq!(touched(&shelf), [1, 3], "what is small is nobody's");
        drop(shelf.draft(8 * MIB as u64));
        assert_eq!(touched(&shelf), [1, 3], "one that was not finished");
        shelf.clear();
        assert_eq!(touched(&shelf), [0; 0]);
    }
}
