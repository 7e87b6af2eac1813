//! Folding overlapping writes. The payloads are zeros, so nothing is compressed or encrypted but
//! the index: what remains is the extent map, the zero test and the entries.

#[path = "seal_support/mod.rs"]
mod support;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use holdfast::clock::System;
use holdfast::seal::seal;

fn bench(c: &mut Criterion) {
    let machine = support::machine();
    let keys = support::ring(&machine);
    let settings = support::seal_settings(1);
    let mut group = c.benchmark_group("coalesce");
    for (name, keep) in [("last writer wins", false), ("every write kept", true)] {
        for (places, overlap) in [(1 << 20, "apart"), (1 << 10, "overlapping")] {
            let batches = support::random_zero_writes(&machine, 2048, places);
            let records: usize = batches.iter().map(|batch| batch.items().len()).sum();
            group.throughput(Throughput::Elements(records as u64));
            group.bench_function(format!("{name}, 4 KiB {overlap}"), |b| {
                b.iter_batched(
                    || batches.clone(),
                    |batches| {
                        for batch in batches {
                            let (lineage, key) = (support::lineage(&machine), keys.newest());
                            let sealed = seal(batch, lineage, key, &settings, keep, &System);
                            std::hint::black_box(sealed.expect("the batch is legal"));
                        }
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
