//! What stands in a machine's write stream.

use crate::model::{BookmarkId, DiskIndex, DiskName, Epoch, Extent, Payload, Sequence, Timestamp};

/// One position of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place.
    pub sequence: Sequence,
    /// What happened there.
    pub change: Change,
}

/// What one position of the stream says. Every variant takes a sequence, so that a cut over all
/// disks, bookmarks and catch-ups of a machine is one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bytes were written. `payload.len()` equals `extent.length()` and is at most
    /// [`crate::model::WRITE_BYTES_MAX`].
    Write {
        /// Which disk.
        disk: DiskIndex,
        /// Where.
        extent: Extent,
        /// What.
        payload: Payload,
    },
    /// The extent reads as zeros now (write-zeroes, or a trim that the source turned into zeros).
    Zero {
        /// Which disk.
        disk: DiskIndex,
        /// Where; at most [`crate::model::ZERO_BYTES_MAX`].
        extent: Extent,
    },
    /// A consistent point: every record before it is in the point, none after it.
    Bookmark(Bookmark),
    /// Tracking begins anew: this is the first record of an epoch and names its disks.
    EpochBegin(EpochBegin),
    /// From here the stream is not in write order: no recovery point until the matching end.
    CatchUpBegin(CatchUp),
    /// Everything that was dirty at the begin has been sent; the stream is ordered again.
    CatchUpEnd,
}

/// Why a catch-up runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// The first full copy of an epoch.
    InitialReplication,
    /// Order was lost (agent restarted, or its buffer was full): dirty extents are re-read.
    Dirty,
}

/// How an agent tracks its machine now, honestly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackingMode {
    /// Every write goes into the stream in order.
    Ordered,
    /// Ordered live writes run beside the repair of extents whose order was lost.
    CatchingUp,
    /// Only dirty extents are remembered; nothing is sent.
    Bitmap,
}

/// How well a disk's changes are known to its agent at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureMode {
    /// Every change with its bytes, in order.
    Ordered,
    /// Where something was written, not what: it is read again.
    Extents,
    /// In which chunks something was written: they are read again.
    Bitmap,
}

impl CaptureMode {
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::Extents => "extents",
            Self::Bitmap => "bitmap",
        }
    }
}

/// A marker that is a consistent point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bookmark {
    /// Identity, shared by all machines of a group.
    pub id: BookmarkId,
    /// Crash- or application-consistent.
    pub kind: BookmarkKind,
    /// The agent's wall clock; a label.
    pub time: Timestamp,
    /// The user's name for it; at most 128 bytes of UTF-8, empty for the policy's own bookmarks.
    pub name: String,
}

/// What a bookmark promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BookmarkKind {
    /// As after a power cut at that moment.
    CrashConsistent,
    /// The application was quiesced by the agent's hook when it was made.
    ApplicationConsistent,
}

/// The first record of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochBegin {
    /// Which one; larger than every earlier.
    pub epoch: Epoch,
    /// All disks of the machine, ascending by index, names unique.
    pub disks: Vec<DiskSpec>,
}

/// One disk of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DiskSpec {
    /// Its number in records.
    #[serde(with = "index")]
    pub index: DiskIndex,
    /// Its name.
    pub name: DiskName,
    /// Its size; a multiple of a sector, at most [`crate::model::DISK_BYTES_MAX`].
    pub size_bytes: u64,
}

mod index {
    use super::DiskIndex;
    use serde::Deserialize;
    pub(super) fn serialize<S: serde::Serializer>(i: &DiskIndex, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u16(i.0)
    }
    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        d: D,
    ) -> Result<DiskIndex, D::Error> {
        u16::deserialize(d).map(DiskIndex)
    }
}

impl Change {
    /// Bytes that this change carries or covers on disk (payload of a write; 0 for all others).
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Self::Write { payload, .. } => payload.len() as u64,
            Self::Zero { .. }
            | Self::Bookmark(_)
            | Self::EpochBegin(_)
            | Self::CatchUpBegin(_)
            | Self::CatchUpEnd => 0,
        }
    }
}
