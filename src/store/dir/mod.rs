//! A directory as store: one machine, no server, any number of processes at once.
//!
//! Owns files, locks and the order in which they become durable. Layout: `root.rs`; page blobs:
//! `docs/formats/seed-disk.md`.
//!
//! * Compare-and-swap is done under flock(2), so it holds between processes; a lock ends with its
//!   holder. A holder that is *stopped* (not killed) keeps others waiting.
//! * An [`ETag`] is the SHA-256 of the content: equal content is the same version. It is computed
//!   when asked for, so `properties` of a large object reads it.
//! * Object files appear whole (link or rename of a synced file) and never change in place.
//! * No room is [`StoreError::Full`], and nothing half-written stays. On a file system that shares
//!   bytes between snapshots *and* cannot reserve room for unsharing them (btrfs), a full disk can
//!   stop a page write between two of its pages; writing it again completes it.
//! * Staged blocks belong to one open store: another process never sees or discards them, and they
//!   go when it goes, when the object is committed, or when it is deleted.
//! * Long writes, and long reads of what was written so, go past the page cache (`direct.rs`).
//! * An object's name is never the path to others (as on Azure with hierarchical namespaces).

mod direct;
mod disk;
mod granules;
mod leases;
mod listing;
mod lock;
mod objects;
mod pages;
mod root;
mod snapshots;
mod state;
mod trait_impl;

use std::path::Path;
use std::sync::Arc;

use super::{
    BlockId, Condition, ETag, LeaseId, Listed, ObjectName, PageBody, PageGuard, PageRange,
    PageWrite, Properties, Result, SnapshotId, SnapshotInfo, StoreError,
};
use crate::clock::Clock;
pub use disk::{Step, Watch};

/// An open directory store.
pub struct Dir {
    root: Arc<root::Root>,
}

impl Dir {
    /// Opens a directory, making it when it is not there, and removes what dead processes left.
    /// Blocks on file system calls. Leases run by `clock`.
    ///
    /// # Errors
    /// When the directory cannot be made, locked or swept.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::open_on(path, clock, disk::Disk::default())
    }

    /// The same, announcing every step to `watch`: how tests kill, fail and cut the power.
    ///
    /// # Errors
    /// As [`Dir::open`].
    pub fn open_watched(path: &Path, clock: Arc<dyn Clock>, watch: Arc<dyn Watch>) -> Result<Self> {
        Self::open_on(path, clock, disk::Disk::watched(watch))
    }

    fn open_on(path: &Path, clock: Arc<dyn Clock>, disk: disk::Disk) -> Result<Self> {
        let root = Arc::new(root::Root::open(path, clock, disk)?);
        Ok(Self { root })
    }
}
