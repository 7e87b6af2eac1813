//! Delta → plaintext: header, index and all frames, from a store in memory.
//!
//! `HOLDFAST_BENCH_IMAGE=FILE` opens deltas of a real disk image. Bytes/s is per plain byte.

#[path = "seal_support/mod.rs"]
mod support;

#[path = "scale/mod.rs"]
mod scale;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast::clock::System;
use holdfast::format::names;
use holdfast::seal::{Expected, OpenDelta, seal};
use holdfast::store::{Condition, Memory, Store};

fn bench(c: &mut Criterion) {
    let content = support::content(scale::scaled(64 << 20, 1 << 20));
    let machine = support::machine();
    let keys = support::ring(&machine);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let store = Memory::new(System::clock());
    let mut deltas = Vec::new();
    for batch in support::batches(&machine, &content, 64 << 10) {
        let lineage = support::lineage(&machine);
        let settings = support::seal_settings(1);
        let sealed = seal(batch, lineage, keys.newest(), &settings, false, &System);
        let sealed = sealed.expect("the batch is legal");
        let entry = sealed.entry();
        let name = names::delta(&machine, entry.generation, entry.first, entry.last, entry.id);
        let put = store.put(&name, sealed.object().clone(), Condition::Absent);
        runtime.block_on(put).expect("the name is free");
        deltas.push((name, Expected::of(&machine, entry, None)));
    }
    let mut group = c.benchmark_group("open");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(content.len() as u64));
    group.bench_function("all frames", |b| {
        b.iter(|| {
            runtime.block_on(async {
                for (name, expected) in &deltas {
                    let opened = OpenDelta::open(&store, name, expected, &keys).await;
                    let delta = opened.expect("what was sealed opens");
                    let count = delta.index().frames.len() as u32;
                    let frames = delta.frames_range(&store, 0..count).await;
                    std::hint::black_box(frames.expect("what was sealed opens"));
                }
            });
        });
    });
    group.throughput(Throughput::Elements(deltas.len() as u64));
    group.bench_function("header and index only", |b| {
        b.iter(|| {
            runtime.block_on(async {
                for (name, expected) in &deltas {
                    let opened = OpenDelta::open(&store, name, expected, &keys).await;
                    std::hint::black_box(opened.expect("what was sealed opens"));
                }
            });
        });
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
