//! What keeps a process server from starting or running.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::cache::CacheError;
use crate::ingest::{QuicError, TlsError};
use crate::model::{ServerId, Timestamp};
use crate::seal::SealError;
use crate::store::StoreError;
use crate::vault::VaultError;

/// A process server that did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The store cannot be opened.
    #[error("store")]
    Store(#[from] StoreError),
    /// A document of the vault cannot be read or written.
    #[error("vault")]
    Vault(#[from] VaultError),
    /// The key-encryption key, or the threads that seal.
    #[error("seal")]
    Seal(#[from] SealError),
    /// The cache log.
    #[error("cache log")]
    Cache(#[from] CacheError),
    /// Certificates.
    #[error("certificates of the data port")]
    Tls(#[from] TlsError),
    /// QUIC on the data port.
    #[error("QUIC on the data port")]
    Quic(#[from] QuicError),
    /// A port cannot be opened.
    #[error(
        "address {address} cannot be listened on; is another server running, or is the port below 1024?"
    )]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file or a thread of the server itself.
    #[error("{path}: {action}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another process runs under this name.
    #[error(
        "another process serves as {server} (at {address}); give each process server its own `server` \
         name, or, if that one was just killed on another cache directory, wait 15 s for its lease"
    )]
    NameTaken {
        /// The name.
        server: ServerId,
        /// Where the other one is.
        address: String,
    },
    /// Somebody acted under this name since the records in this cache log were admitted.
    #[error(
        "process server {server} ran on another cache directory since {started}, and the cache log \
         here holds records from before: nothing proves that they are still their machines' next ones. \
         Start it on that other cache directory, or give this one another `server` name to have \
         them held, or move the shards' directories away"
    )]
    NameMoved {
        /// The name.
        server: ServerId,
        /// When the other one started.
        started: Timestamp,
    },
    /// Another process took this name while this one ran.
    #[error(
        "another process serves as {server} now; give each process server its own `server` name"
    )]
    NameLost {
        /// The name.
        server: ServerId,
        /// What the store said.
        #[source]
        source: VaultError,
    },
    /// The thread of QUIC ended in a panic.
    #[error("the thread of QUIC ended unexpectedly; its log says why")]
    QuicThread,
    /// The cache log is written through io_uring, and there is none for us.
    #[error("io_uring cannot be used: {cure}")]
    Uring {
        /// What helps.
        cure: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A shard's thread ended in a panic.
    #[error("shard {shard} ended unexpectedly; its log says why")]
    Shard {
        /// Which.
        shard: u16,
    },
}
