//! What can go wrong between a batch and its delta, and on the way back.

use std::fmt;
use std::path::PathBuf;

use crate::format::bytes::FormatError;
use crate::model::{MachineId, MachineKey, ObjectName, Sequence};
use crate::store::{Class, StoreError};

/// Keys, documents and deltas that cannot be made or believed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file cannot be read or written.
    #[error("key file {}", path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Others than its owner may read the key file.
    #[error("key file {} has mode {mode:04o}, so others can read it; run: chmod 600 {}", path.display(), path.display())]
    KeyFileMode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file holds no key.
    #[error("key file {} holds {found} characters, expected exactly 64 hexadecimal digits", path.display())]
    KeyFileContent {
        /// Which file.
        path: PathBuf,
        /// Characters that stand there, white space at the end not counted.
        found: usize,
    },
    /// A data key that another key-encryption key wrapped.
    #[error(
        "data key {id} of machine {machine} is wrapped by key-encryption key {wrapped_by}, \
         the key file given holds {loaded}; give the key file of {wrapped_by}"
    )]
    OtherKeyEncryptionKey {
        /// Whose key.
        machine: MachineId,
        /// Which of its data keys.
        id: u32,
        /// The key-encryption key that is needed.
        wrapped_by: String,
        /// The one that there is.
        loaded: String,
    },
    /// A wrapped data key whose text is no wrapped key.
    #[error("data key {id} of machine {machine}: {field} is not {expected} in hexadecimal")]
    WrappedKeyText {
        /// Whose key.
        machine: MachineId,
        /// Which of its data keys.
        id: u32,
        /// Which field.
        field: &'static str,
        /// What should stand there.
        expected: &'static str,
    },
    /// A wrapped data key that does not open under the key-encryption key that wrapped it.
    #[error(
        "data key {id} of machine {machine} does not open: \
         its wrapped form was altered or belongs to another machine or id"
    )]
    WrappedKeyAltered {
        /// Whose key.
        machine: MachineId,
        /// Which of its data keys.
        id: u32,
    },
    /// A machine document that lists no data key, or lists them out of order.
    #[error("the data keys of machine {machine} are {found}, expected at least one, ids ascending")]
    DataKeys {
        /// Which machine.
        machine: MachineId,
        /// The ids as listed.
        found: String,
    },
    /// A record of another machine.
    #[error("a record of machine {found} in the stream of machine {machine}")]
    ForeignRecord {
        /// Whose stream.
        machine: MachineKey,
        /// Whose record.
        found: MachineKey,
    },
    /// A record that is not the next one.
    #[error("machine {machine}: record {found} follows where {expected} must")]
    Gap {
        /// Whose stream.
        machine: MachineKey,
        /// The next record.
        expected: Sequence,
        /// The one that came.
        found: Sequence,
    },
    /// A record that may not stand where it does.
    #[error("machine {machine}: record {sequence}: {rule}")]
    OutOfOrder {
        /// Whose stream.
        machine: MachineKey,
        /// Which record.
        sequence: Sequence,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A batch that breaks a rule of the format.
    #[error("machine {machine}: records {first} to {last} make no delta")]
    Unwritable {
        /// Whose.
        machine: MachineId,
        /// First record.
        first: Sequence,
        /// Last record.
        last: Sequence,
        /// The rule.
        #[source]
        source: FormatError,
    },
    /// zstd refused its level or found no memory.
    #[error("machine {machine}: records {first} to {last}: compressing at level {level}")]
    Compress {
        /// Whose.
        machine: MachineId,
        /// First record.
        first: Sequence,
        /// Last record.
        last: Sequence,
        /// The level.
        level: i32,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Sealing panicked: a bug; the thread lives on.
    #[error("machine {machine}: sealing records {first} to {last} panicked: {message}")]
    Panicked {
        /// Whose.
        machine: MachineId,
        /// First record.
        first: Sequence,
        /// Last record.
        last: Sequence,
        /// What the panic said.
        message: String,
    },
    /// The system gives no thread.
    #[error("starting {threads} threads for sealing")]
    Threads {
        /// How many were wanted.
        threads: usize,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A part of a delta that the store does not give.
    #[error("{part} of delta {name}")]
    Fetch {
        /// Which object.
        name: ObjectName,
        /// Which part.
        part: Part,
        /// The cause.
        #[source]
        source: Box<StoreError>,
    },
    /// A part of a delta that cannot be believed.
    #[error("{part} of delta {name}")]
    Delta {
        /// Which object.
        name: ObjectName,
        /// Which part.
        part: Part,
        /// What is wrong.
        #[source]
        source: Disbelief,
    },
    /// A sealed document that cannot be believed.
    #[error("{kind} of machine {machine}")]
    Document {
        /// Which kind of document.
        kind: &'static str,
        /// Whose it should be.
        machine: MachineId,
        /// What is wrong.
        #[source]
        source: Disbelief,
    },
}

/// A part of a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its first bytes.
    Header,
    /// One frame.
    Frame(u32),
    /// Where everything is.
    Index,
    /// Its last bytes.
    Trailer,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::Frame(number) => write!(f, "frame {number}"),
            Self::Index => f.write_str("index"),
            Self::Trailer => f.write_str("trailer"),
        }
    }
}

/// Why sealed bytes are not believed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Disbelief {
    /// The clear part is no valid encoding.
    #[error(transparent)]
    Layout(#[from] FormatError),
    /// Sealed under a data key that the machine does not have.
    #[error("sealed under data key {id}, the machine has {known}")]
    UnknownKey {
        /// The key it names.
        id: u32,
        /// The keys there are.
        known: String,
    },
    /// The key derived is not the one that was used: other data key, salt or machine.
    #[error("key commitment does not match: altered, or sealed under another key or machine")]
    Commitment,
    /// The authentication tag does not match.
    #[error("authentication does not match: it or the header was altered, cut, moved or swapped")]
    Altered,
    /// Authentic, and yet no compressed form of what it should be: written by a faulty sealer.
    #[error("compressed content: {0}")]
    Compressed(String),
}

impl SealError {
    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::KeyFile { .. }
            | Self::KeyFileMode { .. }
            | Self::KeyFileContent { .. }
            | Self::OtherKeyEncryptionKey { .. } => Class::Reject,
            Self::WrappedKeyText { .. }
            | Self::WrappedKeyAltered { .. }
            | Self::DataKeys { .. }
            | Self::Delta { .. }
            | Self::Document { .. } => Class::Poison,
            Self::Compress { .. } | Self::Threads { .. } => Class::Retry,
            Self::ForeignRecord { .. }
            | Self::Gap { .. }
            | Self::OutOfOrder { .. }
            | Self::Unwritable { .. }
            | Self::Panicked { .. } => Class::Bug,
            Self::Fetch { source, .. } => source.class(),
        }
    }
}
