//! The cache log on a real file system: kill, full disk, second start, restart.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::budget::{Budget, Permit};
use holdfast::cache::{CacheError, Durable, DurableChange, Opened, Survivor, open};
use holdfast::clock::System;
use holdfast::ingest::Admitted;
use holdfast::model::{
    CatchUp, Change, DiskIndex, Extent, Generation, MachineKey, Record, Sequence, WRITE_BYTES_MAX,
};
use holdfast::observe::{Metrics, Stage};
use holdfast::settings::CacheSettings;
use tokio::sync::mpsc;

const SEGMENT: u64 = 2 << 20;

fn settings(directory: &Path, segments: u64) -> CacheSettings {
    CacheSettings {
        directory: directory.to_owned(),
        segment_bytes: SEGMENT,
        bytes_max: segments * SEGMENT,
        warn_fill: 0.5,
        slow_fill: 0.65,
        stop_fill: 0.85,
    }
}

fn try_open(directory: &Path, segments: u64) -> Result<(Opened, Arc<Metrics>), CacheError> {
    let metrics = Arc::new(Metrics::default());
    let settings = settings(directory, segments);
    let (clock, entropy) = (System::clock(), System::entropy());
    let opened = open(&settings, 0, 1, clock, entropy, Arc::clone(&metrics))?;
    opened.recycling.begin();
    Ok((opened, metrics))
}

fn machine(number: u64) -> MachineKey {
    MachineKey([number as u8; 16])
}

/// What machine and sequence say decides what the record says: the checker needs no memory.
fn change(machine: u64, sequence: u64) -> Change {
    let disk = DiskIndex(machine as u16);
    let length = 512 * (1 + (sequence * 37 + machine) % 300);
    let offset = sequence * 4096;
    match sequence % 11 {
        0 => Change::Zero { disk, extent: Extent::new(offset, length, WRITE_BYTES_MAX).unwrap() },
        1 => Change::CatchUpBegin(CatchUp::Dirty),
        _ => {
            let fill = (sequence * 31 + machine) as u8;
            let mut payload = vec![fill; length as usize];
            payload[..8].copy_from_slice(&sequence.to_le_bytes());
            Change::Write {
                disk,
                extent: Extent::new(offset, length, WRITE_BYTES_MAX).unwrap(),
                payload: payload.into(),
            }
        }
    }
}

fn generation(sequence: u64) -> Generation {
    Generation(1 + sequence / 7)
}

fn admitted(machine_number: u64, sequence: u64, permit: Permit) -> Admitted {
    Admitted {
        machine: machine(machine_number),
        generation: generation(sequence),
        record: Record { sequence: Sequence(sequence), change: change(machine_number, sequence) },
        permit,
        received_at: Duration::ZERO,
    }
}

fn assert_same(found: &Durable, machine_number: u64) {
    let sequence = found.sequence().0;
    match (found.change(), change(machine_number, sequence)) {
        (DurableChange::Write { disk, extent }, Change::Write { disk: d, extent: e, payload }) => {
            assert_eq!((*disk, *extent), (d, e));
            assert!(payload == *found.payload(), "payload of record {sequence}");
        }
        (DurableChange::Zero { disk, extent }, Change::Zero { disk: d, extent: e }) => {
            assert_eq!((*disk, *extent), (d, e));
        }
        (DurableChange::Mark(mark), expected) => assert_eq!(**mark, expected),
        other => panic!("record {sequence} is {other:?}"),
    }
}

/// The records, each with the ownership that it was admitted under.
fn survived(survivors: &[Survivor]) -> Vec<Durable> {
    let of = |one: &Survivor| {
        assert_eq!(one.generation, generation(one.record.sequence().0));
        one.record.clone()
    };
    survivors.iter().map(of).collect()
}

/// Checks content and gaplessness; the last sequence of each machine.
fn check(records: &[Durable], machines: u64) -> BTreeMap<u64, u64> {
    let mut last = BTreeMap::new();
    for found in records {
        let number = (0..machines).find(|n| machine(*n) == found.machine()).unwrap();
        assert_same(found, number);
        let sequence = found.sequence().0;
        if let Some(before) = last.insert(number, sequence) {
            assert_eq!(sequence, before + 1);
        }
    }
    last
}

/// Writes `count` records of each machine after the given ones, and stops in order.
fn run(opened: Opened, from: &BTreeMap<u64, u64>, machines: u64, count: u64) -> Vec<Durable> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let (writer, durable) = (opened.writer, Arc::clone(&all));
    tokio_uring::start(async move {
        let (sender, receiver) = mpsc::channel(64);
        let from = from.clone();
        let feed = tokio_uring::spawn(async move {
            for step in 1..=count {
                for number in 0..machines {
                    let sequence = from.get(&number).unwrap_or(&0) + step;
                    sender.send(admitted(number, sequence, Permit::none())).await.unwrap();
                }
            }
        });
        let ended = writer.run(receiver, |records| durable.lock().unwrap().extend(records));
        ended.await.unwrap();
        feed.await.unwrap();
    });
    Arc::into_inner(all).unwrap().into_inner().unwrap()
}

#[test]
fn everything_comes_back_after_a_stop_and_slots_are_reused() {
    let directory = tempfile::tempdir().unwrap();
    let mut last = BTreeMap::new();
    for round in 0..4 {
        let (mut opened, metrics) = try_open(directory.path(), 24).unwrap();
        assert!(opened.damage.is_empty(), "{:?}", opened.damage);
        let found = check(&survived(&opened.recovered), 3);
        if round > 0 {
            assert_eq!(found, last);
        }
        opened.recovered.clear(); // published: four rounds do not fit
        let written = run(opened, &last, 3, 60);
        last = check(&written, 3);
        assert!(metrics.stage(Stage::Cache).0 > 1 << 20);
    }
    let files = std::fs::read_dir(directory.path().join("shard-0")).unwrap().count();
    assert!(files <= 25, "{files} files for 24 segments and a lock");
}

#[test]
fn a_second_open_is_refused_with_the_holder_named() {
    let directory = tempfile::tempdir().unwrap();
    let first = try_open(directory.path(), 4).unwrap();
    let Err(refused) = try_open(directory.path(), 4) else {
        panic!("opened twice");
    };
    let message = refused.to_string();
    assert!(message.contains(&std::process::id().to_string()), "{message}");
    assert!(message.contains("shard-0"), "{message}");
    drop(first);
    assert!(try_open(directory.path(), 4).is_ok());
}

#[test]
fn the_lock_is_held_as_long_as_a_record_is() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, _) = try_open(directory.path(), 6).unwrap();
    let held = run(opened, &BTreeMap::new(), 1, 5);
    assert!(matches!(try_open(directory.path(), 6), Err(CacheError::Busy { .. })));
    drop(held);
    assert!(try_open(directory.path(), 6).is_ok());
}

#[test]
fn settings_without_room_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let Err(error) = try_open(directory.path(), 2) else {
        panic!("opened with two segments");
    };
    assert!(error.to_string().contains("at least"), "{error}");
}

#[test]
fn a_flipped_bit_on_the_disk_is_named_and_not_served() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, _) = try_open(directory.path(), 12).unwrap();
    let written = run(opened, &BTreeMap::new(), 1, 60);
    let victim = written.iter().find(|r| !r.payload().is_empty() && r.sequence().0 > 10).unwrap();
    let sequence = victim.sequence().0;
    let payload = victim.payload().to_vec();
    drop(written);
    let hit = std::fs::read_dir(directory.path().join("shard-0")).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(payload.len()).position(|window| window == payload)?;
        bytes[at + payload.len() / 2] ^= 0x10;
        std::fs::write(&path, bytes).unwrap();
        Some(path)
    });
    let (opened, metrics) = try_open(directory.path(), 12).unwrap();
    let named = opened.damage.iter().any(|damage| Some(&damage.path) == hit.as_ref());
    assert!(named, "{:?}", opened.damage);
    assert!(metrics.cache_damage.load(std::sync::atomic::Ordering::Relaxed) > 0);
    assert_eq!(check(&survived(&opened.recovered), 1)[&0], sequence - 1);
}

/// A tmpfs of this size, or why there is none.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, bytes: u64) -> Result<Self, String> {
        std::fs::create_dir_all(&at).unwrap();
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at);
        match mount.output() {
            Ok(output) if output.status.success() => Ok(Self(at)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(cause) => Err(cause.to_string()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _best_effort = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_back_pressure_and_then_everything_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let disk = match SmallDisk::mount(directory.path().join("small"), 24 << 20) {
        Ok(disk) => disk,
        Err(cause) => {
            assert!(std::env::var_os("CI").is_none(), "a small file system is needed: {cause}");
            // Past the harness, which keeps what a passing test prints and may have begun a line.
            let line = format_args!("\nskipped: no small file system: {cause}\n");
            std::io::Write::write_fmt(&mut std::io::stderr(), line).ok();
            return;
        }
    };
    let filler = disk.0.join("filler");
    std::fs::write(&filler, vec![1; 16 << 20]).unwrap();
    let (opened, _) = try_open(&disk.0, 1000).unwrap(); // settings allow more than the disk has
    let (writer, fill) = (opened.writer, opened.fill);
    let all = Arc::new(Mutex::new(Vec::new()));
    let durable = Arc::clone(&all);
    let remove = filler.clone();
    tokio_uring::start(async move {
        let (sender, receiver) = mpsc::channel(8);
        let budget = Budget::new(1 << 20);
        let feed = tokio_uring::spawn(async move {
            for sequence in 1..=120 {
                let permit = budget.acquire(160 << 10).await;
                sender.send(admitted(0, sequence, permit)).await.unwrap();
            }
        });
        let watch = tokio_uring::spawn(async move {
            // Bounded: the disk holds 24 MiB, the filler 16, the records want 9.
            let mut refusal = None;
            for _ in 0..2000 {
                refusal = fill.refusal();
                if refusal.is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let refusal = refusal.expect("the disk is full and nobody says so");
            assert!(refusal.starts_with("cache full: "), "{refusal}");
            assert!(refusal.contains("No space left"), "{refusal}");
            std::fs::remove_file(remove).unwrap();
            fill
        });
        let ended = writer.run(receiver, |records| durable.lock().unwrap().extend(records));
        ended.await.unwrap();
        feed.await.unwrap();
        assert_eq!(watch.await.unwrap().refusal(), None);
    });
    let all = Arc::into_inner(all).unwrap().into_inner().unwrap();
    assert_eq!(check(&all, 1)[&0], 120);
    drop(all);
    let (opened, _) = try_open(&disk.0, 1000).unwrap();
    assert_eq!(check(&survived(&opened.recovered), 1)[&0], 120);
}

const CHILD: &str = "HOLDFAST_TEST_CACHE_CHILD";

/// Not a test of its own: the process that `killed_at_any_moment` starts and kills.
#[test]
fn child_that_is_killed() {
    let Some(directory) = std::env::var_os(CHILD) else {
        return;
    };
    let (opened, _) = try_open(Path::new(&directory), 200).unwrap();
    let last = check(&survived(&opened.recovered), 3);
    println!("recovered {}", last.values().map(u64::to_string).collect::<Vec<_>>().join(" "));
    let held = std::cell::RefCell::new(Vec::new());
    let writer = opened.writer;
    tokio_uring::start(async move {
        let (sender, receiver) = mpsc::channel(32);
        tokio_uring::spawn(async move {
            for step in 1u64.. {
                for number in 0..3 {
                    let sequence = last.get(&number).unwrap_or(&0) + step;
                    if sender.send(admitted(number, sequence, Permit::none())).await.is_err() {
                        return;
                    }
                }
            }
        });
        let acked = |records: Vec<Durable>| {
            for record in &records {
                println!("acked {} {}", record.machine().0[0], record.sequence().0);
            }
            held.borrow_mut().extend(records);
        };
        writer.run(receiver, acked).await.unwrap();
    });
}

#[test]
fn killed_at_any_moment_loses_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut acked: BTreeMap<u64, u64> = BTreeMap::new();
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut left = 30 + round * round * 3; // a later moment each round
        for line in lines {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["acked", machine, sequence] => {
                    acked.insert(machine.parse().unwrap(), sequence.parse().unwrap());
                    left -= 1;
                }
                _ => continue,
            }
            if left == 0 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let (opened, _) = try_open(directory.path(), 200).unwrap();
        assert!(opened.damage.is_empty(), "round {round}: {:?}", opened.damage);
        let found = check(&survived(&opened.recovered), 3);
        for (machine, sequence) in &acked {
            assert!(found[machine] >= *sequence, "round {round}: machine {machine}");
        }
        acked = found;
    }
}
