//! Folding the indexes of consecutive deltas into page writes.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast::apply::plan::plan;
use holdfast::format::delta::{DeltaIndex, EntrySource, IndexEntry};
use holdfast::model::{DiskIndex, Extent, Sequence};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// An index of `entries` writes of 4 KiB at one of `places`.
fn index(first: u64, entries: u64, places: u64, random: &mut StdRng) -> DeltaIndex {
    let entry = |number| IndexEntry {
        sequence: Sequence(first + number),
        disk: DiskIndex(0),
        extent: Extent::new(random.random_range(0..places) * 4096, 4096, 4096).expect("aligned"),
        source: EntrySource::Frame { frame: number as u32 / 64, offset: number as u32 % 64 * 4096 },
    };
    DeltaIndex { entries: (0..entries).map(entry).collect(), ..DeltaIndex::default() }
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply_plan");
    let (deltas, entries) = (8, 2048);
    for (places, overlap) in
        [(1 << 24, "apart"), (1 << 12, "overlapping"), (1 << 14, "side by side")]
    {
        let mut random = StdRng::seed_from_u64(1);
        let indexes: Vec<_> =
            (0..deltas).map(|n| index(1 + n * entries, entries, places, &mut random)).collect();
        let indexes: Vec<_> = indexes.iter().collect();
        group.throughput(Throughput::Elements(deltas * entries));
        group.bench_function(format!("{deltas} deltas, 4 KiB {overlap}"), |bencher| {
            bencher.iter(|| std::hint::black_box(plan(&indexes)));
        });
    }
    group.finish();
}

criterion_group!(apply_plan, benches);
criterion_main!(apply_plan);
