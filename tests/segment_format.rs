//! Golden files of the cache segment: decode equals the text form, encode equals the bytes, and every
//! single-byte corruption is found.
#![allow(clippy::unwrap_used, reason = "test code outside of test functions")]

use std::fs;
use std::path::PathBuf;

use holdfast::format::bytes::FormatError;
use holdfast::format::change::{ChangeKind, encode_mark};
use holdfast::format::segment::{
    KIND_END, KIND_VOID, RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_SECTOR, SegmentHeader,
    record_bytes, record_crc,
};
use holdfast::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, Change, Checksum, DiskIndex, DiskName, DiskSpec,
    Epoch, EpochBegin, Generation, Incarnation, MachineKey, Sequence, Timestamp,
};

const INCARNATION: Incarnation = Incarnation(*b"golden segment 1");

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/segment").join(name)
}

fn header(copy_of: Option<u64>) -> SegmentHeader {
    SegmentHeader {
        shard: 3,
        ordinal: 0x0102_0304_0506_0708,
        incarnation: INCARNATION,
        segment_bytes: 64 << 20,
        copy_of,
    }
}

/// One record of each kind, as (name, header, payload).
fn records() -> Vec<(&'static str, RecordHeader, Vec<u8>)> {
    let record = |kind: u8, payload: &[u8]| RecordHeader {
        payload_bytes: payload.len() as u32,
        kind,
        disk: DiskIndex(0),
        extent_bytes: 0,
        offset: 0,
        machine: MachineKey(*b"the machine key!"),
        sequence: Sequence(0x1122_3344_5566_7788),
        generation: Generation(0x99AA_BBCC_DDEE_FF00),
        position: 8192,
        durable_before: 4096,
        previous_crc: 0xA1B2_C3D4,
    };
    let place = |header: RecordHeader, bytes: u32| RecordHeader {
        disk: DiskIndex(2),
        extent_bytes: bytes,
        offset: 0x7_0000_0200,
        ..header
    };
    let mark = |change: &Change| {
        let mut body = holdfast::format::bytes::Writer::new();
        encode_mark(change, &mut body);
        let kind = ChangeKind::of(change).code();
        (record(kind, &body.0), body.0)
    };
    let bytes: Vec<u8> = (0..512u32).map(|n| (n * 7) as u8).collect();
    let bookmark = mark(&Change::Bookmark(Bookmark {
        id: BookmarkId(*b"a bookmark's id!"),
        kind: BookmarkKind::ApplicationConsistent,
        time: Timestamp(1_700_000_000_123_456),
        name: "before the upgrade".to_owned(),
    }));
    let epoch = mark(&Change::EpochBegin(EpochBegin {
        epoch: Epoch(2),
        disks: vec![DiskSpec {
            index: DiskIndex(2),
            name: "root".parse::<DiskName>().unwrap(),
            size_bytes: 40 << 30,
        }],
    }));
    let begin = mark(&Change::CatchUpBegin(CatchUp::Dirty));
    let end = mark(&Change::CatchUpEnd);
    let nobody = RecordHeader {
        machine: MachineKey([0; 16]),
        sequence: Sequence::ZERO,
        generation: Generation(0),
        ..record(KIND_END, &[])
    };
    vec![
        ("write", place(record(1, &bytes), 512), bytes),
        ("zero", place(record(2, &[]), 1 << 30), Vec::new()),
        ("bookmark", bookmark.0, bookmark.1),
        ("epoch-begin", epoch.0, epoch.1),
        ("catch-up-begin", begin.0, begin.1),
        ("catch-up-end", end.0, end.1),
        ("void", RecordHeader { generation: Generation(0), ..record(KIND_VOID, &[]) }, Vec::new()),
        ("end", nobody, Vec::new()),
    ]
}

fn files() -> Vec<(String, Vec<u8>, String)> {
    let mut files = Vec::new();
    for (name, header) in [("header", header(None)), ("header-copy", header(Some(77)))] {
        files.push((name.to_owned(), header.encode().to_vec(), format!("{header:#?}\n")));
    }
    for (name, header, payload) in records() {
        let mut bytes = header.encode(INCARNATION, Checksum::of(&payload)).to_vec();
        bytes.extend_from_slice(&payload);
        bytes.resize(record_bytes(header.payload_bytes) as usize, 0);
        files.push((format!("record-{name}"), bytes, format!("{header:#?}\n")));
    }
    files
}

/// Makes the files of kinds that have none yet; those that exist are never touched.
#[test]
#[ignore = "writes golden files: run once when a kind is added"]
fn add_golden_files() {
    for (name, bytes, text) in files() {
        for (path, content) in [
            (golden(&format!("{name}.bin")), bytes),
            (golden(&format!("{name}.txt")), text.into_bytes()),
        ] {
            if !path.exists() {
                fs::write(path, content).unwrap();
            }
        }
    }
}

#[test]
fn golden_files_decode_to_their_text_and_encode_to_their_bytes() {
    for (name, encoded, text) in files() {
        let bytes = fs::read(golden(&format!("{name}.bin"))).unwrap();
        assert_eq!(bytes, encoded, "{name}: encode");
        let found = match name.starts_with("record") {
            true => {
                let (header, crc, _) = RecordHeader::decode(&bytes, INCARNATION, 8192).unwrap();
                assert_eq!(crc, record_crc(bytes[..RECORD_HEADER_BYTES].try_into().unwrap()));
                format!("{header:#?}\n")
            }
            false => format!("{:#?}\n", SegmentHeader::decode(&bytes).unwrap().unwrap()),
        };
        let expected = fs::read_to_string(golden(&format!("{name}.txt"))).unwrap();
        assert_eq!(found, expected, "{name}: decode");
        assert_eq!(found, text, "{name}: text");
    }
}

#[test]
fn every_single_byte_corruption_is_found() {
    for (name, bytes, _) in files() {
        let is_record = name.starts_with("record");
        let covered = match is_record {
            true => {
                let (_, _, payload) = RecordHeader::decode(&bytes, INCARNATION, 8192).unwrap();
                RECORD_HEADER_BYTES + payload.len() // padding is not content
            }
            false => bytes.len(),
        };
        for at in 0..covered {
            for change in [1u8, 0x80, 0xFF] {
                let mut damaged = bytes.clone();
                damaged[at] ^= change;
                let is_found = match is_record {
                    true => RecordHeader::decode(&damaged, INCARNATION, 8192).is_err(),
                    false => SegmentHeader::decode(&damaged).is_err(),
                };
                assert!(is_found, "{name}: byte {at} ^ {change:#x}");
            }
        }
        for length in 0..covered {
            let is_found = match is_record {
                true => RecordHeader::decode(&bytes[..length], INCARNATION, 8192).is_err(),
                false => SegmentHeader::decode(&bytes[..length]).is_err(),
            };
            assert!(is_found, "{name}: cut to {length} bytes");
        }
    }
}

#[test]
fn zeros_are_a_blank_segment_and_never_a_record() {
    assert_eq!(SegmentHeader::decode(&[0; SEGMENT_HEADER_SECTOR]), Ok(None));
    let zeros = [0; 4096];
    for incarnation in [INCARNATION, Incarnation([0; 16])] {
        for position in [0, 8192] {
            assert!(RecordHeader::decode(&zeros, incarnation, position).is_err());
        }
        assert!(!RecordHeader::may_begin(&zeros, incarnation));
    }
}

#[test]
fn a_record_elsewhere_or_of_another_life_is_none() {
    let (_, header, payload) = records().swap_remove(0);
    let mut bytes = header.encode(INCARNATION, Checksum::of(&payload)).to_vec();
    bytes.extend_from_slice(&payload);
    let field = |result: Result<_, FormatError>| match result {
        Err(FormatError::Value { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let elsewhere = RecordHeader::decode(&bytes, INCARNATION, 8192 + 64).map(|_| ());
    assert_eq!(field(elsewhere), "position");
    let other = Incarnation(*b"another segment!");
    assert_eq!(field(RecordHeader::decode(&bytes, other, 8192).map(|_| ())), "incarnation");
    // A length is refused before anything is read by it.
    bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(field(RecordHeader::decode(&bytes, INCARNATION, 8192).map(|_| ())), "payload_bytes");
}

#[test]
fn the_layout_document_names_every_field() {
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/formats/cache-segment.md");
    let page = fs::read_to_string(page).unwrap();
    for word in [
        "HOLDSEGM",
        "HREC",
        "incarnation",
        "ordinal",
        "segment_bytes",
        "copy_of",
        "payload_bytes",
        "position",
        "durable_before",
        "previous_crc",
        "extent_bytes",
        "machine",
        "sequence",
        "| 82 | 1 | kind |",
        "| 92 | 4 | crc |",
        "| 508 | 4 | crc |",
        "255",
        "254",
    ] {
        assert!(page.contains(word), "{word} is missing");
    }
}
