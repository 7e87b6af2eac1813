//! What keeps a run from its end.

use std::path::PathBuf;

use holdfast::nbd::NbdError;

use crate::load::{AuditError, CrewError, DialError, TraceError};

/// A run that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("{path} is missing; build it into the same directory: cargo build --release --workspace", path = .0.display())]
    NoProgram(PathBuf),
    #[error(
        "this build is not optimised, its figures mean nothing; cargo build --release --workspace, then target/release/holdfast-loadtest (or --any-build)"
    )]
    NotOptimised,
    #[error("{tool}: {what}")]
    Tool { tool: String, what: String },
    #[error("{path}: {action}", path = path.display())]
    File {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: {size_bytes} bytes are not a disk of whole sectors; give an image of at least 64 MiB", path = path.display())]
    Image { path: PathBuf, size_bytes: u64 },
    #[error("http://{address}{page}: {what}")]
    Page { address: std::net::SocketAddr, page: &'static str, what: String },
    #[error("writing to machine {machine}")]
    Writes {
        machine: String,
        #[source]
        source: NbdError,
    },
    #[error("{what}: not within {seconds} s; {last}")]
    Late { what: String, seconds: u64, last: String },
    #[error(
        "machine {machine}, disk {disk}: exported SHA-256 {found}, the source disk has {expected}"
    )]
    Difference { machine: String, disk: String, found: String, expected: String },
    #[error("machine {machine}: {what}")]
    Broken { machine: String, what: String },
    #[error("a thread of the {0} ended in a panic")]
    Thread(&'static str),
    #[error("setting: {what}")]
    Setting { what: String },
    #[error("{path} has no files that can be read; name another folder with --files", path = .0.display())]
    NoContent(PathBuf),
    #[error("{path}: no trace of fio", path = path.display())]
    Trace {
        path: PathBuf,
        #[source]
        source: TraceError,
    },
    #[error("{0}")]
    Usage(String),
    #[error("{what}")]
    Site {
        what: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("connecting machine {machine}")]
    Dial {
        machine: String,
        #[source]
        source: DialError,
    },
    #[error("a machine could not go on")]
    Crew(#[from] CrewError),
    #[error("{path}: cannot be drawn", path = path.display())]
    Plot {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("audit of machine {machine}")]
    Audit {
        machine: String,
        #[source]
        source: AuditError,
    },
}

impl LoadError {
    /// A part of the site that refused.
    pub(crate) fn site(what: &'static str) -> impl FnOnce(holdfast::cli::Failure) -> Self {
        use holdfast::cli::Failure::{Difference, Failed, Usage};
        move |failure| {
            let (Failed(source) | Usage(source) | Difference(source)) = failure;
            Self::Site { what, source }
        }
    }

    /// Exit code: 2 wrong usage, 3 a difference was found, 1 anything else.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Setting { .. } => 2,
            Self::Difference { .. } | Self::Broken { .. } => 3,
            Self::Audit { source: AuditError::Difference { .. }, .. } => 3,
            _ => 1,
        }
    }

    /// A file that cannot be used.
    pub(crate) fn file(
        path: impl Into<PathBuf>,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, action, source }
    }
}
