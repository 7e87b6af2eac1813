//! Which run comes next, and whether it ends in a snapshot: pure decisions over manifest entries.

use crate::format::manifest::{BookmarkEntry, DeltaEntry};
use crate::model::{Epoch, Sequence, Timestamp};
use crate::vault::{PointsDocument, Policy};

/// Source bytes of a run at most: bounds the applier's memory (its frames are held while it
/// writes) and how much is done again after a crash.
pub(super) const RUN_BYTES_MAX: u64 = 16 << 20;
/// Deltas of a run at most: zeros carry no source bytes, and every delta of a run is open at once.
pub(super) const RUN_DELTAS_MAX: usize = 64;

/// Index entries of a run at most, when it has more than one delta: as many as a delta has records.
/// Folding them takes about 130 bytes each.
pub(super) const RUN_INDEX_ENTRIES_MAX: usize = 65_536;

/// The next stretch of deltas to apply at once.
#[derive(Debug, PartialEq)]
pub(super) struct Run<'a> {
    pub(super) epoch: Epoch,
    pub(super) deltas: &'a [DeltaEntry],
    /// The last delta's bookmark, when it becomes a snapshot.
    pub(super) snapshot: Option<Due<'a>>,
}

/// A bookmark that becomes a snapshot, and the time that counts for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Due<'a> {
    pub(super) bookmark: &'a BookmarkEntry,
    pub(super) time: Timestamp,
}

impl<'a> Run<'a> {
    /// Only the first `count` deltas: then it ends before its bookmark.
    pub(super) fn shortened(self, count: usize) -> Self {
        match count < self.deltas.len() {
            true => Run { deltas: &self.deltas[..count], snapshot: None, ..self },
            false => self,
        }
    }
}

/// Cuts the next run off `entries` (all after `points.applied`, ascending). `None`: nothing to do.
pub(super) fn next_run<'a>(
    entries: &'a [DeltaEntry],
    points: &PointsDocument,
    policy: &Policy,
    run_bytes_max: u64,
) -> Option<Run<'a>> {
    let epoch = entries.first()?.epoch;
    let mut state = SnapshotState::of(points, epoch);
    let mut bytes = 0_u64;
    for (at, entry) in entries.iter().enumerate() {
        if entry.epoch != epoch {
            return Some(Run { epoch, deltas: &entries[..at], snapshot: None });
        }
        state.saw(entry);
        bytes = bytes.saturating_add(entry.source_bytes);
        // A bookmark closes its batch, so it is the last record of its delta or no cut at all.
        let bookmark = entry.bookmarks.last().filter(|b| b.sequence == entry.last);
        let deltas = &entries[..=at];
        if let Some(bookmark) = bookmark
            && entry.last >= state.clean_from
        {
            let time = entry.moment(bookmark).max(state.latest);
            if state.due(bookmark, time, policy) {
                return Some(Run { epoch, deltas, snapshot: Some(Due { bookmark, time }) });
            }
        }
        if bytes >= run_bytes_max || deltas.len() >= RUN_DELTAS_MAX {
            return Some(Run { epoch, deltas, snapshot: None });
        }
    }
    Some(Run { epoch, deltas: entries, snapshot: None })
}

/// What decides whether a bookmark becomes a snapshot.
struct SnapshotState {
    /// Of this epoch.
    newest: Option<Timestamp>,
    /// Of all snapshots: times of points never fall, whatever clocks do.
    latest: Timestamp,
    catch_up_since: bool,
    /// An earlier run may have left pages up to here: below it nothing is a cut.
    clean_from: Sequence,
}

impl SnapshotState {
    fn of(points: &PointsDocument, epoch: Epoch) -> Self {
        let of_epoch = points.snapshots.iter().filter(|s| s.epoch == epoch.0);
        let newest = of_epoch.map(|s| s.time).max();
        let latest = points.snapshots.iter().map(|s| s.time).max();
        let latest = latest.unwrap_or(Timestamp(i64::MIN));
        let same_epoch = points.epoch == epoch.0;
        let clean_from = if same_epoch { Sequence(points.applying) } else { Sequence::ZERO };
        Self { newest, latest, catch_up_since: false, clean_from }
    }

    fn saw(&mut self, entry: &DeltaEntry) {
        self.catch_up_since |= entry.catch_up;
    }

    fn due(&self, bookmark: &BookmarkEntry, time: Timestamp, policy: &Policy) -> bool {
        let Some(newest) = self.newest else { return true };
        let age = time.seconds_since(newest);
        !bookmark.bookmark.name.is_empty()
            || self.catch_up_since
            || age >= f64::from(policy.snapshot_interval_s)
    }
}

#[cfg(test)]
#[path = "due_tests.rs"]
mod tests;
