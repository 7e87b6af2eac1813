//! What is known of a scanned disk, and the one way its bytes go into the stream.
//!
//! Owns: which hash belongs to what was placed, and that no hash is known of a chunk from before it
//! is placed until it is published. Does not own: when a pass runs ([`super::pass`]).
//!
//! Why a hash is true. A chunk is placed by a catch-up, which reads dirty chunks through
//! [`Source`] and nothing else. The hash in the file is forgotten, on disk, before that read
//! returns. The hash of what was read becomes the chunk's candidate. A catch-up that could not place
//! what it read leaves the chunk dirty, and so reads it again. So once its bit is clear, the last
//! candidate is the hash of what is published; then it goes into the file.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::super::super::bitmap::Bitmap;
use super::super::super::bits::Bits;
use super::super::super::medium::Medium;
use super::device::Device;
use super::hashes::{Hash, Hasher, Hashes};
use super::pauses::Pauses;

/// Candidates held in memory, about 40 bytes each. What does not fit stays unknown, and is sent
/// again by the next pass.
const CANDIDATES_MAX: usize = 1 << 20;
const STOPPED: &str = "the agent has stopped";

/// Called before a catch-up reads: from then on the stream is on its way to another state.
pub(super) type Withhold = Box<dyn Fn(&str) + Send + Sync>;

/// A scanned disk. Called by the thread of the scan and by catch-ups.
pub(super) struct Watched {
    size_bytes: u64,
    chunk_bytes: u64,
    hasher: Hasher,
    state: Mutex<State>,
    moved: Condvar,
    /// Where the scan waits.
    pub(super) pauses: Pauses,
}

struct State {
    hashes: Hashes,
    /// What is read now; nothing between the snapshots of a disk with hooks.
    device: Option<Arc<Device>>,
    /// Reads of catch-ups that run.
    reading: u32,
    /// Catch-ups that wait for something to read.
    waiting: u32,
    /// Reads of catch-ups ever begun.
    reads: u64,
    /// Chunks that catch-ups have read since the pass began.
    read: Bits,
    candidates: BTreeMap<u64, Hash>,
    withhold: Option<Withhold>,
    /// It was called, and no pass has allowed a point since.
    withheld: bool,
    stopped: bool,
}

/// How a chunk compares with what is published, or on its way to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// It is the same, or was read by a catch-up in this pass.
    Same,
    /// It is another, or nothing is known of it.
    Changed,
}

impl Watched {
    pub(super) fn new(size_bytes: u64, chunk_bytes: u32, hashes: Hashes) -> Arc<Self> {
        let hasher = hashes.hasher();
        let chunks = size_bytes.div_ceil(chunk_bytes.into());
        let state = State {
            hashes,
            device: None,
            reading: 0,
            waiting: 0,
            reads: 0,
            read: Bits::new(chunks),
            candidates: BTreeMap::new(),
            withhold: None,
            withheld: false,
            stopped: false,
        };
        Arc::new(Self {
            size_bytes,
            chunk_bytes: chunk_bytes.into(),
            hasher,
            state: Mutex::new(state),
            moved: Condvar::new(),
            pauses: Pauses::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn chunks(&self) -> u64 {
        self.size_bytes.div_ceil(self.chunk_bytes)
    }

    /// The bytes of a run of chunks.
    pub(super) fn bytes(&self, chunks: &Range<u64>) -> Range<u64> {
        chunks.start * self.chunk_bytes..(chunks.end * self.chunk_bytes).min(self.size_bytes)
    }

    /// What to do before a catch-up reads, and now: no pass has ended yet.
    pub(super) fn withhold_by(&self, withhold: Withhold) {
        let mut state = self.lock();
        withhold("no pass over the disk has ended yet");
        (state.withhold, state.withheld) = (Some(withhold), true);
    }

    /// Gives catch-ups something to read. A pass begins: gives the number of reads before it.
    pub(super) fn begin(&self, device: &Arc<Device>) -> u64 {
        let mut state = self.lock();
        state.device = Some(Arc::clone(device));
        state.read.clear();
        self.moved.notify_all();
        state.reads
    }

    /// Takes it away; returns when nobody reads it any more.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.device = None;
        while state.reading > 0 {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Refuses every read from here on.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.moved.notify_all();
        self.pauses.stop();
    }

    /// Whether a catch-up waits for something to read.
    pub(super) fn starving(&self) -> bool {
        self.lock().waiting > 0
    }

    /// Runs `release` if no catch-up has read since it was `reads`; says whether.
    pub(super) fn unless_read(&self, reads: Option<u64>, release: impl FnOnce()) -> bool {
        let mut state = self.lock();
        let still = reads.is_none_or(|reads| reads == state.reads);
        if still {
            release();
            state.withheld = false;
        }
        still
    }

    /// Compares what a pass read of a chunk.
    ///
    /// # Errors
    /// When the hash file cannot be read.
    pub(super) fn compare(&self, chunk: u64, content: &[u8]) -> io::Result<Compared> {
        let hash = self.hasher.of(content);
        let state = self.lock();
        if state.read.contains_all(chunk..chunk + 1) {
            return Ok(Compared::Same);
        }
        let expected = match state.candidates.get(&chunk) {
            Some(candidate) => Some(*candidate),
            None => state.hashes.known(chunk)?,
        };
        Ok(if expected == Some(hash) { Compared::Same } else { Compared::Changed })
    }

    /// Forgets many chunks with one sync, before catch-ups read them one by one.
    ///
    /// # Errors
    /// When the hash file cannot be written.
    pub(super) fn forget(&self, chunks: &[u64]) -> io::Result<()> {
        self.lock().hashes.forget(chunks.iter().copied())
    }

    /// Learns the hashes of what is published by now.
    ///
    /// # Errors
    /// When the hash file cannot be written.
    pub(super) fn learn(&self, bitmap: &Bitmap) -> io::Result<()> {
        let state = &mut *self.lock();
        let clear = |chunk: &u64, _: &mut Hash| bitmap.is_clear(self.bytes(&(*chunk..*chunk + 1)));
        let published: Vec<_> = state.candidates.extract_if(.., clear).collect();
        state.hashes.learn(published)
    }

    /// Waits until there is something to read, and says that it is read.
    fn reading(&self) -> io::Result<Arc<Device>> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return Err(io::Error::other(STOPPED));
            }
            if let Some(device) = &state.device {
                let device = Arc::clone(device);
                state.reading += 1;
                state.reads += 1;
                if let Some(withhold) = state.withhold.as_ref().filter(|_| !state.withheld) {
                    withhold("what changed is read again, and no pass has ended since");
                    state.withheld = true;
                }
                return Ok(device);
            }
            state.waiting += 1;
            self.pauses.wake(); // the next pass is due at once
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let device = self.reading()?;
        let outcome = device.read_at(offset, target);
        drop(device);
        let hashes = self.whole_chunks(offset, target);
        let mut state = self.lock();
        state.reading -= 1;
        self.moved.notify_all();
        outcome?;
        let end = (offset + target.len() as u64).div_ceil(self.chunk_bytes);
        let touched = offset / self.chunk_bytes..end;
        state.hashes.forget(touched.clone())?;
        for chunk in touched.clone() {
            state.candidates.remove(&chunk);
        }
        state.read.insert(touched);
        let room = CANDIDATES_MAX.saturating_sub(state.candidates.len());
        state.candidates.extend(hashes.into_iter().take(room));
        Ok(())
    }

    /// The hashes of the chunks that lie in `content` from end to end.
    fn whole_chunks(&self, offset: u64, content: &[u8]) -> Vec<(u64, Hash)> {
        let end = offset + content.len() as u64;
        let first = offset.div_ceil(self.chunk_bytes);
        let last = if end == self.size_bytes { self.chunks() } else { end / self.chunk_bytes };
        let part = |chunk: u64| {
            let range = self.bytes(&(chunk..chunk + 1));
            let content = &content[(range.start - offset) as usize..(range.end - offset) as usize];
            (chunk, self.hasher.of(content))
        };
        (first..last).map(part).collect()
    }
}

/// What a catch-up reads of a scanned disk.
pub(super) struct Source(pub(super) Arc<Watched>);

impl Medium for Source {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, target)
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::Error::other("a disk that is scanned is not written by the agent"))
    }

    fn zero_at(&self, offset: u64, _: u64, _: bool) -> io::Result<()> {
        self.write_at(offset, &[])
    }

    /// Whatever a power cut takes from the disk is a difference to the next pass.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    /// Every byte is read: what is placed without being read would have no hash.
    fn next_data(&self, offset: u64, _: u64) -> io::Result<u64> {
        Ok(offset)
    }

    fn next_hole(&self, _: u64, end: u64) -> io::Result<u64> {
        Ok(end)
    }
}
