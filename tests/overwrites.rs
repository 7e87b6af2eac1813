//! A database that writes mostly to a tenth of its disk: what that costs in the cloud log with
//! bookmark granularity and with every write kept, and that both recover exactly.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast::cache::Durable;
use holdfast::clock::{System, random16};
use holdfast::cloud_log::{ENTRIES_MAX, LogStore};
use holdfast::model::*;
use holdfast::observe::Metrics;
use holdfast::recover::{CACHE_BYTES, DiskReader, PointSpec, Recovery};
use holdfast::seal::{Batcher, KeyEncryptionKey, KeyRing, Lineage, StreamState, seal};
use holdfast::settings::{BatchSettings, RateSchedule, SealSettings, StreamBounds};
use holdfast::store::{Memory, Store};
use holdfast::upload::{Uplink, Upload, UploadContext, claim};
use holdfast::vault::{MachineDocument, Policy, Vault};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

const DISK_BYTES: u64 = 32 << 20;
const BLOCK: u64 = 4 << 10;
/// Between two bookmarks.
const WRITTEN: u64 = 24 << 20;

fn machine() -> MachineId {
    "db".parse().unwrap()
}

/// 90 % of the writes to 10 % of the blocks, 4 to 16 KiB each, half of every block compressible.
fn write(random: &mut StdRng) -> (Extent, Vec<u8>) {
    let blocks = DISK_BYTES / BLOCK;
    let hot = random.random_bool(0.9);
    let block = random.random_range(0..if hot { blocks / 10 } else { blocks - 4 });
    let mut payload = vec![0; (BLOCK * random.random_range(1..=4)) as usize];
    for block in payload.chunks_mut(BLOCK as usize) {
        let (noise, words) = block.split_at_mut(BLOCK as usize / 2);
        random.fill_bytes(noise);
        words.fill(noise[0] | 1);
    }
    (Extent::new(block * BLOCK, payload.len() as u64, WRITE_BYTES_MAX).unwrap(), payload)
}

/// The stream, and the disk at its bookmarks and at some writes between them.
fn history() -> (Vec<Record>, Vec<u64>, BTreeMap<u64, Vec<u8>>) {
    let mut random = StdRng::seed_from_u64(5);
    let mut disk = vec![0; DISK_BYTES as usize];
    let spec =
        DiskSpec { index: DiskIndex(0), name: "data".parse().unwrap(), size_bytes: DISK_BYTES };
    let begin = Change::EpochBegin(EpochBegin { epoch: Epoch(1), disks: vec![spec] });
    let mut records = vec![Record { sequence: Sequence(1), change: begin }];
    let (mut bookmarks, mut at) = (Vec::new(), BTreeMap::new());
    for second in 0..3 {
        let mut written = 0;
        while written < WRITTEN {
            let (extent, payload) = write(&mut random);
            let place = extent.offset() as usize..extent.end() as usize;
            disk[place].copy_from_slice(&payload);
            written += payload.len() as u64;
            let sequence = Sequence(records.len() as u64 + 1);
            let change = Change::Write { disk: DiskIndex(0), extent, payload: payload.into() };
            records.push(Record { sequence, change });
            if sequence.0.is_multiple_of(1_777) {
                at.insert(sequence.0, disk.clone());
            }
        }
        let sequence = Sequence(records.len() as u64 + 1);
        let change = Change::Bookmark(Bookmark {
            id: BookmarkId(random16(&System)),
            kind: BookmarkKind::CrashConsistent,
            time: Timestamp(1 + second * 5_000_000),
            name: String::new(),
        });
        records.push(Record { sequence, change });
        bookmarks.push(sequence.0);
        at.insert(sequence.0, disk.clone());
    }
    (records, bookmarks, at)
}

/// Publishes the stream as a process server would; the bytes that went to the store.
async fn publish(log: &Arc<LogStore>, records: Vec<Record>, keep_every_write: bool) -> u64 {
    let metrics = Arc::new(Metrics::default());
    let streams = StreamBounds { min: 4, max: 4 };
    let (clock, entropy) = (System::clock(), System::entropy());
    let uplink =
        Uplink::new(streams, RateSchedule::default(), clock, entropy, Arc::clone(&metrics));
    let context = UploadContext {
        log: Arc::clone(log),
        clock: System::clock(),
        entropy: System::entropy(),
        metrics: Arc::clone(&metrics),
        uplink,
        block_bytes: Arc::new((4 << 20).into()),
        entries_max: ENTRIES_MAX,
    };
    let claimed = claim(&context, &"ps-1".parse().unwrap()).await.unwrap();
    // As long as no age closes it: in a second a busy database writes as much as this.
    let settings = BatchSettings { bytes_max: 8 << 20, age_max: Duration::from_secs(60) };
    let key = MachineKey::of(&machine());
    let mut batcher = Batcher::new(key, StreamState::after(&claimed.manifest), settings);
    batcher.keep_every_write(keep_every_write);
    let (to, mut sealed) = tokio::sync::mpsc::channel(64);
    let mut previous = None;
    for record in records {
        batcher.push(Durable::never_written(key, record), Duration::ZERO).unwrap();
    }
    batcher.drain();
    while let Some(batch) = batcher.poll(Duration::ZERO) {
        assert!(batch.kept_bytes() <= 8 << 20);
        let id = DeltaId(random16(&System));
        let lineage = Lineage {
            machine: machine(),
            generation: claimed.manifest.generation,
            id,
            previous: previous.replace(id),
            created: Timestamp(0),
        };
        let settings =
            SealSettings { threads: 1, compress: true, level: 1, frame_bytes: 256 << 10 };
        let kept = batch.kept_bytes();
        let key = log.keys().newest();
        let delta = seal(batch, lineage, key, &settings, keep_every_write, &System);
        let delta = delta.unwrap_or_else(|error| panic!("{error}"));
        assert!(delta.object().len() as u64 <= kept + kept / 8, "no more than was reckoned with");
        to.send(delta).await.unwrap();
    }
    drop(to);
    let mut bytes = 0;
    let published = |published: holdfast::upload::Published| {
        bytes += published.entries().iter().map(|entry| entry.object_bytes).sum::<u64>();
    };
    Upload::new(context, claimed).run(&mut sealed, published).await.unwrap();
    bytes
}

/// The disk at `sequence`.
async fn recovered(recovery: &Recovery, sequence: u64) -> bytes::Bytes {
    let spec: PointSpec = format!("seq:{sequence}").parse().unwrap();
    let point = recovery.resolve(&spec).await.unwrap();
    let name = "data".parse().unwrap();
    let reader = DiskReader::open(recovery, &point, &name, CACHE_BYTES).await.unwrap();
    reader.read(0, DISK_BYTES).await.unwrap()
}

#[tokio::test]
async fn folding_between_bookmarks_halves_the_upload_at_least_and_both_recover_exactly() {
    let (records, bookmarks, at) = history();
    let mut uploaded = Vec::new();
    for keep_every_write in [true, false] {
        let store: Arc<dyn Store> = Arc::new(Memory::new(System::clock()));
        let kek = KeyEncryptionKey::of([7; 32].into());
        let vault = Vault::new(Arc::clone(&store), kek.derive("holdfast vault 1"));
        let (key, wrapped) = kek.make_data_key(&machine(), 1, &System, Timestamp(0));
        let document = MachineDocument {
            machine: machine(),
            created: Timestamp(0),
            data_keys: vec![wrapped],
            certificates: Vec::new(),
            policy: Policy { keep_every_write, ..Policy::default() },
        };
        vault.create_machine(&document).await.unwrap();
        let keys = KeyRing::of(machine(), key);
        let log = Arc::new(LogStore::new(Arc::clone(&store), machine(), keys));
        uploaded.push(publish(&log, records.clone(), keep_every_write).await);
        let recovery = Recovery::open(store, &kek, &machine()).await.unwrap();
        for (sequence, expected) in &at {
            if keep_every_write || bookmarks.contains(sequence) {
                let disk = recovered(&recovery, *sequence).await;
                assert!(disk == *expected, "disk at {sequence}, every write: {keep_every_write}");
            }
        }
    }
    let [every_write, folded] = uploaded[..] else { unreachable!("two granularities") };
    // Two is what is promised. A delta spans what folding leaves, so here it is more.
    assert!(every_write >= 3 * folded, "{every_write} bytes with every write, {folded} folded");
}
