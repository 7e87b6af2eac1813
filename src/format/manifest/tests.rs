use std::path::PathBuf;

use super::*;
use crate::format::bytes::FormatError;
use crate::model::{BookmarkId, BookmarkKind, DiskIndex};

fn id(byte: u8) -> DeltaId {
    DeltaId([byte; 16])
}

fn entry(byte: u8, generation: u64, epoch: u32, first: u64, last: u64) -> DeltaEntry {
    DeltaEntry {
        id: id(byte),
        generation: Generation(generation),
        epoch: Epoch(epoch),
        first: Sequence(first),
        last: Sequence(last),
        object_bytes: 4096 + u64::from(byte),
        source_bytes: 8192,
        created: Timestamp(1_769_860_800_000_000 + i64::from(byte)),
        catch_up: false,
        keeps_every_write: false,
        bookmarks: Vec::new(),
    }
}

fn bookmark(sequence: u64, kind: BookmarkKind, name: &str) -> BookmarkEntry {
    BookmarkEntry {
        sequence: Sequence(sequence),
        bookmark: Bookmark {
            id: BookmarkId([sequence as u8; 16]),
            kind,
            time: Timestamp(1_769_860_800_250_000),
            name: name.to_owned(),
        },
    }
}

fn epoch(number: u32, first: u64, disks: &[(u16, &str, u64)]) -> EpochEntry {
    let disk = |(index, name, size_bytes): &(u16, &str, u64)| DiskSpec {
        index: DiskIndex(*index),
        name: name.parse().unwrap(),
        size_bytes: *size_bytes,
    };
    EpochEntry {
        epoch: Epoch(number),
        first: Sequence(first),
        disks: disks.iter().map(disk).collect(),
    }
}

/// Truncated inside epoch 1, two pages, two owners, a resync, every flag.
fn full() -> Manifest {
    let page = |byte, first, last| PageEntry {
        id: id(byte),
        first: Sequence(first),
        last: Sequence(last),
        sha256: [byte; 32],
    };
    let mut middle = entry(0x22, 3, 2, 61, 70);
    middle.catch_up = true;
    let mut newest = entry(0x23, 4, 2, 71, 90);
    newest.catch_up = true;
    let mut marked = entry(0x21, 3, 1, 41, 60);
    marked.bookmarks = vec![
        bookmark(50, BookmarkKind::CrashConsistent, ""),
        bookmark(60, BookmarkKind::ApplicationConsistent, "before the upgrade"),
    ];
    Manifest {
        machine: "web-1".parse().unwrap(),
        generation: Generation(4),
        owner: "ps-b".parse().unwrap(),
        owned_since: Generation(3),
        version: 77,
        truncated: Sequence(10),
        published: Sequence(90),
        last_delta: Some(id(0x23)),
        catching_up: true,
        epochs: vec![
            epoch(1, 1, &[(0, "root", 1 << 30), (3, "data", 512)]),
            epoch(2, 61, &[(0, "root", 2 << 30)]),
        ],
        pages: vec![page(0x11, 11, 20), page(0x12, 21, 40)],
        entries: vec![marked, middle, newest],
    }
}

fn first() -> Manifest {
    Manifest::first("db".parse().unwrap(), "ps-a".parse().unwrap())
}

/// Everything that was published is truncated: the chain's end is still known.
fn emptied() -> Manifest {
    Manifest {
        truncated: Sequence(90),
        catching_up: true,
        pages: Vec::new(),
        entries: Vec::new(),
        ..full()
    }
}

/// Every write of the first and of the second delta is kept.
fn every_write() -> Manifest {
    let mut manifest = full();
    manifest.entries[0].keeps_every_write = true;
    manifest.entries[1].keeps_every_write = true;
    manifest
}

fn a_page() -> ManifestPage {
    ManifestPage { machine: "web-1".parse().unwrap(), entries: full().entries }
}

#[test]
fn what_is_written_comes_back() {
    for manifest in [full(), first(), emptied(), every_write()] {
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
    }
    let bytes = a_page().encode().unwrap();
    assert_eq!(ManifestPage::decode(&bytes).unwrap(), a_page());
}

fn golden() -> Vec<(&'static str, Vec<u8>, String)> {
    let manifest = |name, m: Manifest| (name, m.encode().unwrap(), format!("{m:#?}\n"));
    let page = a_page();
    vec![
        manifest("v1-first", first()),
        manifest("v1-full", full()),
        manifest("v1-emptied", emptied()),
        manifest("v1-every-write", every_write()),
        ("v1-page", page.encode().unwrap(), format!("{page:#?}\n")),
    ]
}

fn golden_path(name: &str, ending: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/manifest");
    directory.join(format!("{name}.{ending}"))
}

/// Files of earlier versions are never edited: their bytes, their text, and back.
#[test]
fn golden_files_mean_what_they_meant() {
    for (name, bytes, text) in golden() {
        let stored = std::fs::read(golden_path(name, "bin")).unwrap();
        let told = std::fs::read_to_string(golden_path(name, "txt")).unwrap();
        let (decoded, again) = match name {
            "v1-page" => {
                let page = ManifestPage::decode(&stored).unwrap();
                (format!("{page:#?}\n"), page.encode().unwrap())
            }
            _ => {
                let manifest = Manifest::decode(&stored).unwrap();
                (format!("{manifest:#?}\n"), manifest.encode().unwrap())
            }
        };
        assert_eq!(decoded, told, "{name}");
        assert_eq!(again, stored, "{name}");
        assert_eq!((bytes, text), (stored, told), "{name}");
    }
}

/// For a new version only: writes files that do not exist yet.
#[test]
#[ignore = "adds the golden files of a new version"]
fn add_golden_files() {
    for (name, bytes, text) in golden() {
        for (ending, content) in [("bin", bytes), ("txt", text.into_bytes())] {
            use std::io::Write;
            let file = std::fs::File::create_new(golden_path(name, ending));
            if let Ok(mut file) = file {
                file.write_all(&content).unwrap();
            }
        }
    }
}

#[test]
fn the_first_bytes_are_pinned_and_the_document_has_them() {
    let bytes = full().encode().unwrap();
    assert_eq!(hex::encode(&bytes[..12]), "48464d414e4946000100".to_owned() + "0300");
    let page = a_page().encode().unwrap();
    assert_eq!(hex::encode(&page[..12]), "48464d5041474500".to_owned() + "01000000");
    let document = include_str!("../../../docs/formats/manifest.md");
    for (name, bytes, _) in golden() {
        let row = format!("| `{name}` | {} | `{:08x}` |", bytes.len(), crc32fast::hash(&bytes));
        assert!(document.contains(&row), "docs/formats/manifest.md lacks {row}");
    }
}

#[test]
fn every_cut_and_every_addition_is_an_error() {
    let bytes = full().encode().unwrap();
    for length in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..length]).is_err(), "{length}");
    }
    let more = [bytes.as_slice(), &[0]].concat();
    let trailing = FormatError::Trailing { what: "the manifest", left: 1 };
    assert_eq!(Manifest::decode(&more).unwrap_err(), trailing);
    let bytes = a_page().encode().unwrap();
    for length in 0..bytes.len() {
        assert!(ManifestPage::decode(&bytes[..length]).is_err(), "{length}");
    }
}

/// Whatever byte is changed to whatever value: an error, or a manifest that is valid and another.
#[test]
fn no_changed_byte_panics_or_goes_unnoticed() {
    let original = full();
    let bytes = original.encode().unwrap();
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1, bytes[at].wrapping_add(1)] {
            let mut changed = bytes.clone();
            changed[at] = value;
            match Manifest::decode(&changed) {
                Ok(decoded) if value == bytes[at] => assert_eq!(decoded, original),
                Ok(decoded) => {
                    assert_ne!(decoded, original, "byte {at}");
                    assert_eq!(decoded.encode().unwrap(), changed, "one meaning, one encoding");
                }
                Err(_) => assert_ne!(value, bytes[at]),
            }
        }
    }
}

#[test]
fn a_count_is_not_believed_before_there_are_bytes_for_it() {
    let mut bytes = first().encode().unwrap();
    let length = bytes.len();
    for (back, field) in [(12, "manifest.epoch_count"), (8, "manifest.page_count")] {
        let at = length - back;
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = Manifest::decode(&bytes).unwrap_err();
        assert!(
            matches!(&error, FormatError::Value { field: found, .. } if *found == field),
            "{error}"
        );
        bytes[at..at + 4].copy_from_slice(&0_u32.to_le_bytes());
    }
}

/// Each rule, broken alone: refused before a write under its own field, so what decodes has it.
#[test]
fn each_broken_rule_has_its_error() {
    type Break = fn(&mut Manifest);
    let cases: &[(&str, Break)] = &[
        ("manifest.generation", |m| m.generation = Generation(0)),
        ("manifest.version", |m| m.version = 3),
        ("manifest.truncated", |m| m.truncated = Sequence(91)),
        ("manifest.last_delta", |m| m.last_delta = None),
        ("manifest.last_delta", |m| m.last_delta = Some(id(9))),
        ("manifest.published", |m| m.published = Sequence(91)),
        ("manifest.published", |m| m.published = Sequence(89)),
        ("manifest.flags", |m| m.entries[2].catch_up = false),
        ("page.first", |m| m.truncated = Sequence(9)),
        ("page.first", |m| m.pages[1].first = Sequence(22)),
        ("page.last", |m| m.pages[1].last = Sequence(20)),
        ("page.id", |m| m.pages[1].id = m.pages[0].id),
        ("entry.first", |m| m.pages[1].last = Sequence(41)),
        ("entry.first", |m| m.entries[1].first = Sequence(60)),
        ("entry.first", |m| m.entries[1].first = Sequence(62)),
        ("entry.last", |m| m.entries[1].last = Sequence(60)),
        ("entry.generation", |m| m.entries[0].generation = Generation(0)),
        ("entry.generation", |m| m.entries[1].generation = Generation(2)),
        ("entry.generation", |m| m.entries[2].generation = Generation(5)),
        ("entry.epoch", |m| m.entries[0].epoch = Epoch(2)),
        ("entry.epoch", |m| m.entries[1].epoch = Epoch(1)),
        ("entry.epoch", |m| m.epochs[1].first = Sequence(62)),
        ("entry.epoch", |m| m.epochs.clear()),
        ("entry.id", |m| m.entries[1].id = m.entries[0].id),
        ("epoch.number", |m| m.epochs[1].epoch = Epoch(1)),
        ("epoch.first", |m| m.epochs[1].first = Sequence(1)),
        ("epoch.first", |m| m.epochs.push(epoch(3, 91, &[(0, "root", 512)]))),
        ("epoch.disk_count", |m| m.epochs[0].disks.clear()),
        ("disk.index", |m| m.epochs[0].disks[1].index = DiskIndex(0)),
        ("disk.name", |m| m.epochs[0].disks[1].name = m.epochs[0].disks[0].name.clone()),
        ("disk.size_bytes", |m| m.epochs[0].disks[1].size_bytes = 513),
        ("bookmark.sequence", |m| m.entries[0].bookmarks[0].sequence = Sequence(40)),
        ("bookmark.sequence", |m| m.entries[0].bookmarks[0].sequence = Sequence(60)),
        ("bookmark.sequence", |m| m.entries[0].bookmarks[1].sequence = Sequence(61)),
        ("bookmark.name", |m| m.entries[0].bookmarks[0].bookmark.name = "n".repeat(129)),
    ];
    for (number, (expected, break_rule)) in cases.iter().enumerate() {
        let mut manifest = full();
        break_rule(&mut manifest);
        let error = manifest.encode().expect_err(expected);
        let FormatError::Value { field, .. } = &error else { panic!("{error}") };
        assert_eq!(field, expected, "case {number}: {error}");
    }
    let empty = ManifestPage { entries: Vec::new(), ..a_page() };
    assert!(empty.encode().is_err());
}
