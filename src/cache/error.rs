//! What can go wrong in the cache. A full cache is not in here: it is a state, see `Fill`.

use std::io;
use std::path::{Path, PathBuf};

use crate::model::{MachineKey, Sequence};
use crate::store::Class;

/// The cache log cannot be opened, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Somebody else has the log open.
    #[error(
        "cache directory {} is in use by process {holder}; one process may have it open",
        directory.display()
    )]
    Busy {
        /// The shard's directory.
        directory: PathBuf,
        /// Process id as the lock file says it.
        holder: String,
    },
    /// The settings leave no room for a log.
    #[error("cache directory {}: {found}, expected {expected}", directory.display())]
    Settings {
        /// Where the log would be.
        directory: PathBuf,
        /// What was set.
        found: String,
        /// The rule.
        expected: String,
    },
    /// There are logs of another number of shards, and not all of them are empty: a machine's records would
    /// be looked for in another one.
    #[error(
        "{} holds records, or damaged segments, of {found} shards, and {shards} are wanted: start with \
         `shards = {found}` while no agent connects, until holdfast_cache_used_bytes is 0 and nothing is \
         damaged in `holdfast status`; stop it, then change the number",
        directory.display()
    )]
    OtherShards {
        /// The cache's directory, or that of a shard.
        directory: PathBuf,
        /// How many there were.
        found: u16,
        /// How many there would be.
        shards: u16,
    },
    /// A segment that is whole, and of another shard: its records are of machines that are not looked for here.
    #[error(
        "segment {} was written by shard {found} and lies in the directory of shard {shard}: nothing was \
         changed; give each directory of the cache its own number again (this one was shard-{found}), then start",
        path.display()
    )]
    Misplaced {
        /// The segment's file.
        path: PathBuf,
        /// Who wrote it.
        found: u16,
        /// Who found it.
        shard: u16,
    },
    /// The operating system said no while the log was opened or closed.
    #[error("{}: {action}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An append or a sync did not succeed. What is on the disk from `offset` on is unknown; nothing
    /// of it was acknowledged, and nothing more will be until the log is opened anew.
    #[error("segment {} is poisoned from offset {offset} on", path.display())]
    Poisoned {
        /// The segment's file.
        path: PathBuf,
        /// Start of the append.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A segment could not be made ready for its next life, or free. What is on the disk of its header is
    /// unknown; the records of the others are as they were.
    #[error(
        "segment {}: its header could not be written and synced, so no segment can be prepared or \
         recycled until the log is opened anew",
        path.display()
    )]
    Header {
        /// The segment's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A record that no segment can hold.
    #[error(
        "record {sequence} of machine {machine} has a payload of {payload_bytes} bytes, \
         no segment of {segment_bytes} holds it"
    )]
    TooLarge {
        /// Whose.
        machine: MachineKey,
        /// Which.
        sequence: Sequence,
        /// Its payload.
        payload_bytes: usize,
        /// A segment.
        segment_bytes: u64,
    },
    /// The thread that prepares segments is gone.
    #[error("{}: the thread that prepares segments has ended", directory.display())]
    NoPool {
        /// The shard's directory.
        directory: PathBuf,
    },
}

impl CacheError {
    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Busy { .. }
            | Self::Settings { .. }
            | Self::OtherShards { .. }
            | Self::Misplaced { .. } => Class::Reject,
            Self::Io { .. } => Class::Retry,
            Self::Poisoned { .. } | Self::Header { .. } => Class::Poison,
            Self::TooLarge { .. } | Self::NoPool { .. } => Class::Bug,
        }
    }

    /// Wraps a cause, for `map_err`.
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }
}
