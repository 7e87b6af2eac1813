//! When passes run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::hashes::Hashes;
use super::pass::{Scan, behind_a_failure};
use super::report::Shared;
use super::watched::{Source, Watched};
use crate::agent::bitmap;
use crate::agent::crash_tests::{CHUNK, DISK_BYTES, identity};
use crate::agent::disk::Disk;
use crate::agent::locks::RangeLocks;
use crate::agent::stream::Stream;
use crate::agent::syncs::Syncs;
use crate::agent::turnover::Turnover;
use crate::clock::{Clock, System};
use crate::model::{DiskIndex, Epoch, Sequence, Timestamp};
use crate::settings::{ScanSettings, SnapshotHook};

/// Time that goes on with each look at it.
#[derive(Default)]
struct Looks(AtomicU64);

#[async_trait]
impl Clock for Looks {
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.fetch_add(100, Ordering::Relaxed))
    }
    async fn sleep(&self, _: Duration) {}
}

fn scan(directory: &Path, snapshot: &str, clock: Arc<dyn Clock>) -> Scan {
    let path = directory.join("root.img");
    std::fs::write(&path, vec![7; DISK_BYTES as usize]).unwrap();
    let entropy = System::entropy();
    let opened = Hashes::open(&directory.join("root.hashes"), &identity(), entropy.as_ref());
    let watched = Watched::new(DISK_BYTES, CHUNK as u32, opened.unwrap().0);
    let turnover = Arc::new(Turnover::default());
    let opened = bitmap::open(&directory.join("root.bitmap"), &identity(), &turnover);
    let disk = Arc::new(Disk {
        index: DiskIndex(0),
        name: "root".parse().unwrap(),
        size_bytes: DISK_BYTES,
        source: Box::new(Source(Arc::clone(&watched))),
        bitmap: opened.unwrap().0,
        locks: RangeLocks::default(),
        syncs: Syncs::default(),
        turnover,
    });
    let disks = vec![Arc::clone(&disk)];
    let stream = Stream::new(disks, 64 << 10, Epoch(0), Sequence::ZERO, false, None);
    let line = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let hook = SnapshotHook {
        snapshot: line(snapshot),
        release: line("true"),
        path: directory.join("snapshot"),
        timeout: Duration::from_secs(3600),
    };
    let interval = Duration::from_secs(60);
    let settings = ScanSettings { interval, read_bytes_per_second_max: None, hook: Some(hook) };
    let report = Arc::new(Shared::new(true));
    Scan { disk, stream: Arc::new(stream), watched, clock, path, settings, report }
}

#[test]
fn a_snapshot_that_cannot_be_made_is_tried_less_and_less_often_whoever_waits_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let tries = directory.path().join("tries");
    let clock = Arc::new(Looks::default());
    let snapshot = format!("echo >> '{}'; exit 1", tries.display());
    let scan = scan(directory.path(), &snapshot, clock.clone());
    let passed = std::thread::scope(|scope| {
        scope.spawn(|| scan.run());
        let waits = scope.spawn(|| scan.disk.source.read_at(0, &mut [0; 512]));
        while std::fs::read(&tries).unwrap_or_default().len() < 4 {
            scan.watched.pauses.wake(); // so that time, which is looked at then, goes on
            std::thread::yield_now();
        }
        let passed = clock.monotonic();
        scan.watched.stop();
        assert!(waits.join().unwrap().is_err(), "there was nothing to read");
        passed
    });
    assert!(passed >= Duration::from_secs(1 + 2 + 4), "four tries in {passed:?}");
}

#[test]
fn the_pause_behind_a_failure_doubles_up_to_a_minute_and_never_passes_the_interval() {
    let seconds =
        |failures, interval| behind_a_failure(failures, Duration::from_secs(interval)).as_secs();
    assert_eq!([1, 2, 3, 6, 7, 8, u32::MAX].map(|n| seconds(n, 300)), [1, 2, 4, 32, 60, 60, 60]);
    assert_eq!([1, 4, 9].map(|n| seconds(n, 5)), [1, 5, 5]);
    assert_eq!(seconds(0, 300), 0, "a catch-up that waits makes the next pass due at once");
}
