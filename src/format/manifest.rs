//! The document that says who owns a machine and which deltas are its cloud log; and the immutable
//! pages that older entries move to. Layout: `docs/formats/manifest.md`.
//!
//! Owns: their bytes in the clear and every rule that holds within one of them, checked before
//! each write and after each read. Does not own: sealing, the store, who may change what.

mod check;
mod codec;
#[cfg(test)]
mod tests;

use crate::model::{
    Bookmark, DeltaId, DiskSpec, Epoch, Generation, MachineId, Sequence, ServerId, Timestamp,
};

/// What `seal::document` binds a sealed manifest to.
pub const MANIFEST_KIND: &str = "manifest";
/// What `seal::document` binds a sealed page to.
pub const PAGE_KIND: &str = "manifest page";

/// Everything about one machine's cloud log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whose.
    pub machine: MachineId,
    /// Ownership; only its holder publishes.
    pub generation: Generation,
    /// The holder.
    pub owner: ServerId,
    /// The generation at which it took the machine from another owner, or first. What it admitted
    /// under this and later ones is the one stream; what it admitted earlier may be another's by now.
    pub owned_since: Generation,
    /// Grows by one with every change of the document.
    pub version: u64,
    /// Everything through here was removed from the log (a snapshot at or after it is kept).
    pub truncated: Sequence,
    /// Everything through here is named below (or was, before truncation).
    pub published: Sequence,
    /// The newest delta, even if its entry was truncated: the next one chains to it.
    pub last_delta: Option<DeltaId>,
    /// Whether the stream is inside a catch-up at `published`.
    pub catching_up: bool,
    /// All epochs that a named delta or a kept point still needs, ascending.
    pub epochs: Vec<EpochEntry>,
    /// Older entries, ascending; every page is immutable.
    pub pages: Vec<PageEntry>,
    /// Newer entries, ascending, gapless after the last page.
    pub entries: Vec<DeltaEntry>,
}

impl Manifest {
    /// The first manifest of a machine: owned, and nothing published.
    #[must_use]
    pub fn first(machine: MachineId, owner: ServerId) -> Self {
        Self {
            machine,
            generation: Generation(1),
            owner,
            owned_since: Generation(1),
            version: 1,
            truncated: Sequence::ZERO,
            published: Sequence::ZERO,
            last_delta: None,
            catching_up: false,
            epochs: Vec::new(),
            pages: Vec::new(),
            entries: Vec::new(),
        }
    }
}

/// One epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochEntry {
    /// Which.
    pub epoch: Epoch,
    /// Its `EpochBegin` record.
    pub first: Sequence,
    /// Its disks.
    pub disks: Vec<DiskSpec>,
}

/// One delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaEntry {
    /// Its id.
    pub id: DeltaId,
    /// Ownership under which it was written (part of its object's name).
    pub generation: Generation,
    /// Its epoch.
    pub epoch: Epoch,
    /// First record.
    pub first: Sequence,
    /// Last record.
    pub last: Sequence,
    /// Length of the object.
    pub object_bytes: u64,
    /// Bytes of writes that went in, before coalescing and compression.
    pub source_bytes: u64,
    /// When it was sealed, by the process server's clock.
    pub created: Timestamp,
    /// Whether a catch-up begins or runs anywhere in it.
    pub catch_up: bool,
    /// Whether every write in it is kept, so that it can be cut behind any record. Else what later
    /// writes covered may be folded away.
    pub keeps_every_write: bool,
    /// Bookmarks in it, ascending; each is a consistent point.
    pub bookmarks: Vec<BookmarkEntry>,
}

impl DeltaEntry {
    /// When a bookmark of this delta was made, as far as two clocks agree: the agent's word, but
    /// not later than the process server sealed it. One wrong clock alone then moves no age
    /// forward, and nothing is given up as old because of it.
    #[must_use]
    pub fn moment(&self, bookmark: &BookmarkEntry) -> Timestamp {
        bookmark.bookmark.time.min(self.created)
    }
}

/// A bookmark with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookmarkEntry {
    /// Its place.
    pub sequence: Sequence,
    /// What the agent wrote.
    pub bookmark: Bookmark,
}

/// An immutable page of older entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageEntry {
    /// Names the page object.
    pub id: DeltaId,
    /// First record of its first entry.
    pub first: Sequence,
    /// Last record of its last entry.
    pub last: Sequence,
    /// SHA-256 of the page object: a page swapped for another is found.
    pub sha256: [u8; 32],
}

/// Content of a page object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestPage {
    /// Whose.
    pub machine: MachineId,
    /// Ascending, gapless.
    pub entries: Vec<DeltaEntry>,
}
