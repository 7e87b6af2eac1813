//! A small blocking client, one request at a time.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use super::channel::{Channel, Peer};
use super::error::{ErrorCode, NbdError};
use super::export::BlockStatus;
use super::negotiate::length_of;
use super::protocol::{
    ALLOCATION, CHUNK_MAGIC, GREETING_MAGIC, OPTION_BYTES_MAX, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    REQUEST_BYTES_MAX, SIMPLE_REPLY_MAGIC, STATE_HOLE, STATE_ZERO, chunk, command, command_flag,
    handshake, info, option, option_reply, transmission,
};
use super::reply::{CHUNK_HEADER_BYTES, SIMPLE_BYTES};
use super::request::encode;
use crate::format::bytes::{FormatError, Reader};

type Result<T> = std::result::Result<T, NbdError>;
/// Kind and content of a reply to an option.
type OptionReply = (u32, Vec<u8>);

/// Longest run of one request that has no payload, bytes: 4 GiB less one block of any size.
const RUN_BYTES_MAX: u64 = (4 << 30) - (32 << 20);

/// Bytes of a disk whose dirty extents are asked for at a time: 64 KiB of them at most when a bit stands
/// for 64 KiB, and never more than [`STATUS_BYTES_MAX`].
const DIRTY_STEP_BYTES: u64 = 512 << 20;
/// Longest chunk that is taken and has no data, bytes: QEMU's longest block status, 1 MiB of extents.
const STATUS_BYTES_MAX: usize = (1 << 20) + 4;
/// Longest wait for a part of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to one export.
#[derive(Debug)]
pub struct Client {
    stream: Channel,
    server: Peer,
    /// The handshake is over.
    ready: bool,
    name: String,
    size_bytes: u64,
    flags: u16,
    structured: bool,
    /// The metadata context that extents are asked of, and its number here.
    wanted: String,
    context: Option<u32>,
    cookie: u64,
}

/// One request, for the request itself and for messages about it.
#[derive(Clone, Copy)]
struct Ask {
    command: u16,
    verb: &'static str,
    flags: u16,
    offset: u64,
    length: u32,
}

/// What the chunks of one reply have brought so far.
#[derive(Default)]
struct Taken {
    bytes: u64,
    extents: Vec<BlockStatus>,
    error: Option<ErrorCode>,
}

impl Client {
    /// Connects to export `name` at `socket`.
    ///
    /// # Errors
    /// When nobody answers there, or not with this export.
    pub fn connect(socket: &Path, name: &str) -> Result<Self> {
        Self::connect_to(&socket.into(), name)
    }

    /// The same of any server.
    ///
    /// # Errors
    /// As there; also when its certificate does not count, or it takes not ours.
    pub fn connect_to(server: &Peer, name: &str) -> Result<Self> {
        Self::connect_for(server, name, ALLOCATION)
    }

    /// The same, to ask for extents of another metadata context than `base:allocation`, such
    /// as `qemu:dirty-bitmap:NAME`.
    ///
    /// # Errors
    /// When nobody answers there, or not with this export.
    pub fn connect_for(server: &Peer, name: &str, context: &str) -> Result<Self> {
        let mut client = Self::greeted(server)?;
        (client.name, client.wanted) = (name.to_owned(), context.to_owned());
        client.negotiate()?;
        client.patience(None)?;
        client.ready = true;
        Ok(client)
    }

    /// Whether a server answers there, over TLS where that is how it is reached.
    #[must_use]
    pub fn answers(server: &Peer) -> bool {
        Self::greeted(server).is_ok()
    }

    fn greeted(server: &Peer) -> Result<Self> {
        let io = |action| {
            let server = server.to_string();
            move |source| NbdError::Io { server, action, source }
        };
        let mut client = Self {
            stream: Channel::dial(server).map_err(io("connecting"))?,
            server: server.clone(),
            ready: false,
            name: String::new(),
            size_bytes: 0,
            flags: 0,
            structured: false,
            wanted: String::new(),
            context: None,
            cookie: 0,
        };
        client.within(HANDSHAKE_TIMEOUT)?;
        client.greet()?;
        if matches!(server, Peer::Tls { .. }) {
            let (last, _) = client.option(option::STARTTLS, &[])?;
            if last != option_reply::ACK {
                return Err(client.refused(option::STARTTLS, last));
            }
            client.stream.secure(server).map_err(io("agreeing on TLS"))?;
            client.within(HANDSHAKE_TIMEOUT)?;
        }
        Ok(client)
    }

    /// No part of a reply is waited for longer than this; after that the client is of no use.
    ///
    /// # Errors
    /// What the system says.
    pub fn within(&mut self, patience: Duration) -> Result<()> {
        self.patience(Some(patience))
    }

    fn patience(&mut self, patience: Option<Duration>) -> Result<()> {
        let set = self.stream.within(patience);
        set.map_err(|source| self.io("setting a time limit", source))
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether the server refuses writes.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.flags & transmission::READ_ONLY != 0
    }

    /// Fills `target` from `offset`.
    ///
    /// # Errors
    /// What the server answers.
    pub fn read(&mut self, offset: u64, target: &mut [u8]) -> Result<()> {
        let mut at = offset;
        for part in target.chunks_mut(REQUEST_BYTES_MAX as usize) {
            let ask = ask(command::READ, "read", 0, at, part.len() as u64);
            self.request(ask, &[])?;
            self.reply(ask, Some(part))?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes; with `fua` it is durable when this returns.
    ///
    /// # Errors
    /// What the server answers.
    pub fn write(&mut self, offset: u64, payload: &[u8], fua: bool) -> Result<()> {
        let flags = if fua { command_flag::FUA } else { 0 };
        let mut at = offset;
        for part in payload.chunks(REQUEST_BYTES_MAX as usize) {
            let ask = ask(command::WRITE, "write", flags, at, part.len() as u64);
            self.request(ask, part)?;
            self.reply(ask, None)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Makes the range read as zeros.
    ///
    /// # Errors
    /// What the server answers.
    pub fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        self.run(command::WRITE_ZEROES, "zero", offset, length)
    }

    /// Says that the range is not needed any more.
    ///
    /// # Errors
    /// What the server answers.
    pub fn trim(&mut self, offset: u64, length: u64) -> Result<()> {
        self.run(command::TRIM, "trim", offset, length)
    }

    /// Makes all writes that returned before durable.
    ///
    /// # Errors
    /// What the server answers.
    pub fn flush(&mut self) -> Result<()> {
        let ask = ask(command::FLUSH, "flush", 0, 0, 0);
        self.request(ask, &[])?;
        self.reply(ask, None).map(drop)
    }

    /// The first extent of `base:allocation` in the range.
    ///
    /// # Errors
    /// What the server answers; a server without `base:allocation` is asked in vain.
    pub fn first_status(&mut self, offset: u64, length: u64) -> Result<BlockStatus> {
        let length = length.min(RUN_BYTES_MAX);
        let ask = ask(command::BLOCK_STATUS, "block status", command_flag::REQ_ONE, offset, length);
        let first = self.extents(ask)?[0];
        Ok(BlockStatus { length: first.length.min(length), ..first })
    }

    /// Where a `qemu:dirty-bitmap:` is dirty in the range, in order.
    ///
    /// # Errors
    /// What the server answers, or that it does not know the bitmap.
    pub fn dirty(&mut self, offset: u64, length: u64) -> Result<Vec<Range<u64>>> {
        if self.context.is_none() {
            return Err(self.malformed("metadata context", "none", &self.wanted));
        }
        let (mut at, end) = (offset, offset.saturating_add(length));
        let mut dirty: Vec<Range<u64>> = Vec::new();
        while at < end {
            let step = (end - at).min(DIRTY_STEP_BYTES);
            let ask = ask(command::BLOCK_STATUS, "dirty bitmap", 0, at, step);
            for extent in self.extents(ask)? {
                let until = (at + extent.length).min(end);
                match dirty.last_mut() {
                    // The bit that is `hole` in `base:allocation` says `dirty` here.
                    Some(last) if extent.hole && last.end == at => last.end = until,
                    _ if extent.hole => dirty.push(at..until),
                    _ => {}
                }
                at = until;
            }
        }
        Ok(dirty)
    }

    /// `base:allocation` of the whole range, in order.
    ///
    /// # Errors
    /// What the server answers; a server without `base:allocation` is asked in vain.
    pub fn block_status(&mut self, offset: u64, length: u64) -> Result<Vec<BlockStatus>> {
        let mut extents: Vec<BlockStatus> = Vec::new();
        let (mut at, end) = (offset, offset.saturating_add(length));
        while at < end {
            let ask =
                ask(command::BLOCK_STATUS, "block status", 0, at, (end - at).min(RUN_BYTES_MAX));
            for mut extent in self.extents(ask)? {
                extent.length = extent.length.min(end - at);
                at += extent.length;
                extents.push(extent);
            }
        }
        Ok(extents)
    }

    /// One or more, each longer than nothing: so whoever asks on behind them comes to an end.
    fn extents(&mut self, ask: Ask) -> Result<Vec<BlockStatus>> {
        self.request(ask, &[])?;
        let extents = self.reply(ask, None)?;
        if extents.is_empty() {
            return Err(self.malformed("extents", 0, "one"));
        }
        Ok(extents)
    }

    fn run(&mut self, number: u16, verb: &'static str, offset: u64, length: u64) -> Result<()> {
        let (mut at, end) = (offset, offset.saturating_add(length));
        while at < end {
            let ask = ask(number, verb, 0, at, (end - at).min(RUN_BYTES_MAX));
            self.request(ask, &[])?;
            self.reply(ask, None)?;
            at += u64::from(ask.length);
        }
        Ok(())
    }

    // ── handshake ────────────────────────────────────────────────────────────────────────────

    fn greet(&mut self) -> Result<()> {
        let greeting: [u8; 18] = self.receive("reading the greeting")?;
        let wanted = [GREETING_MAGIC, OPTION_MAGIC].concat();
        if greeting[..16] != wanted {
            let found = hex::encode(&greeting[..16]);
            return Err(self.malformed("greeting", found, "a newstyle NBD server"));
        }
        let offered = u16::from_be_bytes([greeting[16], greeting[17]]);
        let flags = offered & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        if flags & handshake::FIXED_NEWSTYLE == 0 {
            return Err(self.malformed("handshake flags", offered, "fixed newstyle"));
        }
        self.transmit(&u32::from(flags).to_be_bytes())
    }

    fn negotiate(&mut self) -> Result<()> {
        let (last, _) = self.option(option::STRUCTURED_REPLY, &[])?;
        self.structured = last == option_reply::ACK;
        let name = self.name.clone().into_bytes();
        if self.structured {
            let (query, one) = (self.wanted.clone().into_bytes(), 1u32.to_be_bytes());
            let parts = [&length_of(&name)[..], &name, &one, &length_of(&query), &query];
            let (_, replies) = self.option(option::SET_META_CONTEXT, &parts.concat())?;
            for (kind, body) in replies {
                if kind == option_reply::META_CONTEXT && body.len() >= 4 {
                    self.context = Some(be32(&body));
                }
            }
        }
        let wants = [1u16.to_be_bytes(), info::BLOCK_SIZE.to_be_bytes()].concat();
        let (last, replies) =
            self.option(option::GO, &[&length_of(&name)[..], &name, &wants].concat())?;
        if last != option_reply::ACK {
            return Err(self.refused(option::GO, last));
        }
        for (kind, body) in replies {
            let mut reader = Reader::new(&body);
            let mut parse = || -> std::result::Result<_, FormatError> {
                let what = u16::from_be_bytes(reader.array("information kind")?);
                if kind != option_reply::INFO || what != info::EXPORT {
                    return Ok(None);
                }
                let size = u64::from_be_bytes(reader.array("export size")?);
                Ok(Some((size, u16::from_be_bytes(reader.array("export flags")?))))
            };
            match parse() {
                Ok(Some((size_bytes, flags))) => {
                    (self.size_bytes, self.flags) = (size_bytes, flags);
                    return Ok(());
                }
                Ok(None) => {}
                Err(source) => return Err(self.format(source)),
            }
        }
        Err(self.malformed("reply to GO", "without the export's size", "its size"))
    }

    /// Sends an option; gives the kind of its final reply and the replies before that.
    fn option(&mut self, number: u32, body: &[u8]) -> Result<(u32, Vec<OptionReply>)> {
        let parts = [&OPTION_MAGIC[..], &number.to_be_bytes(), &length_of(body), body];
        self.transmit(&parts.concat())?;
        let mut replies = Vec::new();
        loop {
            let header: [u8; 20] = self.receive("reading a reply to an option")?;
            let magic = OPTION_REPLY_MAGIC.to_be_bytes();
            let (kind, length) = (be32(&header[12..]), be32(&header[16..]));
            if header[..8] != magic || header[8..12] != number.to_be_bytes() {
                return Err(self.malformed(
                    "option reply",
                    hex::encode(header),
                    "one to the option",
                ));
            }
            if length > OPTION_BYTES_MAX || replies.len() > 64 {
                return Err(self.malformed("option reply length", length, "a short reply"));
            }
            let body = self.receive_vec(length as usize)?;
            if kind == option_reply::ACK || kind & option_reply::ERROR != 0 {
                return Ok((kind, replies));
            }
            replies.push((kind, body));
        }
    }

    // ── requests and replies ─────────────────────────────────────────────────────────────────

    fn request(&mut self, ask: Ask, payload: &[u8]) -> Result<()> {
        self.cookie += 1;
        let header = encode(ask.flags, ask.command, self.cookie, ask.offset, ask.length);
        self.transmit(&header)?;
        self.transmit(payload)
    }

    /// Takes the whole reply to `ask`: data into `target`, extents as the result.
    fn reply(&mut self, ask: Ask, mut target: Option<&mut [u8]>) -> Result<Vec<BlockStatus>> {
        let mut taken = Taken::default();
        loop {
            let head: [u8; SIMPLE_BYTES] = self.receive("waiting for a reply")?;
            let magic = be32(&head);
            let cookie = u64::from_be_bytes(tail8(&head));
            if cookie != self.cookie {
                return Err(self.malformed("cookie of a reply", cookie, self.cookie));
            }
            if magic == SIMPLE_REPLY_MAGIC && (!self.structured || target.is_none()) {
                let error = be32(&head[4..]);
                if error != 0 {
                    return Err(self.answered(ask, ErrorCode(error)));
                }
                if let Some(target) = target {
                    self.receive_into(target, "reading data")?;
                }
                return Ok(Vec::new());
            }
            if magic != CHUNK_MAGIC || !self.structured {
                return Err(self.malformed("reply magic", format_args!("{magic:#x}"), "a reply"));
            }
            let length: [u8; CHUNK_HEADER_BYTES - SIMPLE_BYTES] =
                self.receive("reading a chunk")?;
            let last = head[5] & chunk::FLAG_DONE as u8 != 0;
            let kind = u16::from_be_bytes([head[6], head[7]]);
            let length = u32::from_be_bytes(length);
            self.chunk(ask, kind, length, target.as_deref_mut(), &mut taken)?;
            if last {
                break;
            }
        }
        let wanted = target.map_or(0, |target| target.len() as u64);
        match taken.error {
            Some(error) => Err(self.answered(ask, error)),
            None if taken.bytes != wanted => {
                Err(self.malformed("bytes of a read", taken.bytes, wanted))
            }
            None => Ok(taken.extents),
        }
    }

    fn chunk(
        &mut self,
        ask: Ask,
        kind: u16,
        length: u32,
        target: Option<&mut [u8]>,
        taken: &mut Taken,
    ) -> Result<()> {
        let length = length as usize;
        match (kind, target) {
            (chunk::OFFSET_DATA, Some(target)) if length > 8 => {
                let offset = u64::from_be_bytes(self.receive("reading a chunk")?);
                let part = self.part(ask, target, offset, length as u64 - 8)?;
                self.receive_into(part, "reading data")?;
                taken.bytes += length as u64 - 8;
            }
            (chunk::OFFSET_HOLE, Some(target)) if length == 12 => {
                let offset = u64::from_be_bytes(self.receive("reading a chunk")?);
                let zeros = u32::from_be_bytes(self.receive("reading a chunk")?);
                self.part(ask, target, offset, u64::from(zeros))?.fill(0);
                taken.bytes += u64::from(zeros);
            }
            _ if length > STATUS_BYTES_MAX => {
                return Err(self.malformed("chunk length", length, "a short chunk"));
            }
            (chunk::NONE, _) if length == 0 => {}
            (chunk::BLOCK_STATUS, _) => {
                let body = self.receive_vec(length)?;
                let context = body.get(..4).map(be32);
                let valid = context.is_some()
                    && context == self.context
                    && body.len() > 4
                    && (body.len() - 4).is_multiple_of(8);
                let rows = body.get(4..).unwrap_or_default();
                if !valid || rows.chunks(8).any(|row| be32(row) == 0) {
                    return Err(self.malformed(
                        "block status",
                        hex::encode(&body[..length.min(64)]),
                        "extents",
                    ));
                }
                taken.extents.extend(rows.chunks(8).map(|row| BlockStatus {
                    length: u64::from(be32(row)),
                    hole: be32(&row[4..]) & STATE_HOLE != 0,
                    zero: be32(&row[4..]) & STATE_ZERO != 0,
                }));
            }
            (kind, _) if kind & chunk::ERROR_BIT != 0 && length >= 6 => {
                let body = self.receive_vec(length)?;
                taken.error.get_or_insert(ErrorCode(be32(&body)));
            }
            (kind, _) => {
                return Err(self.malformed("chunk kind", kind, "one that fits the request"));
            }
        }
        Ok(())
    }

    fn part<'t>(
        &self,
        ask: Ask,
        target: &'t mut [u8],
        offset: u64,
        length: u64,
    ) -> Result<&'t mut [u8]> {
        let start = offset.checked_sub(ask.offset);
        let range =
            start.and_then(|start| Some(start as usize..start.checked_add(length)? as usize));
        let part = range.and_then(|range| target.get_mut(range));
        part.ok_or_else(|| self.malformed("chunk offset", offset, "inside the request"))
    }

    // ── bytes ────────────────────────────────────────────────────────────────────────────────

    fn transmit(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = self.stream.write_all(bytes);
        sent.map_err(|source| self.io("sending", source))
    }

    fn receive_into(&mut self, target: &mut [u8], action: &'static str) -> Result<()> {
        let received = self.stream.read_exact(target);
        received.map_err(|source| self.io(action, source))
    }

    fn receive<const N: usize>(&mut self, action: &'static str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.receive_into(&mut bytes, action)?;
        Ok(bytes)
    }

    fn receive_vec(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.receive_into(&mut bytes, "reading a reply")?;
        Ok(bytes)
    }

    fn io(&self, action: &'static str, source: io::Error) -> NbdError {
        let server = self.server.to_string();
        NbdError::Io { server, action, source }
    }

    fn format(&self, source: FormatError) -> NbdError {
        let server = self.server.to_string();
        NbdError::Format { server, source }
    }

    fn refused(&self, option: u32, reply: u32) -> NbdError {
        let (server, name) = (self.server.to_string(), self.name.clone());
        NbdError::Option { server, name, option, reply }
    }

    fn malformed(
        &self,
        field: &'static str,
        found: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> NbdError {
        self.format(FormatError::value(field, found, expected))
    }

    fn answered(&self, ask: Ask, error: ErrorCode) -> NbdError {
        NbdError::Request {
            server: self.server.to_string(),
            command: ask.verb,
            offset: ask.offset,
            length: u64::from(ask.length),
            error,
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.ready {
            return;
        }
        let goodbye = encode(0, command::DISCONNECT, self.cookie + 1, 0, 0);
        let _gone = self.stream.write_all(&goodbye); // whoever is gone needs no goodbye
    }
}

fn ask(command: u16, verb: &'static str, flags: u16, offset: u64, length: u64) -> Ask {
    let length = u32::try_from(length).expect("callers cut requests to what the protocol allows");
    Ask { command, verb, flags, offset, length }
}

fn be32(bytes: &[u8]) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[..4]);
    u32::from_be_bytes(four)
}

fn tail8(bytes: &[u8; SIMPLE_BYTES]) -> [u8; 8] {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[8..]);
    eight
}
