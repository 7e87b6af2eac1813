//! Requests to the store, by kind: people pay by request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

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

/// What was asked of the store for one machine.
#[derive(Debug, Default)]
pub struct RequestCounts([AtomicU64; StoreRequest::ALL.len()]);

impl RequestCounts {
    /// `count` more of a kind.
    pub fn count(&self, kind: StoreRequest, count: u64) {
        self.0[kind as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// Requests of a kind.
    #[must_use]
    pub fn of(&self, kind: StoreRequest) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    /// Those kinds that were asked at all, by name, over `hours`.
    pub(super) fn facts(&self, hours: f64) -> BTreeMap<String, RequestFacts> {
        let asked = StoreRequest::ALL.map(|kind| (kind, self.of(kind))).into_iter();
        let asked = asked.filter(|(_, total)| *total > 0);
        let facts = |total| RequestFacts { total, per_hour: total as f64 / hours };
        asked.map(|(kind, total)| (kind.as_str().to_owned(), facts(total))).collect()
    }
}

/// Requests of one kind for one machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestFacts {
    /// Since the process started.
    pub total: u64,
    /// On average since then.
    pub per_hour: f64,
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
