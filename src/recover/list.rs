//! All recovery points of a machine, from what the store holds of it. Pure.
//!
//! Owns: what counts as a point. A bookmark is one when it is published and everything from a base
//! (a snapshot of the same epoch, or the epoch's beginning) to it is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::cloud_log::{Legible, UnreadPage};
use crate::format::manifest::{BookmarkEntry, DeltaEntry, EpochEntry, Manifest};
use crate::model::{BookmarkKind, Epoch, Sequence, Timestamp};
use crate::vault::{PointsDocument, SnapshotPoint};

/// One recovery point.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Its place in the stream: everything up to here is in it.
    #[serde(serialize_with = "number")]
    pub sequence: Sequence,
    /// Its epoch.
    #[serde(serialize_with = "epoch")]
    pub epoch: Epoch,
    /// The bookmark's id, hexadecimal.
    pub bookmark: String,
    /// The user's name for it, or empty.
    pub name: String,
    /// Crash- or application-consistent.
    pub kind: BookmarkKind,
    /// When, by the agent's clock, and not later than the process server sealed it.
    pub time: Timestamp,
    /// How it is kept.
    pub stored: Stored,
    /// Whether retention must keep it.
    pub pinned: bool,
}

/// How a point is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stored {
    /// As snapshots of the seed disks; the log before it is gone.
    Snapshot,
    /// As a place in the cloud log.
    CloudLog,
    /// In both ways.
    Both,
}

impl std::fmt::Display for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Snapshot => "snapshot",
            Self::CloudLog => "cloud log",
            Self::Both => "both",
        })
    }
}

fn number<S: serde::Serializer>(sequence: &Sequence, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(sequence.0)
}

fn epoch<S: serde::Serializer>(epoch: &Epoch, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u32(epoch.0)
}

/// What the store holds of one machine at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Holdings {
    pub(super) manifest: Option<Manifest>,
    /// Everything that the manifest names, pages included; ascending, and gapless but for `unread`.
    pub(super) entries: Vec<DeltaEntry>,
    pub(super) points: Option<PointsDocument>,
    /// Pages that cannot be read, ascending. What is built on records of theirs is out of reach, and
    /// bookmarks in them are not known.
    pub(super) unread: Vec<Arc<UnreadPage>>,
}

impl Holdings {
    /// What a manifest, as much of its log as can be read, and the points document say.
    pub(super) fn of(manifest: Manifest, log: Legible, points: Option<PointsDocument>) -> Self {
        let Legible { entries, unread } = log;
        let mut holdings = Self { manifest: Some(manifest), entries, points, unread: Vec::new() };
        // Nobody builds on what was given up; it may just have been removed.
        let given_up = holdings.truncated();
        let missed = unread.into_iter().filter(|page| page.last > given_up);
        holdings.unread = missed.map(Arc::new).collect();
        holdings
    }

    /// Everything after this is read from the log when a point is recovered: it is the base's place, or
    /// the epoch begins behind it. `None`: there is neither.
    pub(super) fn log_after(&self, sequence: Sequence, epoch: Epoch) -> Option<Sequence> {
        match self.base(sequence, epoch) {
            Some(base) => Some(Sequence(base.sequence)),
            None => self.epoch(epoch).map(|entry| Sequence(entry.first.0.saturating_sub(1))),
        }
    }

    /// The page that cannot be read and stands between a point and what it is built on.
    pub(super) fn missing_for(&self, sequence: Sequence, epoch: Epoch) -> Option<&Arc<UnreadPage>> {
        let after = self.log_after(sequence, epoch)?;
        self.unread.iter().find(|page| page.last > after && page.first <= sequence)
    }

    fn snapshots(&self) -> &[SnapshotPoint] {
        self.points.as_ref().map_or(&[], |points| &points.snapshots)
    }

    /// Where the log begins, or may begin at any moment: what retention has given up is no longer
    /// built on, even while it is still there.
    pub(super) fn truncated(&self) -> Sequence {
        let manifest = self.manifest.as_ref().map(|manifest| manifest.truncated);
        let given_up = self.points.as_ref().map(|points| Sequence(points.truncate_through));
        manifest.max(given_up).unwrap_or(Sequence::ZERO)
    }

    pub(super) fn epoch(&self, epoch: Epoch) -> Option<&EpochEntry> {
        let manifest = self.manifest.as_ref()?;
        manifest.epochs.iter().find(|entry| entry.epoch == epoch)
    }

    /// The newest snapshot from which the log reaches `sequence`.
    pub(super) fn base(&self, sequence: Sequence, epoch: Epoch) -> Option<&SnapshotPoint> {
        let newest = self
            .snapshots()
            .iter()
            .rfind(|snapshot| snapshot.epoch == epoch.0 && snapshot.sequence <= sequence.0)?;
        let at = Sequence(newest.sequence);
        (at == sequence || at >= self.truncated()).then_some(newest)
    }

    /// Whether the log holds the epoch from its first record on.
    pub(super) fn begins(&self, epoch: Epoch) -> bool {
        self.epoch(epoch).is_some_and(|entry| entry.first > self.truncated())
    }

    /// All recovery points, ascending by sequence.
    pub(super) fn list(&self) -> Vec<Point> {
        let mut points = BTreeMap::new();
        for snapshot in self.snapshots() {
            points.insert(snapshot.sequence, self.of_snapshot(snapshot));
        }
        for entry in &self.entries {
            for at in &entry.bookmarks {
                let reachable =
                    self.base(at.sequence, entry.epoch).is_some() || self.begins(entry.epoch);
                if reachable {
                    let place = points.entry(at.sequence.0);
                    place
                        .and_modify(|point| point.stored = Stored::Both)
                        .or_insert_with(|| self.of_bookmark(entry, at));
                }
            }
        }
        points.into_values().collect()
    }

    fn of_snapshot(&self, snapshot: &SnapshotPoint) -> Point {
        Point {
            sequence: Sequence(snapshot.sequence),
            epoch: Epoch(snapshot.epoch),
            bookmark: snapshot.bookmark.clone(),
            name: snapshot.name.clone(),
            kind: snapshot.kind,
            time: snapshot.time,
            stored: Stored::Snapshot,
            pinned: self.is_pinned(&snapshot.bookmark),
        }
    }

    fn of_bookmark(&self, entry: &DeltaEntry, at: &BookmarkEntry) -> Point {
        let bookmark = at.bookmark.id.to_string();
        Point {
            sequence: at.sequence,
            epoch: entry.epoch,
            pinned: self.is_pinned(&bookmark),
            bookmark,
            name: at.bookmark.name.clone(),
            kind: at.bookmark.kind,
            time: entry.moment(at),
            stored: Stored::CloudLog,
        }
    }

    fn is_pinned(&self, bookmark: &str) -> bool {
        let points = self.points.as_ref();
        points.is_some_and(|points| points.pinned.iter().any(|pinned| pinned == bookmark))
    }
}
