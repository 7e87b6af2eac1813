//! Opening a log of 256 MiB after a clean stop: every byte is read and checked once.

#[path = "scale/mod.rs"]
mod scale;

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast::budget::Permit;
use holdfast::cache::{Opened, open};
use holdfast::clock::System;
use holdfast::ingest::Admitted;
use holdfast::model::{Change, DiskIndex, Extent, Generation, MachineKey, Record, Sequence};
use holdfast::observe::Metrics;
use holdfast::settings::CacheSettings;
use scale::scaled;
use tokio::sync::mpsc;

const RECORD: u64 = 64 << 10;

/// 256 MiB of them when it is measured.
fn records() -> u64 {
    scaled(4096, 128)
}

fn opened(directory: &std::path::Path) -> Opened {
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
    opened.expect("the directory opens")
}

fn write(directory: &std::path::Path) {
    let writer = opened(directory).writer;
    tokio_uring::start(async move {
        let (sender, receiver) = mpsc::channel(256);
        tokio_uring::spawn(async move {
            for sequence in 1..=records() {
                let change = Change::Write {
                    disk: DiskIndex(0),
                    extent: Extent::new(sequence * RECORD, RECORD, 1 << 20).expect("aligned"),
                    payload: vec![sequence as u8; RECORD as usize].into(),
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
        let mut held = Vec::new();
        let ended = writer.run(receiver, |durable| held.extend(durable)).await;
        ended.expect("the disk works");
    });
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cache_recover");
    group.sample_size(10).measurement_time(Duration::from_secs(4));
    group.throughput(Throughput::Bytes(RECORD * records()));
    let directory = tempfile::tempdir().expect("a temporary directory");
    write(directory.path());
    group.bench_function("256MiB", |bencher| {
        bencher.iter_with_large_drop(|| {
            let opened = opened(directory.path());
            assert_eq!(opened.recovered.len() as u64, records());
            let Opened { writer, recovered, .. } = opened;
            drop(writer); // the pool ends first, so the records stay in the log
            drop(recovered);
        });
    });
    group.finish();
}

criterion_group!(cache_recover, benches);
criterion_main!(cache_recover);
