use std::sync::atomic::{AtomicBool, Ordering};

use super::super::testing::{Stream, batches, lineage, ring, seal_settings};
use super::*;
use crate::clock::System;
use crate::model::MachineId;

fn pool(room: &Turns, entropy: Arc<dyn Entropy>) -> (SealPool, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::default());
    let (settings, clock) = (seal_settings(4096), System::clock());
    let shared = Arc::clone(&metrics);
    let pool = SealPool::new(settings, room.clone(), shared, clock, entropy).unwrap();
    (pool, metrics)
}

fn many(count: usize) -> (MachineId, Vec<Batch>) {
    let mut stream = Stream::new("web");
    let mut items = vec![stream.epoch(1)];
    items.extend((1..count).map(|n| stream.write(0, n as u64 * 64, vec![n as u8; 16 << 10])));
    (stream.machine.clone(), batches(&stream.machine, items, 16 << 10))
}

#[tokio::test]
async fn many_batches_at_once_come_back_as_their_own_deltas_within_their_room() {
    let room = Turns::new(200_192, 0); // about three batches at their worst
    let (pool, metrics) = pool(&room, System::entropy());
    let (machine, batches) = many(20);
    let keys = ring(&machine);
    let jobs = batches.into_iter().enumerate().map(|(n, batch)| {
        let (lineage, key, pool) = (lineage(&machine, n as u8, None), keys.newest(), &pool);
        async move {
            let first = batch.first();
            let sealed = pool.run(batch, lineage, key.clone()).await.unwrap();
            assert_eq!((sealed.entry().first, sealed.entry().id.0[0]), (first, n as u8));
            assert_eq!(sealed.object().len() as u64, sealed.entry().object_bytes);
            sealed
        }
    });
    let sealed = futures_util::future::join_all(jobs).await;
    let objects: u64 = sealed.iter().map(|sealed| sealed.entry().object_bytes).sum();
    assert_eq!(room.in_use(), objects);
    let (bytes_in, bytes_out, cpu, latency) = metrics.stage(Stage::Seal);
    assert_eq!((bytes_in, bytes_out), (19 * (16 << 10), objects));
    assert!(cpu > 0.0 && latency.len() == sealed.len() as u64);
    drop(sealed);
    assert_eq!(room.in_use(), 0, "memory comes back with the last of them");
}

#[tokio::test]
async fn large_objects_follow_each_other_in_the_same_memory_and_pay_for_all_of_it() {
    const PART: usize = 512 << 10;
    let room = Turns::new(64 << 20, 0);
    let (pool, _) = pool(&room, System::entropy());
    let mut stream = Stream::new("web");
    let noise = super::super::testing::Seeded::new(7).bytes(PART);
    let mut items = vec![stream.epoch(1)];
    for number in 0..6 {
        let plain = if number < 5 { noise.clone() } else { vec![7; PART] };
        items.push(stream.write(0, number * 1024, plain));
    }
    let batches = batches(&stream.machine, items, 3 * PART as u64);
    let keys = ring(&stream.machine);
    let (mut places, mut lengths, mut held) = (Vec::new(), Vec::new(), Vec::new());
    for (id, batch) in (1..).zip(batches) {
        let lineage = lineage(&stream.machine, id, None);
        let sealed = pool.run(batch, lineage, keys.newest().clone()).await.unwrap();
        places.push(sealed.object().as_ptr());
        lengths.push(sealed.object().len() as u64);
        held.push(room.in_use());
    }
    assert_eq!(places.len(), 2);
    assert_eq!((places[0], places[0].align_offset(4096)), (places[1], 0));
    assert!(lengths[0] > 3 * PART as u64 && lengths[1] < lengths[0] * 3 / 4, "{lengths:?}");
    assert!(held[1] >= lengths[0], "the first one's pages are there yet: {held:?}");
    assert_eq!((room.in_use(), pool.shelf.pieces()), (0, 1));
    pool.set_room(64 << 20, 0);
    assert_eq!(pool.shelf.pieces(), 0, "sizes may be others from now on");
}

#[tokio::test]
async fn what_is_not_to_be_compressed_is_stored_as_it_is_and_zeros_stay_free() {
    let (pool, _) = pool(&Turns::new(64 << 20, 0), System::entropy());
    let mut stream = Stream::new("web");
    let plain = b"some words, and ".repeat(4096);
    let mut items = vec![stream.epoch(1)];
    items.extend((0..3).map(|n| stream.write(0, n * 1024, plain.clone())));
    items.push(stream.write(0, 8192, vec![0; 64 << 10]));
    let keys = ring(&stream.machine);
    let mut lengths = Vec::new();
    for compress in [true, false, true] {
        pool.set_compress(compress);
        let batch = batches(&stream.machine, items.clone(), 1 << 20).remove(0);
        let lineage = lineage(&stream.machine, 1, None);
        let sealed = pool.run(batch, lineage, keys.newest().clone()).await.unwrap();
        lengths.push(sealed.object().len());
    }
    let stored = 3 * plain.len();
    assert!((stored..stored + 8192).contains(&lengths[1]), "{lengths:?}");
    assert!(lengths[0] < stored / 10 && lengths[2] == lengths[0], "{lengths:?}");
}

/// Panics on the first use, then is the system's.
struct Panics(AtomicBool);

impl Entropy for Panics {
    fn fill(&self, target: &mut [u8]) {
        assert!(self.0.swap(true, Ordering::SeqCst), "no entropy today");
        System.fill(target);
    }
}

#[tokio::test]
async fn a_panic_is_an_error_that_gives_the_batch_back_and_the_thread_lives_on() {
    let room = Turns::new(1 << 20, 0);
    let (pool, _) = pool(&room, Arc::new(Panics(AtomicBool::new(false))));
    let (machine, batches) = many(2);
    let keys = ring(&machine);
    let batch = batches[0].clone();
    let lineage = lineage(&machine, 1, None);
    let run = |batch| pool.run(batch, lineage.clone(), keys.newest().clone());
    let unsealed = run(batch).await.unwrap_err();
    let message = unsealed.to_string();
    assert!(message.contains("no entropy today") && message.contains("web"), "{message}");
    assert_eq!(unsealed.batch.items().len(), batches[0].items().len());
    assert_eq!(room.in_use(), 0, "a failed job keeps no memory");
    for _ in 0..4 {
        run(unsealed.batch.clone()).await.unwrap();
    }
}

#[tokio::test]
async fn a_batch_of_another_machine_is_refused_and_given_back() {
    let (pool, _) = pool(&Turns::new(1 << 20, 0), System::entropy());
    let (_, mut batches) = many(2);
    let other: MachineId = "db".parse().unwrap();
    let key = ring(&other).newest().clone();
    let unsealed = pool.run(batches.remove(0), lineage(&other, 1, None), key).await.unwrap_err();
    assert!(matches!(unsealed.source, SealError::ForeignRecord { .. }));
}
