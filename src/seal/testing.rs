//! Streams, keys and settings for this room's tests.

use std::sync::Mutex;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::*;
use crate::cache::Durable;
use crate::clock::Entropy;
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, Change, DeltaId, DiskIndex, DiskSpec, Epoch,
    EpochBegin, Extent, Generation, MachineId, MachineKey, Record, Sequence, Timestamp,
    ZERO_BYTES_MAX,
};
use crate::settings::{BatchSettings, SealSettings};

/// The same bytes for the same seed.
pub(super) struct Seeded(Mutex<[u8; 32]>);

impl Seeded {
    pub(super) fn new(seed: u64) -> Self {
        Self(Mutex::new(Sha256::digest(seed.to_le_bytes()).into()))
    }

    pub(super) fn bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
    }
}

impl Entropy for Seeded {
    fn fill(&self, target: &mut [u8]) {
        let mut state = self.0.lock().unwrap();
        for part in target.chunks_mut(32) {
            *state = Sha256::digest(*state).into();
            part.copy_from_slice(&state[..part.len()]);
        }
    }
}

/// Makes one machine's stream, record by record.
pub(super) struct Stream {
    pub(super) machine: MachineId,
    pub(super) next: u64,
}

impl Stream {
    pub(super) fn new(machine: &str) -> Self {
        let machine = machine.parse().unwrap();
        Self { machine, next: 1 }
    }

    pub(super) fn record(&mut self, change: Change) -> Durable {
        let sequence = Sequence(self.next);
        self.next += 1;
        Durable::never_written(MachineKey::of(&self.machine), Record { sequence, change })
    }

    pub(super) fn epoch(&mut self, epoch: u32) -> Durable {
        let disk = |index, name: &str| DiskSpec {
            index: DiskIndex(index),
            name: name.parse().unwrap(),
            size_bytes: 1 << 30,
        };
        self.record(Change::EpochBegin(EpochBegin {
            epoch: Epoch(epoch),
            disks: vec![disk(0, "root"), disk(1, "log")],
        }))
    }

    pub(super) fn write(&mut self, disk: u16, sector: u64, payload: Vec<u8>) -> Durable {
        self.record(Change::Write {
            disk: DiskIndex(disk),
            extent: Extent::new(sector * 512, payload.len() as u64, 1 << 20).unwrap(),
            payload: payload.into(),
        })
    }

    pub(super) fn zero(&mut self, disk: u16, sector: u64, sectors: u64) -> Durable {
        self.record(Change::Zero {
            disk: DiskIndex(disk),
            extent: Extent::new(sector * 512, sectors * 512, ZERO_BYTES_MAX).unwrap(),
        })
    }

    pub(super) fn bookmark(&mut self, name: &str) -> Durable {
        let id = BookmarkId([self.next as u8; 16]);
        self.record(Change::Bookmark(Bookmark {
            id,
            kind: BookmarkKind::CrashConsistent,
            time: Timestamp(self.next as i64),
            name: name.to_owned(),
        }))
    }

    pub(super) fn catch_up(&mut self, begin: bool) -> Durable {
        self.record(match begin {
            true => Change::CatchUpBegin(CatchUp::Dirty),
            false => Change::CatchUpEnd,
        })
    }
}

pub(super) fn batch_settings(bytes_max: u64) -> BatchSettings {
    BatchSettings { bytes_max, age_max: Duration::from_secs(1) }
}

/// All records as batches, closed by `bytes_max`, bookmarks, epochs and the end.
pub(super) fn batches(machine: &MachineId, items: Vec<Durable>, bytes_max: u64) -> Vec<Batch> {
    let (key, settings) = (MachineKey::of(machine), batch_settings(bytes_max));
    let first = items.first().map_or(Sequence(1), Durable::sequence);
    let state = StreamState {
        next: first,
        epoch: Epoch(u32::from(first > Sequence(1))),
        catching_up: false,
    };
    let mut batcher = Batcher::new(key, state, settings);
    for item in items {
        batcher.push(item, Duration::ZERO).unwrap();
    }
    batcher.drain();
    std::iter::from_fn(|| batcher.poll(Duration::ZERO)).collect()
}

pub(super) fn seal_settings(frame_bytes: u32) -> SealSettings {
    SealSettings { threads: 2, compress: true, level: 1, frame_bytes }
}

pub(super) fn ring(machine: &MachineId) -> KeyRing {
    let kek = KeyEncryptionKey::of([7; 32].into());
    let entropy = Seeded::new(1);
    let (key, _) = kek.make_data_key(machine, 1, &entropy, Timestamp(0));
    KeyRing::of(machine.clone(), key)
}

pub(super) fn lineage(machine: &MachineId, id: u8, previous: Option<u8>) -> Lineage {
    let id_of = |byte| DeltaId([byte; 16]);
    Lineage {
        machine: machine.clone(),
        generation: Generation(1),
        id: id_of(id),
        previous: previous.map(id_of),
        created: Timestamp(1_700_000_000_000_000),
    }
}
