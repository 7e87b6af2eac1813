use super::*;
use crate::control::sources::MachineFactsheet;
use crate::format::manifest::{BookmarkEntry, DeltaEntry, Manifest};
use crate::model::{Bookmark, BookmarkId, BookmarkKind, DeltaId, Epoch, Generation, Sequence};
use crate::observe::CacheOutlook;
use crate::vault::{
    CertificateEntry, MachineDocument, PointsDocument, Policy, ServerDocument, SnapshotPoint,
};

const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

fn ago(seconds: i64) -> Timestamp {
    NOW.plus_seconds(-seconds)
}

fn sheet() -> MachineFactsheet {
    MachineFactsheet {
        document: MachineDocument {
            machine: "web".parse().unwrap(),
            created: ago(9_000),
            data_keys: Vec::new(),
            certificates: vec![CertificateEntry {
                fingerprint: String::new(),
                not_after: NOW.plus_seconds(300 * 86_400),
                revoked: false,
            }],
            policy: Policy::default(),
        },
        manifest: None,
        points: None,
        live: Live::Unasked,
        held: Vec::new(),
    }
}

/// A delta of 60 MiB that was sealed some seconds ago; the bookmark has that time, too.
fn entry(seconds_ago: i64, first: u64, bookmark: bool) -> DeltaEntry {
    let time = ago(seconds_ago);
    let placed = BookmarkEntry {
        sequence: Sequence(first + 9),
        bookmark: Bookmark {
            id: BookmarkId([first as u8; 16]),
            kind: BookmarkKind::CrashConsistent,
            time,
            name: String::new(),
        },
    };
    DeltaEntry {
        id: DeltaId([first as u8; 16]),
        generation: Generation(1),
        epoch: Epoch(1),
        first: Sequence(first),
        last: Sequence(first + 9),
        object_bytes: 1,
        source_bytes: 60 << 20,
        created: time,
        catch_up: !bookmark,
        bookmarks: bookmark.then_some(placed).into_iter().collect(),
    }
}

fn manifest(catching_up: bool, entries: Vec<DeltaEntry>) -> Option<Manifest> {
    Some(Manifest {
        machine: "web".parse().unwrap(),
        generation: Generation(1),
        owner: "ps-1".parse().unwrap(),
        owned_since: Generation(1),
        version: 1,
        truncated: Sequence::ZERO,
        published: entries.last().map_or(Sequence::ZERO, |entry| entry.last),
        last_delta: None,
        catching_up,
        epochs: Vec::new(),
        pages: Vec::new(),
        entries,
    })
}

fn facts() -> MachineFacts {
    MachineFacts {
        machine: "web".parse().unwrap(),
        received: 30,
        durable: 30,
        published: 20,
        applied: 0,
        recoverable: 0,
        source_bytes: 0,
        published_bytes: 0,
        backlog_bytes: 0,
        recoverable_time: None,
        connected: true,
        heard: Some(ago(1)),
        mode: AgentTracking::Ordered,
        dirty_bytes: 0,
        total_bytes: 10 << 30,
        store_requests: std::collections::BTreeMap::new(),
        trouble: None,
        troubles: std::collections::BTreeMap::new(),
        snapshot_time: None,
        certificate_end: None,
        ours: true,
        applies: true,
    }
}

fn live(machine: MachineFacts, cache_used_bytes: u64) -> Live {
    let pressure = if cache_used_bytes < 85 << 20 { Pressure::Free } else { Pressure::Stop };
    Live::Facts {
        machine: Some(machine),
        server: Box::new(ServerFacts {
            version: String::new(),
            now: NOW,
            connections: 1,
            connections_refused: 0,
            cache_used_bytes,
            cache_max_bytes: 100 << 20,
            cache_damages: Vec::new(),
            cache: CacheOutlook { pressure, ..CacheOutlook::default() },
            backlog_bytes: 0,
            stages: Vec::new(),
            queues: Vec::new(),
            held: Vec::new(),
            machines: Vec::new(),
        }),
    }
}

#[test]
fn records_that_another_server_holds_are_told_with_their_cure() {
    let held = vec![("ps-2".parse().unwrap(), 12)];
    let told = said(&MachineFactsheet { held, ..sheet() });
    let line = told.iter().find(|(_, text)| text.starts_with("12 acknowledged records")).unwrap();
    assert_eq!(line.0, Health::Warning);
    assert!(
        line.1.contains("process server ps-2") && line.1.contains("start its agent"),
        "{told:?}"
    );
    assert!(!said(&sheet()).iter().any(|(_, text)| text.contains("acknowledged")));
}

fn said(sheet: &MachineFactsheet) -> Vec<(Health, String)> {
    let status = status(sheet, NOW);
    let lines = status.lines.into_iter();
    lines.map(|line| (line.health, line.text)).collect()
}

#[test]
fn a_machine_that_was_never_heard() {
    let lines = said(&sheet());
    assert_eq!(lines.len(), 1);
    assert!(lines[0].1.starts_with("nothing received yet"), "{lines:?}");
}

#[test]
fn bookmarks_without_snapshots_are_noticed() {
    let mut sheet = sheet();
    let interval = i64::from(sheet.document.policy.snapshot_interval_s);
    let missing = |sheet: &MachineFactsheet| {
        let lines = said(sheet);
        assert!(lines.len() <= 2, "{lines:?}");
        let found = lines.into_iter().find(|(_, text)| text.contains("holdfast apply"));
        found.map(|(health, _)| health)
    };
    sheet.manifest = manifest(false, vec![entry(3 * interval, 1, true), entry(0, 11, true)]);
    assert_eq!(missing(&sheet), None, "three intervals since the first bookmark");
    sheet.manifest = manifest(false, vec![entry(3 * interval + 1, 1, true), entry(0, 11, true)]);
    assert_eq!(missing(&sheet), Some(Health::Warning));
    let points = |seconds_ago, quarantine: Option<&str>| PointsDocument {
        machine: "web".parse().unwrap(),
        applier_generation: 1,
        epoch: 1,
        applied: 10,
        applying: 10,
        truncate_through: 0,
        snapshots: vec![SnapshotPoint {
            bookmark: String::new(),
            name: String::new(),
            kind: BookmarkKind::CrashConsistent,
            time: ago(seconds_ago),
            sequence: 10,
            epoch: 1,
            disks: Vec::new(),
        }],
        pinned: Vec::new(),
        quarantine: quarantine.map(str::to_owned),
    };
    sheet.points = Some(points(3 * interval, None));
    assert_eq!(missing(&sheet), None);
    sheet.points = Some(points(3 * interval + 1, None));
    assert_eq!(missing(&sheet), Some(Health::Warning));
    sheet.points = Some(points(3 * interval + 1, Some("a bit flipped")));
    assert_eq!(missing(&sheet), None, "the cause is said instead");
}

#[test]
fn a_protected_machine() {
    let mut sheet = sheet();
    sheet.manifest = manifest(false, vec![entry(9, 1, true), entry(4, 11, true)]);
    assert_eq!(said(&sheet), [(Health::Good, "protected, RPO 4 s".to_owned())]);
    // The server knows that the idle machine's stream was wholly published later than that.
    let fresher = MachineFacts { recoverable_time: Some(ago(2)), ..facts() };
    sheet.live = live(fresher, 0);
    assert_eq!(said(&sheet), [(Health::Good, "protected, RPO 2 s".to_owned())]);
    sheet.live = Live::Unasked;
    sheet.manifest = manifest(false, vec![entry(200, 1, true)]);
    let late = "protected, but RPO 3 min is above 1 min".to_owned();
    assert_eq!(said(&sheet), [(Health::Warning, late)]);
}

#[test]
fn an_initial_replication_tells_progress_and_remaining_time() {
    let mut sheet = sheet();
    // 60 MiB between the deltas of 60 s: 1 MiB/s.
    sheet.manifest = manifest(true, vec![entry(90, 1, false), entry(30, 11, false)]);
    let copying = MachineFacts {
        mode: AgentTracking::CatchingUp,
        dirty_bytes: 720 << 20,
        total_bytes: 1440 << 20,
        ..facts()
    };
    sheet.live = live(copying, 0);
    let expected = "initial replication 50 %, about 12 min left".to_owned();
    assert_eq!(said(&sheet), [(Health::Notice, expected)]);
    sheet.live = Live::Unasked;
    assert_eq!(said(&sheet)[0].1, "initial replication");
    sheet.manifest = manifest(true, vec![entry(90, 1, true), entry(30, 11, false)]);
    assert_eq!(said(&sheet)[0].1, "catching up; newest recovery point is 1 min 30 s old");
    sheet.manifest = manifest(false, vec![entry(30, 1, false)]);
    assert_eq!(said(&sheet)[0].1, "no recovery point yet");
}

#[test]
fn what_is_wrong_is_said_worst_first() {
    let mut sheet = sheet();
    sheet.manifest = manifest(false, vec![entry(9, 1, true)]);
    sheet.document.certificates[0].not_after = NOW.plus_seconds(86_400);
    let bad = MachineFacts {
        connected: false,
        heard: Some(ago(180)),
        mode: AgentTracking::Bitmap,
        dirty_bytes: 5 << 20,
        backlog_bytes: 3 << 20,
        trouble: Some("the store has no room".to_owned()),
        ..facts()
    };
    sheet.live = live(bad, 90 << 20);
    let status = status(&sheet, NOW);
    assert_eq!(status.health, Health::Critical);
    assert!(status.lines[1..].is_sorted_by_key(|line| std::cmp::Reverse(line.health)));
    let texts: Vec<_> = status.lines.iter().map(|line| line.text.as_str()).collect();
    for expected in [
        "protected, RPO 9 s",
        "the store has no room",
        "agent silent for 3 min",
        "agent remembers changed extents only (5.0 MiB): no new points until it caught up",
        "cache full: 90 MiB of 100 MiB; agents get no credit and remember dirty extents until the \
         store takes more",
        "certificate expires in 1 d: enrol the machine again",
        "backlog 3.0 MiB",
    ] {
        assert!(texts.contains(&expected), "{expected}: {texts:?}");
    }
    assert_eq!(texts.len(), 7, "{texts:?}");
}

#[test]
fn a_server_that_does_not_answer_is_a_fact() {
    let mut sheet = sheet();
    sheet.manifest = manifest(false, vec![entry(9, 1, true)]);
    sheet.live = Live::Silent {
        server: ServerDocument {
            incarnation: String::new(),
            version: String::new(),
            cache: String::new(),
            leaving: false,
            load: Default::default(),
            server: "ps-1".parse().unwrap(),
            address: "h:1".to_owned(),
            started: NOW,
        },
        reason: "connection refused".to_owned(),
    };
    let lines = said(&sheet);
    assert_eq!(lines[0].1, "protected, RPO 9 s");
    assert_eq!(lines[1].0, Health::Critical);
    assert_eq!(lines[1].1, "process server ps-1 does not answer: connection refused");
}

#[test]
fn a_certificate_that_is_over_or_revoked_is_said() {
    let mut sheet = sheet();
    sheet.document.certificates[0].not_after = ago(1);
    assert!(said(&sheet)[1].1.starts_with("certificate expired at"));
    sheet.document.certificates[0].not_after = NOW.plus_seconds(300 * 86_400);
    sheet.document.certificates[0].revoked = true;
    assert!(said(&sheet)[1].1.starts_with("no certificate is valid"));
}
