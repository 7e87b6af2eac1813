//! Which run comes next, and whether it ends in a snapshot: pure decisions over manifest entries.

use crate::format::manifest::{BookmarkEntry, DeltaEntry};
use crate::model::{Epoch, Sequence, Timestamp};
use crate::vault::{PointsDocument, Policy};

/// Source bytes of a run at most: bounds the applier's memory (its frames are held while it
/// writes) and how much is done again after a crash.
pub(super) const RUN_BYTES_MAX: u64 = 16 << 20;

/// The next stretch of deltas to apply at once.
#[derive(Debug, PartialEq)]
pub(super) struct Run<'a> {
    pub(super) epoch: Epoch,
    pub(super) deltas: &'a [DeltaEntry],
    /// The last delta's bookmark, when it becomes a snapshot.
    pub(super) snapshot: Option<&'a BookmarkEntry>,
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
            && state.due(bookmark, policy)
        {
            return Some(Run { epoch, deltas, snapshot: Some(bookmark) });
        }
        if bytes >= run_bytes_max {
            return Some(Run { epoch, deltas, snapshot: None });
        }
    }
    Some(Run { epoch, deltas: entries, snapshot: None })
}

/// What decides whether a bookmark becomes a snapshot.
struct SnapshotState {
    newest: Option<Timestamp>,
    catch_up_since: bool,
    /// An earlier run may have left pages up to here: below it nothing is a cut.
    clean_from: Sequence,
}

impl SnapshotState {
    fn of(points: &PointsDocument, epoch: Epoch) -> Self {
        let newest = points.snapshots.iter().rfind(|s| s.epoch == epoch.0).map(|s| s.time);
        let same_epoch = points.epoch == epoch.0;
        let clean_from = if same_epoch { Sequence(points.applying) } else { Sequence::ZERO };
        Self { newest, catch_up_since: false, clean_from }
    }

    fn saw(&mut self, entry: &DeltaEntry) {
        self.catch_up_since |= entry.catch_up;
    }

    fn due(&self, bookmark: &BookmarkEntry, policy: &Policy) -> bool {
        let Some(newest) = self.newest else { return true };
        let age = bookmark.bookmark.time.seconds_since(newest);
        !bookmark.bookmark.name.is_empty()
            || self.catch_up_since
            || age >= f64::from(policy.snapshot_interval_s)
    }
}

#[cfg(test)]
#[path = "due_tests.rs"]
mod tests;
