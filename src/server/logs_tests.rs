//! Another number of shards than there are logs of.

use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;

use super::*;
use crate::budget::Permit;
use crate::clock::System;
use crate::ingest::Admitted;
use crate::model::{CatchUp, Change, Generation, MachineKey, Record, Sequence};

async fn opened(cache: &Path, shards: u16) -> Result<Vec<Opened>, ServerError> {
    let mut settings = crate::server::testing::settings();
    settings.cache.directory = cache.to_owned();
    settings.cache.segment_bytes = 2 << 20;
    settings.cache.bytes_max = 24 << 20;
    settings.shards = shards;
    open(&settings, &System::clock(), &System::entropy(), &Arc::default()).await
}

fn record() -> Admitted {
    let change = Change::CatchUpBegin(CatchUp::Dirty);
    Admitted {
        machine: MachineKey([1; 16]),
        generation: Generation(1),
        record: Record { sequence: Sequence(1), change },
        permit: Permit::none(),
        received_at: Duration::ZERO,
    }
}

/// Makes a record durable in the last of these logs; nobody publishes it.
async fn written(mut logs: Vec<Opened>) {
    let log = logs.pop().unwrap();
    drop(log.recycling);
    let write = move || {
        tokio_uring::start(async move {
            let (appends, admitted) = mpsc::channel(1);
            appends.send(record()).await.unwrap();
            drop(appends);
            log.writer.run(admitted, drop).await.unwrap();
        });
    };
    tokio::task::spawn_blocking(write).await.unwrap();
}

/// The names of the logs there are.
fn there(cache: &Path) -> Vec<String> {
    let names = std::fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

async fn refused(cache: &Path, shards: u16) {
    let Err(error) = opened(cache, shards).await else { panic!("{shards} shards") };
    let error = crate::observe::error_chain(&error);
    assert!(error.contains("start with `shards = 2`"), "{error}");
    assert_eq!(there(cache), ["shard-0", "shard-1"]);
}

#[tokio::test]
async fn empty_logs_become_as_many_as_are_wanted() {
    let cache = tempfile::tempdir().unwrap();
    for (shards, names) in [
        (3, &["shard-0", "shard-1", "shard-2"][..]),
        (1, &["shard-0"]),
        (2, &["shard-0", "shard-1"]),
    ] {
        let logs = opened(cache.path(), shards).await.unwrap();
        assert_eq!(logs.len(), usize::from(shards));
        assert_eq!(there(cache.path()), names);
    }
}

/// Wherever they lie: another log would be their machine's.
#[tokio::test]
async fn while_there_are_records_the_number_stays_and_the_cure_that_is_told_works() {
    for shard in [0, 1] {
        let cache = tempfile::tempdir().unwrap();
        let mut logs = opened(cache.path(), 2).await.unwrap();
        logs.truncate(shard + 1);
        written(logs).await;
        for _ in 0..2 {
            refused(cache.path(), 1).await;
            refused(cache.path(), 3).await;
        }
        let mut logs = opened(cache.path(), 2).await.unwrap();
        assert_eq!(logs[shard].recovered.len(), 1, "refusing has changed nothing");
        logs.iter().for_each(|log| log.recycling.begin());
        logs[shard].recovered.clear(); // published
        let emptied = async {
            while logs[shard].fill.used_bytes() > 0 {
                tokio::task::yield_now().await; // a thread's work
            }
        };
        tokio::time::timeout(Duration::from_secs(60), emptied).await.unwrap();
        drop(logs);
        assert_eq!(opened(cache.path(), 1).await.unwrap().len(), 1);
        assert_eq!(there(cache.path()), ["shard-0"]);
    }
}

#[tokio::test]
async fn a_log_with_something_damaged_is_not_removed() {
    let cache = tempfile::tempdir().unwrap();
    written(opened(cache.path(), 2).await.unwrap()).await;
    let directory = cache.path().join("shard-1");
    let files = || std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    for path in files().filter(|path| path.extension().is_some_and(|end| end == "segment")) {
        let mut bytes = std::fs::read(&path).unwrap();
        if bytes.starts_with(b"HOLDSEGM") {
            bytes[20] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    for _ in 0..2 {
        refused(cache.path(), 1).await;
    }
    let damaged: Vec<_> =
        files().filter(|path| path.extension().is_some_and(|end| end == "damaged")).collect();
    assert!(!damaged.is_empty());
    damaged.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    opened(cache.path(), 1).await.unwrap();
    assert_eq!(there(cache.path()), ["shard-0"]);
}
