//! The hash file over power cuts at every call, and over damage of every kind.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use super::hashes::{Hash, Hashes, blank};
use crate::agent::bitmap::{Identity, Teller};
use crate::agent::crash_tests::{Fragile, Power};
use crate::agent::source_identity::SourceIdentity;
use crate::clock::System;
use crate::model::MachineKey;

/// Three pages.
const CHUNKS: u64 = 70;

fn identity() -> Identity {
    Identity {
        machine: MachineKey([3; 16]),
        disk: "root".parse().unwrap(),
        disk_bytes: CHUNKS * 65536 - 512,
        chunk_bytes: 65536,
        disks_crc: 1,
        teller: Teller::Scan,
        source: SourceIdentity::default(),
    }
}

fn power(calls: i64) -> Arc<Power> {
    Arc::new(Power(AtomicI64::new(calls)))
}

/// Opens a file of these bytes with power for so many calls.
fn open(bytes: Vec<u8>, calls: i64) -> (Arc<Fragile>, std::io::Result<Hashes>) {
    let medium = Fragile::new(&power(calls), bytes);
    let hashes = Hashes::load(Box::new(Arc::clone(&medium)), &identity());
    (medium, hashes.map(|hashes| hashes.expect("its header is never written again")))
}

#[test]
fn what_was_forgotten_stays_forgotten_whatever_a_power_cut_leaves() {
    let (mut seed, mut cuts) = (1_u64, 0);
    for calls in 0..120 {
        for _ in 0..8 {
            let mut bytes = blank(&identity(), [9; 16]);
            // The value of a chunk, since it was last forgotten for sure; the present one last.
            let mut may: Vec<Vec<Option<Hash>>> = vec![vec![None]; CHUNKS as usize];
            for life in 0..3 {
                let (medium, hashes) = open(bytes.clone(), if life == 0 { calls } else { 60 });
                let mut dice = || {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                    seed >> 40
                };
                if let Ok(hashes) = hashes {
                    for _ in 0..40 {
                        let chunk = dice() % CHUNKS;
                        if dice() % 2 == 0 {
                            let hash = hashes.hasher().of(&dice().to_le_bytes());
                            let _failed_without_power = hashes.learn([(chunk, hash)]);
                            may[chunk as usize].push(Some(hash));
                        } else if hashes.forget([chunk]).is_ok() {
                            may[chunk as usize] = vec![None];
                        } else {
                            may[chunk as usize].push(None);
                        }
                    }
                }
                bytes = medium.after_cut(&mut || dice() % 2 == 0);
                let (_, seen) = open(bytes.clone(), i64::MAX);
                let seen = seen.unwrap();
                for chunk in 0..CHUNKS {
                    let known = seen.known(chunk).unwrap();
                    let allowed = &may[chunk as usize];
                    // A torn page says nothing.
                    let fine = known.is_none() || allowed.contains(&known);
                    assert!(fine, "calls {calls} life {life} chunk {chunk}: {known:?}");
                }
                cuts += 1;
            }
        }
    }
    assert!(cuts > 2000);
}

#[test]
fn damage_makes_unknown_and_never_another_hash() {
    let (medium, hashes) = open(blank(&identity(), [9; 16]), i64::MAX);
    let hashes = hashes.unwrap();
    let of = |chunk: u64| hashes.hasher().of(&chunk.to_le_bytes());
    hashes.learn((0..CHUNKS).map(|chunk| (chunk, of(chunk)))).unwrap();
    let good = medium.after_cut(&mut || true);
    let mut lost = 0;
    for at in (4096..good.len()).step_by(7) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        let (_, damaged) = open(bytes, i64::MAX);
        let damaged = damaged.unwrap();
        for chunk in 0..CHUNKS {
            let known = damaged.known(chunk).unwrap();
            assert!(known.is_none() || known == Some(of(chunk)), "byte {at} chunk {chunk}");
            lost += u64::from(known.is_none());
        }
    }
    assert!(lost > 1000, "damage was seen");
    // Two pages changed places.
    let mut bytes = good.clone();
    bytes[4096..5120].rotate_left(512);
    let (_, moved) = open(bytes, i64::MAX);
    assert_eq!(moved.unwrap().known(0).unwrap(), None);
    // Whatever is wrong with the header, or short, says nothing.
    for at in 0..512 {
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        let medium = Fragile::new(&power(i64::MAX), bytes);
        assert!(Hashes::load(Box::new(medium), &identity()).unwrap().is_err(), "byte {at}");
    }
    for cut in [0, 511, 512, 4096, good.len() - 1] {
        let medium = Fragile::new(&power(i64::MAX), good[..cut].to_vec());
        assert!(Hashes::load(Box::new(medium), &identity()).unwrap().is_err(), "{cut} bytes");
    }
}

#[test]
fn a_file_of_another_disk_is_made_anew_and_its_key_is_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.hashes");
    let (first, why) = Hashes::open(&path, &identity(), &System).unwrap();
    assert!(why.unwrap().contains("none"));
    let hash = first.hasher().of(b"chunk");
    first.learn([(CHUNKS - 1, hash)]).unwrap();
    let (again, why) = Hashes::open(&path, &identity(), &System).unwrap();
    assert_eq!((why, again.known(CHUNKS - 1).unwrap()), (None, Some(hash)));
    let grown = Identity { disk_bytes: 80 * 65536, ..identity() };
    let (other, why) = Hashes::open(&path, &grown, &System).unwrap();
    assert!(why.unwrap().contains("chunks of 65536"));
    assert_eq!(other.known(CHUNKS - 1).unwrap(), None);
    assert_ne!(other.hasher().of(b"chunk"), hash, "another key");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "the key is the agent's alone");
}

#[test]
fn a_life_that_was_killed_before_its_sync_is_not_believed() {
    let power = power(i64::MAX);
    let medium = Fragile::new(&power, blank(&identity(), [9; 16]));
    let load = || Hashes::load(Box::new(Arc::clone(&medium)), &identity()).unwrap().unwrap();
    let first = load();
    let hash = first.hasher().of(b"published");
    first.learn([(5, hash), (6, hash)]).unwrap();
    first.forget([6]).unwrap(); // whose sync makes it durable
    drop(first);
    let second = load();
    power.0.store(1, std::sync::atomic::Ordering::Relaxed);
    second.forget([5]).unwrap_err(); // written, not synced
    power.0.store(i64::MAX, std::sync::atomic::Ordering::Relaxed);
    let third = load();
    assert_eq!(third.known(5).unwrap(), None, "as the page cache shows it");
    third.forget([5]).unwrap();
    let (_, after) = open(medium.after_cut(&mut || false), i64::MAX);
    assert_eq!(after.unwrap().known(5).unwrap(), None, "and as the disk has it");
}
