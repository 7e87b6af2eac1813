//! What observers tell the stream: writes that were made without asking.
//!
//! Owns: that such a write has its bit before it has its sequence, and that nothing is called in order
//! while an observer says that it is not. Does not own: how a write became known
//! ([`super::capture`]).

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLockReadGuard, TryLockError};

use crate::model::{Bookmark, Change, DiskIndex, Timestamp, TrackingMode};

use super::beats::returned;
use super::capture::Observer;
use super::stream::{Placed, Stream};

/// Most ranges that are made known under one lock, and with one sync.
const TOGETHER: usize = 4096;

/// What an observer saw of one disk.
pub(super) struct Seen {
    pub(super) disk: DiskIndex,
    pub(super) range: Range<u64>,
    pub(super) what: What,
}

/// What it knows of the range.
pub(super) enum What {
    /// What it holds now; in the order in which it is told.
    Change(Change),
    /// That something was written there, and why nobody knows what: it is read again.
    Unordered(&'static str),
}

impl Stream {
    /// Everything that was seen, in order, with one lock and, where bits are missing, one sync for all.
    /// Returns the disks whose bitmap file cannot be written: their ranges are dirty in memory then, so
    /// nothing is lost as long as this agent lives.
    pub(super) fn observed(&self, seen: Vec<Seen>) -> BTreeMap<DiskIndex, io::Error> {
        // Mostly here, so that no sync is made under the stream's lock.
        let mut unwritten = self.intend_seen(&seen);
        let mut core = self.lock();
        // Once more: a round of clearing may have begun or ended since, and it looks at nothing that
        // has no sequence yet. While the lock is held none begins.
        unwritten.extend(self.intend_seen(&seen));
        for Seen { disk, range, what } in seen {
            match what {
                What::Change(change) if !unwritten.contains_key(&disk) => {
                    self.put(&mut core, disk, &range, change);
                }
                What::Change(_) => {
                    self.spoil(&mut core, disk, range, "the bitmap cannot be written");
                }
                What::Unordered(why) => self.spoil(&mut core, disk, range, why),
            }
        }
        drop(core);
        self.to_send.notify_one();
        self.to_repair.notify_one();
        unwritten
    }

    fn intend_seen(&self, seen: &[Seen]) -> BTreeMap<DiskIndex, io::Error> {
        let each = self.disks.iter().filter_map(|disk| {
            let of_disk = seen.iter().filter(|one| one.disk == disk.index);
            let intended = disk.bitmap.intend_all(of_disk.map(|one| one.range.clone()));
            intended.err().map(|error| (disk.index, error))
        });
        each.collect()
    }

    /// Something was written there, and nobody knows what: it is read again.
    ///
    /// # Errors
    /// When the bitmap file cannot be written. The range is dirty in memory then.
    pub(super) fn unordered(
        &self,
        disk: DiskIndex,
        range: Range<u64>,
        why: &str,
    ) -> io::Result<()> {
        let bitmap = &self.disk(disk).bitmap;
        let intended = bitmap.intend(range.clone());
        let mut core = self.lock();
        let intended = intended.and_then(|()| bitmap.intend(range.clone()));
        self.disorder(&mut core, disk, range, why);
        intended
    }

    /// The same of many ranges, with one sync for each [`TOGETHER`]. Returns the disks whose bitmap file cannot
    /// be written, as [`Stream::observed`].
    pub(super) fn unordered_all(
        &self,
        ranges: impl IntoIterator<Item = (DiskIndex, Range<u64>)>,
        why: &'static str,
    ) -> BTreeMap<DiskIndex, io::Error> {
        let what = || What::Unordered(why);
        let mut seen = ranges.into_iter().map(|(disk, range)| Seen { disk, range, what: what() });
        let mut unwritten = BTreeMap::new();
        loop {
            let together: Vec<Seen> = seen.by_ref().take(TOGETHER).collect();
            if together.is_empty() {
                return unwritten;
            }
            unwritten.extend(self.observed(together));
        }
    }

    /// Until [`Stream::release`] no catch-up ends, so no bookmark is placed: the disk's observer does
    /// not know everything in order.
    pub(super) fn withhold(&self, disk: DiskIndex, why: &str) {
        let mut core = self.lock();
        core.withheld.insert(disk, why.to_owned());
        match core.mode {
            TrackingMode::Ordered => self.begin_catch_up(&mut core, why),
            TrackingMode::CatchingUp => why.clone_into(&mut core.why),
            TrackingMode::Bitmap => {}
        }
        drop(core);
        self.to_tell.notify_one();
    }

    /// The observer has stopped in order: what it told is whole, so an order stands and can be published.
    /// A catch-up never ends any more, whether it runs or begins later: nobody answers its reads.
    pub(super) fn leave(&self, disk: DiskIndex, why: &str) {
        self.lock().withheld.insert(disk, why.to_owned());
    }

    /// The observer knows again everything that changes, from here on.
    pub(super) fn release(&self, disk: DiskIndex) {
        self.lock().withheld.remove(&disk);
        self.to_repair.notify_one();
        self.to_tell.notify_one();
    }

    /// Whoever captures after the fact: before the first connection. They hold the stream and it holds
    /// them, so whoever ends the stream takes them out.
    pub(super) fn observe_with(&self, observers: Vec<Arc<dyn Observer>>) {
        *self.observers.lock().unwrap_or_else(PoisonError::into_inner) = observers.into();
    }

    pub(super) fn observers(&self) -> Arc<[Arc<dyn Observer>]> {
        Arc::clone(&self.observers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// No bookmark is being placed as long as this is held. `None`: one is now, and what stands behind it
    /// is not sent, so whoever waits for a write may wait for that bookmark.
    pub(super) fn between_bookmarks(&self) -> Option<RwLockReadGuard<'_, ()>> {
        match self.bookmarking.try_read() {
            Ok(held) => Some(held),
            Err(TryLockError::Poisoned(held)) => Some(held.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The moment whose state a point shows that is placed `now`: an earlier one where a disk is not
    /// watched but looked at from time to time.
    pub(super) fn moment_shown(&self, now: Timestamp) -> Timestamp {
        let observers = self.observers();
        let ages = observers.iter().flat_map(|observer| observer.ages());
        let oldest = ages.filter_map(|(_, age)| age.now).max().unwrap_or_default();
        Timestamp(now.0.saturating_sub(i64::try_from(oldest.as_micros()).unwrap_or(i64::MAX)))
    }

    /// [`Stream::bookmark`] behind everything that the workload did before this call, also where it is
    /// seen after the fact. Blocks while an observer catches up.
    ///
    /// # Errors
    /// As there, and when an observer cannot tell.
    pub(super) fn bookmark_behind_all(&self, mut bookmark: Bookmark) -> Result<Placed, String> {
        let observers = self.observers();
        if observers.is_empty() {
            return self.bookmark(bookmark);
        }
        // Observers need not be asked, and QEMU not be drained, for what cannot be.
        self.lock().ordered()?;
        let _alone = self.bookmarking.write().unwrap_or_else(PoisonError::into_inner);
        observers.iter().try_for_each(|observer| observer.settle())?;
        let placed = {
            let mut core = self.lock();
            // Under the lock: no catch-up brings a newer state between the two.
            bookmark.time = self.moment_shown(bookmark.time);
            let placed = self.place_bookmark(&mut core, bookmark)?;
            core.unconfirmed = Some(placed.sequence);
            placed
        };
        let _taken_back = Unconfirmed { stream: self, placed };
        let confirmed = observers.iter().try_for_each(|observer| observer.confirm());
        let mut core = self.lock();
        if core.losses != placed.losses {
            return Err(format!("order was lost before the bookmark was sent: {}", core.why));
        }
        core.unconfirmed = None;
        if let Err(why) = confirmed {
            // Nothing from the bookmark on was sent, so this takes it back.
            self.lose(&mut core, &why);
            return Err(why);
        }
        self.to_send.notify_one();
        Ok(placed)
    }

    /// The same where nothing may block.
    pub(super) async fn bookmark_soon(
        self: &Arc<Self>,
        bookmark: Bookmark,
    ) -> Result<Placed, String> {
        if self.observers().is_empty() {
            return self.bookmark(bookmark);
        }
        let stream = Arc::clone(self);
        let placed =
            tokio::task::spawn_blocking(move || stream.bookmark_behind_all(bookmark)).await;
        returned(placed).unwrap_or_else(|| Err("the agent is stopping".to_owned()))
    }
}

/// A bookmark that nobody confirmed, whatever became of him who should have.
struct Unconfirmed<'a> {
    stream: &'a Stream,
    placed: Placed,
}

impl Drop for Unconfirmed<'_> {
    fn drop(&mut self) {
        let mut core = self.stream.lock();
        if core.unconfirmed == Some(self.placed.sequence) && core.losses == self.placed.losses {
            self.stream.lose(&mut core, "a bookmark could not be confirmed");
        }
    }
}
