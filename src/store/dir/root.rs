//! The directory itself: where things stand, opening it, and what dead processes left behind.
//!
//! ```text
//! ROOT/machines/…            objects, each a file of exactly its bytes
//! ROOT/seed/asrseeddisk-…    page blobs, each a sparse file that *is* the fixed VHD
//! ROOT/.pages/seed/asrseeddisk-…/   beside a page blob: state, snapshots
//! ROOT/.staging/<pid>-<n>/   temporary files and staged blocks of one open store
//! ROOT/.leases/           who may change a block blob, where somebody leased it
//! ROOT/.locks/               lock files
//! ROOT/.offline              while it exists every call is refused: maintenance, and outage drills
//! ```
//!
//! Names of objects never have a part that begins with a dot, so the hidden directories cannot
//! clash with any.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, Opened, Temporary, if_found, parent};
use super::lock::Lock;
use super::{LeaseId, ObjectName, Result, SnapshotId, StoreError};
use crate::clock::Clock;
use crate::store::rules::{About, io_error};

/// See the layout above.
const OFFLINE: &str = ".offline";

/// Somebody took the store offline.
#[derive(Debug, thiserror::Error)]
#[error("taken offline by {path}; remove that file when it may be used again", path = .0.display())]
struct Offline(PathBuf);

pub(super) struct Root {
    pub(super) path: PathBuf,
    pub(super) store: String,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) disk: Disk,
    pub(super) memory: Mutex<Memory>,
    staging: PathBuf,
    _owner: Lock,
    temporaries: AtomicU64,
}

/// What this open store knows and another process must find out for itself.
#[derive(Default)]
pub(super) struct Memory {
    /// Directories whose own entries are durable, up to the root.
    directories: HashSet<PathBuf>,
    /// Maps of preserved granules that are as durable as they read.
    pub(super) settled: HashSet<(ObjectName, SnapshotId)>,
    /// Leases under which a sync went wrong: what was written under them must be written again.
    pub(super) broken: HashSet<(ObjectName, [u8; 16])>,
}

impl Memory {
    /// A new ownership trusts nothing that an earlier one did.
    pub(super) fn forget(&mut self, name: &ObjectName) {
        self.settled.retain(|(of, _)| of != name);
    }

    pub(super) fn forget_directory(&mut self, directory: &std::path::Path) {
        self.directories.remove(directory);
    }

    pub(super) fn break_lease(&mut self, name: &ObjectName, lease: LeaseId) {
        self.broken.insert((name.clone(), lease.0));
    }
}

impl Root {
    pub(super) fn open(path: &Path, clock: Arc<dyn Clock>, disk: Disk) -> Result<Self> {
        let store = format!("dir:{}", path.display());
        let fail = |action| {
            let (store, path) = (store.clone(), path.display().to_string());
            move |error| io_error(&store, path, action, error)
        };
        let mut private = std::fs::DirBuilder::new();
        private.recursive(true).mode(0o700); // seed disks hold what the machines' disks hold
        for directory in ["", ".locks", ".staging", ".pages", ".leases"] {
            private
                .create(path.join(directory))
                .map_err(fail("creating the store's directories"))?;
        }
        let path = &path.canonicalize().map_err(fail("resolving the path"))?;
        // Between creating a staging directory and locking it nobody may look for dead ones.
        let opening = Lock::of_file(&path.join(".locks/open")).map_err(fail("locking"))?;
        let left = Self::sweep_staging(path).map_err(fail("sweeping .staging"))?;
        let (staging, owner) = Self::claim_staging(path).map_err(fail("claiming .staging"))?;
        drop(opening);
        if left {
            // A killed process may have placed what it had not yet synced: before anybody builds
            // on what can be read here, make it durable.
            let directory = std::fs::File::open(path).map_err(fail("opening"))?;
            rustix::fs::syncfs(&directory).map_err(|errno| fail("syncing")(errno.into()))?;
        }
        let root = Self {
            path: path.clone(),
            store,
            clock,
            disk,
            memory: Mutex::default(),
            staging,
            _owner: owner,
            temporaries: AtomicU64::new(0),
        };
        root.sweep_pages()?;
        Ok(root)
    }

    fn claim_staging(path: &Path) -> io::Result<(PathBuf, Lock)> {
        let id = std::process::id();
        for n in 0_u32.. {
            let staging = path.join(format!(".staging/{id}-{n}"));
            match std::fs::create_dir(&staging) {
                Ok(()) => {
                    let owner = Lock::of_file(&staging.join("owner"))?;
                    return Ok((staging, owner));
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("every staging directory is taken"))
    }

    /// Removes staging directories whose owner is gone: its lock is free. True if there were any.
    fn sweep_staging(path: &Path) -> io::Result<bool> {
        let mut left = false;
        for entry in std::fs::read_dir(path.join(".staging"))? {
            let staging = entry?.path();
            // "Not found": its owner is just leaving and removes it itself.
            let lock = if_found(Lock::try_file(&staging.join("owner")))?.flatten();
            if let Some(_dead) = lock {
                if_found(std::fs::remove_dir_all(&staging))?;
                left = true;
            }
        }
        Ok(left)
    }

    /// Refuses while the store is taken offline. The call never began, so it may be repeated.
    pub(super) fn expect_online(&self, name: &str) -> Result<()> {
        let switch = self.path.join(OFFLINE);
        match rustix::fs::access(&switch, rustix::fs::Access::EXISTS) {
            Err(rustix::io::Errno::NOENT) => Ok(()),
            _ => Err(StoreError::Transient {
                store: self.store.clone(),
                name: name.to_owned(),
                source: Arc::new(Offline(switch)),
            }),
        }
    }

    pub(super) fn about<'a>(&'a self, name: &'a ObjectName) -> About<'a> {
        About::new(&self.store, name)
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn object(&self, name: &ObjectName) -> PathBuf {
        self.path.join(name.as_str())
    }

    /// The directory beside a page blob.
    pub(super) fn beside(&self, name: &ObjectName) -> PathBuf {
        self.path.join(".pages").join(name.as_str())
    }

    /// Where this store's staged blocks of an object stand.
    pub(super) fn staged(&self, name: &ObjectName) -> PathBuf {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(name.as_str().as_bytes());
        self.staging.join(hex::encode(digest))
    }

    pub(super) fn exclusive(&self, name: &ObjectName) -> Result<Lock> {
        Lock::exclusive(&self.path.join(".locks"), name)
            .map_err(|error| self.about(name).io("locking", error))
    }

    pub(super) fn shared(&self, name: &ObjectName) -> Result<Lock> {
        Lock::shared(&self.path.join(".locks"), name)
            .map_err(|error| self.about(name).io("locking", error))
    }

    /// A new empty file in the same file system, removed when it is dropped.
    pub(super) fn temporary(&self) -> io::Result<Temporary> {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        Opened::create(self.staging.join(format!("{number}.temporary"))).map(Temporary)
    }

    /// Makes sure that `directory` exists and that a loss of power does not take it away.
    pub(super) fn durable_directory(&self, directory: &Path) -> io::Result<()> {
        if self.memory().directories.contains(directory) {
            return Ok(());
        }
        std::fs::create_dir_all(directory).map_err(|error| match error.kind() {
            // A file on the way. Said so that nobody takes it for the object itself.
            ErrorKind::AlreadyExists => ErrorKind::NotADirectory.into(),
            _ => error,
        })?;
        let mut at = directory;
        while at != self.path {
            // Also those that exist: who made them may have been killed before syncing.
            at = parent(at);
            self.disk.sync_directory(at)?;
        }
        self.memory().directories.insert(directory.to_owned());
        Ok(())
    }

    /// Replaces a file by a finished one: content first, then the name, then the directory.
    pub(super) fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let temporary = self.temporary()?;
        self.disk.write(&temporary.0, 0, content)?;
        self.disk.sync_all(&temporary.0)?;
        self.disk.rename(&temporary.0.path, path)?;
        self.disk.sync_directory(parent(path))
    }

    /// Removes what a crash left beside page blobs that are gone.
    fn sweep_pages(&self) -> Result<()> {
        let mut found = Vec::new();
        let top = self.path.join(".pages");
        let fail = |error| io_error(&self.store, ".pages".to_owned(), "sweeping", error);
        super::listing::directories_with(&top, "state", &mut found).map_err(fail)?;
        for directory in found {
            let name = directory.strip_prefix(&top).ok().and_then(Path::to_str);
            let Some(name) = name.and_then(|text| ObjectName::new(text).ok()) else {
                continue;
            };
            let _lock = self.exclusive(&name)?;
            let fail = |error| self.about(&name).io("removing what a crash left", error);
            // A damaged blob is reported to who uses it; it must not keep the others from opening.
            if self.sweep_beside(&name).map_err(fail)?
                && let Ok(blob) = self.blob(&name, false)
            {
                blob.sweep_snapshots().map_err(fail)?;
            }
        }
        Ok(())
    }

    /// Under the name's lock: a directory beside nothing goes. True when the page blob exists.
    pub(super) fn sweep_beside(&self, name: &ObjectName) -> io::Result<bool> {
        let beside = self.beside(name);
        if if_found(std::fs::symlink_metadata(self.object(name)))?.is_some_and(|m| m.is_file()) {
            return Ok(if_found(std::fs::symlink_metadata(beside.join("state")))?.is_some());
        }
        // The state goes last: while it stands this directory is found again.
        for entry in if_found(std::fs::read_dir(&beside))?.into_iter().flatten() {
            let path = entry?.path();
            if !path.ends_with("state") && path.is_file() {
                self.disk.remove(&path)?;
            }
        }
        if if_found(self.disk.remove(&beside.join("state")))?.is_some() {
            self.disk.sync_directory(&beside)?;
        }
        // Not empty when other names lie below it.
        let _ = std::fs::remove_dir(&beside);
        self.memory().directories.remove(&beside);
        Ok(false)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.disk.trusted().is_err() {
            return; // what is left says to the next open that it has to sync first
        }
        // Best effort: what stays is swept when the store is opened next.
        let _ = std::fs::remove_dir_all(&self.staging);
    }
}
