//! Every decoder against its corpus, against the golden files and against many changes of each:
//! the same code as the fuzz targets in `fuzz/`, without their engine, a few seconds long.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

use std::fs;
use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng, rngs::StdRng};

#[path = "../fuzz/decoders.rs"]
mod decoders;

use decoders::DECODERS;

/// Changes of each file for each decoder that takes it.
const CHANGES: u32 = 8_000;
/// Seeds are read by people and kept for ever: small ones only.
const SEED_BYTES_MAX: usize = 4096;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a folder, ascending.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A golden file's bytes; some are written in hexadecimal.
fn bytes_of(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    if path.extension().is_some_and(|end| end == "hex") {
        let digits: Vec<u8> =
            bytes.into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
        return hex::decode(digits).unwrap();
    }
    bytes
}

fn corpus(decoder: &str) -> Vec<PathBuf> {
    files(&root().join("fuzz/corpus").join(decoder))
}

/// The golden files that hold bytes of a format, not their text.
fn golden() -> Vec<PathBuf> {
    let all = files(&root().join("tests/golden"));
    all.into_iter().filter(|path| path.extension().is_none_or(|end| end != "txt")).collect()
}

#[test]
fn every_decoder_takes_its_corpus() {
    for (name, decoder) in DECODERS {
        let seeds = corpus(name);
        assert!(!seeds.is_empty(), "fuzz/corpus/{name} is empty");
        for path in seeds {
            let bytes = fs::read(&path).unwrap();
            assert!(bytes.len() <= SEED_BYTES_MAX, "{} is too large a seed", path.display());
            assert!(decoder(&bytes), "{} is refused", path.display());
        }
    }
}

#[test]
fn every_golden_file_is_taken_by_some_decoder() {
    for path in golden() {
        let bytes = bytes_of(&path);
        let takers = DECODERS.iter().filter(|(_, decoder)| decoder(&bytes)).count();
        // A whole object and what authenticates a frame are no decoder's input; an index is one
        // only behind its header.
        let name = path.file_stem().unwrap().to_str().unwrap();
        let expected = usize::from(!["v1-object", "v1-aad", "v1-index"].contains(&name));
        assert_eq!(takers, expected, "{}", path.display());
    }
}

#[test]
fn every_decoder_has_a_fuzz_target_and_a_test() {
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    let targets = files(&root().join("fuzz/fuzz_targets"));
    assert_eq!(targets.len(), DECODERS.len());
    assert_eq!(changed::TRIED, DECODERS.map(|(name, _)| name));
    for (name, _) in DECODERS {
        let target = root().join(format!("fuzz/fuzz_targets/{name}.rs"));
        let text = fs::read_to_string(target).unwrap();
        assert!(text.contains(&format!("decoders::{name}(bytes)")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}

/// Any change is refused, or means something that is written back as those very bytes.
fn changed_files_keep_every_promise(name: &str) {
    let number = DECODERS.iter().position(|(decoder, _)| *decoder == name).unwrap();
    let (_, decoder) = DECODERS[number];
    let mut seeds: Vec<_> = corpus(name).iter().map(|path| fs::read(path).unwrap()).collect();
    seeds.extend(golden().iter().map(|path| bytes_of(path)).filter(|bytes| decoder(bytes)));
    let mut random = StdRng::seed_from_u64(number as u64);
    let (mut taken, mut refused) = (0, 0);
    for seed in &seeds {
        for _ in 0..CHANGES {
            let changed = change(seed, &mut random);
            let outcome = std::panic::catch_unwind(|| decoder(&changed));
            match outcome.unwrap_or_else(|_| panic!("{name}, bytes {}", hex::encode(&changed))) {
                true => taken += u32::from(changed != *seed),
                false => refused += 1,
            }
        }
    }
    assert!(refused > 0, "{name} takes everything");
    assert!(taken > 0, "no change gets past {name}: its promises are not tried");
}

/// A test for each, so that one that fails hides no other.
macro_rules! changed {
    ($($name:ident)*) => {
        mod changed {
            $(#[test]
            fn $name() {
                super::changed_files_keep_every_promise(stringify!($name));
            })*

            pub(super) const TRIED: &[&str] = &[$(stringify!($name)),*];
        }
    };
}

changed! {
    wire change segment_header segment_record delta_header delta_trailer delta_index
    manifest manifest_page seed_disk
}

/// One to three small changes: those that break parsers.
fn change(seed: &[u8], random: &mut StdRng) -> Vec<u8> {
    const NUMBERS: [u64; 10] = [0, 1, 2, 0x7f, 0x80, 0xff, 0xffff, 1 << 20, 1 << 31, u64::MAX];
    let mut bytes = seed.to_vec();
    for _ in 0..=random.next_u32() % 3 {
        if bytes.is_empty() {
            return bytes;
        }
        let at = random.next_u32() as usize % bytes.len();
        let number = NUMBERS[random.next_u32() as usize % NUMBERS.len()];
        match random.next_u32() % 8 {
            0 => bytes[at] ^= 1 << (random.next_u32() % 8),
            1 => bytes[at] = number as u8,
            2 => bytes[at] = bytes[at].wrapping_add(1),
            3 => bytes.truncate(at),
            4 => bytes.insert(at, number as u8),
            5 => drop(bytes.remove(at)),
            6 => {
                let from = random.next_u32() as usize % bytes.len();
                bytes[at] = bytes[from];
            }
            _ => {
                let width = 1 << (1 + random.next_u32() % 3);
                let at = at - at % width;
                let end = bytes.len().min(at + width);
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
        }
    }
    bytes
}

/// Adds seeds that do not exist yet, made of the golden files.
#[test]
#[ignore = "adds seeds to fuzz/corpus"]
fn add_seeds() {
    let mut seeds: Vec<(String, String, Vec<u8>)> = Vec::new();
    for path in golden() {
        let bytes = bytes_of(&path);
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        for (name, _) in DECODERS.iter().filter(|(_, decoder)| decoder(&bytes)) {
            seeds.push(((*name).to_owned(), stem.clone(), bytes.clone()));
        }
        if stem.starts_with("1-") && (3..=6).contains(&bytes[2]) {
            let body = [&bytes[2..3], &bytes[40..]].concat();
            seeds.push(("change".to_owned(), stem, body));
        }
    }
    let delta = |name: &str| bytes_of(&root().join("tests/golden/delta").join(name));
    let index = [delta("v1-header.hex"), delta("v1-index.hex")].concat();
    seeds.push(("delta_index".to_owned(), "v1-index".to_owned(), index));
    let empty = [delta("v1-header.hex"), vec![0; 12]].concat();
    seeds.push(("delta_index".to_owned(), "v1-empty".to_owned(), empty));
    seeds.push(("segment_header".to_owned(), "blank".to_owned(), vec![0; 512]));
    for (name, stem, bytes) in seeds {
        let folder = root().join("fuzz/corpus").join(name);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(stem);
        if !path.exists() {
            fs::write(path, bytes).unwrap();
        }
    }
}
