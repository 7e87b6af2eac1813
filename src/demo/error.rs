//! What keeps the demo from its end.

use std::path::PathBuf;

use crate::agent::AgentError;
use crate::nbd::NbdError;
use crate::recover::RecoverError;
use crate::server::ServerError;

/// The demo did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A tool that makes the disk is missing or failed.
    #[error("{tool}: {what}; install e2fsprogs, or give a disk of your own with --disk")]
    Tool {
        /// Which.
        tool: &'static str,
        /// What happened.
        what: String,
    },
    /// A file of the demo.
    #[error("{path}: {action}")]
    File {
        /// Which.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The process server.
    #[error("process server")]
    Server(#[from] ServerError),
    /// The agent.
    #[error("agent")]
    Agent(#[from] AgentError),
    /// Writing through the agent.
    #[error("live writes")]
    Writes(#[source] NbdError),
    /// Reading a point back.
    #[error("recovery")]
    Recover(#[from] RecoverError),
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s: {why}")]
    Late {
        /// What was waited for.
        what: &'static str,
        /// How long.
        seconds: u64,
        /// What is known.
        why: String,
    },
    /// A recovered disk is not what the disk was.
    #[error("point {point}: recovered disk has SHA-256 {found}, the disk had {expected}")]
    Difference {
        /// Which point, and how it was read.
        point: String,
        /// Of the recovered disk.
        found: String,
        /// Of the source disk at the bookmark.
        expected: String,
    },
    /// The digests agree, and yet e2fsck finds a recovered file system damaged.
    #[error("point {point}: e2fsck finds the recovered file system damaged")]
    NotWhole {
        /// Which point.
        point: String,
    },
    /// A thread of the demo ended in a panic.
    #[error("the thread of the {0} ended unexpectedly")]
    Thread(&'static str),
}

impl DemoError {
    /// A file that cannot be used.
    pub(super) fn file(
        path: impl Into<PathBuf>,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, action, source }
    }
}
