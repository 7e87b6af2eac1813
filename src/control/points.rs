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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::manifest::BookmarkEntry;
    use crate::model::{Bookmark, BookmarkId, DeltaId, Epoch, Generation};
    use crate::vault::SnapshotPoint;

    fn id(sequence: u64) -> BookmarkId {
        BookmarkId([sequence as u8; 16])
    }

    fn entry(sequence: u64) -> DeltaEntry {
        let bookmark = Bookmark {
            id: id(sequence),
            kind: BookmarkKind::CrashConsistent,
            time: Timestamp(1),
            name: String::new(),
        };
        DeltaEntry {
            id: DeltaId([0; 16]),
            generation: Generation(1),
            epoch: Epoch(1),
            first: Sequence(sequence - 9),
            last: Sequence(sequence),
            object_bytes: 1,
            source_bytes: 1,
            created: Timestamp(1),
            catch_up: false,
            bookmarks: vec![BookmarkEntry { sequence: Sequence(sequence), bookmark }],
        }
    }

    fn document(snapshots: &[u64]) -> PointsDocument {
        let json = serde_json::json!({
            "machine": "web", "applier_generation": 1, "epoch": 1, "applied": 0, "applying": 0,
            "snapshots": [], "pinned": [id(20).to_string()], "quarantine": null,
        });
        let mut document: PointsDocument = serde_json::from_value(json).unwrap();
        document.snapshots = snapshots
            .iter()
            .map(|sequence| SnapshotPoint {
                bookmark: id(*sequence).to_string(),
                name: String::new(),
                kind: BookmarkKind::CrashConsistent,
                time: Timestamp(1),
                sequence: *sequence,
                epoch: 1,
                disks: Vec::new(),
            })
            .collect();
        document
    }

    fn listed(truncated: u64, entries: &[u64], snapshots: &[u64]) -> Vec<(u64, bool, bool)> {
        let entries: Vec<_> = entries.iter().map(|sequence| entry(*sequence)).collect();
        let rows = points(Sequence(truncated), &entries, Some(&document(snapshots)));
        let rows = rows.iter();
        rows.map(|row| (row.sequence, row.snapshot, row.journal)).collect()
    }

    #[test]
    fn only_what_can_be_recovered_is_listed() {
        let all = [(10, false, true), (20, true, true), (30, false, true)];
        assert_eq!(listed(0, &[10, 20, 30], &[20]), all);
        let from_snapshot = [(10, true, false), (20, true, true), (30, false, true)];
        assert_eq!(listed(15, &[20, 30], &[10, 20]), from_snapshot);
        // The log begins after 15: without a snapshot from there on, 20 has nothing to stand on.
        assert_eq!(listed(15, &[20, 30], &[10]), [(10, true, false)]);
        assert_eq!(listed(15, &[20, 30], &[30]), [(30, true, true)]);
    }

    #[test]
    fn kept_points_say_so() {
        let rows = points(Sequence::ZERO, &[entry(10), entry(20)], Some(&document(&[])));
        let pinned: Vec<_> = rows.iter().map(|row| row.pinned).collect();
        assert_eq!(pinned, [false, true]);
    }
}
