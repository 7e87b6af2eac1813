//! All recovery points of a machine, from what the store holds of it. Pure.
//!
//! Owns: what counts as a point. A bookmark is one when it is published and everything from a base
//! (a snapshot of the same epoch, or the epoch's beginning) to it is there.

use std::collections::BTreeMap;

use serde::Serialize;

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
    /// Everything that the manifest names, pages included; ascending.
    pub(super) entries: Vec<DeltaEntry>,
    pub(super) points: Option<PointsDocument>,
}

impl Holdings {
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
