//! The checker of the kill tests is itself checked: each kind of wrong image must be found.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::oracle::{History, Write, describe, noise};

const SECTORS: u64 = 64;

fn history() -> History {
    let write = |number, disk, first_sector, sectors, zero| Write {
        number,
        disk,
        first_sector,
        sectors,
        zero,
    };
    History {
        writes: vec![
            write(1, 0, 0, 8, false),
            write(2, 1, 4, 8, false),
            write(3, 0, 4, 8, false),
            write(4, 1, 0, 6, true),
            write(5, 0, 20, 2, false),
            write(6, 1, 30, 2, false),
        ],
        ..History::default()
    }
}

fn image(history: &History, disk: u16, numbers: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; (SECTORS * 512) as usize];
    for write in history.writes.iter().filter(|w| w.disk == disk && numbers.contains(&w.number)) {
        let start = (write.first_sector * 512) as usize;
        let length = (write.sectors * 512) as usize;
        let payload = if write.zero { vec![0; length] } else { write.payload() };
        bytes[start..start + length].copy_from_slice(&payload);
    }
    bytes
}

fn check(folder: &Path, zero: &[u8], one: &[u8], from: u64, to: u64) -> Result<u64, String> {
    let paths: Vec<PathBuf> = (0..2).map(|n| folder.join(format!("{n}.img"))).collect();
    fs::write(&paths[0], zero).unwrap();
    fs::write(&paths[1], one).unwrap();
    history().check(&[paths[0].as_path(), paths[1].as_path()], from..=to)
}

#[test]
fn every_prefix_is_right_and_everything_else_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let history = history();
    let at = |disk, numbers: &[u64]| image(&history, disk, numbers);
    for cut in 0..=6_u64 {
        let all: Vec<u64> = (1..=cut).collect();
        let got = check(folder.path(), &at(0, &all), &at(1, &all), cut, cut);
        assert_eq!(got, Ok(cut));
    }
    let (d0, d1) = (at(0, &[1, 2, 3, 4, 5, 6]), at(1, &[1, 2, 3, 4, 5, 6]));
    // A hole: write 3 is missing though 5 is there.
    assert!(check(folder.path(), &at(0, &[1, 5]), &d1, 0, 6).is_err());
    // Two disks cut at different places.
    assert!(check(folder.path(), &at(0, &[1]), &d1, 0, 6).is_err());
    // A zero write that did not happen.
    assert!(check(folder.path(), &d0, &at(1, &[2, 6]), 0, 6).is_err());
    // Older bytes over newer ones.
    let mut reordered = d0.clone();
    reordered[4 * 512..5 * 512].copy_from_slice(&describe(1, 0, 4));
    assert!(check(folder.path(), &reordered, &d1, 0, 6).is_err());
    // A sector of another disk, of another place, with a flipped bit.
    for (disk, sector) in [(1, 4), (0, 5)] {
        let mut foreign = d0.clone();
        foreign[4 * 512..5 * 512].copy_from_slice(&describe(3, disk, sector));
        assert!(check(folder.path(), &foreign, &d1, 0, 6).is_err());
    }
    let mut flipped = d0.clone();
    flipped[4 * 512 + 100] ^= 1;
    assert!(check(folder.path(), &flipped, &d1, 0, 6).is_err());
    // Right, but an acknowledged write is missing: the cut lies below what is allowed.
    assert!(check(folder.path(), &at(0, &[1, 2, 3]), &at(1, &[1, 2, 3]), 5, 6).is_err());
}

#[test]
fn noise_that_lay_there_before_the_first_write_must_be_there_still() {
    let history = History { on_noise: true, ..history() };
    let disk = |number: u16, through: u64| {
        let mut bytes = noise(number, SECTORS);
        for write in history.writes.iter().filter(|w| w.disk == number && w.number <= through) {
            let start = (write.first_sector * 512) as usize;
            let length = (write.sectors * 512) as usize;
            let payload = if write.zero { vec![0; length] } else { write.payload() };
            bytes[start..start + length].copy_from_slice(&payload);
        }
        bytes
    };
    for cut in 0..=6 {
        assert_eq!(history.check_bytes(&[disk(0, cut), disk(1, cut)], cut..=cut), Ok(cut));
        for hole in [vec![0; 512], describe(u64::MAX, 0, 49).to_vec()] {
            let mut wrong = disk(0, cut);
            wrong[50 * 512..51 * 512].copy_from_slice(&hole);
            assert!(history.check_bytes(&[wrong, disk(1, cut)], 0..=6).is_err());
        }
    }
    // Noise where a write was.
    let mut older = disk(0, 6);
    older[20 * 512..21 * 512].copy_from_slice(&describe(u64::MAX, 0, 20));
    assert!(history.check_bytes(&[older, disk(1, 6)], 0..=6).is_err());
}
