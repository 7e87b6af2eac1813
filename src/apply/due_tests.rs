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
        created: Timestamp(i64::MAX),
        catch_up: false,
        keeps_every_write: false,
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
        applied_delta: None,
        applying: 0,
        truncate_through: 0,
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

#[test]
fn a_run_ends_at_the_number_of_deltas() {
    let zeros = |n: u64| DeltaEntry { source_bytes: 0, ..delta(1 + 10 * n, 1, None, "") };
    let log: Vec<_> = (0..RUN_DELTAS_MAX as u64 + 5).map(zeros).collect();
    let run = next_run(&log, &points(&[]), &Policy::default(), 1_000).unwrap();
    assert_eq!(run.deltas.len(), RUN_DELTAS_MAX);
    let cut = Run { snapshot: None, ..run }.shortened(3);
    assert_eq!((cut.deltas.len(), cut.snapshot), (3, None));
}

#[test]
fn a_run_that_is_cut_short_makes_no_point() {
    let policy = Policy::default();
    let log = [delta(1, 1, None, ""), delta(11, 1, Some(1), "")];
    let run = || next_run(&log, &points(&[]), &policy, 1_000).unwrap();
    assert!(run().shortened(2).snapshot.is_some());
    assert_eq!(run().shortened(1).snapshot, None);
}

/// A bookmark at `second` by the agent, sealed at `sealed` by the process server.
fn told(first: u64, second: i64, sealed: i64) -> DeltaEntry {
    let created = Timestamp(sealed * 1_000_000);
    DeltaEntry { created, ..delta(first, 1, Some(second), "") }
}

#[test]
fn an_agent_whose_clock_ran_ahead_does_not_stop_snapshots() {
    let policy = Policy { snapshot_interval_s: 300, ..Policy::default() };
    let month = 30 * 86_400;
    let log = [told(1, 5, 6), told(11, month, 300), told(21, 306, 307)];
    let first = next_run(&log, &points(&[]), &policy, 1_000).unwrap().snapshot.unwrap();
    assert_eq!(first.time, Timestamp(5_000_000));
    let wrong = next_run(&log[1..2], &points(&[(10, 0)]), &policy, 1_000).unwrap();
    assert_eq!(wrong.snapshot.unwrap().time, Timestamp(300_000_000), "when it was sealed");
    let right = next_run(&log[2..], &points(&[(10, 5)]), &policy, 1_000).unwrap();
    assert_eq!(right.snapshot.unwrap().time, Timestamp(306_000_000));
}

#[test]
fn times_of_points_never_fall() {
    let policy = Policy { snapshot_interval_s: 300, ..Policy::default() };
    let named = DeltaEntry { bookmarks: vec![bookmark(30, 100, "now")], ..told(21, 0, 100) };
    let log = [named];
    let run = next_run(&log, &points(&[(10, 50), (20, 4_000)]), &policy, 1_000).unwrap();
    assert_eq!(run.snapshot.unwrap().time, Timestamp(4_000_000_000));
    let unnamed = [told(21, 100, 100)];
    let run = next_run(&unnamed, &points(&[(10, 50), (20, 4_000)]), &policy, 1_000).unwrap();
    assert_eq!(run.snapshot, None, "no time has passed as far as anybody can tell");
}
