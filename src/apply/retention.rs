//! What may go: a pure decision over points, log entries, pins and policy.
//!
//! Ages count from the newest point, not from now: when no new points arrive, the old ones stay.
//! A point's time is what the agent's and the process server's clock agree on
//! ([`DeltaEntry::moment`]), and never before that of an earlier point: a clock that jumps ahead
//! makes nothing old, one that falls back makes nothing new look old.
//!
//! Of what a page that cannot be read names only the range is known. It goes as its time comes, unless a
//! pinned bookmark may be in it: then the log from its base on stays, as for one that can be seen.

use crate::cloud_log::{Legible, UnreadPage};
use crate::format::manifest::DeltaEntry;
use crate::model::{BookmarkId, Epoch, Sequence, Timestamp};
use crate::vault::{PinDocument, PointsDocument, Policy, SnapshotPoint};

/// What retention gives up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Sequences of snapshot points to drop.
    pub drop_snapshots: Vec<u64>,
    /// Deltas whose last record is at or below this may be removed from the log.
    pub truncate_through: Sequence,
    /// Epochs before this have no point left: their seed disks may go.
    pub epochs_from: Epoch,
}

/// Decides. `log` is everything that the manifest names.
#[must_use]
pub fn decide(
    points: &PointsDocument,
    log: &Legible,
    pins: &[PinDocument],
    policy: &Policy,
) -> Decision {
    let entries = &log.entries;
    let Some(now) = newest_time(points, entries) else { return Decision::default() };
    let bases = bases_of_pinned(points, log);
    let keep: Vec<&SnapshotPoint> = kept(points, pins, &bases, policy, now);
    let drop_snapshots = points
        .snapshots
        .iter()
        .filter(|point| !keep.iter().any(|kept| kept.sequence == point.sequence))
        .map(|point| point.sequence)
        .collect();
    let truncate_through = truncation(points, pins, &bases, policy, now);
    // What was allowed to go once is never counted on again: recoveries already look past it.
    let truncate_through = truncate_through.max(Sequence(points.truncate_through));
    let in_log = entries.iter().filter(|entry| entry.last > truncate_through);
    let needed = keep.iter().map(|point| point.epoch).chain(in_log.map(|entry| entry.epoch.0));
    // Which epochs are in a page that cannot be read is not known.
    let unread = log.unread.iter().any(|page| page.last > truncate_through);
    let unread = unread.then_some(0);
    let epochs_from = Epoch(needed.chain([points.epoch]).chain(unread).min().unwrap_or(0));
    Decision { drop_snapshots, truncate_through, epochs_from }
}

fn newest_time(points: &PointsDocument, entries: &[DeltaEntry]) -> Option<Timestamp> {
    let snapshots = points.snapshots.iter().map(|point| point.time);
    let bookmarks = entries.iter().flat_map(|e| e.bookmarks.iter().map(|b| e.moment(b)));
    snapshots.chain(bookmarks).max()
}

/// What the pinned bookmarks in the log are rebuilt from: the newest snapshot at or before each,
/// as `recover` chooses it; 0 when it is the epoch's beginning. Both the snapshot and the log after
/// it are needed as long as the bookmark is pinned.
fn bases_of_pinned(points: &PointsDocument, log: &Legible) -> Vec<u64> {
    if points.pinned.is_empty() {
        return Vec::new();
    }
    let base_of = |sequence: Sequence, epoch: Epoch| {
        let mut snapshots = points.snapshots.iter();
        let base = snapshots.rfind(|p| p.epoch == epoch.0 && p.sequence <= sequence.0);
        base.map_or(0, |point| point.sequence)
    };
    let mut bases = Vec::new();
    for entry in &log.entries {
        let pinned = |id: &BookmarkId| points.pinned.contains(&id.to_string());
        let pinned = entry.bookmarks.iter().filter(|b| pinned(&b.bookmark.id));
        bases.extend(pinned.map(|b| base_of(b.sequence, entry.epoch)));
    }
    bases.extend(hidden_base(points, log));
    bases
}

/// The base of everything in pages that cannot be read, if a pinned bookmark may be there: one that is
/// neither a snapshot nor in what can be read.
fn hidden_base(points: &PointsDocument, log: &Legible) -> Option<u64> {
    let first: &UnreadPage = log.unread.first()?;
    let seen = |id: &str| {
        let mut bookmarks = log.entries.iter().flat_map(|entry| &entry.bookmarks);
        points.snapshots.iter().any(|point| point.bookmark == id)
            || bookmarks.any(|b| b.bookmark.id.to_string() == id)
    };
    if points.pinned.iter().all(|id| seen(id)) {
        return None;
    }
    let base = points.snapshots.iter().rfind(|point| point.sequence < first.first.0);
    Some(base.map_or(0, |point| point.sequence))
}

/// Snapshot points that stay: the newest, pinned ones, bases of running recoveries and of pinned
/// bookmarks, the base of the journal window, and the densest that the ladder asks for.
fn kept<'a>(
    points: &'a PointsDocument,
    pins: &[PinDocument],
    bases: &[u64],
    policy: &Policy,
    now: Timestamp,
) -> Vec<&'a SnapshotPoint> {
    let journal_base = window_base(points, policy, now).map(|point| point.sequence);
    let newest = points.snapshots.last().map(|point| point.sequence);
    let oldest_age = policy.ladder.iter().map(|step| step.age_s).max().unwrap_or(0);
    let mut kept = Vec::new();
    let mut last_bucket = None;
    for (point, time) in with_times(points) {
        let age = now.seconds_since(time).max(0.0) as u64;
        let step = policy.ladder.iter().find(|step| age <= step.age_s);
        // One a bucket, the oldest of it; buckets lie on the wall clock, so that which point
        // represents a bucket does not change while time goes on.
        let first_of_bucket = step.is_some_and(|step| {
            let every = i64::try_from(step.every_s).unwrap_or(i64::MAX);
            let bucket = (every > 0)
                .then(|| (step.age_s, time.0.div_euclid(every.saturating_mul(1_000_000))));
            let fresh = bucket.is_none() || bucket != last_bucket;
            last_bucket = bucket;
            fresh
        });
        let named = !point.name.is_empty() && age <= oldest_age;
        let needed = points.pinned.contains(&point.bookmark)
            || Some(point.sequence) == newest
            || Some(point.sequence) == journal_base
            || bases.contains(&point.sequence)
            || pins.iter().any(|pin| pin.base == point.sequence);
        if first_of_bucket || named || needed {
            kept.push(point);
        }
    }
    kept
}

/// Snapshot points with the time that counts for them: never before an earlier point's.
fn with_times(points: &PointsDocument) -> impl Iterator<Item = (&SnapshotPoint, Timestamp)> {
    points.snapshots.iter().scan(Timestamp(i64::MIN), |latest, point| {
        *latest = point.time.max(*latest);
        Some((point, *latest))
    })
}

/// The newest snapshot at or before the start of the journal window.
fn window_base<'a>(
    points: &'a PointsDocument,
    policy: &Policy,
    now: Timestamp,
) -> Option<&'a SnapshotPoint> {
    let window = i64::try_from(policy.journal_window_s).unwrap_or(i64::MAX / 4_000_000);
    let start = now.plus_seconds(-window);
    with_times(points).take_while(|(_, time)| *time <= start).last().map(|(point, _)| point)
}

/// Everything through here may go: a kept snapshot at or before the window's start carries what
/// came earlier, and nothing that a pin or a pinned bookmark needs lies below.
fn truncation(
    points: &PointsDocument,
    pins: &[PinDocument],
    bases: &[u64],
    policy: &Policy,
    now: Timestamp,
) -> Sequence {
    let Some(base) = window_base(points, policy, now) else { return Sequence::ZERO };
    let running = pins.iter().map(|pin| pin.base);
    let limit = bases.iter().copied().chain(running).min().unwrap_or(u64::MAX);
    Sequence(base.sequence.min(limit).min(points.applied))
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
