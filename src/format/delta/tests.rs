use std::fmt::Debug;
use std::path::PathBuf;

use super::*;
use crate::format::bytes::FormatError;
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, DISK_BYTES_MAX, DiskSpec, EpochBegin,
    WRITE_BYTES_MAX, ZERO_BYTES_MAX,
};

fn header() -> DeltaHeader {
    DeltaHeader {
        machine: MachineKey([0x11; 16]),
        generation: Generation(3),
        epoch: Epoch(2),
        id: DeltaId([0x22; 16]),
        previous: Some(DeltaId([0x33; 16])),
        first: Sequence(100),
        last: Sequence(110),
        created: Timestamp(1_700_000_000_000_000),
        data_key: 7,
        salt: [0x44; 32],
        commitment: [0x55; 32],
    }
}

fn frame(offset: u64, sealed_bytes: u32, plain_bytes: u32) -> FrameEntry {
    FrameEntry {
        offset,
        sealed_bytes,
        plain_bytes,
        compressed: sealed_bytes != plain_bytes + TAG_BYTES,
    }
}

fn entry(sequence: u64, offset: u64, length: u64, source: EntrySource) -> IndexEntry {
    IndexEntry {
        sequence: Sequence(sequence),
        disk: DiskIndex(1),
        extent: Extent::new(offset, length, ZERO_BYTES_MAX).unwrap(),
        source,
    }
}

fn at(frame: u32, offset: u32) -> EntrySource {
    EntrySource::Frame { frame, offset }
}

fn bookmark() -> Change {
    Change::Bookmark(Bookmark {
        id: BookmarkId([0x66; 16]),
        kind: BookmarkKind::ApplicationConsistent,
        time: Timestamp(1_700_000_000_000_001),
        name: "before the update".to_owned(),
    })
}

fn epoch_begin(epoch: u32) -> Change {
    Change::EpochBegin(EpochBegin {
        epoch: Epoch(epoch),
        disks: vec![DiskSpec {
            index: DiskIndex(1),
            name: "root".parse().unwrap(),
            size_bytes: 1 << 30,
        }],
    })
}

fn index() -> DeltaIndex {
    let mark = |sequence, change| Mark { sequence: Sequence(sequence), change };
    DeltaIndex {
        frames: vec![frame(168, 1000, 4096), frame(1168, 2064, 2048)],
        entries: vec![
            entry(102, 0, 4096, at(0, 0)),
            entry(103, 8192, 1024, at(1, 0)),
            entry(103, 9216, 512, EntrySource::Zero),
            entry(105, 1 << 20, 1 << 30, EntrySource::Zero),
            entry(109, 512, 1024, at(1, 1024)),
        ],
        marks: vec![
            mark(100, epoch_begin(2)),
            mark(101, Change::CatchUpBegin(CatchUp::InitialReplication)),
            mark(104, Change::CatchUpBegin(CatchUp::Dirty)),
            mark(108, Change::CatchUpEnd),
            mark(110, bookmark()),
        ],
    }
}

fn trailer() -> DeltaTrailer {
    DeltaTrailer { index: frame(3232, 300, 500), object_bytes: 3572 }
}

/// Compares with the golden files of this name: bytes in hexadecimal, and what they mean in words.
/// Files are added, never edited: set HOLDFAST_GOLDEN=new to write those that do not exist.
fn golden(name: &str, bytes: &[u8], meaning: &dyn Debug) {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/delta");
    let lines: Vec<_> = bytes.chunks(32).map(hex::encode).collect();
    for (ending, content) in [("hex", lines.join("\n")), ("txt", format!("{meaning:#?}"))] {
        let path = directory.join(format!("{name}.{ending}"));
        if !path.exists() && std::env::var("HOLDFAST_GOLDEN").is_ok_and(|set| set == "new") {
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(&path, content.clone() + "\n").unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap();
        assert_eq!(found.trim_end(), content, "{}", path.display());
    }
}

#[test]
fn golden_files() {
    let (header, index, trailer) = (header(), index(), trailer());
    golden("v1-header", &header.encode(), &header);
    golden("v1-index", &index.encode(), &index);
    golden("v1-trailer", &trailer.encode(), &trailer);
    let first = DeltaHeader { previous: None, ..header.clone() };
    golden("v1-header-first", &first.encode(), &first);
    for header in [&header, &first] {
        assert_eq!(&DeltaHeader::decode(&header.encode()).unwrap(), header);
    }
    assert_eq!(DeltaIndex::decode(&header, &index.encode()).unwrap(), index);
    assert_eq!(DeltaTrailer::decode(&trailer.encode()).unwrap(), trailer);
    let aad = index.frames[1].aad(&header.encode(), 1);
    golden("v1-aad", &aad, &"header, frame number 1, 2048 plain bytes, flags 0");
}

#[test]
fn the_page_names_what_the_code_has() {
    let page = include_str!("../../../docs/formats/delta.md");
    for fact in [
        format!("header {HEADER_BYTES} · "),
        format!(" · trailer {TRAILER_BYTES}"),
        "# Delta, version 1".to_owned(),
        "at most 65,536 frames, 262,144 entries, 65,536 marks".to_owned(),
    ] {
        assert!(page.contains(&fact), "docs/formats/delta.md does not say {fact:?}");
    }
    assert_eq!((FRAMES_MAX, ENTRIES_MAX, MARKS_MAX), (65_536, 262_144, 65_536));
}

#[test]
fn every_changed_bit_and_every_cut_is_an_error_or_another_value() {
    let (header, trailer) = (header(), trailer());
    let index = index().encode();
    let decode_index =
        |bytes: &[u8]| DeltaIndex::decode(&header, bytes).map(|index| index.encode());
    let decode_header =
        |bytes: &[u8]| DeltaHeader::decode(bytes).map(|header| header.encode().to_vec());
    let decode_trailer =
        |bytes: &[u8]| DeltaTrailer::decode(bytes).map(|trailer| trailer.encode().to_vec());
    type Decode<'a> = &'a dyn Fn(&[u8]) -> Result<Vec<u8>, FormatError>;
    let all: [(&[u8], Decode<'_>); 3] = [
        (&index, &decode_index),
        (&header.encode(), &decode_header),
        (&trailer.encode(), &decode_trailer),
    ];
    for (bytes, decode) in all {
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Header and index are proven by tags; here: no bit is ignored, none panics.
            if let Ok(again) = decode(&flipped) {
                assert_eq!(again, flipped, "bit {bit}");
            }
        }
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(decode(&[bytes, b"x"].concat()).is_err());
    }
    for bit in 0..TRAILER_BYTES * 8 {
        let mut flipped = trailer.encode();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(DeltaTrailer::decode(&flipped).is_err(), "bit {bit} of the trailer");
    }
}

#[test]
fn counts_are_bounded_before_anything_is_allocated() {
    for (at, field) in [(0, "frames"), (4, "entries"), (8, "marks")] {
        for count in [u32::MAX, 1_000] {
            let mut bytes = vec![0; 12];
            bytes[at..at + 4].copy_from_slice(&count.to_le_bytes());
            let message = DeltaIndex::decode(&header(), &bytes).unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
    }
}

/// Checks that an index with one thing changed is refused by writer and reader, naming `part`.
fn refused(part: &str, change: impl FnOnce(&mut DeltaIndex)) {
    let mut index = index();
    change(&mut index);
    let message = index.check(&header()).unwrap_err().to_string();
    assert!(message.contains(part), "{part}: {message}");
    assert!(DeltaIndex::decode(&header(), &index.encode()).is_err(), "{part}");
}

#[test]
fn an_index_that_breaks_a_rule_is_refused() {
    refused("entry", |index| index.entries[0].sequence = Sequence(99));
    refused("entry", |index| index.entries[4].sequence = Sequence(111));
    refused("entry", |index| index.entries.swap(0, 1));
    refused("entry", |index| index.entries[2].extent = index.entries[1].extent);
    refused("source of an entry", |index| index.entries[0].source = at(2, 0));
    refused("source of an entry", |index| index.entries[0].source = at(0, 512));
    refused("source of an entry", |index| index.entries[0].source = at(0, u32::MAX));
    let extent = |offset, length| Extent::new(offset, length, ZERO_BYTES_MAX).unwrap();
    refused("extent", |index| index.entries[3].extent = extent(DISK_BYTES_MAX, 512));
    refused("extent", |index| {
        index.entries[0].extent = extent(0, u64::from(WRITE_BYTES_MAX) + 512);
    });
    refused("plain bytes", |index| index.frames[0].plain_bytes = 0);
    refused("plain bytes", |index| {
        index.frames[1] = frame(1168, FRAME_PLAIN_BYTES_MAX + 17, FRAME_PLAIN_BYTES_MAX + 1);
    });
    refused("sealed bytes", |index| index.frames[0].sealed_bytes = TAG_BYTES);
    refused("sealed bytes", |index| index.frames[1].sealed_bytes += 1);
    refused("sealed bytes", |index| index.frames[1].compressed = true);
    refused("place of a mark", |index| index.marks[4].sequence = Sequence(109));
    refused("place of a mark", |index| index.marks[0].sequence = Sequence(101));
    refused("place of a mark", |index| index.marks[0].change = epoch_begin(3));
    refused("place of a mark", |index| index.marks.swap(1, 2));
    refused("number of entries", |index| {
        index.entries = vec![index.entries[3]; ENTRIES_MAX + 1];
    });
}

#[test]
fn a_trailer_that_points_elsewhere_is_refused() {
    for place in [frame(0, 300, 500), frame(3231, 300, 500), frame(u64::MAX, 300, 500)] {
        let trailer = DeltaTrailer { index: place, ..trailer() };
        let message = DeltaTrailer::decode(&trailer.encode()).unwrap_err().to_string();
        assert!(message.contains("place of the index"), "{message}");
    }
    let large = DeltaTrailer { index: frame(3232, 300, INDEX_PLAIN_BYTES_MAX + 1), ..trailer() };
    let message = DeltaTrailer::decode(&large.encode()).unwrap_err().to_string();
    assert!(message.contains("plain bytes"), "{message}");
}
