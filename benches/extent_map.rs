//! Looking up which source answers for a read, in maps as large as those of many deltas.

#[path = "scale/mod.rs"]
mod scale;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast::model::{ExtentMap, Slice};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Where a byte stands in some source.
#[derive(Clone, Copy)]
struct At(u64);

impl Slice for At {
    fn skip(&self, skip: u64) -> Self {
        Self(self.0 + skip)
    }
}

const DISK_BYTES: u64 = 64 << 30;
const LOOKUPS: u64 = 1024;

/// A map after `writes` writes of 4 to 64 KiB all over a disk.
fn map(writes: u64, random: &mut StdRng) -> ExtentMap<At> {
    let mut map = ExtentMap::default();
    for number in 0..writes {
        let length = random.random_range(1..=16) * 4096;
        let start = random.random_range(0..(DISK_BYTES - length) / 4096) * 4096;
        map.insert(start..start + length, At(number << 20));
    }
    map
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("extent_map");
    let mut random = StdRng::seed_from_u64(1);
    for writes in scale::scaled([1_000, 100_000], [100, 1_000]) {
        let map = map(writes, &mut random);
        for read_bytes in [4 << 10, 1 << 20] {
            group.throughput(Throughput::Elements(LOOKUPS));
            let name = format!("lookup of {} KiB after {writes} writes", read_bytes >> 10);
            let places = (0..LOOKUPS).map(|_| random.random_range(0..DISK_BYTES / (1 << 20)) << 20);
            let places: Vec<_> = places.collect();
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    for start in &places {
                        std::hint::black_box(map.read(*start..start + read_bytes));
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(extent_map, benches);
criterion_main!(extent_map);
