//! Requests to the store, by kind: people pay by request.

use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreRequest {
    /// An object or a document, whole.
    Put,
    /// A block of an object.
    StageBlock,
    /// The list of an object's blocks.
    CommitBlocks,
    /// An object or a part of one, read.
    Read,
    /// Properties of an object or a page blob.
    Properties,
    /// A list of objects, snapshots or page ranges.
    List,
    /// An object, a snapshot or a page blob, deleted.
    Delete,
    /// A page blob made, or its sequence number raised.
    PageBlob,
    /// Pages written or cleared.
    WritePages,
    /// A snapshot of a page blob.
    Snapshot,
    /// A lease acquired, renewed, broken or released.
    Lease,
}

impl StoreRequest {
    /// All.
    pub const ALL: [Self; 11] = [
        Self::Put,
        Self::StageBlock,
        Self::CommitBlocks,
        Self::Read,
        Self::Properties,
        Self::List,
        Self::Delete,
        Self::PageBlob,
        Self::WritePages,
        Self::Snapshot,
        Self::Lease,
    ];

    /// As label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::StageBlock => "stage-block",
            Self::CommitBlocks => "commit-blocks",
            Self::Read => "read",
            Self::Properties => "properties",
            Self::List => "list",
            Self::Delete => "delete",
            Self::PageBlob => "page-blob",
            Self::WritePages => "write-pages",
            Self::Snapshot => "snapshot",
            Self::Lease => "lease",
        }
    }
}

/// What was asked of the store.
#[derive(Debug, Default)]
pub struct StoreMetrics {
    requests: [AtomicU64; StoreRequest::ALL.len()],
    failed: [AtomicU64; StoreRequest::ALL.len()],
    /// Bytes of objects and pages sent.
    pub sent_bytes: AtomicU64,
    /// Bytes of objects and pages read.
    pub received_bytes: AtomicU64,
}

impl StoreMetrics {
    /// `count` requests of a kind, and whether they failed.
    pub fn count(&self, kind: StoreRequest, count: u64, failed: bool) {
        self.requests[kind as usize].fetch_add(count, Ordering::Relaxed);
        if failed {
            self.failed[kind as usize].fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Requests of a kind, and how many of them failed.
    #[must_use]
    pub fn of(&self, kind: StoreRequest) -> (u64, u64) {
        let load = |counters: &[AtomicU64]| counters[kind as usize].load(Ordering::Relaxed);
        (load(&self.requests), load(&self.failed))
    }
}
