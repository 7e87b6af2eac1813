//! What can go wrong between an NBD client and a server, and the error numbers of the protocol.

use std::io;

use crate::format::bytes::FormatError;

/// What a client sees.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The socket failed or ended.
    #[error("nbd server at {server}: {action}")]
    Io {
        /// Which one.
        server: String,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What came is not NBD.
    #[error("nbd server at {server} sent no valid reply")]
    Format {
        /// Which one.
        server: String,
        /// Where it is wrong.
        #[source]
        source: FormatError,
    },
    /// The server has no such export, or not in the way it is needed.
    #[error(
        "nbd server at {server} refuses option {option} for export {name:?} (reply {reply:#x})"
    )]
    Option {
        /// Which one.
        server: String,
        /// Which export.
        name: String,
        /// Number of the option.
        option: u32,
        /// Number of the reply.
        reply: u32,
    },
    /// The server answered a request with an error.
    #[error("nbd server at {server}: {command} of {offset}+{length} answered with {error}")]
    Request {
        /// Which one.
        server: String,
        /// What was asked.
        command: &'static str,
        /// Bytes from the start of the disk.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Its answer.
        error: ErrorCode,
    },
}

/// An error number of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// Writes are not allowed.
    pub const PERMISSION: Self = Self(1);
    /// The disk failed.
    pub const IO: Self = Self(5);
    /// The request breaks the protocol or what was advertised.
    pub const INVALID: Self = Self(22);
    /// No room, or a write over the end of the disk.
    pub const NO_SPACE: Self = Self(28);
    /// The reply would not fit one chunk.
    pub const OVERFLOW: Self = Self(75);
    /// Not in this way.
    pub const NOT_SUPPORTED: Self = Self(95);
    /// The server is stopping.
    pub const SHUTDOWN: Self = Self(108);

    /// The number for an error of the export.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::PERMISSION,
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::NO_SPACE,
            io::ErrorKind::InvalidInput => Self::INVALID,
            io::ErrorKind::Unsupported => Self::NOT_SUPPORTED,
            _ => Self::IO,
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match *self {
            Self::PERMISSION => "EPERM",
            Self::IO => "EIO",
            Self::INVALID => "EINVAL",
            Self::NO_SPACE => "ENOSPC",
            Self::OVERFLOW => "EOVERFLOW",
            Self::NOT_SUPPORTED => "ENOTSUP",
            Self::SHUTDOWN => "ESHUTDOWN",
            Self(other) => return write!(f, "error {other}"),
        };
        f.write_str(name)
    }
}
