//! Values that store calls take and give.

use bytes::Bytes;

use crate::model::Timestamp;

/// Opaque version of an object's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ETag(pub String);

/// When a write may happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Whatever is there.
    Always,
    /// Only if nothing is there (`If-None-Match: *`); else `AlreadyExists`.
    Absent,
    /// Only over exactly this version (`If-Match`); else `Precondition`.
    Matches(ETag),
}

/// Block of an object: its ordinal; written out with fixed width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// Lease id proposed by its holder (a UUID on Azure).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(pub [u8; 16]);

/// Names one snapshot of a page blob; opaque, ordered by age as text.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct SnapshotId(pub String);

/// What every change of a seed disk must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageGuard {
    /// The lease on the blob itself.
    pub lease: LeaseId,
    /// The blob's sequence number must equal this: the applier's generation.
    pub sequence_number: u64,
}

/// One page write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageWrite {
    /// Bytes from the start of the blob, multiple of 512.
    pub offset: u64,
    /// What to write there.
    pub body: PageBody,
}

/// Content of a page write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageBody {
    /// These bytes; length a multiple of 512.
    Data(Bytes),
    /// Zeros (clear pages); bytes, multiple of 512, any length.
    Clear(u64),
}

/// A half-open byte range that may hold data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
}

/// One row of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: super::ObjectName,
    /// Bytes.
    pub length: u64,
    /// Last change by the store's clock.
    pub modified: Timestamp,
}

/// What is known about an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Bytes.
    pub length: u64,
    /// Version.
    pub etag: ETag,
    /// Last change by the store's clock.
    pub modified: Timestamp,
    /// Page blobs: the sequence number (0 for block blobs).
    pub sequence_number: u64,
    /// Whether somebody's lease runs, by the store's clock.
    pub leased: bool,
}

/// One snapshot in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapshotId,
    /// What its maker wrote on it.
    pub label: String,
}
