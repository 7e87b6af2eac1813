//! Replies, sans-io.

use super::error::ErrorCode;
use super::export::BlockStatus;
use super::negotiate::Session;
use super::protocol::{
    ALLOCATION_ID, CHUNK_MAGIC, SIMPLE_REPLY_MAGIC, STATE_HOLE, STATE_ZERO, chunk,
};

/// Bytes before the payload of a simple reply.
pub(super) const SIMPLE_BYTES: usize = 16;
/// Bytes of a chunk's header.
pub(super) const CHUNK_HEADER_BYTES: usize = 20;
/// Bytes before the data of an `OFFSET_DATA` chunk: header and offset.
pub(super) const DATA_CHUNK_BYTES: usize = CHUNK_HEADER_BYTES + 8;
/// Most bytes of text in an error chunk.
const MESSAGE_BYTES_MAX: usize = 512;

/// Header of a simple reply.
pub(super) fn simple(cookie: u64, error: u32) -> [u8; SIMPLE_BYTES] {
    let mut bytes = [0; SIMPLE_BYTES];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// Header of a chunk.
pub(super) fn chunk_header(
    cookie: u64,
    kind: u16,
    last: bool,
    body_bytes: usize,
) -> [u8; CHUNK_HEADER_BYTES] {
    let flags = if last { chunk::FLAG_DONE } else { 0 };
    let length = u32::try_from(body_bytes).expect("no chunk is longer than a request may be");
    let mut bytes = [0; CHUNK_HEADER_BYTES];
    bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn whole_chunk(cookie: u64, kind: u16, last: bool, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&chunk_header(cookie, kind, last, body.len())[..], &body].concat()
}

/// Success of a request that has no data.
pub(super) fn done(session: Session, cookie: u64) -> Vec<u8> {
    if session.structured {
        whole_chunk(cookie, chunk::NONE, true, &[])
    } else {
        simple(cookie, 0).to_vec()
    }
}

/// The end of a request that did not succeed; `message` reaches clients that show it.
pub(super) fn error(session: Session, cookie: u64, code: ErrorCode, message: &str) -> Vec<u8> {
    if !session.structured {
        return simple(cookie, code.0).to_vec();
    }
    let message = &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)];
    let length = (message.len() as u16).to_be_bytes(); // at most MESSAGE_BYTES_MAX
    let parts: [&[u8]; 3] = [&code.0.to_be_bytes(), &length, message.as_bytes()];
    whole_chunk(cookie, chunk::ERROR, true, &parts)
}

/// A run of zeros in a read.
pub(super) fn hole(cookie: u64, offset: u64, length: u32, last: bool) -> Vec<u8> {
    let parts: [&[u8]; 2] = [&offset.to_be_bytes(), &length.to_be_bytes()];
    whole_chunk(cookie, chunk::OFFSET_HOLE, last, &parts)
}

/// The answer to BLOCK_STATUS.
pub(super) fn block_status(cookie: u64, extents: &[BlockStatus]) -> Vec<u8> {
    let mut body = ALLOCATION_ID.to_be_bytes().to_vec();
    for extent in extents {
        let hole = if extent.hole { STATE_HOLE } else { 0 };
        let zero = if extent.zero { STATE_ZERO } else { 0 };
        let length = u32::try_from(extent.length).unwrap_or(u32::MAX); // cut to the request before
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(&(hole | zero).to_be_bytes());
    }
    whole_chunk(cookie, chunk::BLOCK_STATUS, true, &[&body])
}

const _: () = assert!(MESSAGE_BYTES_MAX <= u16::MAX as usize);
