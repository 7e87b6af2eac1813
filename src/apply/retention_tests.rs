//! Retention: nothing that a kept point needs is given up.

use super::*;
use crate::model::{Bookmark, BookmarkId, BookmarkKind, DeltaId, Epoch, Generation};
use crate::vault::LadderStep;

const MINUTE: i64 = 60;

fn snapshot(sequence: u64, second: i64) -> SnapshotPoint {
    SnapshotPoint {
        bookmark: BookmarkId([sequence as u8; 16]).to_string(),
        name: String::new(),
        kind: BookmarkKind::CrashConsistent,
        time: Timestamp(second * 1_000_000),
        sequence,
        epoch: 1,
        disks: Vec::new(),
    }
}

fn points(snapshots: Vec<SnapshotPoint>) -> PointsDocument {
    PointsDocument {
        machine: "m".parse().unwrap(),
        applier_generation: 1,
        epoch: 1,
        applied: snapshots.last().map_or(0, |point| point.sequence),
        applied_delta: None,
        applying: 0,
        truncate_through: 0,
        snapshots,
        pinned: Vec::new(),
        quarantine: None,
    }
}

fn entry(last: u64, second: i64) -> DeltaEntry {
    let bookmark = Bookmark {
        id: BookmarkId([last as u8; 16]),
        kind: BookmarkKind::CrashConsistent,
        time: Timestamp(second * 1_000_000),
        name: String::new(),
    };
    DeltaEntry {
        id: DeltaId([last as u8; 16]),
        generation: Generation(1),
        epoch: Epoch(1),
        first: Sequence(last),
        last: Sequence(last),
        object_bytes: 1,
        source_bytes: 1,
        created: Timestamp(i64::MAX),
        catch_up: false,
        keeps_every_write: false,
        bookmarks: vec![crate::format::manifest::BookmarkEntry {
            sequence: Sequence(last),
            bookmark,
        }],
    }
}

/// A log that can be read.
fn whole(entries: &[DeltaEntry]) -> Legible {
    Legible { entries: entries.to_vec(), unread: Vec::new() }
}

/// One in which the page of the entries `first` to `last` cannot be read.
fn without(entries: &[DeltaEntry], first: u64, last: u64) -> Legible {
    let mut log = whole(entries);
    log.entries.retain(|entry| entry.last.0 < first || entry.last.0 > last);
    let machine: crate::model::MachineId = "m".parse().unwrap();
    let name = crate::format::names::manifest_page(&machine, DeltaId([9; 16]));
    let why = crate::cloud_log::CloudLogError::Missing { machine: machine.clone(), name };
    log.unread.push(UnreadPage { machine, first: Sequence(first), last: Sequence(last), why });
    log
}

fn policy(window_s: u64, ladder: &[(u64, u64)]) -> Policy {
    let step = |&(age_s, every_s): &(u64, u64)| LadderStep { age_s, every_s };
    Policy {
        journal_window_s: window_s,
        ladder: ladder.iter().map(step).collect(),
        ..Policy::default()
    }
}

/// Snapshots every five minutes at sequences 10, 20, …; a delta a minute.
fn history(count: i64) -> (PointsDocument, Vec<DeltaEntry>) {
    let snapshots = (0..count).map(|n| snapshot(10 * (n as u64 + 1), n * 5 * MINUTE)).collect();
    let entries = (0..count * 5).map(|n| entry(2 * (n as u64 + 1), n * MINUTE)).collect();
    (points(snapshots), entries)
}

#[test]
fn the_log_goes_up_to_the_base_of_the_window_and_no_further() {
    let (points, entries) = history(13); // newest bookmark at 64 min
    let decision = decide(&points, &whole(&entries), &[], &policy(30 * 60, &[(7200, 0)]));
    // Window begins at 34 min; the snapshot at 30 min (sequence 70) is its base.
    assert_eq!(decision.truncate_through, Sequence(70));
    assert!(decision.drop_snapshots.is_empty());
}

#[test]
fn without_a_snapshot_before_the_window_the_log_stays() {
    let (points, entries) = history(3);
    let decision = decide(&points, &whole(&entries), &[], &policy(3600, &[(7200, 0)]));
    assert_eq!(decision.truncate_through, Sequence::ZERO);
    assert!(decision.drop_snapshots.is_empty());
}

#[test]
fn an_epoch_goes_with_its_last_point() {
    let (mut points, mut entries) = history(13);
    points.epoch = 2;
    for entry in entries.iter_mut().filter(|entry| entry.last.0 > 100) {
        entry.epoch = Epoch(2);
    }
    for point in points.snapshots.iter_mut().filter(|point| point.sequence > 100) {
        point.epoch = 2;
    }
    let all = decide(&points, &whole(&entries), &[], &policy(60, &[(7200, 0)]));
    assert_eq!(all.epochs_from, Epoch(1), "its snapshots are still kept");
    let none = decide(&points, &whole(&entries), &[], &policy(60, &[]));
    assert_eq!(none.epochs_from, Epoch(2));
}

#[test]
fn a_running_recovery_and_a_pinned_bookmark_hold_what_they_need() {
    let (mut points, entries) = history(13);
    let policy = policy(10 * 60, &[(7200, 0)]);
    let expires = Timestamp(0);
    let pin = PinDocument { sequence: 26, base: 20, expires };
    assert_eq!(decide(&points, &whole(&entries), &[pin], &policy).truncate_through, Sequence(20));
    points.pinned.push(BookmarkId([34; 16]).to_string()); // base: the snapshot at 30
    assert_eq!(decide(&points, &whole(&entries), &[], &policy).truncate_through, Sequence(30));
}

#[test]
fn the_ladder_thins_by_age_counted_from_the_newest_point() {
    let (points, _) = history(25); // two hours
    let thin = policy(60, &[(30 * 60, 0), (3 * 3600, 3600)]);
    let decision = decide(&points, &whole(&[]), &[], &thin);
    let kept: Vec<i64> = points
        .snapshots
        .iter()
        .filter(|point| !decision.drop_snapshots.contains(&point.sequence))
        .map(|point| point.time.0 / 60_000_000)
        .collect();
    assert_eq!(kept, [0, 60, 90, 95, 100, 105, 110, 115, 120]);
    assert_eq!(
        decide(&points, &whole(&[]), &[], &thin),
        decision,
        "deciding twice changes nothing"
    );
}

#[test]
fn the_newest_point_is_never_dropped_however_old() {
    let points = points(vec![snapshot(10, 0)]);
    let decision = decide(&points, &whole(&[]), &[], &policy(1, &[]));
    assert!(decision.drop_snapshots.is_empty());
}

/// What is left when `decision` was carried out.
fn carry_out(points: &mut PointsDocument, entries: &mut Vec<DeltaEntry>, decision: &Decision) {
    points.snapshots.retain(|point| !decision.drop_snapshots.contains(&point.sequence));
    points.truncate_through = decision.truncate_through.0;
    entries.retain(|entry| entry.last > decision.truncate_through);
}

#[test]
fn a_pinned_bookmark_in_the_log_keeps_its_base_while_the_ladder_thins_around_it() {
    let (mut points, mut entries) = history(13);
    points.pinned.push(BookmarkId([34; 16]).to_string()); // base: the snapshot at 30
    let thinning = policy(10 * 60, &[(30 * 60, 0), (3 * 3600, 3600)]);
    for later in 0..40 {
        let decision = decide(&points, &whole(&entries), &[], &thinning);
        carry_out(&mut points, &mut entries, &decision);
        assert!(points.snapshots.iter().any(|p| p.sequence == 30), "its base, {later} rounds on");
        assert!(decision.truncate_through <= Sequence(30), "what it is rebuilt from");
        assert!(entries.iter().any(|entry| entry.last.0 == 34));
        let next = 140 + 10 * later;
        points.snapshots.push(snapshot(next, (next as i64 / 10 - 1) * 5 * MINUTE));
        points.applied = next;
    }
    assert!(points.snapshots.len() < 20, "the ladder did thin");
    points.pinned.clear();
    let decision = decide(&points, &whole(&entries), &[], &thinning);
    assert!(decision.drop_snapshots.contains(&30) && decision.truncate_through > Sequence(34));
}

#[test]
fn an_agent_whose_clock_runs_ahead_makes_nothing_old() {
    let (points, mut entries) = history(13);
    let policy = policy(30 * 60, &[(7200, 0)]);
    let before = decide(&points, &whole(&entries), &[], &policy);
    let mut wrong = entry(131, 30 * 86_400);
    wrong.created = Timestamp(64 * MINUTE * 1_000_000);
    entries.push(wrong);
    assert_eq!(decide(&points, &whole(&entries), &[], &policy), before);
}

#[test]
fn a_clock_that_fell_back_makes_no_new_point_old() {
    let (mut points, entries) = history(13);
    // Three hours back: these are the newest all the same.
    points.snapshots.push(snapshot(140, -115 * MINUTE));
    points.snapshots.push(snapshot(150, -110 * MINUTE));
    points.applied = 150;
    let decision = decide(&points, &whole(&entries), &[], &policy(30 * 60, &[(7200, 0)]));
    assert_eq!(decision.truncate_through, Sequence(70), "the journal is as long as before");
    assert!(decision.drop_snapshots.is_empty());
}

#[test]
fn what_was_given_up_once_stays_given_up() {
    let (mut points, entries) = history(13);
    points.truncate_through = 90;
    let decision = decide(&points, &whole(&entries), &[], &policy(30 * 60, &[(7200, 0)]));
    assert_eq!(decision.truncate_through, Sequence(90));
}

#[test]
fn a_page_that_cannot_be_read_goes_when_its_time_comes() {
    let (mut points, entries) = history(13);
    let policy = policy(30 * 60, &[(7200, 0)]);
    let log = without(&entries, 20, 40);
    let decision = decide(&points, &log, &[], &policy);
    assert_eq!(decision.truncate_through, Sequence(70), "as if it could be read");
    // A pinned bookmark that is nowhere to be seen may be in it.
    points.pinned.push(BookmarkId([34; 16]).to_string());
    let decision = decide(&points, &log, &[], &policy);
    assert_eq!(decision.truncate_through, Sequence(10), "the base of the page");
    let thin = decide(&points, &log, &[], &self::policy(60, &[]));
    assert!(!thin.drop_snapshots.contains(&10), "{thin:?}");
    // One that can be seen holds what it needs, and no more.
    points.pinned = vec![BookmarkId([54; 16]).to_string()];
    assert_eq!(decide(&points, &log, &[], &policy).truncate_through, Sequence(50));
    points.pinned = vec![points.snapshots[9].bookmark.clone()];
    assert_eq!(decide(&points, &log, &[], &policy).truncate_through, Sequence(70));
}

#[test]
fn no_epoch_goes_while_a_page_that_stays_cannot_be_read() {
    let (mut points, mut entries) = history(13);
    points.epoch = 2;
    entries.iter_mut().for_each(|entry| entry.epoch = Epoch(2));
    points.snapshots.iter_mut().for_each(|point| point.epoch = 2);
    let policy = policy(30 * 60, &[(7200, 0)]);
    let epochs_from = |log: Legible| decide(&points, &log, &[], &policy).epochs_from;
    assert_eq!(epochs_from(whole(&entries)), Epoch(2));
    assert_eq!(epochs_from(without(&entries, 20, 40)), Epoch(2), "it goes now");
    assert_eq!(epochs_from(without(&entries, 60, 80)), Epoch(0));
}
