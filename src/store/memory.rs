//! A store in memory: the reference for what a store does, and the fast one for other rooms' tests.
//!
//! Owns nothing outside the process; sharing one `Arc<Memory>` between "servers" is how tests
//! play several owners of one store.

mod pages;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use self::pages::Pages;
use super::lease::Ownership;
use super::rules::{About, content_etag};
use super::{
    BlockId, Condition, ETag, LeaseId, Listed, ObjectName, PageGuard, PageRange, PageWrite,
    Properties, Result, SnapshotId, SnapshotInfo, Store,
};
use crate::clock::Clock;
use crate::model::Timestamp;

/// Objects in memory, with all rules of the real stores.
pub struct Memory {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<ObjectName, Object>,
    staged: HashMap<ObjectName, BTreeMap<BlockId, Bytes>>,
}

enum Object {
    Blocks(Blocks),
    Pages(Box<PageBlob>),
}

struct Blocks {
    content: Bytes,
    etag: ETag,
    modified: Timestamp,
    ownership: Ownership,
}

struct PageBlob {
    size: u64,
    pages: Pages,
    changes: u64,
    modified: Timestamp,
    ownership: Ownership,
    snapshots_made: u64,
    snapshots: BTreeMap<SnapshotId, (String, Pages)>,
}

const STORE: &str = "memory";

fn about(name: &ObjectName) -> About<'_> {
    About::new(STORE, name)
}

impl Object {
    fn properties(&self, now: Timestamp) -> Properties {
        match self {
            Self::Blocks(blocks) => Properties {
                length: blocks.content.len() as u64,
                etag: blocks.etag.clone(),
                modified: blocks.modified,
                sequence_number: 0,
                leased: blocks.ownership.leased(now),
            },
            Self::Pages(blob) => Properties {
                length: blob.size,
                etag: ETag(format!("{:x}", blob.changes)),
                modified: blob.modified,
                sequence_number: blob.ownership.sequence_number,
                leased: blob.ownership.leased(now),
            },
        }
    }
}

impl State {
    fn blocks(&self, name: &ObjectName) -> Result<Option<&Blocks>> {
        match self.objects.get(name) {
            None => Ok(None),
            Some(Object::Blocks(blocks)) => Ok(Some(blocks)),
            Some(Object::Pages(_)) => Err(about(name).is_pages()),
        }
    }

    fn blob(&mut self, name: &ObjectName) -> Result<&mut PageBlob> {
        match self.objects.get_mut(name) {
            None => Err(about(name).not_found()),
            Some(Object::Pages(blob)) => Ok(blob),
            Some(Object::Blocks(_)) => Err(about(name).is_blocks()),
        }
    }

    fn ownership(&mut self, name: &ObjectName) -> Result<&mut Ownership> {
        match self.objects.get_mut(name) {
            None => Err(about(name).not_found()),
            Some(Object::Pages(blob)) => Ok(&mut blob.ownership),
            Some(Object::Blocks(blocks)) => Ok(&mut blocks.ownership),
        }
    }

    /// A directory cannot be a file: no store lets an object's name be a path to others.
    fn check_place(&self, name: &ObjectName) -> Result<()> {
        let text = name.as_str();
        let under = format!("{text}/");
        let below = self.objects.keys().any(|other| other.as_str().starts_with(&under));
        let above = text.match_indices('/').any(|(at, _)| {
            ObjectName::new(&text[..at]).is_ok_and(|path| self.objects.contains_key(&path))
        });
        if below || above {
            return Err(about(name).refused("is a path to other objects, or lies under an object"));
        }
        Ok(())
    }

    fn replace(
        &mut self,
        name: &ObjectName,
        content: Bytes,
        condition: &Condition,
        lease: Option<LeaseId>,
        modified: Timestamp,
    ) -> Result<ETag> {
        self.check_write(name, condition)?;
        let mut ownership = self.blocks(name)?.map(|old| old.ownership.clone()).unwrap_or_default();
        ownership.check_change(about(name), lease, modified)?;
        let etag = content_etag(&content);
        let blocks = Blocks { content, etag: etag.clone(), modified, ownership };
        self.objects.insert(name.clone(), Object::Blocks(blocks));
        Ok(etag)
    }

    fn check_write(&self, name: &ObjectName, condition: &Condition) -> Result<()> {
        if self.objects.contains_key(name) && *condition == Condition::Absent {
            return Err(about(name).already_exists());
        }
        let present = self.blocks(name)?.map(|blocks| &blocks.etag);
        about(name).check_condition(condition, present)?;
        self.check_place(name)
    }
}

impl Memory {
    /// An empty store. Leases run by `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No method leaves the state half changed when it panics: checks come first.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PageBlob {
    fn check_snapshot(
        &self,
        name: &ObjectName,
        snapshot: Option<&SnapshotId>,
        offset: u64,
        length: u64,
    ) -> Result<&Pages> {
        about(name).check_range(self.size, offset, length)?;
        match snapshot {
            None => Ok(&self.pages),
            Some(id) => match self.snapshots.get(id) {
                Some((_, pages)) => Ok(pages),
                None => Err(about(name).not_found()),
            },
        }
    }

    fn touch(&mut self, now: Timestamp) {
        self.changes += 1;
        self.modified = now;
    }
}

#[async_trait]
impl Store for Memory {
    fn describe(&self) -> String {
        STORE.to_owned()
    }

    async fn stage_block(&self, name: &ObjectName, block: BlockId, body: Bytes) -> Result<()> {
        about(name).check_block(body.len())?;
        let mut state = self.state();
        state.blocks(name)?;
        state.staged.entry(name.clone()).or_default().insert(block, body);
        Ok(())
    }

    async fn commit_blocks(
        &self,
        name: &ObjectName,
        blocks: &[BlockId],
        condition: Condition,
    ) -> Result<ETag> {
        about(name).check_block_list(blocks)?;
        let now = self.clock.wall();
        let mut state = self.state();
        state.check_write(name, &condition)?;
        let mut content = BytesMut::new();
        for block in blocks {
            let staged = state.staged.get(name).and_then(|all| all.get(block));
            content.extend_from_slice(staged.ok_or_else(|| about(name).not_staged(*block))?);
        }
        let etag = state.replace(name, content.freeze(), &condition, None, now)?;
        state.staged.remove(name);
        Ok(etag)
    }

    async fn put(&self, name: &ObjectName, body: Bytes, condition: Condition) -> Result<ETag> {
        about(name).check_put(body.len())?;
        let now = self.clock.wall();
        self.state().replace(name, body, &condition, None, now)
    }

    async fn put_leased(
        &self,
        name: &ObjectName,
        body: Bytes,
        condition: Condition,
        lease: LeaseId,
    ) -> Result<ETag> {
        about(name).check_put(body.len())?;
        let now = self.clock.wall();
        self.state().replace(name, body, &condition, Some(lease), now)
    }

    async fn read(&self, name: &ObjectName) -> Result<(Bytes, ETag)> {
        let state = self.state();
        let blocks = state.blocks(name)?.ok_or_else(|| about(name).not_found())?;
        about(name).check_read(blocks.content.len() as u64, 0, blocks.content.len() as u64)?;
        Ok((blocks.content.clone(), blocks.etag.clone()))
    }

    async fn read_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes> {
        let state = self.state();
        let blocks = state.blocks(name)?.ok_or_else(|| about(name).not_found())?;
        about(name).check_read(blocks.content.len() as u64, offset, length)?;
        let start = offset as usize;
        Ok(blocks.content.slice(start..start + length as usize))
    }

    async fn properties(&self, name: &ObjectName) -> Result<Properties> {
        let state = self.state();
        let object = state.objects.get(name);
        Ok(object.ok_or_else(|| about(name).not_found())?.properties(self.clock.wall()))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let now = self.clock.wall();
        let state = self.state();
        let rows = state.objects.iter().filter(|(name, _)| name.as_str().starts_with(prefix));
        Ok(rows
            .map(|(name, object)| {
                let Properties { length, modified, .. } = object.properties(now);
                let name = name.clone();
                Listed { name, length, modified }
            })
            .collect())
    }

    async fn delete(&self, name: &ObjectName, condition: Condition) -> Result<()> {
        let now = self.clock.wall();
        let mut state = self.state();
        if let Some(present) = state.blocks(name)? {
            about(name).check_condition(&condition, Some(&present.etag))?;
            present.ownership.check_removal(about(name), None, now)?;
        }
        state.staged.remove(name); // who gives an object up gives its blocks up
        match state.objects.remove(name) {
            Some(_) => Ok(()),
            None => Err(about(name).not_found()),
        }
    }

    async fn create_pages(&self, name: &ObjectName, size: u64) -> Result<()> {
        about(name).check_page_blob_size(size)?;
        let modified = self.clock.wall();
        let mut state = self.state();
        if state.objects.contains_key(name) {
            return Err(about(name).already_exists());
        }
        state.check_place(name)?;
        let blob = PageBlob {
            size,
            pages: Pages::default(),
            changes: 0,
            modified,
            ownership: Ownership::default(),
            snapshots_made: 0,
            snapshots: BTreeMap::new(),
        };
        state.objects.insert(name.clone(), Object::Pages(Box::new(blob)));
        Ok(())
    }

    async fn write_pages(
        &self,
        name: &ObjectName,
        writes: &[PageWrite],
        guard: &PageGuard,
    ) -> Result<()> {
        let now = self.clock.wall();
        let mut state = self.state();
        let blob = state.blob(name)?;
        about(name).check_page_writes(blob.size, writes)?;
        blob.ownership.check(about(name), guard, now)?;
        for write in writes {
            blob.pages.write(write);
        }
        blob.touch(now);
        Ok(())
    }

    async fn flush_pages(&self, name: &ObjectName, guard: &PageGuard) -> Result<()> {
        let now = self.clock.wall();
        let mut state = self.state();
        state.blob(name)?.ownership.check(about(name), guard, now)
    }

    async fn snapshot(
        &self,
        name: &ObjectName,
        label: &str,
        guard: &PageGuard,
    ) -> Result<SnapshotId> {
        about(name).check_label(label)?;
        let now = self.clock.wall();
        let mut state = self.state();
        let blob = state.blob(name)?;
        blob.ownership.check(about(name), guard, now)?;
        blob.snapshots_made += 1;
        let id = SnapshotId(format!("{:016x}", blob.snapshots_made));
        let pages = blob.pages.clone();
        blob.snapshots.insert(id.clone(), (label.to_owned(), pages));
        Ok(id)
    }

    async fn list_snapshots(&self, name: &ObjectName) -> Result<Vec<SnapshotInfo>> {
        let mut state = self.state();
        let snapshots = state.blob(name)?.snapshots.iter();
        Ok(snapshots
            .map(|(id, (label, _))| SnapshotInfo { id: id.clone(), label: label.clone() })
            .collect())
    }

    async fn read_pages(
        &self,
        name: &ObjectName,
        snapshot: Option<&SnapshotId>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes> {
        let mut state = self.state();
        let blob = state.blob(name)?;
        about(name).check_read(blob.size, offset, length)?;
        let pages = blob.check_snapshot(name, snapshot, offset, length)?;
        Ok(pages.read(offset, length).into())
    }

    async fn page_ranges(
        &self,
        name: &ObjectName,
        snapshot: Option<&SnapshotId>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<PageRange>> {
        let mut state = self.state();
        let blob = state.blob(name)?;
        let pages = blob.check_snapshot(name, snapshot, offset, length)?;
        Ok(pages.ranges(offset, length))
    }

    async fn page_properties(&self, name: &ObjectName) -> Result<Properties> {
        self.state().blob(name)?;
        self.properties(name).await
    }

    async fn delete_snapshot(&self, name: &ObjectName, snapshot: &SnapshotId) -> Result<()> {
        match self.state().blob(name)?.snapshots.remove(snapshot) {
            Some(_) => Ok(()),
            None => Err(about(name).not_found()),
        }
    }

    async fn delete_pages(&self, name: &ObjectName, lease: Option<LeaseId>) -> Result<()> {
        let now = self.clock.wall();
        let mut state = self.state();
        let ownership = &state.blob(name)?.ownership;
        ownership.check_removal(about(name), lease, now)?;
        state.objects.remove(name);
        Ok(())
    }

    async fn raise_sequence_number(
        &self,
        name: &ObjectName,
        number: u64,
        lease: LeaseId,
    ) -> Result<()> {
        about(name).check_sequence_number(number)?;
        let now = self.clock.wall();
        let mut state = self.state();
        let ownership = &mut state.blob(name)?.ownership;
        ownership.check_lease(about(name), lease, now)?;
        ownership.sequence_number = ownership.sequence_number.max(number);
        Ok(())
    }

    async fn acquire_lease(&self, name: &ObjectName, lease: LeaseId, seconds: u32) -> Result<()> {
        let now = self.clock.wall();
        let mut state = self.state();
        let ownership = state.ownership(name)?;
        ownership.acquire(about(name), lease, seconds, now)
    }

    async fn renew_lease(&self, name: &ObjectName, lease: LeaseId) -> Result<()> {
        let now = self.clock.wall();
        let mut state = self.state();
        state.ownership(name)?.renew(about(name), lease, now)
    }

    async fn break_lease(&self, name: &ObjectName) -> Result<()> {
        self.state().ownership(name)?.lease = None;
        Ok(())
    }

    async fn release_lease(&self, name: &ObjectName, lease: LeaseId) -> Result<()> {
        let mut state = self.state();
        state.ownership(name)?.release(about(name), lease)
    }
}
