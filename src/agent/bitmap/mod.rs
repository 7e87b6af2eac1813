//! The write-intent bitmap of one disk: what may differ from what is published.
//!
//! Owns: that a bit is on disk before its chunk is written, and is cleared only when nothing of
//! the chunk can be lost any more. Does not own: when something is published ([`super::stream`])
//! or when the source is synced ([`super::clearing`]).

mod commit;
mod layout;
mod open;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::model::{DiskName, Epoch, MachineKey, Sequence};

use super::bits::Bits;
use super::medium::Medium;
use commit::Commits;
use layout::Header;
pub(super) use open::{Found, open};
#[cfg(test)]
pub(super) use open::{blank, load};

/// What a bitmap must be about to be believed.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// Whose disk.
    pub(super) machine: MachineKey,
    /// Which.
    pub(super) disk: DiskName,
    /// Its size.
    pub(super) disk_bytes: u64,
    /// Bytes that one bit stands for.
    pub(super) chunk_bytes: u32,
    /// CRC-32 over all disks of the machine.
    pub(super) disks_crc: u32,
}

/// The bitmap of one disk. Called from several threads at once.
pub(super) struct Bitmap {
    medium: Box<dyn Medium>,
    identity: Identity,
    header: Mutex<Header>,
    state: Mutex<State>,
    committed: Condvar,
}

struct State {
    /// What the file shall say.
    set: Bits,
    /// Bits of `set` that are known to be on disk.
    safe: Bits,
    /// Chunks whose content is not in the stream: they must be read again. A subset of `set`.
    dirty: Bits,
    /// Chunks touched since the present round of clearing began.
    young: Bits,
    commits: Commits,
}

impl Identity {
    /// Number of chunks.
    pub(super) fn chunks(&self) -> u64 {
        self.disk_bytes.div_ceil(u64::from(self.chunk_bytes))
    }

    fn header(&self, epoch: Epoch, witnessed: Sequence, clean: bool, turn: u64) -> Header {
        Header {
            machine: self.machine,
            disk: self.disk.clone(),
            disk_bytes: self.disk_bytes,
            chunk_bytes: self.chunk_bytes,
            disks_crc: self.disks_crc,
            epoch,
            witnessed,
            clean,
            turn,
        }
    }

    fn mismatch(&self, header: &Header) -> Option<String> {
        if header.machine != self.machine || header.disk != self.disk {
            let (machine, disk) = (&header.machine, &header.disk);
            Some(format!("it belongs to disk {disk} of machine {machine}"))
        } else if header.disk_bytes != self.disk_bytes {
            let (was, is) = (header.disk_bytes, self.disk_bytes);
            Some(format!("the disk had {was} bytes and has {is} now"))
        } else if header.chunk_bytes != self.chunk_bytes {
            let (was, is) = (header.chunk_bytes, self.chunk_bytes);
            Some(format!("a bit stood for {was} bytes and stands for {is} now"))
        } else if header.disks_crc != self.disks_crc {
            Some("the machine has other disks now".to_owned())
        } else {
            None
        }
    }
}

impl Bitmap {
    /// A bitmap as it was read; its set bits are what the last life left, so all are dirty.
    fn with(
        medium: Box<dyn Medium>,
        identity: &Identity,
        header: Header,
        set: Bits,
        repair: bool,
    ) -> Self {
        let mut commits = Commits::default();
        if repair {
            commits.want_all(set.pages());
        }
        let state = State {
            safe: if repair { Bits::new(set.length()) } else { set.clone() },
            dirty: set.clone(),
            young: Bits::new(set.length()),
            set,
            commits,
        };
        Self {
            medium,
            identity: identity.clone(),
            header: Mutex::new(header),
            state: Mutex::new(state),
            committed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chunks that a byte range touches.
    fn chunks(&self, bytes: &Range<u64>) -> Range<u64> {
        let chunk = u64::from(self.identity.chunk_bytes);
        bytes.start / chunk..bytes.end.div_ceil(chunk)
    }

    /// The bytes of a run of chunks.
    fn bytes(&self, chunks: &Range<u64>) -> Range<u64> {
        let chunk = u64::from(self.identity.chunk_bytes);
        chunks.start * chunk..(chunks.end * chunk).min(self.identity.disk_bytes)
    }

    /// The disk's size and the size of a chunk.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns when every bit of the range is on disk: only then may the source be written.
    ///
    /// # Errors
    /// When the bitmap file cannot be written; from then on every write to a clear chunk fails.
    pub(super) fn intend(&self, bytes: Range<u64>) -> io::Result<()> {
        let chunks = self.chunks(&bytes);
        let mut state = self.lock();
        state.young.insert(chunks.clone());
        if state.safe.contains_all(chunks.clone()) {
            return Ok(());
        }
        state.set.insert(chunks.clone());
        state.commits.want(&chunks);
        let ticket = state.commits.ticket();
        self.commit(state, ticket)
    }

    /// The range must be read again. Its bits are set already: something was intended there.
    pub(super) fn lost(&self, bytes: Range<u64>) {
        let chunks = self.chunks(&bytes);
        let mut state = self.lock();
        debug_assert!(state.set.contains_all(chunks.clone()));
        state.dirty.insert(chunks);
    }

    /// Everything that may differ from what is published must be read again.
    pub(super) fn lost_all(&self) {
        let state = &mut *self.lock();
        state.dirty.copy_from(&state.set);
    }

    /// The whole chunks of the range were read again and stand in the stream.
    pub(super) fn repaired(&self, bytes: Range<u64>) {
        let chunks = self.chunks(&bytes);
        let mut state = self.lock();
        state.young.insert(chunks.clone());
        state.dirty.remove(chunks);
    }

    /// First run of dirty bytes at or after `from`, at most `most` long and at least a chunk.
    pub(super) fn next_dirty(&self, from: u64, most: u64) -> Option<Range<u64>> {
        let chunk = u64::from(self.identity.chunk_bytes);
        let run = self.lock().dirty.next_run(from / chunk, (most / chunk).max(1));
        run.map(|run| self.bytes(&run))
    }

    /// Bytes that must be read again.
    pub(super) fn dirty_bytes(&self) -> u64 {
        self.count_bytes(|state| &state.dirty)
    }

    /// Bytes that may differ from what is published.
    pub(super) fn set_bytes(&self) -> u64 {
        self.count_bytes(|state| &state.set)
    }

    fn count_bytes(&self, of: impl Fn(&State) -> &Bits) -> u64 {
        let chunks = of(&self.lock()).count();
        (chunks * u64::from(self.identity.chunk_bytes)).min(self.identity.disk_bytes)
    }

    /// Whether nothing at all is known to be published.
    pub(super) fn is_full(&self) -> bool {
        let state = self.lock();
        state.set.count() == state.set.length()
    }

    /// Whether a round of clearing could clear anything.
    pub(super) fn clearable(&self) -> bool {
        let state = self.lock();
        state.set.count() > state.dirty.count()
    }

    /// Begins a round of clearing: whatever is touched from here on stays set. `held` is asked
    /// after that for the ranges whose writes have begun and may have no sequence yet; they stay
    /// set as well. The other way round a write could begin between the two and be in neither.
    pub(super) fn begin_clearing(&self, held: impl FnOnce() -> Vec<Range<u64>>) {
        self.lock().young.clear();
        let held = held();
        let mut state = self.lock();
        for range in held {
            let chunks = self.chunks(&range);
            state.young.insert(chunks);
        }
    }

    /// Ends the round. The caller has seen everything that was in the stream at its begin
    /// published, and has synced the source after that. Returns how many bytes were cleared.
    ///
    /// # Errors
    /// When the bitmap file cannot be written.
    pub(super) fn finish_clearing(&self, witnessed: Sequence) -> io::Result<u64> {
        // The witness first: a cleared bit rests on that publication.
        self.write_header(|header| header.witnessed = header.witnessed.max(witnessed))?;
        let mut state = self.lock();
        let cleared = state.clear_old();
        let ticket = state.commits.ticket();
        self.commit(state, ticket)?;
        Ok(cleared * u64::from(self.identity.chunk_bytes))
    }

    /// All bits set and dirty, on disk, and only then the header of the new epoch.
    ///
    /// # Errors
    /// When the bitmap file cannot be written.
    pub(super) fn begin_epoch(&self, epoch: Epoch, published: Sequence) -> io::Result<()> {
        let mut state = self.lock();
        state.set.fill();
        state.dirty.fill();
        let pages = state.set.pages();
        state.commits.want_all(pages);
        let ticket = state.commits.ticket();
        self.commit(state, ticket)?;
        self.write_header(|header| {
            header.epoch = epoch;
            header.witnessed = published;
            header.clean = false;
        })
    }

    /// Says that the agent stopped in order, or (`false`) that it runs.
    ///
    /// # Errors
    /// When the bitmap file cannot be written.
    pub(super) fn mark_clean(&self, clean: bool, witnessed: Sequence) -> io::Result<()> {
        let clean = clean && self.set_bytes() == 0;
        self.write_header(|header| {
            header.clean = clean;
            header.witnessed = header.witnessed.max(witnessed);
        })
    }

    /// Epoch, highest publication ever told, and whether the last stop was orderly.
    pub(super) fn history(&self) -> (Epoch, Sequence, bool) {
        let header = self.header();
        (header.epoch, header.witnessed, header.clean)
    }

    /// Writes the slot that holds the older header, and syncs.
    fn write_header(&self, change: impl FnOnce(&mut Header)) -> io::Result<()> {
        let mut header = self.header();
        let mut next = header.clone();
        change(&mut next);
        if next == *header {
            return Ok(());
        }
        next.turn += 1;
        let slot = next.turn % 2 * layout::SLOT_BYTES;
        self.medium.write_at(slot, &next.encode())?;
        self.medium.sync()?;
        *header = next;
        Ok(())
    }
}

impl State {
    fn clear_old(&mut self) -> u64 {
        let before = self.set.count();
        for page in 0..self.set.pages() {
            let kept: Vec<u64> = (self.set.page(page).iter())
                .zip(self.young.page(page))
                .zip(self.dirty.page(page))
                .map(|((set, young), dirty)| set & (young | dirty))
                .collect();
            if kept != self.set.page(page) {
                self.set.replace_page(page, &kept);
                self.commits.want_page(page);
                let safe: Vec<u64> = (self.safe.page(page).iter())
                    .zip(&kept)
                    .map(|(safe, kept)| safe & kept)
                    .collect();
                self.safe.replace_page(page, &safe);
            }
        }
        before - self.set.count()
    }
}
