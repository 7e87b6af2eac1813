//! Streams and keys for the benches of sealing and opening.
#![allow(dead_code, reason = "each bench uses its part")]
#![allow(unreachable_pub, reason = "a bench is a crate of its own")]

use std::os::unix::fs::FileExt;
use std::time::Duration;

use holdfast::cache::Durable;
use holdfast::clock::{Entropy, System, random16};
use holdfast::model::{
    Change, DeltaId, DiskIndex, DiskSpec, Epoch, EpochBegin, Extent, Generation, MachineId,
    MachineKey, Record, Sequence, Timestamp,
};
use holdfast::seal::{Batch, Batcher, KeyEncryptionKey, KeyRing, Lineage, StreamState};
use holdfast::settings::{BatchSettings, SealSettings};

pub fn machine() -> MachineId {
    "bench".parse().expect("a legal name")
}

pub fn ring(machine: &MachineId) -> KeyRing {
    let kek = KeyEncryptionKey::of([7; 32].into());
    let (key, _) = kek.make_data_key(machine, 1, &System, Timestamp(0));
    KeyRing::of(machine.clone(), key)
}

pub fn lineage(machine: &MachineId) -> Lineage {
    Lineage {
        machine: machine.clone(),
        generation: Generation(1),
        id: DeltaId(random16(&System)),
        previous: None,
        created: Timestamp(0),
    }
}

pub fn seal_settings(level: i32) -> SealSettings {
    SealSettings { threads: 1, compress: true, level, frame_bytes: 256 << 10 }
}

/// `bytes` in stripes of 1 MiB from all over the image that `HOLDFAST_BENCH_IMAGE` names, or made
/// up.
pub fn content(bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    if let Some(path) = std::env::var_os("HOLDFAST_BENCH_IMAGE") {
        let image = std::fs::File::open(path).expect("the image that the variable names");
        let length = image.metadata().expect("its length").len();
        let stripes = (bytes >> 20) as u64;
        for (n, stripe) in content.chunks_mut(1 << 20).enumerate() {
            let at = (length / stripes * n as u64) / 4096 * 4096;
            image.read_exact_at(stripe, at).expect("an image of at least 128 MiB");
        }
        return content;
    }
    for (n, page) in content.chunks_mut(4096).enumerate() {
        System.fill(&mut page[..2048]);
        page[2048..].fill(n as u8);
    }
    content
}

/// The content as consecutive writes, in batches of 8 MiB.
pub fn batches(machine: &MachineId, content: &[u8], write_bytes: usize) -> Vec<Batch> {
    let writes = content.chunks(write_bytes).enumerate();
    collect(machine, writes.map(|(n, bytes)| ((n * write_bytes) as u64, bytes.to_vec())))
}

/// Writes of 4 KiB of zeros at `places` random places.
pub fn random_zero_writes(machine: &MachineId, count: usize, places: u64) -> Vec<Batch> {
    let place = |_| u64::from_le_bytes(random16(&System)[..8].try_into().expect("8 of 16"));
    let writes = (0..count).map(place).map(|n| (n % places * 2048, vec![0; 4096]));
    collect(machine, writes)
}

fn collect(machine: &MachineId, writes: impl Iterator<Item = (u64, Vec<u8>)>) -> Vec<Batch> {
    let key = MachineKey::of(machine);
    let settings = BatchSettings { bytes_max: 8 << 20, age_max: Duration::from_secs(1) };
    let mut batcher = Batcher::new(key, StreamState::BEGINNING, settings);
    let begin = Change::EpochBegin(EpochBegin {
        epoch: Epoch(1),
        disks: vec![DiskSpec {
            index: DiskIndex(0),
            name: "disk".parse().expect("a legal name"),
            size_bytes: 1 << 40,
        }],
    });
    let writes = writes.map(|(offset, payload)| Change::Write {
        disk: DiskIndex(0),
        extent: Extent::new(offset, payload.len() as u64, 1 << 20).expect("aligned"),
        payload: payload.into(),
    });
    for (n, change) in std::iter::once(begin).chain(writes).enumerate() {
        let sequence = Sequence(n as u64 + 1);
        let item = Durable::never_written(key, Record { sequence, change });
        batcher.push(item, Duration::ZERO).expect("gapless");
    }
    batcher.drain();
    std::iter::from_fn(|| batcher.poll(Duration::ZERO)).collect()
}
