//! A scanned disk: what a time says of it is as old as what a point shows.

use std::sync::Arc;
use std::time::Duration;

use holdfast::clock::{Clock, System};
use holdfast::format::wire::BookmarkRequest;
use holdfast::model::{BookmarkId, BookmarkKind, Change, Timestamp, TrackingMode};
use holdfast::settings::{Capture, ScanSettings, SnapshotHook};

use crate::machine::{Machine, blocking, settled, until};
use crate::server::{Direct, Server};

/// Seconds of the agent's clock, which runs fast.
const AGE_S: f64 = 30.0;

fn text(path: &std::path::Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn bookmark_time(server: &Server, name: &str) -> Option<Timestamp> {
    let held = server.held();
    held.log.iter().find_map(|record| match &record.change {
        Change::Bookmark(bookmark) if bookmark.name == name => Some(bookmark.time),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_and_bookmarks_of_a_scan_are_as_old_as_its_pass() {
    let mut machine = Machine::new(&[1 << 20], 4 << 20);
    let (disk, snapshot) = (machine.settings.disks[0].path.clone(), machine.path("snapshot"));
    let command = |words: &[String]| words.to_vec();
    machine.settings.disks[0].capture = Capture::Scan(ScanSettings {
        interval: Duration::from_secs(10_000_000), // one pass
        read_bytes_per_second_max: None,
        hook: Some(SnapshotHook {
            snapshot: command(&["/bin/cp".into(), text(&disk), text(&snapshot)]),
            release: command(&["/bin/rm".into(), "-f".into(), text(&snapshot)]),
            path: snapshot,
            timeout: Duration::from_secs(10_000),
        }),
    });
    let server = Server::new(4 << 20);
    let agent = Arc::new(machine.start(Arc::new(Direct(Arc::clone(&server)))).await);
    settled(&agent).await;
    let old = until(&agent, "old", |status| status.disks[0].rpo_s >= Some(AGE_S)).await;
    let age = old.disks[0].rpo_s.unwrap() - 0.001; // what is left of it in microseconds

    server.held().progress = None;
    let told = loop {
        let told = server.held().progress;
        match told {
            Some(told) if told.mode == TrackingMode::Ordered => break told,
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let found = System.wall().seconds_since(told.time);
    assert!(found >= age, "the server hears of a moment {found} s ago, the pass began {age} s ago");

    let request = |name: &str| BookmarkRequest {
        id: BookmarkId([7; 16]),
        kind: BookmarkKind::CrashConsistent,
        name: name.to_owned(),
    };
    server.held().ask.push(request("requested"));
    let own = Arc::clone(&agent);
    blocking(move || own.bookmark("own", BookmarkKind::CrashConsistent).unwrap()).await;
    for name in ["own", "requested"] {
        let time = loop {
            match bookmark_time(&server, name) {
                Some(time) => break time,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let found = System.wall().seconds_since(time);
        assert!(found >= age, "{name} says {found} s ago, the pass began {age} s ago");
    }
}
