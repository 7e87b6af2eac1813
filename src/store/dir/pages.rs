//! Page blobs in a directory: a sparse file that is the fixed VHD, changed under guard and lock.
//!
//! Owns the order of copy-before-write (`docs/formats/seed-disk.md`, "Write ordering"): room is
//! reserved, old bytes are kept durably in the newest snapshot, then the blob changes. The guard
//! is checked under the same lock that covers all of it. Does not own how snapshots are read.

use std::ops::Range;

use bytes::Bytes;

use super::direct::PIECE;
use super::disk::{Opened, parent};
use super::granules::{self, GRANULE, MapError};
use super::lock::Lock;
use super::objects::{Found, modified, place_error};
use super::root::Root;
use super::state::{Kept, Snapshot, State};
use super::{
    ETag, LeaseId, ObjectName, PageBody, PageGuard, PageWrite, Properties, Result, StoreError,
};
use crate::store::lease::Ownership;
use crate::store::rules::About;

/// Bytes that are preserved with one read and one write.
const PRESERVE_BYTES: u64 = PIECE as u64;

/// A page blob that was found; whoever changes it holds the name's lock exclusively.
pub(super) struct Blob<'a> {
    pub(super) root: &'a Root,
    pub(super) name: &'a ObjectName,
    pub(super) state: State,
    pub(super) base: Opened,
}

impl Root {
    pub(super) fn blob<'a>(&'a self, name: &'a ObjectName, write: bool) -> Result<Blob<'a>> {
        let about = self.about(name);
        match self.find(name)? {
            Found::Nothing => return Err(about.not_found()),
            Found::Blocks(_) => return Err(about.is_blocks()),
            Found::Pages => {}
        }
        let state = self.state(name)?.ok_or_else(|| about.not_found())?;
        let fail = |error| about.io("opening", error);
        let base = Opened::open(self.object(name), write).map_err(fail)?;
        let blob = Blob { root: self, name, state, base };
        blob.check_length(&blob.base, blob.state.size)?;
        Ok(blob)
    }

    pub(super) fn create_pages(&self, name: &ObjectName, size: u64) -> Result<()> {
        let about = self.about(name);
        about.check_page_blob_size(size)?;
        let _lock = self.exclusive(name)?;
        if !matches!(self.find(name)?, Found::Nothing) {
            return Err(about.already_exists());
        }
        let create = || {
            self.sweep_beside(name)?;
            let base = self.temporary()?;
            base.0.file.set_len(size)?;
            self.disk.sync_all(&base.0)?;
            self.durable_directory(&self.beside(name))?;
            Ok(base)
        };
        let base = create().map_err(|error| place_error(about, "creating", error))?;
        // The state first: what has a state and no file does not exist, and is swept.
        self.set_state(name, &State::new(name, size))?;
        self.publish(&base.0.path, name, true).map_err(|error| {
            let _ = self.sweep_beside(name); // else the next open does it
            place_error(about, "publishing", error)
        })
    }

    pub(super) fn write_pages(
        &self,
        name: &ObjectName,
        writes: &[PageWrite],
        guard: &PageGuard,
    ) -> Result<()> {
        let (_lock, blob) = self.guarded(name, guard)?;
        let about = self.about(name);
        about.check_page_writes(blob.state.size, writes)?;
        let mut taken = Vec::new();
        let ready = blob
            .reserve(writes, &mut taken)
            .map_err(|error| about.io("reserving room", error))
            .and_then(|()| blob.preserve(writes));
        if let Err(error) = ready {
            for hole in taken {
                let _ = self.disk.zero(&blob.base, hole.start, hole.end - hole.start);
            }
            return Err(error);
        }
        for write in writes {
            match &write.body {
                PageBody::Data(bytes) => self.disk.write_through(&blob.base, write.offset, bytes),
                PageBody::Clear(length) => self.disk.zero(&blob.base, write.offset, *length),
            }
            .map_err(|error| about.io("writing pages", error))?;
        }
        Ok(())
    }

    pub(super) fn flush_pages(&self, name: &ObjectName, guard: &PageGuard) -> Result<()> {
        let (_lock, mut blob) = self.guarded(name, guard)?;
        blob.sync_base(guard.lease)
    }

    pub(super) fn page_properties(&self, name: &ObjectName) -> Result<Properties> {
        use std::os::unix::fs::MetadataExt;
        let blob = self.blob(name, false)?;
        let metadata = blob.base.file.metadata();
        let metadata = metadata.map_err(|error| self.about(name).io("reading", error))?;
        // No condition ever names a page blob's version (guards do that): this one is to look at.
        let etag = format!("{:x}.{:x}", metadata.mtime(), metadata.mtime_nsec());
        Ok(Properties {
            length: blob.state.size,
            etag: ETag(etag),
            modified: modified(&metadata),
            sequence_number: blob.state.ownership.sequence_number,
            leased: blob.state.ownership.leased(self.clock.wall()),
        })
    }

    pub(super) fn delete_pages(&self, name: &ObjectName, lease: Option<LeaseId>) -> Result<()> {
        let about = self.about(name);
        let _lock = self.exclusive(name)?;
        let blob = self.blob(name, false)?;
        let now = self.clock.wall();
        blob.state.ownership.check_removal(about, lease, now)?;
        let remove = || {
            self.disk.remove(&blob.base.path)?;
            self.disk.sync_directory(parent(&blob.base.path))?;
            self.sweep_beside(name) // after a crash the next open does it
        };
        remove().map_err(|error| about.io("removing", error))?;
        self.memory().forget(name);
        Ok(())
    }

    /// Changes who owns the blob, durably.
    pub(super) fn change_ownership(
        &self,
        name: &ObjectName,
        change: impl FnOnce(&mut Ownership, About<'_>) -> Result<()>,
    ) -> Result<()> {
        let _lock = self.exclusive(name)?;
        let mut state = self.blob(name, false)?.state;
        let before = state.ownership.clone();
        change(&mut state.ownership, self.about(name))?;
        if state.ownership == before {
            return Ok(());
        }
        self.memory().forget(name);
        self.set_state(name, &state)
    }

    /// Locks the blob and checks the guard: valid as long as the lock is held.
    pub(super) fn guarded<'a>(
        &'a self,
        name: &'a ObjectName,
        guard: &PageGuard,
    ) -> Result<(Lock, Blob<'a>)> {
        let lock = self.exclusive(name)?;
        let blob = self.blob(name, true)?;
        let about = self.about(name);
        blob.state.ownership.check(about, guard, self.clock.wall())?;
        if self.memory().broken.contains(&(name.clone(), guard.lease.0)) {
            return Err(about.fenced(
                "a sync failed under this lease: take a new one and write again what was not flushed",
            ));
        }
        Ok((lock, blob))
    }
}

impl Blob<'_> {
    pub(super) fn about(&self) -> About<'_> {
        self.root.about(self.name)
    }

    pub(super) fn map_error(&self, error: MapError) -> StoreError {
        match error {
            MapError::Io(error) => self.about().io("reading or writing a snapshot's map", error),
            MapError::Damaged(detail) => self.about().damaged(detail),
        }
    }

    /// Every file of a blob has the length that its size implies, from its creation on.
    pub(super) fn check_length(&self, file: &Opened, expected: u64) -> Result<()> {
        let found = file.length().map_err(|e| self.about().io("reading", e))?;
        if found == expected {
            return Ok(());
        }
        let path = file.path.display();
        Err(self.about().damaged(format!("{path} has {found} bytes, expected {expected}")))
    }

    fn newest(&self) -> Option<&Snapshot> {
        self.state.snapshots.last()
    }

    fn reserve(&self, writes: &[PageWrite], taken: &mut Vec<Range<u64>>) -> std::io::Result<()> {
        let unshare = self.newest().is_some_and(|one| one.kept == Kept::Clone);
        let disk = &self.root.disk;
        for write in writes {
            if let PageBody::Data(bytes) = &write.body {
                let length = bytes.len() as u64;
                disk.reserve(&self.base, write.offset, length, unshare, taken)?;
            }
        }
        Ok(())
    }

    /// Keeps what `writes` are about to overwrite in the newest snapshot, durably.
    fn preserve(&self, writes: &[PageWrite]) -> Result<()> {
        let Some(newest) = self.newest().filter(|one| one.kept == Kept::Granules) else {
            return Ok(());
        };
        let map = self.map(newest, true)?;
        let key = (self.name.clone(), newest.id.clone());
        if !self.root.memory().settled.contains(&key) {
            granules::settle(&self.root.disk, &map)
                .map_err(|error| self.map_error(MapError::Io(error)))?;
            self.root.memory().settled.insert(key.clone());
        }
        let mut touched: Vec<u64> = writes
            .iter()
            .flat_map(|write| granules::touched(write.offset, write.offset + write.body.length()))
            .collect();
        touched.sort_unstable();
        touched.dedup();
        let lacking = granules::lacking(&map, &touched).map_err(|e| self.map_error(e))?;
        if lacking.is_empty() {
            return Ok(());
        }
        self.root.memory().settled.remove(&key);
        let kept = self.content(newest, true)?;
        self.copy_granules(&self.base, &kept, &lacking)?;
        granules::mark(&self.root.disk, &map, &lacking).map_err(|e| self.map_error(e))?;
        self.root.memory().settled.insert(key);
        Ok(())
    }

    /// Copies whole granules (ascending) at their places and makes them durable in `to`. When
    /// there is no room, what was copied is given back: no bit names it.
    pub(super) fn copy_granules(&self, from: &Opened, to: &Opened, granules: &[u64]) -> Result<()> {
        let about = self.about();
        let result = self.copy_runs(from, to, granules);
        result.map_err(|error| {
            for run in runs(granules) {
                let extent = self.extent(&run);
                let _ = self.root.disk.zero(to, extent.start, extent.end - extent.start);
            }
            about.io("preserving what a snapshot holds", error)
        })
    }

    fn copy_runs(&self, from: &Opened, to: &Opened, granules: &[u64]) -> std::io::Result<()> {
        let disk = &self.root.disk;
        let mut buffer = disk.buffers.take();
        for run in runs(granules) {
            let extent = self.extent(&run);
            if from.data_ranges(extent.start, extent.end)?.is_empty() {
                continue;
            }
            let content = &mut buffer.bytes()[..(extent.end - extent.start) as usize];
            disk.read_through(from, extent.start, content)?;
            // Zeros are kept as the hole that is there: whatever an interrupted attempt wrote here
            // was these same bytes.
            let mut at = 0;
            let granules = content.chunks(GRANULE as usize).map(|one| (is_zero(one), one.len()));
            let granules: Vec<_> = granules.collect();
            for alike in granules.chunk_by(|(a, _), (b, _)| a == b) {
                let end = at + alike.iter().map(|(_, length)| length).sum::<usize>();
                if !alike[0].0 {
                    disk.write_through(to, extent.start + at as u64, &content[at..end])?;
                }
                at = end;
            }
        }
        disk.sync(to)
    }

    fn extent(&self, run: &Range<u64>) -> Range<u64> {
        let last = granules::extent(run.end - 1, self.state.size);
        run.start * GRANULE..last.end
    }

    /// Makes the blob's pages durable. After a failure the kernel may have dropped what it could
    /// not write, and says "done" the next time: so the lease ends here, and whoever takes the
    /// next one writes again everything since the last good flush.
    pub(super) fn sync_base(&mut self, lease: LeaseId) -> Result<()> {
        let Err(error) = self.root.disk.sync(&self.base) else {
            return Ok(());
        };
        self.root.memory().break_lease(self.name, lease);
        self.state.ownership.lease = None;
        // If this cannot be written either, this process at least remembers.
        let _ = self.root.set_state(self.name, &self.state);
        Err(self.about().io("syncing pages; the lease is given up", error))
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|part| part.iter().fold(0, |seen, byte| seen | byte) == 0)
}

/// Consecutive granules together, up to [`PRESERVE_BYTES`].
fn runs(granules: &[u64]) -> impl Iterator<Item = Range<u64>> {
    granules
        .chunk_by(|a, b| a + 1 == *b)
        .flat_map(|run| run.chunks((PRESERVE_BYTES / GRANULE) as usize))
        .map(|run| run[0]..run[0] + run.len() as u64)
}

/// Reads for the blob itself: no lock, pages have no order among them.
impl Root {
    pub(super) fn read_base(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes> {
        let about = self.about(name);
        let blob = self.blob(name, false)?;
        about.check_read(blob.state.size, offset, length)?;
        let mut content = vec![0; length as usize];
        blob.base.read(offset, &mut content).map_err(|error| about.io("reading pages", error))?;
        Ok(content.into())
    }
}
