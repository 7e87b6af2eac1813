//! The bits in memory and what each of them promises.
//!
//! Owns: which chunk is set, safe, dirty or young, and when a set bit may go. Does not own: how
//! pages reach the disk ([`super::commit`]) or what stands in the file ([`super::layout`]).

use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::model::{Epoch, Sequence};

use super::super::bits::Bits;
use super::super::medium::Medium;
use super::super::source_identity::Changed;
use super::super::syncs::Syncs;
use super::commit::Commits;
use super::identity::Identity;
use super::layout::{self, Header};

/// The bitmap of one disk. Called from several threads at once.
pub(in crate::agent) struct Bitmap {
    pub(super) medium: Box<dyn Medium>,
    /// Of pages and headers alike: whichever fails, nothing of the file is believed any more.
    syncs: Syncs,
    identity: Identity,
    header: Mutex<Header>,
    state: Mutex<State>,
    pub(super) committed: Condvar,
}

/// What is known of each chunk.
pub(super) struct State {
    /// What the file shall say.
    pub(super) set: Bits,
    /// Bits of `set` that are known to be on disk.
    pub(super) safe: Bits,
    /// Chunks whose content is not in the stream: they must be read again. A subset of `set`.
    dirty: Bits,
    /// Chunks touched since the present round of clearing began.
    pub(super) young: Bits,
    pub(super) commits: Commits,
}

impl Bitmap {
    /// A bitmap as it was read; its set bits are what the last life left, so all are dirty.
    pub(super) fn with(
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
            syncs: Syncs::default(),
            identity: identity.clone(),
            header: Mutex::new(header),
            state: Mutex::new(state),
            committed: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything written to the file before is on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.syncs.sync(self.medium.as_ref())
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
    pub(in crate::agent) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns when every bit of the range is on disk: only then may the source be written.
    ///
    /// # Errors
    /// When the bitmap file cannot be written; from then on every write to a clear chunk fails.
    pub(in crate::agent) fn intend(&self, bytes: Range<u64>) -> io::Result<()> {
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

    /// The same for many ranges with one sync.
    ///
    /// # Errors
    /// As of [`Bitmap::intend`].
    pub(in crate::agent) fn intend_all(
        &self,
        ranges: impl Iterator<Item = Range<u64>>,
    ) -> io::Result<()> {
        let mut state = self.lock();
        let mut safe = true;
        for bytes in ranges {
            let chunks = self.chunks(&bytes);
            state.young.insert(chunks.clone());
            if !state.safe.contains_all(chunks.clone()) {
                state.set.insert(chunks.clone());
                state.commits.want(&chunks);
                safe = false;
            }
        }
        if safe {
            return Ok(());
        }
        let ticket = state.commits.ticket();
        self.commit(state, ticket)
    }

    /// The range must be read again. Its bits are set already: something was intended there.
    pub(in crate::agent) fn lost(&self, bytes: Range<u64>) {
        let chunks = self.chunks(&bytes);
        let mut state = self.lock();
        debug_assert!(state.set.contains_all(chunks.clone()));
        state.dirty.insert(chunks);
    }

    /// Everything that may differ from what is published must be read again.
    pub(in crate::agent) fn lost_all(&self) {
        let state = &mut *self.lock();
        state.dirty.copy_from(&state.set);
    }

    /// The whole chunks of the range were read again and stand in the stream.
    pub(in crate::agent) fn repaired(&self, bytes: Range<u64>) {
        let chunks = self.chunks(&bytes);
        let mut state = self.lock();
        state.young.insert(chunks.clone());
        state.dirty.remove(chunks);
    }

    /// First run of dirty bytes at or after `from`, at most `most` long and at least a chunk.
    pub(in crate::agent) fn next_dirty(&self, from: u64, most: u64) -> Option<Range<u64>> {
        let chunk = u64::from(self.identity.chunk_bytes);
        let run = self.lock().dirty.next_run(from / chunk, (most / chunk).max(1));
        run.map(|run| self.bytes(&run))
    }

    /// Whether everything of the range is published, and nothing of it is to be read again.
    pub(in crate::agent) fn is_clear(&self, bytes: Range<u64>) -> bool {
        let chunks = self.chunks(&bytes);
        let state = self.lock();
        chunks.into_iter().all(|chunk| !state.set.contains_all(chunk..chunk + 1))
    }

    /// Bytes that must be read again.
    pub(in crate::agent) fn dirty_bytes(&self) -> u64 {
        self.count_bytes(|state| &state.dirty)
    }

    /// Bytes that may differ from what is published.
    pub(in crate::agent) fn set_bytes(&self) -> u64 {
        self.count_bytes(|state| &state.set)
    }

    fn count_bytes(&self, of: impl Fn(&State) -> &Bits) -> u64 {
        let chunks = of(&self.lock()).count();
        (chunks * u64::from(self.identity.chunk_bytes)).min(self.identity.disk_bytes)
    }

    /// Whether nothing at all is known to be published.
    pub(in crate::agent) fn is_full(&self) -> bool {
        let state = self.lock();
        state.set.count() == state.set.length()
    }

    /// Whether a round of clearing could clear anything.
    pub(in crate::agent) fn clearable(&self) -> bool {
        let state = self.lock();
        state.set.count() > state.dirty.count()
    }

    /// Begins a round of clearing: whatever is touched from here on stays set. `held` is asked
    /// after that for the ranges whose writes have begun and may have no sequence yet; they stay
    /// set as well. The other way round a write could begin between the two and be in neither.
    pub(in crate::agent) fn begin_clearing(&self, held: impl FnOnce() -> Vec<Range<u64>>) {
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
    pub(in crate::agent) fn finish_clearing(&self, witnessed: Sequence) -> io::Result<u64> {
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
    pub(in crate::agent) fn begin_epoch(
        &self,
        epoch: Epoch,
        published: Sequence,
    ) -> io::Result<()> {
        self.distrust()?;
        self.write_header(|header| {
            header.epoch = epoch;
            header.witnessed = published;
            header.clean = false;
        })
    }

    /// All bits set and dirty, on disk: nothing of what the disk holds is known.
    ///
    /// # Errors
    /// When the bitmap file cannot be written.
    pub(in crate::agent) fn distrust(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.set.fill();
        state.dirty.fill();
        let pages = state.set.pages();
        state.commits.want_all(pages);
        let ticket = state.commits.ticket();
        self.commit(state, ticket)
    }

    /// The epoch cannot be continued by any later life.
    ///
    /// # Errors
    /// When the bitmap file cannot be written.
    pub(in crate::agent) fn forget_epoch(&self) -> io::Result<()> {
        self.write_header(|header| header.epoch = Epoch(0))
    }

    /// Says that the agent runs: from the first write on neither the last stop is clean any more, nor is
    /// it known when the source was changed.
    ///
    /// # Errors
    /// When the bitmap file cannot be written.
    pub(in crate::agent) fn mark_running(&self) -> io::Result<()> {
        self.write_header(|header| (header.clean, header.changed) = (false, None))
    }

    /// Says that the agent has stopped and writes no more, in order or not, and when the source was
    /// changed last.
    ///
    /// # Errors
    /// When the bitmap file cannot be written.
    pub(in crate::agent) fn mark_stopped(
        &self,
        clean: bool,
        witnessed: Sequence,
        changed: Option<Changed>,
    ) -> io::Result<()> {
        let clean = clean && self.set_bytes() == 0;
        self.write_header(|header| {
            (header.clean, header.changed) = (clean, changed);
            header.witnessed = header.witnessed.max(witnessed);
        })
    }

    /// When the source was changed last, as of the end of the last life.
    pub(in crate::agent) fn changed(&self) -> Option<Changed> {
        self.header().changed
    }

    /// Epoch, highest publication ever told, and whether the last stop was orderly.
    pub(in crate::agent) fn history(&self) -> (Epoch, Sequence, bool) {
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
        self.sync()?;
        *header = next;
        Ok(())
    }
}

impl State {
    pub(super) fn clear_old(&mut self) -> u64 {
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
