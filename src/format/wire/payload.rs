//! Payloads: what stands behind a header, for every message of both sides.

use super::frame::Place;
use super::message::{
    Ack, BookmarkOutcome, BookmarkReply, BookmarkRequest, Capture, FromAgent, FromServer, Hello,
    Progress, Redirect, Refusal, Refuse, Welcome,
};
use super::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, Frame, FrameHeader, FrameKind, SENTENCE_BYTES_MAX};
use crate::format::bytes::{FormatError, Reader, Writer};
use crate::format::change::{
    BOOKMARK_NAME_BYTES_MAX, ChangeKind, NAME_BYTES_MAX, bookmark_kind, bookmark_kind_code,
    decode_mark, encode_mark, put_disks, read_disks,
};
use crate::model::{
    BookmarkId, CaptureMode, Change, Checksum, DiskIndex, Epoch, Extent, Generation, Incarnation,
    Payload, Record, Sequence, Timestamp, TrackingMode,
};

/// Encodes what an agent says. The payload of a write is shared, not copied.
#[must_use]
pub fn encode_from_agent(message: &FromAgent) -> Frame {
    let mut to = Writer::new();
    let kind = match message {
        FromAgent::Record(record) => return encode_record(record),
        FromAgent::Hello(hello) => {
            put_hello(hello, &mut to);
            FrameKind::Hello
        }
        FromAgent::Progress(progress) => {
            put_progress(progress, &mut to);
            FrameKind::Progress
        }
        FromAgent::Bookmark(reply) => {
            to.put(&reply.id.0);
            match &reply.outcome {
                BookmarkOutcome::Placed(at) => to.u8(1).u64(at.0),
                BookmarkOutcome::Refused(why) => to.u8(2).text(clipped(why)),
            };
            FrameKind::BookmarkReply
        }
        FromAgent::Capture(capture) => {
            to.u16(capture.disk.0).u8(capture_code(capture.mode)).text(clipped(&capture.why));
            FrameKind::Capture
        }
        FromAgent::Goodbye => FrameKind::Goodbye,
    };
    Frame::new(kind, Place::default(), to.0.into())
}

/// Encodes what a process server says.
#[must_use]
pub fn encode_from_server(message: &FromServer) -> Frame {
    let mut to = Writer::new();
    let kind = match message {
        FromServer::Welcome(welcome) => {
            to.u64(welcome.generation.0).u32(welcome.epoch.0);
            to.u64(welcome.durable.0).u64(welcome.published.0);
            to.u64(welcome.credit_limit);
            to.u32(welcome.bookmark_interval_ms);
            to.text(welcome.server.as_str());
            FrameKind::Welcome
        }
        FromServer::Ack(ack) => {
            to.u64(ack.durable.0).u64(ack.published.0);
            to.u64(ack.credit_limit);
            FrameKind::Ack
        }
        FromServer::BookmarkRequest(request) => {
            to.put(&request.id.0).u8(bookmark_kind_code(request.kind));
            to.text(&request.name);
            FrameKind::BookmarkRequest
        }
        FromServer::Refuse(refuse) => {
            to.u8(refusal_code(refuse.code)).text(clipped(&refuse.text));
            FrameKind::Refuse
        }
        FromServer::Redirect(redirect) => {
            put_redirect(redirect, &mut to);
            FrameKind::Redirect
        }
    };
    Frame::new(kind, Place::default(), to.0.into())
}

/// Decodes what an agent says; the payload of a write is kept, not copied.
///
/// # Errors
/// When header and payload do not belong together, or are no message of an agent.
pub fn decode_from_agent(header: &FrameHeader, payload: Payload) -> Result<FromAgent, FormatError> {
    header.verify(payload.checksum())?;
    if let FrameKind::Record(kind) = header.kind() {
        return decode_record(kind, header, payload);
    }
    let payload = payload.to_bytes();
    let mut from = Reader::new(&payload);
    let message = match header.kind() {
        FrameKind::Hello => FromAgent::Hello(read_hello(&mut from)?),
        FrameKind::Progress => FromAgent::Progress(read_progress(&mut from)?),
        FrameKind::BookmarkReply => FromAgent::Bookmark(read_bookmark_reply(&mut from)?),
        FrameKind::Capture => FromAgent::Capture(Capture {
            disk: DiskIndex(from.u16("disk")?),
            mode: capture_mode(from.u8("capture mode")?)?,
            why: from.text(SENTENCE_BYTES_MAX, "why")?.into(),
        }),
        FrameKind::Goodbye => FromAgent::Goodbye,
        FrameKind::Record(_)
        | FrameKind::Welcome
        | FrameKind::Ack
        | FrameKind::BookmarkRequest
        | FrameKind::Refuse
        | FrameKind::Redirect => {
            let found = format_args!("{:#04x}", header.kind().code());
            return Err(FormatError::value("frame type", found, "a type that agents send"));
        }
    };
    from.finish("a message")?;
    Ok(message)
}

/// Decodes what a process server says.
///
/// # Errors
/// When header and payload do not belong together, or are no message of a process server.
pub fn decode_from_server(header: &FrameHeader, payload: &[u8]) -> Result<FromServer, FormatError> {
    header.verify(Checksum::of(payload))?;
    let mut from = Reader::new(payload);
    let message = match header.kind() {
        FrameKind::Welcome => FromServer::Welcome(read_welcome(&mut from)?),
        FrameKind::Ack => FromServer::Ack(Ack {
            durable: Sequence(from.u64("durable")?),
            published: Sequence(from.u64("published")?),
            credit_limit: from.u64("credit limit")?,
        }),
        FrameKind::BookmarkRequest => FromServer::BookmarkRequest(BookmarkRequest {
            id: BookmarkId(from.array("bookmark id")?),
            kind: bookmark_kind(from.u8("bookmark kind")?)?,
            name: from.text(BOOKMARK_NAME_BYTES_MAX, "bookmark name")?.into(),
        }),
        FrameKind::Refuse => FromServer::Refuse(Refuse {
            code: refusal(from.u8("refusal")?)?,
            text: from.text(SENTENCE_BYTES_MAX, "refusal text")?.into(),
        }),
        FrameKind::Redirect => FromServer::Redirect(read_redirect(&mut from)?),
        FrameKind::Record(_)
        | FrameKind::Hello
        | FrameKind::Progress
        | FrameKind::BookmarkReply
        | FrameKind::Capture
        | FrameKind::Goodbye => {
            let found = format_args!("{:#04x}", header.kind().code());
            return Err(FormatError::value("frame type", found, "a type that servers send"));
        }
    };
    from.finish("a message")?;
    Ok(message)
}

/// The version that a hello's payload speaks: its first field in every version, so that another
/// version can be told from nonsense. The rest of the layout belongs to the version.
///
/// # Errors
/// When the payload ends before it.
pub fn spoken_version(hello: &[u8]) -> Result<u16, FormatError> {
    Reader::new(hello).u16("version")
}

fn encode_record(record: &Record) -> Frame {
    let place = |disk: DiskIndex, extent: Extent| Place {
        sequence: record.sequence,
        disk,
        extent_length: extent.length(),
        offset: extent.offset(),
    };
    let nowhere = Place { sequence: record.sequence, ..Place::default() };
    let kind = FrameKind::Record(ChangeKind::of(&record.change));
    match &record.change {
        Change::Write { disk, extent, payload } => {
            Frame::new(kind, place(*disk, *extent), payload.clone())
        }
        Change::Zero { disk, extent } => {
            Frame::new(kind, place(*disk, *extent), Payload::default())
        }
        Change::Bookmark(_)
        | Change::EpochBegin(_)
        | Change::CatchUpBegin(_)
        | Change::CatchUpEnd => {
            let mut body = Writer::new();
            encode_mark(&record.change, &mut body);
            Frame::new(kind, nowhere, body.0.into())
        }
    }
}

fn decode_record(
    kind: ChangeKind,
    header: &FrameHeader,
    payload: Payload,
) -> Result<FromAgent, FormatError> {
    let change = match kind {
        ChangeKind::Write => {
            let (disk, extent) = header.extent()?;
            Change::Write { disk, extent, payload }
        }
        ChangeKind::Zero => {
            let (disk, extent) = header.extent()?;
            Change::Zero { disk, extent }
        }
        mark => decode_mark(mark, &payload.to_bytes())?,
    };
    let sequence = header.sequence();
    Ok(FromAgent::Record(Record { sequence, change }))
}

fn put_hello(hello: &Hello, to: &mut Writer) {
    to.u16(hello.version).put(&hello.agent.0);
    to.u32(hello.epoch.0);
    to.u64(hello.witnessed.0).u64(hello.last.0);
    to.text(hello.machine.as_str());
    put_disks(&hello.disks, to);
}

fn read_hello(from: &mut Reader<'_>) -> Result<Hello, FormatError> {
    let version = from.u16("version")?;
    if version != super::VERSION {
        return Err(FormatError::value("version", version, super::VERSION));
    }
    let agent = Incarnation(from.array("agent")?);
    let epoch = Epoch(from.u32("epoch")?);
    let witnessed = Sequence(from.u64("witnessed")?);
    let last = Sequence(from.u64("last")?);
    let machine = from
        .text(NAME_BYTES_MAX, "machine")?
        .parse()
        .map_err(|error| FormatError::value("machine", error, "a name"))?;
    let disks = read_disks(from)?;
    Ok(Hello { version, machine, agent, epoch, disks, witnessed, last })
}

fn put_progress(progress: &Progress, to: &mut Writer) {
    let mode = match progress.mode {
        TrackingMode::Ordered => 1,
        TrackingMode::CatchingUp => 2,
        TrackingMode::Bitmap => 3,
    };
    to.i64(progress.time.0).u8(mode).u64(progress.last.0);
    to.u64(progress.dirty_bytes).u64(progress.total_bytes);
    to.u64(progress.buffered_bytes);
}

fn read_progress(from: &mut Reader<'_>) -> Result<Progress, FormatError> {
    let time = Timestamp(from.i64("time")?);
    let mode = match from.u8("tracking mode")? {
        1 => TrackingMode::Ordered,
        2 => TrackingMode::CatchingUp,
        3 => TrackingMode::Bitmap,
        other => return Err(FormatError::value("tracking mode", other, "1 to 3")),
    };
    Ok(Progress {
        time,
        mode,
        last: Sequence(from.u64("last")?),
        dirty_bytes: from.u64("dirty bytes")?,
        total_bytes: from.u64("total bytes")?,
        buffered_bytes: from.u64("buffered bytes")?,
    })
}

fn capture_code(mode: CaptureMode) -> u8 {
    match mode {
        CaptureMode::Ordered => 1,
        CaptureMode::Extents => 2,
        CaptureMode::Bitmap => 3,
    }
}

fn capture_mode(code: u8) -> Result<CaptureMode, FormatError> {
    Ok(match code {
        1 => CaptureMode::Ordered,
        2 => CaptureMode::Extents,
        3 => CaptureMode::Bitmap,
        other => return Err(FormatError::value("capture mode", other, "1 to 3")),
    })
}

fn read_bookmark_reply(from: &mut Reader<'_>) -> Result<BookmarkReply, FormatError> {
    let id = BookmarkId(from.array("bookmark id")?);
    let outcome = match from.u8("bookmark outcome")? {
        1 => BookmarkOutcome::Placed(Sequence(from.u64("sequence of a bookmark")?)),
        2 => BookmarkOutcome::Refused(from.text(SENTENCE_BYTES_MAX, "reason")?.into()),
        other => return Err(FormatError::value("bookmark outcome", other, "1 or 2")),
    };
    Ok(BookmarkReply { id, outcome })
}

fn read_welcome(from: &mut Reader<'_>) -> Result<Welcome, FormatError> {
    let generation = Generation(from.u64("generation")?);
    let epoch = Epoch(from.u32("epoch")?);
    let durable = Sequence(from.u64("durable")?);
    let published = Sequence(from.u64("published")?);
    let credit_limit = from.u64("credit limit")?;
    let bookmark_interval_ms = from.u32("bookmark interval")?;
    let server = from
        .text(NAME_BYTES_MAX, "process server")?
        .parse()
        .map_err(|error| FormatError::value("process server", error, "a name"))?;
    Ok(Welcome {
        server,
        generation,
        epoch,
        durable,
        published,
        credit_limit,
        bookmark_interval_ms,
    })
}

fn put_redirect(redirect: &Redirect, to: &mut Writer) {
    let addresses = &redirect.addresses[..redirect.addresses.len().min(ADDRESSES_MAX)];
    to.u8(u8::try_from(addresses.len()).expect("at most ADDRESSES_MAX"));
    for address in addresses {
        to.text(address);
    }
    to.text(clipped(&redirect.reason));
}

fn read_redirect(from: &mut Reader<'_>) -> Result<Redirect, FormatError> {
    let count = usize::from(from.u8("number of addresses")?);
    if !(1..=ADDRESSES_MAX).contains(&count) {
        let expected = format_args!("1 to {ADDRESSES_MAX}");
        return Err(FormatError::value("number of addresses", count, expected));
    }
    let mut addresses = Vec::with_capacity(count);
    for _ in 0..count {
        addresses.push(read_address(from)?);
    }
    let reason = from.text(SENTENCE_BYTES_MAX, "reason")?.into();
    Ok(Redirect { addresses, reason })
}

fn read_address(from: &mut Reader<'_>) -> Result<String, FormatError> {
    let address = from.text(ADDRESS_BYTES_MAX, "address")?;
    let host_and_port = address.rsplit_once(':');
    let port = host_and_port.filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse());
    match port {
        Some(Ok(1..=u16::MAX)) => Ok(address.into()),
        _ => Err(FormatError::value("address", format_args!("{address:?}"), "host:port")),
    }
}

fn refusal_code(code: Refusal) -> u8 {
    match code {
        Refusal::Version => 1,
        Refusal::Identity => 2,
        Refusal::Protocol => 3,
        Refusal::Foreign => 4,
        Refusal::NotOwner => 5,
        Refusal::Busy => 6,
        Refusal::Superseded => 7,
    }
}

fn refusal(code: u8) -> Result<Refusal, FormatError> {
    Ok(match code {
        1 => Refusal::Version,
        2 => Refusal::Identity,
        3 => Refusal::Protocol,
        4 => Refusal::Foreign,
        5 => Refusal::NotOwner,
        6 => Refusal::Busy,
        7 => Refusal::Superseded,
        other => return Err(FormatError::value("refusal", other, "1 to 7")),
    })
}

/// Sentences for people are made of causes whose length nobody bounds: cut, never refused.
fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(SENTENCE_BYTES_MAX)]
}
