//! Requests, sans-io: 28 bytes to a checked command, or to the error that refuses it.

use super::error::ErrorCode;
use super::negotiate::Session;
use super::protocol::{BLOCK_BYTES_MIN, REQUEST_BYTES_MAX, REQUEST_MAGIC, command, command_flag};
use crate::format::bytes::{FormatError, Reader};

/// Bytes of a request's header.
pub(super) const REQUEST_BYTES: usize = 28;

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// A request that may be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read { whole: bool },
    Write { fua: bool },
    Zero { trim: bool, fua: bool },
    Flush,
    BlockStatus { one: bool },
    Disconnect,
}

impl Request {
    /// # Errors
    /// When the stream is out of step: nothing after it can be understood.
    pub(super) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let magic = u32::from_be_bytes(reader.array("request magic")?);
        if magic != REQUEST_MAGIC {
            let (found, expected) = (format!("{magic:#x}"), format!("{REQUEST_MAGIC:#x}"));
            return Err(FormatError::value("request magic", found, expected));
        }
        let request = Self {
            flags: u16::from_be_bytes(reader.array("request flags")?),
            command: u16::from_be_bytes(reader.array("request command")?),
            cookie: u64::from_be_bytes(reader.array("request cookie")?),
            offset: u64::from_be_bytes(reader.array("request offset")?),
            length: u32::from_be_bytes(reader.array("request length")?),
        };
        if request.command == command::WRITE && request.length > REQUEST_BYTES_MAX {
            // Its payload is on the way: skipping up to 4 GiB would be the client's to decide.
            let most = format_args!("at most {REQUEST_BYTES_MAX}");
            return Err(FormatError::value("write length", request.length, most));
        }
        Ok(request)
    }

    #[cfg(test)]
    pub(super) fn write(&self) -> Vec<u8> {
        encode(self.flags, self.command, self.cookie, self.offset, self.length).to_vec()
    }

    /// Bytes of payload that follow the header, whether or not the request is refused.
    pub(super) fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE { self.length } else { 0 }
    }

    /// Whether and how it may be carried out on a disk of `size_bytes`.
    ///
    /// # Errors
    /// The error of the reply.
    pub(super) fn check(
        &self,
        session: Session,
        size_bytes: u64,
        read_only: bool,
    ) -> Result<Command, ErrorCode> {
        let has = |flag| self.flags & flag != 0;
        let fua = has(command_flag::FUA);
        let (parsed, allowed) = match self.command {
            command::READ => (Command::Read { whole: has(command_flag::DF) }, command_flag::DF),
            command::WRITE => (Command::Write { fua }, 0),
            command::DISCONNECT => return Ok(Command::Disconnect),
            command::FLUSH => (Command::Flush, 0),
            command::TRIM => (Command::Zero { trim: true, fua }, 0),
            command::WRITE_ZEROES => (
                Command::Zero { trim: false, fua },
                command_flag::NO_HOLE | command_flag::FAST_ZERO,
            ),
            command::BLOCK_STATUS if session.allocation => {
                (Command::BlockStatus { one: has(command_flag::REQ_ONE) }, command_flag::REQ_ONE)
            }
            _ => return Err(ErrorCode::INVALID),
        };
        if self.flags & !(allowed | command_flag::FUA) != 0 {
            return Err(ErrorCode::INVALID);
        }
        match parsed {
            Command::Flush | Command::Disconnect => return Ok(parsed),
            Command::Write { .. } | Command::Zero { .. } if read_only => {
                return Err(ErrorCode::PERMISSION);
            }
            Command::Zero { .. } if has(command_flag::FAST_ZERO) => {
                return Err(ErrorCode::NOT_SUPPORTED); // not advertised: an export makes no promise
            }
            _ => {}
        }
        self.check_range(parsed, size_bytes).map(|()| parsed)
    }

    fn check_range(&self, parsed: Command, size_bytes: u64) -> Result<(), ErrorCode> {
        let align = u64::from(BLOCK_BYTES_MIN);
        let aligned = self.offset.is_multiple_of(align)
            && self.length.is_multiple_of(BLOCK_BYTES_MIN)
            && self.length > 0;
        let end = self.offset.checked_add(u64::from(self.length));
        let fits = end.is_some_and(|end| end <= size_bytes);
        match parsed {
            _ if !aligned => Err(ErrorCode::INVALID),
            Command::Write { .. } | Command::Zero { trim: false, .. } if !fits => {
                Err(ErrorCode::NO_SPACE)
            }
            _ if !fits => Err(ErrorCode::INVALID),
            Command::Read { whole: true } if self.length > REQUEST_BYTES_MAX => {
                Err(ErrorCode::OVERFLOW)
            }
            Command::Read { .. } if self.length > REQUEST_BYTES_MAX => Err(ErrorCode::INVALID),
            _ => Ok(()),
        }
    }
}

/// The 28 bytes of a request.
pub(super) fn encode(
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u32,
) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}
