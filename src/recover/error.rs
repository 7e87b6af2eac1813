//! What stops a recovery. Everything names the machine, the point or the object.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cloud_log::{CloudLogError, UnreadPage};
use crate::format::bytes::FormatError;
use crate::model::{DiskName, Extent, ExtentError, MachineId, ObjectName, Sequence};
use crate::seal::SealError;
use crate::store::{Class, StoreError};
use crate::vault::VaultError;

/// A point could not be found, read or written out.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// A text that names no point.
    #[error(
        "{text:?} is no point: say latest, latest-processed, latest-app, name:NAME, seq:N or time:RFC3339"
    )]
    Syntax {
        /// What was given.
        text: String,
    },
    /// The vault does not know the machine.
    #[error("machine {machine} is not enrolled in this store")]
    NoMachine {
        /// Which.
        machine: MachineId,
    },
    /// The machine has no such point.
    #[error("machine {machine} has no recovery point {wanted}; {known}")]
    NoPoint {
        /// Whose.
        machine: MachineId,
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: String,
    },
    /// A place in the stream that is no point and cannot be made one.
    #[error("machine {machine} cannot be recovered to sequence {sequence}: {reason}; {nearest}")]
    NotAPoint {
        /// Whose.
        machine: MachineId,
        /// Where.
        sequence: Sequence,
        /// Why not.
        reason: &'static str,
        /// The bookmarks around it.
        nearest: String,
    },
    /// The log does not reach from the base to the point.
    #[error(
        "cloud log of machine {machine} for sequence {sequence}: {field} is {found}, expected {expected}"
    )]
    Chain {
        /// Whose.
        machine: MachineId,
        /// The point.
        sequence: Sequence,
        /// What was compared.
        field: &'static str,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },
    /// What lies between the base and the point is named by a page that cannot be read.
    #[error(
        "machine {machine} cannot be recovered to sequence {sequence}: part of its log is missing"
    )]
    Unread {
        /// Whose.
        machine: MachineId,
        /// The point.
        sequence: Sequence,
        /// Which page, and what is wrong with it.
        #[source]
        page: Arc<UnreadPage>,
    },
    /// A page that cannot be read may name a point that answers better than the ones that are known.
    #[error(
        "machine {machine} may have another point that {wanted} means, in a part of its log that is \
         missing; {known}"
    )]
    Hidden {
        /// Whose.
        machine: MachineId,
        /// What was asked for.
        wanted: String,
        /// What there is beside it.
        known: String,
        /// Which page, and what is wrong with it.
        #[source]
        page: Arc<UnreadPage>,
    },
    /// The machine has no such disk at this point.
    #[error("machine {machine} has no disk {disk} at sequence {sequence}, only {known}")]
    NoDisk {
        /// Whose.
        machine: MachineId,
        /// Which.
        disk: DiskName,
        /// The point.
        sequence: Sequence,
        /// What there is.
        known: String,
    },
    /// A write in the log that lies outside its disk.
    #[error("delta {object}: entry {extent} of sequence {sequence} is not on disk {disk}")]
    Entry {
        /// Which object.
        object: ObjectName,
        /// Which write.
        sequence: Sequence,
        /// Where it should go.
        extent: Extent,
        /// Which disk.
        disk: DiskName,
        /// The rule.
        #[source]
        source: ExtentError,
    },
    /// The seed disk's snapshot does not end in the footer it must have.
    #[error("footer of seed disk {object}, snapshot {snapshot}")]
    Footer {
        /// Which object.
        object: ObjectName,
        /// Which of its snapshots.
        snapshot: String,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
    /// Bytes that the disk does not have.
    #[error("{offset}+{length} is not on disk {disk} of {size_bytes} bytes")]
    Range {
        /// Which disk.
        disk: DiskName,
        /// Its size.
        size_bytes: u64,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
    },
    /// The output is there already.
    #[error("{} exists already and is not overwritten; choose another name or remove it", path.display())]
    OutputExists {
        /// Which file.
        path: PathBuf,
    },
    /// The output cannot be written.
    #[error("{}: {action}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A disk that cannot be a VHD.
    #[error("disk {disk} cannot be written as a VHD")]
    NoVhd {
        /// Which.
        disk: DiskName,
        /// The rule.
        #[source]
        source: FormatError,
    },
    /// The store did not give an object.
    #[error("reading {object}")]
    Store {
        /// Which object.
        object: ObjectName,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// The cloud log cannot be read or believed.
    #[error(transparent)]
    Log(#[from] CloudLogError),
    /// A frame cannot be read or believed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A document of the vault cannot be read or believed.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl RecoverError {
    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Syntax { .. }
            | Self::NoMachine { .. }
            | Self::NoPoint { .. }
            | Self::NotAPoint { .. }
            | Self::NoDisk { .. }
            | Self::Range { .. }
            | Self::NoVhd { .. }
            | Self::OutputExists { .. } => Class::Reject,
            Self::Chain { .. } | Self::Entry { .. } | Self::Footer { .. } => Class::Poison,
            Self::Unread { page, .. } | Self::Hidden { page, .. } => page.why.class(),
            Self::File { .. } => Class::Retry,
            Self::Store { source, .. } => source.class(),
            Self::Log(source) => source.class(),
            Self::Seal(source) => source.class(),
            Self::Vault(source) => source.class(),
        }
    }

    /// The error and its causes in one line.
    #[must_use]
    pub fn line(&self) -> String {
        line(self)
    }
}

/// An error and its causes in one line.
pub(super) fn line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
