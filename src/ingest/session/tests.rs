//! The protocol without a socket: who may say what, and what becomes of the stream.

use proptest::prelude::*;

use super::*;
use crate::format::wire::{HEADER_BYTES, PAYLOAD_BYTES_MAX};
use crate::ingest::stream::Order;
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, CaptureMode, CatchUp, DiskIndex, EpochBegin, Extent,
    Incarnation, Payload, Timestamp, TrackingMode,
};

const CREDIT: u64 = 4 << 20;

fn disks() -> Vec<DiskSpec> {
    let disk = |index, name: &str| DiskSpec {
        index: DiskIndex(index),
        name: name.parse().unwrap(),
        size_bytes: 8 << 20,
    };
    vec![disk(0, "root"), disk(2, "logs")]
}

fn hello() -> Hello {
    Hello {
        version: wire::VERSION,
        machine: "web-1".parse().unwrap(),
        agent: Incarnation([1; 16]),
        epoch: Epoch(0),
        disks: disks(),
        witnessed: Sequence::ZERO,
        last: Sequence::ZERO,
    }
}

fn standing(published: u64) -> Standing {
    Standing {
        server: "ps-1".parse().unwrap(),
        generation: Generation(3),
        published: Sequence(published),
        bookmark_interval_ms: 5000,
    }
}

/// A stream in its second epoch that is in order at record 10.
fn ordered() -> StreamState {
    StreamState { sequence: Sequence(10), epoch: Epoch(2), disks: disks(), order: Order::Ordered }
}

fn frame(message: &FromAgent) -> (FrameHeader, Payload) {
    let frame = wire::encode_from_agent(message);
    (FrameHeader::decode(&frame.header).unwrap(), frame.payload)
}

fn record(sequence: u64, change: Change) -> FromAgent {
    let sequence = Sequence(sequence);
    FromAgent::Record(Record { sequence, change })
}

fn write(disk: u16, offset: u64, bytes: usize) -> Change {
    Change::Write {
        disk: DiskIndex(disk),
        extent: Extent::new(offset, bytes as u64, PAYLOAD_BYTES_MAX).unwrap(),
        payload: vec![7; bytes].into(),
    }
}

fn bookmark() -> Change {
    Change::Bookmark(Bookmark {
        id: BookmarkId([9; 16]),
        kind: BookmarkKind::CrashConsistent,
        time: Timestamp(1),
        name: String::new(),
    })
}

fn epoch(epoch: u32) -> Change {
    Change::EpochBegin(EpochBegin { epoch: Epoch(epoch), disks: disks() })
}

struct Stand {
    session: Session,
    stream: StreamState,
}

impl Stand {
    fn new(hello: Hello, stream: StreamState) -> Self {
        let published = stream.sequence.0;
        let begun = Session::begin(hello, &stream, &standing(published), CREDIT);
        let session = begun.unwrap().0;
        Self { session, stream }
    }

    fn tracking() -> Self {
        let epoch = Epoch(2);
        Self::new(Hello { epoch, ..hello() }, ordered())
    }

    fn take(&mut self, message: &FromAgent) -> Result<Event, Refuse> {
        let (header, payload) = frame(message);
        self.session.handle_frame(&mut self.stream, &header, payload)
    }

    /// Whether the record is admitted; a refused one must leave the stream as it was.
    fn admits(&mut self, sequence: u64, change: Change) -> Result<(), String> {
        let before = self.stream.clone();
        match self.take(&record(sequence, change.clone())) {
            Ok(Event::Admit(admitted)) => {
                assert_eq!((admitted.sequence.0, admitted.change), (sequence, change));
                assert_eq!(self.stream.sequence.0, sequence);
                Ok(())
            }
            Ok(other) => panic!("a record became {other:?}"),
            Err(refuse) => {
                assert_eq!(refuse.code, Refusal::Protocol);
                assert_eq!(self.stream, before);
                Err(refuse.text)
            }
        }
    }
}

#[test]
fn a_stream_from_its_first_record_to_a_bookmark() {
    let mut stand = Stand::new(hello(), StreamState::default());
    let copy = Change::CatchUpBegin(CatchUp::InitialReplication);
    assert!(stand.admits(1, write(0, 0, 512)).unwrap_err().contains("epoch"));
    stand.admits(1, epoch(1)).unwrap();
    assert!(stand.admits(2, write(0, 0, 512)).unwrap_err().contains("initial replication"));
    assert!(stand.admits(2, bookmark()).is_err(), "nothing was copied yet");
    assert!(stand.admits(2, Change::CatchUpBegin(CatchUp::Dirty)).is_err());
    stand.admits(2, copy.clone()).unwrap();
    stand.admits(3, write(2, 4096, 1024)).unwrap();
    assert!(stand.admits(4, bookmark()).unwrap_err().contains("catch-up"));
    stand.admits(4, copy).unwrap(); // the agent restarted in the middle
    stand.admits(5, Change::CatchUpEnd).unwrap();
    assert!(stand.admits(6, Change::CatchUpEnd).unwrap_err().contains("not begun"));
    stand.admits(6, bookmark()).unwrap();
    stand.admits(7, Change::CatchUpBegin(CatchUp::Dirty)).unwrap();
    stand.admits(8, epoch(2)).unwrap(); // a resync may begin anywhere
}

#[test]
fn sequences_have_no_gap_and_no_repetition() {
    let mut stand = Stand::tracking();
    for wrong in [1, 10, 12, u64::MAX] {
        let text = stand.admits(wrong, write(0, 0, 512)).unwrap_err();
        assert!(text.contains("follows record 10"), "{text}");
    }
    stand.admits(11, write(0, 0, 512)).unwrap();
    assert!(stand.admits(11, write(0, 0, 512)).is_err());
    stand.stream.sequence = Sequence(u64::MAX);
    assert!(stand.admits(u64::MAX, bookmark()).is_err(), "the end of all sequences repeats");
}

#[test]
fn only_places_that_the_epoch_has() {
    let mut stand = Stand::tracking();
    for (disk, offset) in [(1, 0), (3, 0), (u16::MAX, 0), (0, 8 << 20), (2, (8 << 20) - 512)] {
        assert!(stand.admits(11, write(disk, offset, 1024)).is_err(), "disk {disk}, {offset}");
    }
    let zero =
        Change::Zero { disk: DiskIndex(0), extent: Extent::new(0, 16 << 20, 1 << 30).unwrap() };
    assert!(stand.admits(11, zero).unwrap_err().contains("over the end"));
    stand.admits(11, write(2, (8 << 20) - 512, 512)).unwrap();
}

#[test]
fn epochs_follow_each_other_and_have_the_hellos_disks() {
    let mut stand = Stand::tracking();
    for wrong in [1, 2, 4, u32::MAX] {
        assert!(stand.admits(11, epoch(wrong)).unwrap_err().contains("after epoch 2"));
    }
    let other = Change::EpochBegin(EpochBegin { epoch: Epoch(3), disks: disks()[..1].to_vec() });
    assert!(stand.admits(11, other).unwrap_err().contains("other disks"));
    stand.admits(11, epoch(3)).unwrap();
}

#[test]
fn an_agent_of_another_epoch_must_begin_one() {
    // Forgot everything; was set back; begun one that never arrived and lost what it had sent.
    for known in [0, 1, 3] {
        let epoch_known = Epoch(known);
        let mut stand = Stand::new(Hello { epoch: epoch_known, ..hello() }, ordered());
        assert!(stand.admits(11, write(0, 0, 512)).unwrap_err().contains("begin epoch 3"));
        stand.admits(11, epoch(3)).unwrap();
        stand.admits(12, Change::CatchUpBegin(CatchUp::InitialReplication)).unwrap();
    }
    // The same life sends again what stands before its new epoch.
    let (epoch_known, last) = (Epoch(3), Sequence(12));
    let mut stand = Stand::new(Hello { epoch: epoch_known, last, ..hello() }, ordered());
    stand.admits(11, write(0, 0, 512)).unwrap();
    stand.admits(12, epoch(3)).unwrap();
}

#[test]
fn histories_that_do_not_fit_are_foreign() {
    let begin = |hello, published| {
        Session::begin(hello, &ordered(), &standing(published), CREDIT)
            .map(|(_, welcome)| welcome)
            .map_err(|refuse| refuse.code)
    };
    let tracking = Hello { epoch: Epoch(2), ..hello() };
    let last = |last| Hello { last: Sequence(last), ..tracking.clone() };
    assert_eq!(begin(last(9), 8), Err(Refusal::Foreign));
    assert!(begin(last(10), 8).is_ok());
    assert!(begin(last(0), 8).is_ok(), "a new life has given out nothing");
    let witnessed = |at| Hello { witnessed: Sequence(at), ..tracking.clone() };
    assert!(begin(witnessed(9), 8).is_ok(), "a store that was set back: see below");
    let welcome = begin(witnessed(8), 8).unwrap();
    assert_eq!((welcome.durable.0, welcome.published.0, welcome.epoch.0), (10, 8, 2));
    let disks = disks()[..1].to_vec();
    assert_eq!(begin(Hello { disks, ..tracking }, 8), Err(Refusal::Protocol));
}

#[test]
fn where_the_store_was_set_back_only_a_new_epoch_may_follow() {
    let hello = Hello { epoch: Epoch(2), witnessed: Sequence(9), ..hello() };
    let mut stream = ordered();
    let (mut session, welcome) = Session::begin(hello, &stream, &standing(8), CREDIT).unwrap();
    let next = welcome.durable.next();
    let bookmark = Bookmark {
        id: crate::model::BookmarkId([1; 16]),
        kind: crate::model::BookmarkKind::CrashConsistent,
        time: Timestamp(0),
        name: String::new(),
    };
    let goes_on = Record { sequence: next, change: Change::Bookmark(bookmark) };
    let (header, payload) = frame(&FromAgent::Record(goes_on));
    let refused = session.handle_frame(&mut stream, &header, payload);
    assert_eq!(refused.unwrap_err().code, Refusal::Protocol);
    let begin = EpochBegin { epoch: Epoch(3), disks: disks() };
    let anew = Record { sequence: next, change: Change::EpochBegin(begin) };
    let (header, payload) = frame(&FromAgent::Record(anew));
    assert!(session.handle_frame(&mut stream, &header, payload).is_ok());
}

#[test]
fn the_hello_is_checked_before_anything_else() {
    let machine: MachineId = "web-1".parse().unwrap();
    let code = |message: &FromAgent| {
        let (header, payload) = frame(message);
        greet(&machine, &header, payload).map_err(|refuse| refuse.code)
    };
    assert_eq!(code(&FromAgent::Hello(hello())), Ok(hello()));
    let version = Hello { version: 2, ..hello() };
    assert_eq!(code(&FromAgent::Hello(version)), Err(Refusal::Version));
    let other = Hello { machine: "web-2".parse().unwrap(), ..hello() };
    assert_eq!(code(&FromAgent::Hello(other)), Err(Refusal::Identity));
    assert_eq!(code(&FromAgent::Goodbye), Err(Refusal::Protocol));
    assert_eq!(code(&record(1, epoch(1))), Err(Refusal::Protocol));
    let mut stand = Stand::tracking();
    let again = stand.take(&FromAgent::Hello(hello())).map_err(|refuse| refuse.code);
    assert_eq!(again, Err(Refusal::Protocol));
}

#[test]
fn credit_bounds_what_is_in_flight_and_a_full_cache_withholds_it() {
    let mut stand = Stand::tracking();
    for sequence in 11..14 {
        stand.admits(sequence, write(0, 0, 1 << 20)).unwrap();
    }
    assert!(stand.admits(14, write(0, 0, 1 << 20)).unwrap_err().contains("credit"));
    let at = |stand: &mut Stand, durable, full| {
        let window = if full { 0 } else { CREDIT };
        stand.session.poll_ack(Sequence(durable), Sequence(5), window)
    };
    let ack = at(&mut stand, 12, true).unwrap();
    assert_eq!((ack.durable.0, ack.credit_limit), (12, CREDIT));
    assert_eq!(ack.published.0, 10, "a watermark never falls");
    assert!(at(&mut stand, 12, true).is_none(), "no news");
    assert!(stand.admits(14, write(0, 0, 1 << 20)).is_err());
    let ack = at(&mut stand, 12, false).unwrap();
    assert_eq!(ack.credit_limit, CREDIT + 2 * ((1 << 20) + HEADER_BYTES as u64));
    stand.admits(14, write(0, 0, 1 << 20)).unwrap();
}

#[test]
fn words_that_are_no_records_pass_through() {
    let mut stand = Stand::tracking();
    let progress = Progress {
        time: Timestamp(1),
        mode: TrackingMode::Bitmap,
        last: Sequence(10),
        dirty_bytes: 1,
        total_bytes: 2,
        buffered_bytes: 3,
    };
    let event = stand.take(&FromAgent::Progress(progress));
    assert_eq!(event, Ok(Event::Progress(progress)));
    let mode = CaptureMode::Extents;
    let of = |disk| FromAgent::Capture(Capture { disk: DiskIndex(disk), mode, why: "full".into() });
    let spec = hello().disks[1].clone();
    let said = DiskCapture { disk: spec.name, mode, why: "full".into() };
    assert_eq!(stand.take(&of(spec.index.0)), Ok(Event::Capture(said)));
    let stranger = stand.take(&of(40)).map_err(|refuse| refuse.code);
    assert_eq!(stranger, Err(Refusal::Protocol), "a disk that is none of the hello's");
    assert_eq!(stand.take(&FromAgent::Goodbye), Ok(Event::Goodbye));
}

fn some_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0u16..4, 0u64..20_000, 1usize..4).prop_map(|(d, o, l)| write(d, o * 512, l * 512)),
        Just(bookmark()),
        (1u32..5).prop_map(epoch),
        Just(Change::CatchUpBegin(CatchUp::InitialReplication)),
        Just(Change::CatchUpBegin(CatchUp::Dirty)),
        Just(Change::CatchUpEnd),
    ]
}

proptest! {
    /// Any records in any order: no panic, the stream moves by one exactly when a record is
    /// admitted, and no bookmark is ever admitted outside write order.
    #[test]
    fn any_records_keep_the_rules(
        known in 0u32..4,
        records in prop::collection::vec((0u64..3, some_change()), 1..60),
    ) {
        let epoch = Epoch(known);
        let mut stand = Stand::new(Hello { epoch, ..hello() }, ordered());
        for (skew, change) in records {
            let next = stand.stream.sequence.0 + u64::from(skew != 0);
            let order = stand.stream.order;
            let admitted = stand.admits(next, change.clone()).is_ok();
            prop_assert!(!admitted || skew != 0);
            if matches!(change, Change::Bookmark(_)) && admitted {
                prop_assert_eq!(order, Order::Ordered);
            }
        }
    }

    /// Frames of any bytes behind a right checksum never panic.
    #[test]
    fn any_frame_is_survived(
        kind in prop::sample::select(vec![1u8, 2, 3, 4, 5, 6, 0x10, 0x11, 0x12, 0x13, 0x20, 0x21]),
        sequence in 0u64..13,
        payload in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut header = Vec::from(*b"HF");
        header.extend([kind, 0]);
        header.extend((payload.len() as u32).to_le_bytes());
        header.extend(sequence.to_le_bytes());
        header.extend([0; 20]);
        let crc = crc32fast::hash(&[&header[..], &payload[..]].concat());
        header.extend(crc.to_le_bytes());
        if let Ok(header) = FrameHeader::decode(header[..].try_into().unwrap()) {
            let mut stand = Stand::tracking();
            let payload = Payload::from(payload);
            let _ = greet(&"web-1".parse().unwrap(), &header, payload.clone());
            let _ = stand.session.handle_frame(&mut stand.stream, &header, payload);
        }
    }
}
