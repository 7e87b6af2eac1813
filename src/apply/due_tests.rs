//! Which run comes next.

use super::*;
use crate::model::{Bookmark, BookmarkId, BookmarkKind, DeltaId, Generation};

fn bookmark(sequence: u64, second: i64, name: &str) -> BookmarkEntry {
    let bookmark = Bookmark {
        id: BookmarkId([sequence as u8; 16]),
        kind: BookmarkKind::CrashConsistent,
        time: Timestamp(second * 1_000_000),
        name: name.to_owned(),
    };
    BookmarkEntry { sequence: Sequence(sequence), bookmark }
}

/// A delta of ten records; `second` gives its closing bookmark a time.
fn delta(first: u64, epoch: u32, second: Option<i64>, name: &str) -> DeltaEntry {
    let last = first + 9;
    DeltaEntry {
        id: DeltaId([first as u8; 16]),
        generation: Generation(1),
        epoch: Epoch(epoch),
        first: Sequence(first),
        last: Sequence(last),
        object_bytes: 100,
        source_bytes: 10,
        created: Timestamp(0),
        catch_up: false,
        bookmarks: second.map(|second| bookmark(last, second, name)).into_iter().collect(),
    }
}

fn points(snapshots: &[(u64, i64)]) -> PointsDocument {
    let point = |&(sequence, second): &(u64, i64)| crate::vault::SnapshotPoint {
        bookmark: String::new(),
        name: String::new(),
        kind: BookmarkKind::CrashConsistent,
        time: Timestamp(second * 1_000_000),
        sequence,
        epoch: 1,
        disks: Vec::new(),
    };
    PointsDocument {
        machine: "m".parse().unwrap(),
        applier_generation: 1,
        epoch: 1,
        applied: 0,
        applying: 0,
        snapshots: snapshots.iter().map(point).collect(),
        pinned: Vec::new(),
        quarantine: None,
    }
}

fn ends(run: Option<Run<'_>>) -> Option<(u64, bool)> {
    run.map(|run| (run.deltas.last().unwrap().last.0, run.snapshot.is_some()))
}

#[test]
fn the_first_bookmark_becomes_a_snapshot_then_one_an_interval() {
    let policy = Policy { snapshot_interval_s: 300, ..Policy::default() };
    let log = [
        delta(1, 1, None, ""),
        delta(11, 1, Some(5), ""),
        delta(21, 1, Some(10), ""),
        delta(31, 1, Some(305), ""),
    ];
    assert_eq!(ends(next_run(&log, &points(&[]), &policy, 1_000)), Some((20, true)));
    let later = points(&[(20, 5)]);
    assert_eq!(ends(next_run(&log[2..], &later, &policy, 1_000)), Some((40, true)));
    assert_eq!(ends(next_run(&log[2..3], &later, &policy, 1_000)), Some((30, false)));
    assert_eq!(next_run(&[], &later, &policy, 1_000), None);
}

#[test]
fn named_bookmarks_and_the_end_of_a_catch_up_become_snapshots_at_once() {
    let policy = Policy::default();
    let named = [delta(21, 1, Some(6), "before upgrade")];
    assert_eq!(ends(next_run(&named, &points(&[(20, 5)]), &policy, 1_000)), Some((30, true)));
    let mut caught_up = [delta(21, 1, None, ""), delta(31, 1, Some(6), "")];
    caught_up[0].catch_up = true;
    assert_eq!(ends(next_run(&caught_up, &points(&[(20, 5)]), &policy, 1_000)), Some((40, true)));
}

#[test]
fn a_run_ends_at_the_byte_limit_and_before_another_epoch() {
    let policy = Policy::default();
    let log = [delta(1, 1, None, ""), delta(11, 1, None, ""), delta(21, 2, Some(1), "")];
    assert_eq!(ends(next_run(&log, &points(&[]), &policy, 10)), Some((10, false)));
    assert_eq!(ends(next_run(&log, &points(&[]), &policy, 1_000)), Some((20, false)));
    assert_eq!(ends(next_run(&log[2..], &points(&[]), &policy, 1_000)), Some((30, true)));
}

#[test]
fn no_snapshot_below_what_an_interrupted_run_may_have_written() {
    let policy = Policy::default();
    let log = [delta(1, 1, Some(1), ""), delta(11, 1, Some(2), "")];
    let interrupted = PointsDocument { applying: 20, ..points(&[]) };
    assert_eq!(ends(next_run(&log, &interrupted, &policy, 1_000)), Some((20, true)));
}

#[test]
fn a_bookmark_that_is_not_the_last_record_is_no_cut_of_the_delta() {
    let policy = Policy::default();
    let mut log = [delta(1, 1, None, "")];
    log[0].bookmarks.push(bookmark(5, 1, "inside"));
    assert_eq!(ends(next_run(&log, &points(&[]), &policy, 1_000)), Some((10, false)));
}
