//! What may go: a pure decision over points, log entries, pins and policy.
//!
//! Ages count from the newest point, not from now: when no new points arrive, the old ones stay.

use crate::format::manifest::DeltaEntry;
use crate::model::{Epoch, Sequence, Timestamp};
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

/// Decides. `entries` are all deltas that the manifest names.
#[must_use]
pub fn decide(
    points: &PointsDocument,
    entries: &[DeltaEntry],
    pins: &[PinDocument],
    policy: &Policy,
) -> Decision {
    let Some(now) = newest_time(points, entries) else { return Decision::default() };
    let keep: Vec<&SnapshotPoint> = kept(points, pins, policy, now);
    let drop_snapshots = points
        .snapshots
        .iter()
        .filter(|point| !keep.iter().any(|kept| kept.sequence == point.sequence))
        .map(|point| point.sequence)
        .collect();
    let truncate_through = truncation(points, entries, pins, policy, now, &keep);
    let in_log = entries.iter().filter(|entry| entry.last > truncate_through);
    let needed = keep.iter().map(|point| point.epoch).chain(in_log.map(|entry| entry.epoch.0));
    let epochs_from = Epoch(needed.chain([points.epoch]).min().unwrap_or(0));
    Decision { drop_snapshots, truncate_through, epochs_from }
}

fn newest_time(points: &PointsDocument, entries: &[DeltaEntry]) -> Option<Timestamp> {
    let snapshots = points.snapshots.iter().map(|point| point.time);
    let bookmarks = entries.iter().flat_map(|e| &e.bookmarks).map(|b| b.bookmark.time);
    snapshots.chain(bookmarks).max()
}

/// Snapshot points that stay: the newest, pinned ones, bases of running recoveries, the base of
/// the journal window, and the densest that the ladder asks for.
fn kept<'a>(
    points: &'a PointsDocument,
    pins: &[PinDocument],
    policy: &Policy,
    now: Timestamp,
) -> Vec<&'a SnapshotPoint> {
    let journal_base = window_base(points, policy, now).map(|point| point.sequence);
    let newest = points.snapshots.last().map(|point| point.sequence);
    let oldest_age = policy.ladder.iter().map(|step| step.age_s).max().unwrap_or(0);
    let mut kept = Vec::new();
    let mut last_bucket = None;
    for point in &points.snapshots {
        let age = now.seconds_since(point.time).max(0.0) as u64;
        let step = policy.ladder.iter().find(|step| age <= step.age_s);
        // One a bucket, the oldest of it; buckets lie on the wall clock, so that which point
        // represents a bucket does not change while time goes on.
        let first_of_bucket = step.is_some_and(|step| {
            let every = i64::try_from(step.every_s).unwrap_or(i64::MAX);
            let bucket = (every > 0)
                .then(|| (step.age_s, point.time.0.div_euclid(every.saturating_mul(1_000_000))));
            let fresh = bucket.is_none() || bucket != last_bucket;
            last_bucket = bucket;
            fresh
        });
        let named = !point.name.is_empty() && age <= oldest_age;
        let needed = points.pinned.contains(&point.bookmark)
            || Some(point.sequence) == newest
            || Some(point.sequence) == journal_base
            || pins.iter().any(|pin| pin.base == point.sequence);
        if first_of_bucket || named || needed {
            kept.push(point);
        }
    }
    kept
}

/// The newest snapshot at or before the start of the journal window.
fn window_base<'a>(
    points: &'a PointsDocument,
    policy: &Policy,
    now: Timestamp,
) -> Option<&'a SnapshotPoint> {
    let window = i64::try_from(policy.journal_window_s).unwrap_or(i64::MAX / 4_000_000);
    let start = now.plus_seconds(-window);
    points.snapshots.iter().rfind(|point| point.time <= start)
}

/// Everything through here may go: a kept snapshot at or before the window's start carries what
/// came earlier, and nothing that a pin or a pinned bookmark needs lies below.
fn truncation(
    points: &PointsDocument,
    entries: &[DeltaEntry],
    pins: &[PinDocument],
    policy: &Policy,
    now: Timestamp,
    keep: &[&SnapshotPoint],
) -> Sequence {
    let Some(base) = window_base(points, policy, now) else { return Sequence::ZERO };
    let base_of = |sequence: u64, epoch: u32| {
        let below = keep.iter().rfind(|p| p.epoch == epoch && p.sequence <= sequence);
        below.map_or(0, |point| point.sequence)
    };
    let pinned_bookmarks = entries.iter().flat_map(|entry| {
        let pinned =
            entry.bookmarks.iter().filter(|b| points.pinned.contains(&b.bookmark.id.to_string()));
        pinned.map(|b| base_of(b.sequence.0, entry.epoch.0))
    });
    let running = pins.iter().map(|pin| pin.base);
    let limit = pinned_bookmarks.chain(running).min().unwrap_or(u64::MAX);
    Sequence(base.sequence.min(limit).min(points.applied))
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
