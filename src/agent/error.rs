//! What can go wrong in the agent, each with the thing and the cure.

use std::io;
use std::path::{Path, PathBuf};

use crate::format::bytes::FormatError;
use crate::model::{DISK_BYTES_MAX, DiskName};
use crate::store::Class;

/// An agent that did not start, or a part of it that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The operating system said no.
    #[error("{path}: could not {action}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("{path} is neither a file nor a block device; name one of these as the disk's path")]
    NoDisk {
        /// Which.
        path: PathBuf,
    },
    /// Somebody else captures or holds it.
    #[error("{path} is captured by another agent; stop that one first")]
    DiskInUse {
        /// Which.
        path: PathBuf,
    },
    /// A size that no seed disk can have.
    #[error(
        "{path} has {bytes} bytes; a disk has a multiple of 512, at least 512 and at most {max}: \
         extend the file (truncate -s)", max = DISK_BYTES_MAX
    )]
    DiskSize {
        /// Which.
        path: PathBuf,
        /// Found.
        bytes: u64,
    },
    /// Two agents on one state directory.
    #[error("{path} belongs to a running agent; stop that one first")]
    StateInUse {
        /// Which directory.
        path: PathBuf,
    },
    /// Root in the state directory of another user.
    #[error(
        "{path} belongs to user {user}, whose agent could not open what root leaves there: run this as that user \
         (runuser -u {user} -- holdfast …), or make the directory root's (chown -R root {path})"
    )]
    Foreign {
        /// Which directory.
        path: PathBuf,
        /// Whose it is.
        user: String,
    },
    /// Settings that cannot work together.
    #[error("agent settings: {0}")]
    Settings(String),
    /// A certificate or key that cannot be used.
    #[error("{path}: no usable {what}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No connection to a process server.
    #[error("{server}: {action}")]
    Dial {
        /// `host:port`.
        server: String,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A connection broke.
    #[error("{server}: the connection was lost")]
    Lost {
        /// Which server.
        server: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The server sent bytes that make no sense.
    #[error("{server}: not a valid message")]
    Message {
        /// Which server.
        server: String,
        /// The cause.
        #[source]
        source: FormatError,
    },
    /// The server said something that cannot be true.
    #[error("{server}: {detail}")]
    Protocol {
        /// Which server.
        server: String,
        /// Found and expected.
        detail: String,
    },
    /// No such disk.
    #[error("this agent has no disk {disk}")]
    UnknownDisk {
        /// Asked for.
        disk: DiskName,
    },
    /// No bookmark was placed.
    #[error("bookmark {name:?}: {why}")]
    Bookmark {
        /// Asked for.
        name: String,
        /// In words.
        why: String,
    },
    /// A disk cannot be captured in the way that its settings name.
    #[error("disk {disk}: {why}")]
    Capture {
        /// Which disk.
        disk: DiskName,
        /// In words.
        why: String,
    },
    /// A disk could not be served.
    #[error("disk {disk}: could not serve it over NBD at {at}")]
    Serve {
        /// Which disk.
        disk: DiskName,
        /// Where.
        at: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Disks could not be presented as files.
    #[error("could not present disks as files")]
    Mount {
        /// The cause, which names the directory and the cure.
        #[source]
        source: io::Error,
    },
}

impl AgentError {
    pub(super) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        let path = path.into();
        Self::Io { path, action, source }
    }

    pub(super) fn dial<E: std::error::Error + Send + Sync + 'static>(
        server: &str,
        action: &'static str,
    ) -> impl FnOnce(E) -> Self {
        let server = server.to_owned();
        move |error| Self::Dial { server, action, source: Box::new(error) }
    }

    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Io { .. } | Self::Dial { .. } | Self::Lost { .. } => Class::Retry,
            Self::Message { .. } | Self::Protocol { .. } | Self::Bookmark { .. } => Class::Retry,
            Self::NoDisk { .. }
            | Self::Capture { .. }
            | Self::DiskSize { .. }
            | Self::Foreign { .. }
            | Self::Settings(_)
            | Self::Certificate { .. }
            | Self::UnknownDisk { .. }
            | Self::Serve { .. }
            | Self::Mount { .. } => Class::Reject,
            Self::DiskInUse { .. } | Self::StateInUse { .. } => Class::Fence,
        }
    }
}
