//! What keeps a run from its end.

use std::path::PathBuf;

use holdfast::nbd::NbdError;

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
    #[error("a thread of the {0} ended in a panic")]
    Thread(&'static str),
}

impl LoadError {
    /// A file that cannot be used.
    pub(crate) fn file(
        path: impl Into<PathBuf>,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, action, source }
    }
}
