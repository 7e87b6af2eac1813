//! Where received bytes lie: pieces of memory that live as long as the port, and are filled again
//! when nobody holds anything of them.
//!
//! Owns: the bound on what is received and not yet durable; page alignment (the kernel's copy into a
//! buffer that is not aligned like its source takes twice the time); touching every page once, at
//! start; the count of bytes that user space copies all the same. Does not own: what is in them.
//!
//! A connection takes a piece only when bytes wait in its socket, and gives it back when no record
//! is left half-received in it: ten thousand idle connections hold none, and many small writes of
//! many machines share one. Chunks cut out of a piece keep it from being filled again until the last
//! of them is dropped, which happens when they are in the cache log.
//!
//! All pieces may be held by frames whose rest does not come. When that happens (somebody waits for
//! a piece, and no record on its way into the log will free one) holders let go: they copy what they
//! have into memory of their own, paid for from [`Arena::spare`], and go on without pieces. The
//! spare covers at least one of the largest frames, so one of them can always finish and the rest
//! after it; this is the only copy, and it is counted.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BytesMut};
use tokio::sync::Notify;

use crate::budget::{Budget, Lease, Permit};
use crate::format::wire::{HEADER_BYTES, PAYLOAD_BYTES_MAX};
use crate::observe::Metrics;

/// Room of one piece. Small enough that what was received is still in the core's cache when it is
/// opened, large enough that most reads end because the socket is empty.
pub(super) const PIECE_BYTES: usize = 256 << 10;
const PAGE_BYTES: usize = 4096;
/// A piece and the room that aligning it takes.
const ALLOCATED_BYTES: usize = PIECE_BYTES + PAGE_BYTES;
/// A piece with less room than this is not filled further.
const ROOM_MIN: usize = 32 << 10;
/// Least that is kept for frames that have to leave the pieces: the largest one.
const SPARE_BYTES_MIN: u64 = PAYLOAD_BYTES_MAX as u64 + HEADER_BYTES as u64;
/// Used pieces that are looked at, from the oldest on, before an unused one is taken.
const LOOKED_AT: usize = 4;

const _: () = assert!(ROOM_MIN > super::tls::RECORD_BYTES_MAX + PAGE_BYTES);

/// The pieces of one shard.
#[derive(Debug)]
pub(super) struct Arena {
    pieces: Mutex<Pieces>,
    /// Records on their way into the log that hold something of a piece.
    in_flight: AtomicUsize,
    /// Connections that wait for a piece.
    waiting: AtomicUsize,
    /// A piece may have become free.
    freed: Notify,
    /// Holders shall let go.
    short: Notify,
    spare: Budget,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Pieces {
    /// Never used since the start.
    unused: Vec<BytesMut>,
    /// With room behind what somebody may still hold; the newest last.
    open: Vec<BytesMut>,
    /// Without room; the oldest first.
    spent: VecDeque<BytesMut>,
}

impl Arena {
    /// An arena that holds at most `bytes` together with its spare.
    pub(super) fn new(bytes: u64, metrics: Arc<Metrics>) -> Arc<Self> {
        let spare = (bytes / 4).max(SPARE_BYTES_MIN);
        let count = (bytes.saturating_sub(spare) / ALLOCATED_BYTES as u64).max(2);
        let unused = (0..count).map(|_| touched()).collect();
        Arc::new(Self {
            pieces: Mutex::new(Pieces { unused, ..Pieces::default() }),
            in_flight: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
            short: Notify::new(),
            spare: Budget::new(spare),
            metrics,
        })
    }

    /// A piece with room for more than a record, if there is one.
    pub(super) fn try_take(&self) -> Option<BytesMut> {
        self.pieces().take()
    }

    /// A piece with room for more than a record; waits until there is one.
    pub(super) async fn take(&self) -> BytesMut {
        let waiting = Waiting::new(&self.waiting);
        loop {
            let freed = self.freed.notified();
            if let Some(piece) = self.pieces().take() {
                // What was dropped may have freed more than this one.
                drop(waiting);
                self.note_freed();
                return piece;
            }
            if self.in_flight.load(Ordering::Acquire) == 0 {
                self.short.notify_waiters();
            }
            freed.await;
        }
    }

    /// Gives a piece back in which nothing is left to be opened.
    pub(super) fn give_back(&self, mut piece: BytesMut) {
        piece.clear();
        self.pieces().put(piece);
        self.note_freed();
    }

    /// Completes when holders shall let go of what they hold.
    pub(super) fn short(&self) -> impl Future<Output = ()> + Send + '_ {
        let short = self.short.notified();
        async move {
            let waited_for = self.waiting.load(Ordering::Acquire) > 0;
            if !waited_for || self.in_flight.load(Ordering::Acquire) > 0 {
                short.await;
            }
        }
    }

    /// Room for a frame that has to leave the pieces.
    pub(super) async fn spare(&self, bytes: u64) -> Permit {
        self.spare.acquire(bytes).await
    }

    /// What a record holds that is in the pieces: as long as it lives, pieces will become free.
    pub(super) fn lease(self: &Arc<Self>) -> Permit {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        Permit::leased(Arc::clone(self) as Arc<dyn Lease>)
    }

    /// Something of a piece was dropped: who waits longest for one looks again, and wakes the next
    /// when it found one. All of a thousand that wait would look for each record that is durable.
    pub(super) fn note_freed(&self) {
        // Not a mere load: whoever begins to wait after it sees what was dropped before it.
        if self.waiting.fetch_add(0, Ordering::AcqRel) > 0 {
            self.freed.notify_one();
        }
    }

    /// User space copied so many bytes.
    pub(super) fn count_copy(&self, bytes: usize) {
        self.metrics.ingest_copied_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn pieces(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease for Arena {
    fn give_back(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.note_freed();
    }
}

impl Pieces {
    fn take(&mut self) -> Option<BytesMut> {
        if let Some(piece) = self.open.pop() {
            return Some(match filled_anew(piece) {
                Ok(whole) => whole,
                Err(piece) => piece,
            });
        }
        let look = match self.unused.is_empty() {
            true => self.spent.len(),
            false => self.spent.len().min(LOOKED_AT),
        };
        for _ in 0..look {
            let oldest = self.spent.pop_front()?;
            match filled_anew(oldest) {
                Ok(whole) => return Some(whole),
                Err(held) => self.spent.push_back(held),
            }
        }
        self.unused.pop()
    }

    fn put(&mut self, piece: BytesMut) {
        match piece.capacity() >= ROOM_MIN {
            true => self.open.push(piece),
            false => self.spent.push_back(piece),
        }
    }
}

/// The whole piece again, when nobody else holds anything of it.
fn filled_anew(mut piece: BytesMut) -> Result<BytesMut, BytesMut> {
    piece.clear();
    if piece.capacity() < ALLOCATED_BYTES && !piece.try_reclaim(ALLOCATED_BYTES) {
        return Err(piece);
    }
    Ok(aligned(piece))
}

/// A whole piece from its first page boundary on.
fn aligned(mut piece: BytesMut) -> BytesMut {
    let ahead = piece.as_ptr().align_offset(PAGE_BYTES);
    piece.resize(ahead, 0);
    piece.advance(ahead);
    piece
}

/// A piece whose pages are all there.
fn touched() -> BytesMut {
    let mut piece = BytesMut::with_capacity(ALLOCATED_BYTES);
    piece.resize(ALLOCATED_BYTES, 1);
    piece.clear();
    aligned(piece)
}

/// A connection that waits, while it does.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    fn arena(bytes: u64) -> Arc<Arena> {
        Arena::new(bytes, Arc::new(Metrics::default()))
    }

    #[tokio::test]
    async fn pieces_are_aligned_used_to_their_end_and_filled_again() {
        let arena = arena(4 << 20);
        let mut seen = std::collections::BTreeSet::new();
        let mut held = VecDeque::new();
        for _ in 0..200 {
            let mut piece = arena.take().await;
            assert!(piece.capacity() >= ROOM_MIN, "room for a record");
            seen.insert(piece.as_ptr() as usize / ALLOCATED_BYTES);
            piece.put_bytes(7, 20_000);
            held.push_back(piece.split_to(20_000).freeze());
            if held.len() > 20 {
                held.pop_front();
            }
            arena.give_back(piece);
            arena.note_freed();
        }
        assert!(seen.len() < 8, "20 chunks of 20,000 bytes are in {} pieces", seen.len());
        held.clear();
        let piece = arena.take().await;
        assert_eq!(piece.as_ptr() as usize % PAGE_BYTES, 0);
        assert!(piece.capacity() >= PIECE_BYTES);
    }

    #[tokio::test]
    async fn the_arena_ends_and_what_is_dropped_comes_back() {
        let arena = arena(3 << 20);
        let mut all = Vec::new();
        while let Some(piece) = arena.pieces().take() {
            all.push(piece);
        }
        let bytes = all.len() * ALLOCATED_BYTES;
        assert!(bytes + arena.spare.free() as usize <= 3 << 20, "{bytes} bytes of pieces");
        let mut last = all.pop().unwrap();
        last.put_bytes(1, PIECE_BYTES);
        let chunk = last.split_to(PIECE_BYTES).freeze();
        let lease = arena.lease();
        arena.give_back(last);
        let taking = arena.take();
        tokio::pin!(taking);
        assert!(futures_util::poll!(&mut taking).is_pending());
        let mut short = Box::pin(arena.short());
        assert!(futures_util::poll!(&mut short).is_pending(), "a record will free a piece");
        drop(chunk);
        assert!(futures_util::poll!(&mut taking).is_pending());
        drop(lease);
        assert!(futures_util::poll!(&mut taking).is_ready());
    }

    /// A future that remembers whether it was woken.
    struct Task<'a> {
        future: std::pin::Pin<Box<dyn Future<Output = BytesMut> + 'a>>,
        woken: Arc<Woken>,
    }

    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    impl<'a> Task<'a> {
        fn of(future: impl Future<Output = BytesMut> + 'a) -> Self {
            Self { future: Box::pin(future), woken: Arc::default() }
        }

        fn poll(&mut self) -> Option<BytesMut> {
            self.woken.0.store(false, Ordering::Relaxed);
            let waker = Arc::clone(&self.woken).into();
            match self.future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
                std::task::Poll::Ready(piece) => Some(piece),
                std::task::Poll::Pending => None,
            }
        }

        fn is_woken(&self) -> bool {
            self.woken.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn what_comes_free_wakes_one_who_waits_and_the_next_only_when_there_is_more() {
        let arena = arena(3 << 20);
        let mut all: Vec<_> = std::iter::from_fn(|| arena.try_take()).collect();
        let mut tasks: Vec<_> = (0..5).map(|_| Task::of(arena.take())).collect();
        assert!(tasks.iter_mut().all(|task| task.poll().is_none()));
        let woken = |tasks: &[Task<'_>]| tasks.iter().filter(|task| task.is_woken()).count();
        // Of a piece that others hold still.
        drop(arena.lease());
        assert_eq!(woken(&tasks), 1);
        assert!(tasks[0].poll().is_none());
        // Two come free by one word.
        for piece in all.drain(..2) {
            arena.pieces().put(piece);
        }
        arena.note_freed();
        assert_eq!(woken(&tasks), 1);
        while let Some(at) = tasks.iter().position(Task::is_woken) {
            if let Some(piece) = tasks[at].poll() {
                all.push(piece);
                tasks.remove(at);
            }
        }
        assert_eq!(tasks.len(), 3);
        // Who was woken and goes away leaves its turn to the next.
        arena.give_back(all.pop().unwrap());
        let gone = tasks.iter().position(Task::is_woken).unwrap();
        drop(tasks.remove(gone));
        assert_eq!(woken(&tasks), 1);
    }

    #[tokio::test]
    async fn holders_hear_that_pieces_are_short_only_when_no_record_will_free_one() {
        let arena = arena(3 << 20);
        let mut all = Vec::new();
        while let Some(piece) = arena.pieces().take() {
            all.push(piece);
        }
        let mut short = Box::pin(arena.short());
        assert!(futures_util::poll!(&mut short).is_pending(), "nobody waits");
        let taking = arena.take();
        tokio::pin!(taking);
        assert!(futures_util::poll!(&mut taking).is_pending());
        assert!(futures_util::poll!(&mut short).is_ready());
        arena.give_back(all.pop().unwrap());
        assert!(futures_util::poll!(&mut taking).is_ready());
        let mut short = Box::pin(arena.short());
        assert!(futures_util::poll!(&mut short).is_pending(), "nobody waits any more");
    }
}
