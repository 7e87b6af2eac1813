//! The trait over the blocking calls: each runs on tokio's threads for blocking work.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::root::Root;
use super::{
    BlockId, Condition, Dir, ETag, LeaseId, Listed, ObjectName, PageGuard, PageRange, PageWrite,
    Properties, Result, SnapshotId, SnapshotInfo, StoreError,
};
use crate::observe::Meter;
use crate::store::Store;
use crate::store::rules::io_error;

impl Dir {
    /// Runs `work` to its end even when the caller stops waiting: an effect is whole or absent.
    async fn run<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&Root) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let root = Arc::clone(&self.root);
        let own = name.to_owned();
        let work = move || {
            root.expect_online(&own)?;
            let refuse = |error| io_error(&root.store, own, "using the store", error);
            root.disk.trusted().map_err(refuse)?;
            work(&root)
        };
        match tokio::task::spawn_blocking(Meter::carry(work)).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(cancelled) => Err(StoreError::Ambiguous {
                    store: self.describe(),
                    name: name.to_owned(),
                    source: Arc::new(cancelled),
                }),
            },
        }
    }
}

/// Clones the arguments into a closure and runs it.
macro_rules! run {
    ($self:ident, $name:ident, [$($owned:ident = $value:expr),*], $root:ident => $call:expr) => {{
        let own = $name.clone();
        $(let $owned = $value;)*
        $self.run($name.as_str(), move |$root| { let $name = &own; $call }).await
    }};
}

#[async_trait]
impl Store for Dir {
    fn describe(&self) -> String {
        self.root.store.clone()
    }

    async fn stage_block(&self, name: &ObjectName, block: BlockId, body: Bytes) -> Result<()> {
        run!(self, name, [], root => root.stage(name, block, &body))
    }

    async fn commit_blocks(
        &self,
        name: &ObjectName,
        blocks: &[BlockId],
        condition: Condition,
    ) -> Result<ETag> {
        run!(self, name, [blocks = blocks.to_vec()], root => root.commit(name, &blocks, &condition))
    }

    async fn put(&self, name: &ObjectName, body: Bytes, condition: Condition) -> Result<ETag> {
        run!(self, name, [], root => root.put(name, &body, &condition, None))
    }

    async fn put_leased(
        &self,
        name: &ObjectName,
        body: Bytes,
        condition: Condition,
        lease: LeaseId,
    ) -> Result<ETag> {
        run!(self, name, [], root => root.put(name, &body, &condition, Some(lease)))
    }

    async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<()> {
        run!(self, name, [], root => root.put_new(name, &body))
    }

    async fn read(&self, name: &ObjectName) -> Result<(Bytes, ETag)> {
        run!(self, name, [], root => root.read(name))
    }

    async fn read_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes> {
        run!(self, name, [], root => root.read_range(name, offset, length))
    }

    async fn properties(&self, name: &ObjectName) -> Result<Properties> {
        run!(self, name, [], root => root.properties(name))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let own = prefix.to_owned();
        self.run(prefix, move |root| root.list(&own)).await
    }

    async fn delete(&self, name: &ObjectName, condition: Condition) -> Result<()> {
        run!(self, name, [], root => root.delete(name, &condition))
    }

    async fn create_pages(&self, name: &ObjectName, size: u64) -> Result<()> {
        run!(self, name, [], root => root.create_pages(name, size))
    }

    async fn write_pages(
        &self,
        name: &ObjectName,
        writes: &[PageWrite],
        guard: &PageGuard,
    ) -> Result<()> {
        run!(self, name, [writes = writes.to_vec(), guard = *guard], root => {
            root.write_pages(name, &writes, &guard)
        })
    }

    async fn flush_pages(&self, name: &ObjectName, guard: &PageGuard) -> Result<()> {
        run!(self, name, [guard = *guard], root => root.flush_pages(name, &guard))
    }

    async fn snapshot(
        &self,
        name: &ObjectName,
        label: &str,
        guard: &PageGuard,
    ) -> Result<SnapshotId> {
        run!(self, name, [label = label.to_owned(), guard = *guard], root => {
            root.snapshot(name, &label, &guard)
        })
    }

    async fn list_snapshots(&self, name: &ObjectName) -> Result<Vec<SnapshotInfo>> {
        run!(self, name, [], root => root.list_snapshots(name))
    }

    async fn read_pages(
        &self,
        name: &ObjectName,
        snapshot: Option<&SnapshotId>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes> {
        run!(self, name, [snapshot = snapshot.cloned()], root => match &snapshot {
            None => root.read_base(name, offset, length),
            Some(snapshot) => root.read_snapshot(name, snapshot, offset, length),
        })
    }

    async fn page_ranges(
        &self,
        name: &ObjectName,
        snapshot: Option<&SnapshotId>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<PageRange>> {
        run!(self, name, [snapshot = snapshot.cloned()], root => {
            root.page_ranges(name, snapshot.as_ref(), offset, length)
        })
    }

    async fn page_properties(&self, name: &ObjectName) -> Result<Properties> {
        run!(self, name, [], root => root.page_properties(name))
    }

    async fn delete_snapshot(&self, name: &ObjectName, snapshot: &SnapshotId) -> Result<()> {
        run!(self, name, [snapshot = snapshot.clone()], root => {
            root.delete_snapshot(name, &snapshot)
        })
    }

    async fn delete_pages(&self, name: &ObjectName, lease: Option<LeaseId>) -> Result<()> {
        run!(self, name, [], root => root.delete_pages(name, lease))
    }

    async fn raise_sequence_number(
        &self,
        name: &ObjectName,
        number: u64,
        lease: LeaseId,
    ) -> Result<()> {
        run!(self, name, [], root => {
            root.about(name).check_sequence_number(number)?;
            let now = root.clock.wall();
            root.change_ownership(name, |ownership, about| {
                ownership.check_lease(about, lease, now)?;
                ownership.sequence_number = ownership.sequence_number.max(number);
                Ok(())
            })
        })
    }

    async fn acquire_lease(&self, name: &ObjectName, lease: LeaseId, seconds: u32) -> Result<()> {
        run!(self, name, [], root => {
            let now = root.clock.wall();
            root.change_lease(name, |own, about| own.acquire(about, lease, seconds, now))
        })
    }

    async fn renew_lease(&self, name: &ObjectName, lease: LeaseId) -> Result<()> {
        run!(self, name, [], root => {
            let now = root.clock.wall();
            root.change_lease(name, |own, about| own.renew(about, lease, now))
        })
    }

    async fn break_lease(&self, name: &ObjectName) -> Result<()> {
        run!(self, name, [], root => root.change_lease(name, |own, _| {
            own.lease = None;
            Ok(())
        }))
    }

    async fn release_lease(&self, name: &ObjectName, lease: LeaseId) -> Result<()> {
        run!(self, name, [], root => {
            root.change_lease(name, |own, about| own.release(about, lease))
        })
    }
}
