//! One checked request → calls of the export → replies.
//!
//! Owns: what is sent for which outcome. Does not own: threads, the socket's lock, admission.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::error::ErrorCode;
use super::export::{BlockStatus, Export};
use super::negotiate::Session;
use super::protocol::chunk;
use super::reply;
use super::request::{Command, Request};

/// Data of one chunk, bytes: what a structured read holds in memory at a time.
pub(super) const READ_CHUNK_BYTES: u32 = 1 << 20;
/// Shorter runs of zeros travel as data: a chunk each would cost more than it saves.
const HOLE_BYTES_MIN: u64 = 64 << 10;
/// Most extents in one answer to BLOCK_STATUS; the client asks again from where it ends.
const EXTENTS_MAX: usize = 8192;

/// Where replies go; an error means that the client is gone.
pub(super) type Send<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

/// Bytes of memory that answering takes.
pub(super) fn memory_bytes(session: Session, request: &Request, command: Command) -> u32 {
    match command {
        Command::Read { whole } if whole || !session.structured => request.length,
        Command::Read { .. } => request.length.min(READ_CHUNK_BYTES),
        Command::Write { .. } => request.length,
        Command::Zero { .. }
        | Command::Flush
        | Command::BlockStatus { .. }
        | Command::Disconnect => 0,
    }
}

/// Carries out one request and sends everything that answers it.
///
/// # Errors
/// When sending fails.
pub(super) fn answer(
    export: &dyn Export,
    session: Session,
    request: &Request,
    command: Command,
    payload: Bytes,
    send: &mut Send<'_>,
) -> io::Result<()> {
    let (offset, length) = (request.offset, u64::from(request.length));
    let outcome = match command {
        Command::Read { whole } => return read(export, session, request, whole, send),
        Command::BlockStatus { one } => return status(export, session, request, one, send),
        Command::Disconnect => return Ok(()),
        Command::Write { fua } => export.write(offset, payload, fua),
        Command::Zero { trim, fua } => export.zero(offset, length, trim, fua),
        Command::Flush => export.flush(),
    };
    match outcome {
        Ok(()) => send(&reply::done(session, request.cookie)),
        Err(error) => refuse(session, request, &error, send),
    }
}

fn refuse(
    session: Session,
    request: &Request,
    error: &io::Error,
    send: &mut Send<'_>,
) -> io::Result<()> {
    let (offset, length) = (request.offset, request.length);
    let command = request.command;
    tracing::warn!(command, offset, length, %error, "nbd request failed");
    let code = ErrorCode::of(error);
    send(&reply::error(session, request.cookie, code, &error.to_string()))
}

fn read(
    export: &dyn Export,
    session: Session,
    request: &Request,
    whole: bool,
    send: &mut Send<'_>,
) -> io::Result<()> {
    let range = request.offset..request.offset + u64::from(request.length);
    if !session.structured {
        let mut bytes = vec![0; reply::SIMPLE_BYTES + request.length as usize];
        bytes[..reply::SIMPLE_BYTES].copy_from_slice(&reply::simple(request.cookie, 0));
        return match export.read(range.start, &mut bytes[reply::SIMPLE_BYTES..]) {
            Ok(()) => send(&bytes),
            Err(error) => refuse(session, request, &error, send),
        };
    }
    let parts = if whole {
        vec![(range, false)]
    } else {
        let status = if u64::from(request.length) >= HOLE_BYTES_MIN {
            export.block_status(range.start, range.end - range.start)
        } else {
            Ok(Vec::new())
        };
        match status {
            Ok(status) => read_parts(range, &status),
            Err(error) => return refuse(session, request, &error, send),
        }
    };
    let count = parts.len();
    for (number, (part, zero)) in parts.into_iter().enumerate() {
        let (last, length) = (number + 1 == count, part.end - part.start);
        if zero {
            send(&reply::hole(request.cookie, part.start, length as u32, last))?;
            continue;
        }
        let mut bytes = vec![0; reply::DATA_CHUNK_BYTES + length as usize];
        let (head, target) = bytes.split_at_mut(reply::DATA_CHUNK_BYTES);
        let body_bytes = 8 + target.len();
        let header = reply::chunk_header(request.cookie, chunk::OFFSET_DATA, last, body_bytes);
        head[..header.len()].copy_from_slice(&header);
        head[header.len()..].copy_from_slice(&part.start.to_be_bytes());
        match export.read(part.start, target) {
            Ok(()) => send(&bytes)?,
            Err(error) => return refuse(session, request, &error, send),
        }
    }
    Ok(())
}

/// Cuts a read into chunks, in order: `true` for zeros that need not travel.
pub(super) fn read_parts(range: Range<u64>, status: &[BlockStatus]) -> Vec<(Range<u64>, bool)> {
    let mut parts: Vec<(Range<u64>, bool)> = Vec::new();
    let mut at = range.start;
    let rest = BlockStatus { length: u64::MAX, hole: false, zero: false };
    for extent in status.iter().chain(std::iter::once(&rest)) {
        let end = at.saturating_add(extent.length).min(range.end);
        let zero = extent.zero && end - at >= HOLE_BYTES_MIN;
        while at < end {
            match parts.last_mut() {
                Some((data, false)) if !zero && data.end - data.start < READ_CHUNK_BYTES.into() => {
                    let room = u64::from(READ_CHUNK_BYTES) - (data.end - data.start);
                    data.end = end.min(at + room);
                    at = data.end;
                }
                _ => {
                    let most = if zero { end - at } else { READ_CHUNK_BYTES.into() };
                    parts.push((at..end.min(at + most), zero));
                    at = end.min(at + most);
                }
            }
        }
    }
    parts
}

fn status(
    export: &dyn Export,
    session: Session,
    request: &Request,
    one: bool,
    send: &mut Send<'_>,
) -> io::Result<()> {
    let length = u64::from(request.length);
    match export.block_status(request.offset, length) {
        Ok(extents) => {
            let most = if one { 1 } else { EXTENTS_MAX };
            let extents = merge(&extents, length, most);
            send(&reply::block_status(request.cookie, &extents))
        }
        Err(error) => refuse(session, request, &error, send),
    }
}

/// Joins equal neighbours and cuts to the request; never empty, as the protocol demands progress.
pub(super) fn merge(extents: &[BlockStatus], length: u64, most: usize) -> Vec<BlockStatus> {
    let mut merged: Vec<BlockStatus> = Vec::new();
    let mut left = length;
    for extent in extents.iter().filter(|extent| extent.length > 0) {
        let length = extent.length.min(left);
        if length == 0 {
            break;
        }
        let full = merged.len() == most;
        match merged.last_mut() {
            Some(last) if (last.hole, last.zero) == (extent.hole, extent.zero) => {
                last.length += length;
            }
            _ if full => break,
            _ => merged.push(BlockStatus { length, ..*extent }),
        }
        left -= length;
    }
    if merged.is_empty() {
        merged.push(BlockStatus { length, hole: false, zero: false });
    }
    merged
}
