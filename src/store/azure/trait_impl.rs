//! The trait over the requests.

use async_trait::async_trait;
use azure_storage_blob::models::BlobType;
use bytes::Bytes;

use super::read::Span;
use super::{
    Azure, BlockId, Condition, ETag, LeaseId, Listed, ObjectName, PageGuard, PageRange, PageWrite,
    Properties, Result, SnapshotId, SnapshotInfo, Store,
};

#[async_trait]
impl Store for Azure {
    fn describe(&self) -> String {
        self.store.clone()
    }

    async fn stage_block(&self, name: &ObjectName, block: BlockId, body: Bytes) -> Result<()> {
        self.stage(name, block, body).await
    }

    async fn commit_blocks(
        &self,
        name: &ObjectName,
        blocks: &[BlockId],
        condition: Condition,
    ) -> Result<ETag> {
        self.commit(name, blocks, condition).await
    }

    async fn put(&self, name: &ObjectName, body: Bytes, condition: Condition) -> Result<ETag> {
        self.put_whole(name, body, &condition, None).await
    }

    async fn put_leased(
        &self,
        name: &ObjectName,
        body: Bytes,
        condition: Condition,
        lease: LeaseId,
    ) -> Result<ETag> {
        self.put_whole(name, body, &condition, Some(lease)).await
    }

    async fn read(&self, name: &ObjectName) -> Result<(Bytes, ETag)> {
        self.read_whole(name).await
    }

    async fn read_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes> {
        let span = Span { snapshot: None, offset, length };
        self.read_span(name, BlobType::BlockBlob, span).await
    }

    async fn properties(&self, name: &ObjectName) -> Result<Properties> {
        Ok(self.see(name, None).await?.properties)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.list_objects(prefix).await
    }

    async fn delete(&self, name: &ObjectName, condition: Condition) -> Result<()> {
        self.remove(name, &condition).await
    }

    async fn create_pages(&self, name: &ObjectName, size: u64) -> Result<()> {
        self.make_pages(name, size).await
    }

    async fn write_pages(
        &self,
        name: &ObjectName,
        writes: &[PageWrite],
        guard: &PageGuard,
    ) -> Result<()> {
        self.write(name, writes, guard).await
    }

    /// What was written is durable; what remains is to see that we still own it.
    async fn flush_pages(&self, name: &ObjectName, guard: &PageGuard) -> Result<()> {
        self.expect_guard(name, guard).await.map(drop)
    }

    async fn snapshot(
        &self,
        name: &ObjectName,
        label: &str,
        guard: &PageGuard,
    ) -> Result<SnapshotId> {
        self.keep(name, label, guard).await
    }

    async fn list_snapshots(&self, name: &ObjectName) -> Result<Vec<SnapshotInfo>> {
        self.snapshots_of(name).await
    }

    async fn read_pages(
        &self,
        name: &ObjectName,
        snapshot: Option<&SnapshotId>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes> {
        self.read_span(name, BlobType::PageBlob, Span { snapshot, offset, length }).await
    }

    async fn page_ranges(
        &self,
        name: &ObjectName,
        snapshot: Option<&SnapshotId>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<PageRange>> {
        self.ranges(name, Span { snapshot, offset, length }).await
    }

    async fn page_properties(&self, name: &ObjectName) -> Result<Properties> {
        self.see_pages(name, None).await
    }

    async fn delete_snapshot(&self, name: &ObjectName, snapshot: &SnapshotId) -> Result<()> {
        self.drop_snapshot(name, snapshot).await
    }

    async fn delete_pages(&self, name: &ObjectName, lease: Option<LeaseId>) -> Result<()> {
        self.remove_pages(name, lease).await
    }

    async fn raise_sequence_number(
        &self,
        name: &ObjectName,
        number: u64,
        lease: LeaseId,
    ) -> Result<()> {
        self.raise(name, number, lease).await
    }

    async fn acquire_lease(&self, name: &ObjectName, lease: LeaseId, seconds: u32) -> Result<()> {
        self.acquire(name, lease, seconds).await
    }

    async fn renew_lease(&self, name: &ObjectName, lease: LeaseId) -> Result<()> {
        self.renew(name, lease).await
    }

    async fn break_lease(&self, name: &ObjectName) -> Result<()> {
        self.end_lease(name).await
    }

    async fn release_lease(&self, name: &ObjectName, lease: LeaseId) -> Result<()> {
        self.give_back(name, lease).await
    }
}
