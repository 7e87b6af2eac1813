//! The recovery points of a machine as the control API lists them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::format::manifest::DeltaEntry;
use crate::model::{BookmarkKind, Sequence, Timestamp};
use crate::vault::PointsDocument;

/// One recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PointRow {
    /// The bookmark's id, hex.
    pub bookmark: String,
    /// The user's name for it, or empty.
    pub name: String,
    /// What it promises.
    pub kind: BookmarkKind,
    /// When it was placed.
    pub time: Timestamp,
    /// Where in the stream.
    pub sequence: u64,
    /// Kept as snapshots of the seed disks.
    pub snapshot: bool,
    /// Within the journal: the cloud log still has everything after the snapshot before it.
    pub journal: bool,
    /// Kept past its time.
    pub pinned: bool,
}

/// All points of a machine, oldest first. A bookmark of the journal is a point when the log reaches
/// back to a snapshot at or before it, or to the beginning of the stream.
#[must_use]
pub fn points(
    truncated: Sequence,
    entries: &[DeltaEntry],
    document: Option<&PointsDocument>,
) -> Vec<PointRow> {
    let pinned = |id: &String| document.is_some_and(|document| document.pinned.contains(id));
    let mut rows = BTreeMap::new();
    for point in document.iter().flat_map(|document| &document.snapshots) {
        let row = PointRow {
            bookmark: point.bookmark.clone(),
            name: point.name.clone(),
            kind: point.kind,
            time: point.time,
            sequence: point.sequence,
            snapshot: true,
            journal: false,
            pinned: pinned(&point.bookmark),
        };
        rows.insert(point.sequence, row);
    }
    let base = match truncated {
        Sequence::ZERO => Some(0),
        truncated => rows.range(truncated.0..).next().map(|(sequence, _)| *sequence),
    };
    for entry in entries.iter().flat_map(|entry| &entry.bookmarks) {
        let sequence = entry.sequence.0;
        if base.is_none_or(|base| sequence < base) {
            continue;
        }
        let bookmark = &entry.bookmark;
        let id = bookmark.id.to_string();
        let row = rows.entry(sequence).or_insert_with(|| PointRow {
            pinned: pinned(&id),
            bookmark: id,
            name: bookmark.name.clone(),
            kind: bookmark.kind,
            time: bookmark.time,
            sequence,
            snapshot: false,
            journal: false,
        });
        row.journal = true;
    }
    rows.into_values().collect()
}
