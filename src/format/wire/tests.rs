//! Golden frames, their corruption, and whatever bytes a peer can think of.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::format::bytes::FormatError;
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, CaptureMode, CatchUp, Change, DiskIndex, DiskSpec, Epoch,
    EpochBegin, Extent, Generation, Incarnation, Payload, Record, Sequence, Timestamp,
    TrackingMode,
};

#[derive(Debug, PartialEq, Clone)]
enum Message {
    Agent(FromAgent),
    Server(FromServer),
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        let frame = match self {
            Self::Agent(message) => encode_from_agent(message),
            Self::Server(message) => encode_from_server(message),
        };
        [&frame.header[..], &frame.payload.to_bytes()].concat()
    }
}

/// Everything that follows the header is taken for its payload.
fn decode(bytes: &[u8]) -> Result<Message, FormatError> {
    let short =
        FormatError::Short { field: "header", at: 0, needed: HEADER_BYTES, left: bytes.len() };
    let (header, payload) = bytes.split_first_chunk().ok_or(short)?;
    let header = FrameHeader::decode(header)?;
    match header.kind().code() {
        0x20.. => decode_from_server(&header, payload).map(Message::Server),
        _ => decode_from_agent(&header, payload.to_vec().into()).map(Message::Agent),
    }
}

fn disks() -> Vec<DiskSpec> {
    let disk = |index, name: &str, size_bytes| DiskSpec {
        index: DiskIndex(index),
        name: name.parse().unwrap(),
        size_bytes,
    };
    vec![disk(0, "root", 1 << 30), disk(3, "logs", 1024)]
}

fn hello() -> Hello {
    Hello {
        version: VERSION,
        machine: "web-1".parse().unwrap(),
        agent: Incarnation([0xa5; 16]),
        epoch: Epoch(2),
        disks: disks(),
        witnessed: Sequence(40),
        last: Sequence(99),
    }
}

fn records() -> Vec<(&'static str, Change)> {
    let disk = DiskIndex(3);
    let payload = Payload::from((0..512).map(|i| (i % 251) as u8).collect::<Vec<_>>());
    vec![
        (
            "write",
            Change::Write {
                disk,
                extent: Extent::new(512, 512, PAYLOAD_BYTES_MAX).unwrap(),
                payload,
            },
        ),
        ("zero", Change::Zero { disk, extent: Extent::new(1 << 33, 1 << 30, 1 << 30).unwrap() }),
        (
            "bookmark",
            Change::Bookmark(Bookmark {
                id: BookmarkId([0x11; 16]),
                kind: BookmarkKind::ApplicationConsistent,
                time: Timestamp(1_700_000_000_000_000),
                name: "before the upgrade".into(),
            }),
        ),
        ("epoch-begin", Change::EpochBegin(EpochBegin { epoch: Epoch(2), disks: disks() })),
        ("catch-up-begin", Change::CatchUpBegin(CatchUp::InitialReplication)),
        ("catch-up-end", Change::CatchUpEnd),
    ]
}

fn from_agent() -> Vec<(&'static str, FromAgent)> {
    let id = BookmarkId([0x11; 16]);
    let reply = |outcome| FromAgent::Bookmark(BookmarkReply { id, outcome });
    vec![
        ("hello", FromAgent::Hello(hello())),
        (
            "progress",
            FromAgent::Progress(Progress {
                time: Timestamp(-1),
                mode: TrackingMode::CatchingUp,
                last: Sequence(99),
                dirty_bytes: 4096,
                total_bytes: 1 << 40,
                buffered_bytes: 512,
            }),
        ),
        ("bookmark-placed", reply(BookmarkOutcome::Placed(Sequence(100)))),
        ("bookmark-refused", reply(BookmarkOutcome::Refused("catching up".into()))),
        (
            "capture",
            FromAgent::Capture(Capture {
                disk: DiskIndex(3),
                mode: CaptureMode::Extents,
                why: "the ring was full: what was written is read again".into(),
            }),
        ),
        ("goodbye", FromAgent::Goodbye),
    ]
}

fn from_server() -> Vec<(&'static str, FromServer)> {
    vec![
        (
            "welcome",
            FromServer::Welcome(Welcome {
                server: "ps-1".parse().unwrap(),
                generation: Generation(7),
                epoch: Epoch(2),
                durable: Sequence(98),
                published: Sequence(40),
                credit_limit: 16 << 20,
                bookmark_interval_ms: 5000,
            }),
        ),
        (
            "ack",
            FromServer::Ack(Ack {
                durable: Sequence(98),
                published: Sequence(41),
                credit_limit: 17 << 20,
            }),
        ),
        (
            "bookmark-request",
            FromServer::BookmarkRequest(BookmarkRequest {
                id: BookmarkId([0x11; 16]),
                kind: BookmarkKind::CrashConsistent,
                name: "now".into(),
            }),
        ),
        (
            "refuse",
            FromServer::Refuse(Refuse {
                code: Refusal::Superseded,
                text: "a newer connection of web-1 took over".into(),
            }),
        ),
        (
            "redirect",
            FromServer::Redirect(Redirect {
                addresses: vec!["ps-2.example.com:9443".into(), "[2001:db8::2]:9443".into()],
                reason: "ps-2 serves web-1".into(),
            }),
        ),
    ]
}

fn messages() -> Vec<(&'static str, Message)> {
    let sequence = Sequence(0x0102_0304_0506_0708);
    let record = |(name, change)| (name, FromAgent::Record(Record { sequence, change }));
    let agent = from_agent().into_iter().chain(records().into_iter().map(record));
    let server = from_server().into_iter();
    agent
        .map(|(name, message)| (name, Message::Agent(message)))
        .chain(server.map(|(name, message)| (name, Message::Server(message))))
        .collect()
}

/// A format that changes needs a new version and new files; these are added, never edited.
#[test]
fn golden_frames_say_what_they_always_said() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/wire");
    for (name, message) in messages() {
        let (frame, text) =
            (directory.join(format!("1-{name}.frame")), directory.join(format!("1-{name}.txt")));
        if std::env::var_os("HOLDFAST_GOLDEN_ADD").is_some() && !frame.exists() {
            std::fs::write(&frame, message.encode()).unwrap();
            std::fs::write(&text, format!("{message:#?}\n")).unwrap();
        }
        let bytes = std::fs::read(&frame).unwrap();
        let decoded = decode(&bytes).unwrap();
        assert_eq!(format!("{decoded:#?}\n"), std::fs::read_to_string(&text).unwrap(), "{name}");
        assert_eq!(decoded, message, "{name}");
        assert_eq!(decoded.encode(), bytes, "{name}");
    }
}

#[test]
fn the_hello_is_pinned() {
    let hello = Message::Agent(FromAgent::Hello(Hello {
        version: 1,
        machine: "a".parse().unwrap(),
        agent: Incarnation([1; 16]),
        epoch: Epoch(2),
        disks: vec![DiskSpec { index: DiskIndex(3), name: "d".parse().unwrap(), size_bytes: 512 }],
        witnessed: Sequence(4),
        last: Sequence(5),
    }));
    let expected = "\
        4846 10 00 38000000 0000000000000000 0000 0000 00000000 0000000000000000 00000000 d58d655f \
        0100 01010101010101010101010101010101 02000000 0400000000000000 0500000000000000 \
        0100 61 0100 0300 0100 64 0002000000000000";
    assert_eq!(hex::encode(hello.encode()), expected.replace(' ', ""));
    assert_eq!((MAGIC, VERSION, PROTOCOL), (0x4648, 1, "holdfast/1"));
}

#[test]
fn every_flipped_bit_is_an_error() {
    for (name, message) in messages() {
        let good = message.encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "{name}, bit {bit}");
        }
        for cut in 0..good.len() {
            assert!(decode(&good[..cut]).is_err(), "{name}, cut at {cut}");
        }
        assert!(decode(&[&good[..], &[0]].concat()).is_err(), "{name}, one byte more");
    }
}

#[test]
fn a_claimed_length_is_refused_before_anything_is_allocated() {
    let frames = messages();
    for (name, message) in frames {
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&message.encode()[..HEADER_BYTES]);
        header[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let refused = FrameHeader::decode(&header);
        let Err(FormatError::Value { field, .. }) = refused else {
            panic!("{name}: {refused:?}");
        };
        assert_eq!(field, "payload length");
        // A write must say the same of its extent, and cannot say so much there either.
        header[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(FrameHeader::decode(&header).is_err(), "{name}");
    }
}

#[test]
fn a_hello_of_another_version_can_be_told_from_nonsense() {
    let frame = encode_from_agent(&FromAgent::Hello(Hello { version: 9, ..hello() }));
    let header = FrameHeader::decode(&frame.header).unwrap();
    assert_eq!(spoken_version(&frame.payload.to_bytes()), Ok(9));
    assert!(decode_from_agent(&header, frame.payload).is_err());
    assert!(spoken_version(&[1]).is_err());
}

#[test]
fn the_payload_of_a_write_is_not_copied() {
    let (_, change) = records().remove(0);
    let Change::Write { payload, .. } = &change else { unreachable!("the first is a write") };
    let address = payload.fragments()[0].as_ptr();
    let sequence = Sequence(1);
    let frame = encode_from_agent(&FromAgent::Record(Record { sequence, change }));
    assert_eq!(frame.payload.fragments()[0].as_ptr(), address);
    let header = FrameHeader::decode(&frame.header).unwrap();
    let decoded = decode_from_agent(&header, frame.payload).unwrap();
    let FromAgent::Record(Record { change: Change::Write { payload, .. }, .. }) = decoded else {
        panic!("a write came back as {decoded:?}");
    };
    assert_eq!(payload.fragments()[0].as_ptr(), address);
}

#[test]
fn long_sentences_are_cut_between_characters() {
    let text = format!("{}ü{}", "x".repeat(511), "y".repeat(200));
    let frame = encode_from_server(&FromServer::Refuse(Refuse { code: Refusal::Busy, text }));
    let header = FrameHeader::decode(&frame.header).unwrap();
    let FromServer::Refuse(refuse) =
        decode_from_server(&header, &frame.payload.to_bytes()).unwrap()
    else {
        panic!("no refusal came back");
    };
    assert_eq!(refuse.text, "x".repeat(511));
}

#[test]
fn a_redirect_names_one_to_eight_places() {
    let decoded = |addresses: Vec<String>| {
        let redirect = Redirect { addresses, reason: String::new() };
        let frame = encode_from_server(&FromServer::Redirect(redirect));
        let header = FrameHeader::decode(&frame.header).unwrap();
        decode_from_server(&header, &frame.payload.to_bytes())
    };
    let address = |bytes: usize| format!("{}:1", "h".repeat(bytes - 2));
    assert!(decoded(vec![address(ADDRESS_BYTES_MAX); ADDRESSES_MAX]).is_ok());
    let Ok(FromServer::Redirect(cut)) = decoded(vec![address(9); ADDRESSES_MAX + 1]) else {
        panic!("more addresses than fit are left out");
    };
    assert_eq!(cut.addresses.len(), ADDRESSES_MAX);
    for bad in ["", ":9443", "ps-2", "ps-2:", "ps-2:0", "ps-2:65536", "ps-2:x"] {
        assert!(decoded(vec![bad.to_owned()]).is_err(), "{bad:?}");
    }
    assert!(decoded(vec![address(ADDRESS_BYTES_MAX + 1)]).is_err());
    assert!(decoded(Vec::new()).is_err());
}

proptest! {
    /// Frames whose checksum is right and whose content is anything: an error, or exactly the
    /// bytes that the decoded message encodes to. One encoding a message, and never a panic.
    #[test]
    fn what_decodes_is_canonical(
        pick in 0usize..16,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let all = messages();
        let mut bytes = all[pick % all.len()].1.encode();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let crc = crc32fast::hash(&[&bytes[..36], &bytes[40..]].concat());
        bytes[36..40].copy_from_slice(&crc.to_le_bytes());
        if let Ok(message) = decode(&bytes) {
            prop_assert_eq!(message.encode(), bytes);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }
}
