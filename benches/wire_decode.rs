//! Decoding a record frame: header, checksum, message. The payload is shared, not copied.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use holdfast::format::wire::{FrameHeader, FromAgent, decode_from_agent, encode_from_agent};
use holdfast::model::{Change, DiskIndex, Extent, Payload, Record, Sequence};

/// Bytes of one TLS record: a payload comes in pieces of these.
const PIECE_BYTES: usize = 16 << 10;

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire_decode");
    for bytes in [4096_usize, 64 << 10, 1 << 20] {
        let content = Bytes::from(vec![0x5A; bytes]);
        let change = Change::Write {
            disk: DiskIndex(0),
            extent: Extent::new(0, bytes as u64, 1 << 20).expect("aligned"),
            payload: content.clone().into(),
        };
        let record = Record { sequence: Sequence(1), change };
        let frame = encode_from_agent(&FromAgent::Record(record));
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_with_input(BenchmarkId::from_parameter(bytes), &frame, |b, frame| {
            b.iter(|| {
                let header = FrameHeader::decode(black_box(&frame.header)).expect("encoded above");
                let mut payload = Payload::default();
                for start in (0..bytes).step_by(PIECE_BYTES) {
                    payload.push(content.slice(start..bytes.min(start + PIECE_BYTES)));
                }
                decode_from_agent(&header, payload).expect("encoded above")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
