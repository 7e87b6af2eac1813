//! What every decoder promises for any bytes at all: it does not panic, it allocates no more than
//! the format's limits allow, and what it takes is written back as the same bytes (one meaning, one
//! encoding).
//!
//! Shared by the fuzz targets beside this file and by `tests/corpus.rs`. Each function says whether
//! the bytes were taken. Inputs behind a checksum are tried twice, the second time with the checksum
//! that belongs there: else no change of a byte would ever get past it.

use holdfast::format::bytes::Writer;
use holdfast::format::change::{ChangeKind, MARK_BYTES_MAX, decode_mark, encode_mark};
use holdfast::format::delta::{DeltaHeader, DeltaIndex, DeltaTrailer, HEADER_BYTES, TRAILER_BYTES};
use holdfast::format::manifest::{Manifest, ManifestPage};
use holdfast::format::seed_disk::{FOOTER_BYTES, Footer};
use holdfast::format::segment::{
    RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_SECTOR, SegmentHeader, record_crc,
};
use holdfast::format::wire;
use holdfast::model::{Checksum, Incarnation};

/// Gives bytes to a decoder; whether it took them.
pub(crate) type Decoder = fn(&[u8]) -> bool;

/// Every decoder and its name: that of its fuzz target and of its folder in `fuzz/corpus/`.
pub(crate) const DECODERS: [(&str, Decoder); 10] = [
    ("wire", wire),
    ("change", change),
    ("segment_header", segment_header),
    ("segment_record", segment_record),
    ("delta_header", delta_header),
    ("delta_trailer", delta_trailer),
    ("delta_index", delta_index),
    ("manifest", manifest),
    ("manifest_page", manifest_page),
    ("seed_disk", seed_disk),
];

/// A frame: header and payload, in both directions.
pub(crate) fn wire(bytes: &[u8]) -> bool {
    let crc_at = wire::HEADER_BYTES - 4;
    let repaired = repair(bytes, crc_at, |bytes| {
        let (head, rest) = bytes.split_at(crc_at);
        crc32fast::hash(&[head, &rest[4..]].concat()).to_le_bytes()
    });
    either(bytes, repaired, |bytes| {
        let Some((head, payload)) = bytes.split_first_chunk() else { return false };
        let Ok(header) = wire::FrameHeader::decode(head) else { return false };
        assert!(header.payload_length() <= wire::PAYLOAD_BYTES_MAX);
        assert_eq!(header.frame_bytes(), (head.len() as u64) + u64::from(header.payload_length()));
        let same = |frame: wire::Frame| {
            assert_eq!(frame.header, *head);
            assert_eq!(frame.payload, payload);
        };
        let agent = wire::decode_from_agent(&header, payload.to_vec().into());
        let server = wire::decode_from_server(&header, payload);
        match (agent, server) {
            (Ok(message), Err(_)) => same(wire::encode_from_agent(&message)),
            (Err(_), Ok(message)) => same(wire::encode_from_server(&message)),
            (Err(_), Err(_)) => return false,
            (Ok(agent), Ok(server)) => panic!("both directions: {agent:?}, {server:?}"),
        }
        true
    })
}

/// A mark's body behind the code of its kind.
pub(crate) fn change(bytes: &[u8]) -> bool {
    let Some((&code, body)) = bytes.split_first() else { return false };
    let Ok(kind) = ChangeKind::from_code(code) else { return false };
    let Ok(change) = decode_mark(kind, body) else { return false };
    assert!(kind.is_mark() && body.len() <= MARK_BYTES_MAX);
    assert_eq!(ChangeKind::of(&change), kind);
    let mut again = Writer::new();
    encode_mark(&change, &mut again);
    assert_eq!(again.0, body);
    true
}

/// The header of a cache segment; a blank one is taken, too.
pub(crate) fn segment_header(bytes: &[u8]) -> bool {
    let crc_at = SEGMENT_HEADER_SECTOR - 4;
    let repaired = repair(bytes, crc_at, |bytes| crc32fast::hash(&bytes[..crc_at]).to_le_bytes());
    either(bytes, repaired, |bytes| match SegmentHeader::decode(bytes) {
        Ok(Some(header)) => {
            assert_eq!(header.encode(), bytes);
            true
        }
        Ok(None) => {
            assert!(bytes.iter().all(|&byte| byte == 0));
            true
        }
        Err(_) => false,
    })
}

/// A record of a cache segment: of the incarnation and at the position that it claims.
pub(crate) fn segment_record(bytes: &[u8]) -> bool {
    let crc_at = RECORD_HEADER_BYTES - 4;
    let repaired = repair(bytes, crc_at, |bytes| {
        let length = u32_at(bytes, 4) as usize;
        let payload = &bytes[RECORD_HEADER_BYTES..];
        let payload = &payload[..length.min(payload.len())];
        crc32fast::hash(&[&bytes[..crc_at], payload].concat()).to_le_bytes()
    });
    either(bytes, repaired, |bytes| {
        if bytes.len() < RECORD_HEADER_BYTES {
            let nobody = Incarnation([0; 16]);
            assert!(RecordHeader::decode(bytes, nobody, 0).is_err());
            return false;
        }
        let (header, rest) = bytes.split_at(RECORD_HEADER_BYTES);
        let incarnation: [u8; 16] = std::array::from_fn(|at| header[8 + at]);
        let incarnation = Incarnation(incarnation);
        let position = u64::from_le_bytes(std::array::from_fn(|at| header[24 + at]));
        let elsewhere = position ^ 64;
        assert!(RecordHeader::decode(bytes, incarnation, elsewhere).is_err());
        let Ok((record, crc, payload)) = RecordHeader::decode(bytes, incarnation, position) else {
            return false;
        };
        assert!(RecordHeader::may_begin(bytes, incarnation));
        assert_eq!(payload, &rest[..payload.len()]);
        let again = record.encode(incarnation, Checksum::of(payload));
        assert_eq!(again, header);
        assert_eq!(record_crc(&again), crc);
        true
    })
}

/// A delta's header.
pub(crate) fn delta_header(bytes: &[u8]) -> bool {
    let Ok(header) = DeltaHeader::decode(bytes) else { return false };
    assert_eq!(header.encode(), bytes);
    true
}

/// A delta's trailer.
pub(crate) fn delta_trailer(bytes: &[u8]) -> bool {
    let crc_at = TRAILER_BYTES - 4;
    let repaired = repair(bytes, crc_at, |bytes| crc32fast::hash(&bytes[..crc_at]).to_le_bytes());
    either(bytes, repaired, |bytes| {
        let Ok(trailer) = DeltaTrailer::decode(bytes) else { return false };
        assert_eq!(trailer.encode(), bytes);
        assert_eq!(trailer.index.end() + TRAILER_BYTES as u64, trailer.object_bytes);
        true
    })
}

/// A delta's header and the plaintext of its index.
pub(crate) fn delta_index(bytes: &[u8]) -> bool {
    let Some((header, index)) = bytes.split_at_checked(HEADER_BYTES) else { return false };
    let Ok(header) = DeltaHeader::decode(header) else { return false };
    let Ok(decoded) = DeltaIndex::decode(&header, index) else { return false };
    assert_eq!(decoded.check(&header), Ok(()), "what decodes has every rule");
    assert_eq!(decoded.encode(), index);
    let frames: u64 = decoded.frames.iter().map(|frame| u64::from(frame.sealed_bytes)).sum();
    assert_eq!(decoded.frames_end(), HEADER_BYTES as u64 + frames, "frames lie without gaps");
    true
}

/// A manifest in the clear.
pub(crate) fn manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = Manifest::decode(bytes) else { return false };
    assert_eq!(manifest.encode().as_deref(), Ok(bytes));
    true
}

/// A manifest page in the clear.
pub(crate) fn manifest_page(bytes: &[u8]) -> bool {
    let Ok(page) = ManifestPage::decode(bytes) else { return false };
    assert_eq!(page.encode().as_deref(), Ok(bytes));
    true
}

/// The footer of a seed disk.
pub(crate) fn seed_disk(bytes: &[u8]) -> bool {
    let sum_at = 64;
    let repaired = if bytes.len() == FOOTER_BYTES {
        repair(bytes, sum_at, |bytes| {
            let others = bytes[..sum_at].iter().chain(&bytes[sum_at + 4..]);
            (!others.map(|&byte| u32::from(byte)).sum::<u32>()).to_be_bytes()
        })
    } else {
        None
    };
    either(bytes, repaired, |bytes| {
        let Ok(footer) = Footer::decode(bytes) else { return false };
        assert_eq!(footer.encode(), bytes);
        assert_eq!(Footer::new(footer.disk_bytes(), footer.id()), Ok(footer));
        true
    })
}

fn either(bytes: &[u8], repaired: Option<Vec<u8>>, taken: fn(&[u8]) -> bool) -> bool {
    let as_it_is = taken(bytes);
    repaired.is_some_and(|bytes| taken(&bytes)) || as_it_is
}

/// The bytes with their checksum's four replaced by `sum`; `None` when they end before.
fn repair(bytes: &[u8], at: usize, sum: impl FnOnce(&[u8]) -> [u8; 4]) -> Option<Vec<u8>> {
    if bytes.len() < at + 4 {
        return None;
    }
    let mut repaired = bytes.to_vec();
    repaired[at..at + 4].copy_from_slice(&sum(bytes));
    Some(repaired)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]))
}
