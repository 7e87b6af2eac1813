//! Batch → delta on one thread: coalesce, compress, encrypt.
//!
//! `HOLDFAST_BENCH_IMAGE=FILE` seals a real disk image in writes of 64 KiB; without it, half
//! incompressible synthetic pages. Beside criterion's wall clock, CPU seconds per source GiB are printed:
//! they hold on a busy machine, too.

#[path = "seal_support/mod.rs"]
mod support;

#[path = "scale/mod.rs"]
mod scale;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use holdfast::clock::System;
use holdfast::observe::CpuTimer;
use holdfast::seal::seal;

fn bench(c: &mut Criterion) {
    let content = support::content(scale::scaled(128 << 20, 1 << 20));
    let machine = support::machine();
    let keys = support::ring(&machine);
    let mut group = c.benchmark_group("seal");
    group.sample_size(10);
    for (name, write_bytes, level) in [
        ("64 KiB writes, level 1", 64 << 10, 1),
        ("4 KiB writes, level 1", 4 << 10, 1),
        ("64 KiB writes, level -5", 64 << 10, -5),
        ("64 KiB writes, level 3", 64 << 10, 3),
    ] {
        let batches = support::batches(&machine, &content, write_bytes);
        let settings = support::seal_settings(level);
        group.throughput(Throughput::Bytes(content.len() as u64));
        let (mut source, mut object, mut cpu) = (0, 0, 0.0);
        group.bench_function(name, |b| {
            let all = || batches.clone();
            b.iter_batched(
                all,
                |batches| {
                    let timer = CpuTimer::start();
                    for batch in batches {
                        let lineage = support::lineage(&machine);
                        let key = keys.newest();
                        let sealed = seal(batch, lineage, key, &settings, false, &System);
                        let sealed = sealed.expect("the batch is legal");
                        source += sealed.entry().source_bytes;
                        object += sealed.entry().object_bytes;
                    }
                    cpu += timer.spent().as_secs_f64();
                },
                BatchSize::PerIteration,
            );
        });
        let (gib, ratio) = (source as f64 / f64::from(1 << 30), source as f64 / object as f64);
        if scale::measured() {
            println!("{name}: {:.2} CPU s/GiB, ratio {ratio:.2}", cpu / gib);
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
