//! Admitted → durable on a real disk: append, sync, mint. Says bytes per second by record size; the
//! queue is as deep as a busy shard's.

#[path = "scale/mod.rs"]
mod scale;

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use holdfast::budget::Permit;
use holdfast::cache::open;
use holdfast::clock::{Clock, System};
use holdfast::ingest::Admitted;
use holdfast::model::{
    Change, DiskIndex, Extent, Generation, MachineKey, Payload, Record, Sequence,
};
use holdfast::observe::Metrics;
use holdfast::settings::CacheSettings;
use scale::scaled;
use tokio::sync::mpsc;

/// Time for `count` records of `bytes` to become durable, in segments that were used before.
fn append(directory: &std::path::Path, bytes: usize, count: u64, queue: usize) -> Duration {
    let settings = CacheSettings {
        directory: directory.to_owned(),
        segment_bytes: scaled(64 << 20, 4 << 20),
        bytes_max: 8 * scaled(64 << 20, 4 << 20),
        warn_fill: 0.5,
        slow_fill: 0.65,
        stop_fill: 0.85,
    };
    let metrics = Arc::new(Metrics::default());
    let opened = open(&settings, 0, 1, System::clock(), System::entropy(), metrics);
    let opened = opened.expect("a fresh directory opens");
    opened.recycling.begin();
    let writer = opened.writer;
    let payload = Payload::from(vec![0x5A; bytes]);
    tokio_uring::start(async move {
        let (sender, receiver) = mpsc::channel(queue);
        let start = System.monotonic();
        tokio_uring::spawn(async move {
            for sequence in 1..=count {
                let extent = Extent::new(sequence * (1 << 20), payload.len() as u64, 1 << 20);
                let change = Change::Write {
                    disk: DiskIndex(0),
                    extent: extent.expect("aligned"),
                    payload: payload.clone(),
                };
                let record = Record { sequence: Sequence(sequence), change };
                let admitted = Admitted {
                    machine: MachineKey([1; 16]),
                    generation: Generation(1),
                    record,
                    permit: Permit::none(),
                    received_at: Duration::ZERO,
                };
                if sender.send(admitted).await.is_err() {
                    return;
                }
            }
        });
        let ended = writer.run(receiver, drop).await; // dropped: published at once
        ended.expect("the disk works");
        System.monotonic() - start
    })
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cache_append");
    group.sample_size(10).measurement_time(Duration::from_secs(4));
    let directory = tempfile::tempdir().expect("a temporary directory");
    // Every segment was zero-filled and used once.
    append(directory.path(), 1 << 20, scaled(600, 8), 64);
    // Records of an iteration: enough that preparing the first segment and closing do not count.
    let cases = [
        (4 << 10, 1, 1 << 10),
        (4 << 10, 16, 1 << 13),
        (4 << 10, 256, 1 << 15),
        (64 << 10, 1, 1 << 10),
        (64 << 10, 16, 1 << 12),
        (64 << 10, 256, 1 << 12),
    ];
    for (bytes, queue, records) in cases {
        let records = scaled(records, 64);
        group.throughput(Throughput::Bytes(bytes as u64 * records));
        let id = BenchmarkId::new(format!("{}KiB", bytes >> 10), format!("queue {queue}"));
        group.bench_function(id, |bencher| {
            bencher.iter_custom(|count| {
                let runs = (0..count).map(|_| append(directory.path(), bytes, records, queue));
                runs.sum()
            });
        });
    }
    group.finish();
}

criterion_group!(cache_append, benches);
criterion_main!(cache_append);
