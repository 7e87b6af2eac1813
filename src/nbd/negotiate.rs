//! The server's side of the handshake, sans-io: one option in, the bytes to send out.
//!
//! Owns: which options are answered how. Does not own: the socket, the deadline.

use super::protocol::{
    ALLOCATION, ALLOCATION_ID, BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, GREETING_MAGIC,
    OPTION_BYTES_MAX, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_BYTES_MAX, handshake, info, option,
    option_reply, transmission,
};
use crate::format::bytes::{FormatError, Reader};

/// Bytes of an option's header.
pub(super) const OPTION_HEADER_BYTES: usize = 16;

/// What a client and this server have agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Session {
    /// Replies come in chunks that say what they are.
    pub(super) structured: bool,
    /// `base:allocation` may be asked for.
    pub(super) allocation: bool,
}

/// What follows an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another option.
    Option,
    /// TLS, and then other options.
    Secure,
    /// Requests.
    Transmit(Session),
    /// Nothing: the connection ends.
    Close,
}

/// The disk that is offered.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) read_only: bool,
}

/// Whether a connection is private, or has to become so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    /// Never: the socket's file says who may.
    Never,
    /// Nothing else is answered before it (the protocol's mode FORCEDTLS).
    Demanded,
    /// It is.
    Begun,
}

/// A handshake on its way.
#[derive(Debug)]
pub(super) struct Negotiation<'a> {
    offer: &'a Offer,
    no_zeroes: bool,
    tls: Tls,
    structured: bool,
    /// The export name for which `base:allocation` was chosen: it counts for no other.
    allocation_of: Option<String>,
}

/// The server's first 18 bytes.
pub(super) fn greeting() -> Vec<u8> {
    let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
    [&GREETING_MAGIC[..], &OPTION_MAGIC, &flags.to_be_bytes()].concat()
}

/// Number and data length of an option.
///
/// # Errors
/// When it is no option, or longer than any that makes sense.
pub(super) fn option_header(
    bytes: &[u8; OPTION_HEADER_BYTES],
) -> Result<(u32, usize), FormatError> {
    let mut reader = Reader::new(bytes);
    let magic = reader.array::<8>("option magic")?;
    if magic != OPTION_MAGIC {
        return Err(FormatError::value("option magic", hex::encode(magic), "IHAVEOPT"));
    }
    let number = u32::from_be_bytes(reader.array("option number")?);
    let length = u32::from_be_bytes(reader.array("option length")?);
    if length > OPTION_BYTES_MAX {
        let most = format_args!("at most {OPTION_BYTES_MAX}");
        return Err(FormatError::value("option length", length, most));
    }
    Ok((number, length as usize))
}

impl<'a> Negotiation<'a> {
    /// After the client's four bytes of flags.
    ///
    /// # Errors
    /// When it sets flags that this server did not offer.
    pub(super) fn begin(
        offer: &'a Offer,
        tls: Tls,
        client_flags: [u8; 4],
    ) -> Result<Self, FormatError> {
        let flags = u32::from_be_bytes(client_flags);
        let known = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        if flags & !known != 0 {
            let found = format_args!("{flags:#x}");
            return Err(FormatError::value("client flags", found, "bits 0 and 1"));
        }
        Ok(Self {
            offer,
            no_zeroes: flags & u32::from(handshake::NO_ZEROES) != 0,
            tls,
            structured: false,
            allocation_of: None,
        })
    }

    /// Answers one option: bytes to send, and what follows.
    pub(super) fn answer(&mut self, number: u32, data: &[u8]) -> (Vec<u8>, Next) {
        if self.tls == Tls::Demanded {
            return self.before_tls(number, data);
        }
        let mut out = Replies::to(number);
        let outcome = match number {
            option::STARTTLS if self.tls == Tls::Begun => Ok(option_reply::ERR_INVALID),
            option::EXPORT_NAME => return self.export_name(data),
            option::ABORT => {
                out.push(option_reply::ACK, &[]);
                return (out.bytes, Next::Close);
            }
            option::LIST => self.list(data, &mut out),
            option::INFO | option::GO => self.describe(data, &mut out),
            option::STRUCTURED_REPLY => Reader::new(data).finish("option").map(|()| {
                self.structured = true;
                option_reply::ACK
            }),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.contexts(number == option::SET_META_CONTEXT, data, &mut out)
            }
            _ => Ok(option_reply::ERR_UNSUP),
        };
        let last = outcome.unwrap_or_else(|error| {
            tracing::debug!(%error, number, "nbd client sent a malformed option");
            out.bytes.clear();
            option_reply::ERR_INVALID
        });
        out.push(last, &[]);
        if number == option::GO && last == option_reply::ACK {
            let name = Reader::new(data).name().unwrap_or_default();
            return (out.bytes, Next::Transmit(self.session(&name)));
        }
        (out.bytes, Next::Option)
    }

    /// Whatever would tell something of the disk is refused; the oldest option has no refusal.
    fn before_tls(&mut self, number: u32, data: &[u8]) -> (Vec<u8>, Next) {
        let (last, next) = match number {
            option::EXPORT_NAME => return (Vec::new(), Next::Close),
            option::ABORT => (option_reply::ACK, Next::Close),
            option::STARTTLS if data.is_empty() => {
                self.tls = Tls::Begun;
                (option_reply::ACK, Next::Secure)
            }
            option::STARTTLS => (option_reply::ERR_INVALID, Next::Option),
            _ => (option_reply::ERR_TLS_REQD, Next::Option),
        };
        let mut out = Replies::to(number);
        out.push(last, &[]);
        (out.bytes, next)
    }

    fn serves(&self, name: &str) -> bool {
        name.is_empty() || name == self.offer.name // the empty name asks for the default export
    }

    fn session(&self, name: &str) -> Session {
        Session {
            structured: self.structured,
            allocation: self.structured && self.allocation_of.as_deref() == Some(name),
        }
    }

    fn flags(&self) -> u16 {
        let mut flags = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::CAN_MULTI_CONN;
        if self.offer.read_only {
            flags |= transmission::READ_ONLY;
        } else {
            flags |= transmission::SEND_TRIM | transmission::SEND_WRITE_ZEROES;
        }
        if self.structured {
            flags |= transmission::SEND_DF;
        }
        flags
    }

    /// The oldest option has no error reply: a wrong name ends the connection.
    fn export_name(&self, data: &[u8]) -> (Vec<u8>, Next) {
        let Ok(name) = std::str::from_utf8(data) else {
            return (Vec::new(), Next::Close);
        };
        if !self.serves(name) {
            return (Vec::new(), Next::Close);
        }
        let mut bytes = self.offer.size_bytes.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.flags().to_be_bytes());
        if !self.no_zeroes {
            bytes.resize(bytes.len() + 124, 0);
        }
        (bytes, Next::Transmit(self.session(name)))
    }

    fn list(&self, data: &[u8], out: &mut Replies) -> Result<u32, FormatError> {
        Reader::new(data).finish("option")?;
        let name = self.offer.name.as_bytes();
        out.push(option_reply::SERVER, &[&length_of(name), name]);
        Ok(option_reply::ACK)
    }

    fn describe(&self, data: &[u8], out: &mut Replies) -> Result<u32, FormatError> {
        let mut reader = Reader::new(data);
        let name = reader.name()?;
        let count = u16::from_be_bytes(reader.array("information count")?);
        let mut wants_name = false;
        for _ in 0..count {
            let wanted = u16::from_be_bytes(reader.array("information request")?);
            wants_name |= wanted == info::NAME;
        }
        reader.finish("option")?;
        if !self.serves(&name) {
            return Ok(option_reply::ERR_UNKNOWN);
        }
        let kind = u16::to_be_bytes;
        let (size, flags) = (self.offer.size_bytes.to_be_bytes(), self.flags().to_be_bytes());
        out.push(option_reply::INFO, &[&kind(info::EXPORT), &size, &flags]);
        if wants_name {
            let name = self.offer.name.as_bytes();
            out.push(option_reply::INFO, &[&kind(info::NAME), name]);
        }
        // Sent unasked, too: whoever ignores it learns by EINVAL that 512 is the smallest.
        let sizes = [BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, REQUEST_BYTES_MAX];
        let sizes = sizes.map(u32::to_be_bytes).concat();
        out.push(option_reply::INFO, &[&kind(info::BLOCK_SIZE), &sizes]);
        Ok(option_reply::ACK)
    }

    fn contexts(&mut self, set: bool, data: &[u8], out: &mut Replies) -> Result<u32, FormatError> {
        let mut reader = Reader::new(data);
        let name = reader.name()?;
        let count = u32::from_be_bytes(reader.array("query count")?);
        let mut chosen = count == 0 && !set; // listing without a query lists all
        for _ in 0..count {
            let query = reader.name()?;
            chosen |= query == ALLOCATION || (!set && query == "base:");
        }
        reader.finish("option")?;
        if set {
            self.allocation_of = None;
            if !self.structured {
                return Ok(option_reply::ERR_INVALID);
            }
        }
        if !self.serves(&name) {
            return Ok(option_reply::ERR_UNKNOWN);
        }
        if chosen {
            let id = ALLOCATION_ID.to_be_bytes();
            out.push(option_reply::META_CONTEXT, &[&id, ALLOCATION.as_bytes()]);
            if set {
                self.allocation_of = Some(name);
            }
        }
        Ok(option_reply::ACK)
    }
}

/// Replies to one option, one after another.
struct Replies {
    number: u32,
    bytes: Vec<u8>,
}

impl Replies {
    fn to(number: u32) -> Self {
        Self { number, bytes: Vec::new() }
    }

    fn push(&mut self, kind: u32, parts: &[&[u8]]) {
        let body = parts.concat();
        self.bytes.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.bytes.extend_from_slice(&self.number.to_be_bytes());
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&length_of(&body));
        self.bytes.extend_from_slice(&body);
    }
}

/// The four bytes of length that stand before `bytes`.
pub(super) fn length_of(bytes: &[u8]) -> [u8; 4] {
    let length = u32::try_from(bytes.len()).expect("names and replies are far shorter than 4 GiB");
    length.to_be_bytes()
}

trait ReadName {
    /// UTF-8 text with a four-byte length; the input bounds it.
    fn name(&mut self) -> Result<String, FormatError>;
}

impl ReadName for Reader<'_> {
    fn name(&mut self) -> Result<String, FormatError> {
        let length = u32::from_be_bytes(self.array("name length")?);
        let bytes = self.take(length as usize, "name")?;
        let text = std::str::from_utf8(bytes);
        let text = text.map_err(|_| FormatError::value("name", "not UTF-8", "UTF-8 text"))?;
        Ok(text.to_owned())
    }
}
