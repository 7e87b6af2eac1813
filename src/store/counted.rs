//! A store whose requests are counted: people pay by request.
//!
//! Owns: which kind a call is, and how many requests it stands for. Does not own: retries, each of
//! which is a request of its own and is counted as such.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    BlockId, Condition, ETag, LeaseId, Listed, ObjectName, PageBody, PageGuard, PageRange,
    PageWrite, Properties, Result, SnapshotId, SnapshotInfo, Store,
};
use crate::observe::{Metrics, StoreRequest};

/// Counts what is asked of a store.
pub struct Counted {
    inner: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Counted {
    /// Counts in `metrics` what is asked of `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }

    async fn count<T>(
        &self,
        kind: StoreRequest,
        requests: u64,
        sent_bytes: u64,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let answer = call.await;
        let store = &self.metrics.store;
        store.count(kind, requests, answer.is_err());
        store.sent_bytes.fetch_add(sent_bytes, Ordering::Relaxed);
        answer
    }

    fn received(&self, bytes: &Bytes) {
        self.metrics.store.received_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
}

/// Calls that are one request and carry nothing worth counting.
macro_rules! plain {
    ($($kind:ident $method:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        #[async_trait]
        impl Store for Counted {
            fn describe(&self) -> String {
                self.inner.describe()
            }

            async fn stage_block(&self, name: &ObjectName, block: BlockId, body: Bytes) -> Result<()> {
                let bytes = body.len() as u64;
                let call = self.inner.stage_block(name, block, body);
                self.count(StoreRequest::StageBlock, 1, bytes, call).await
            }

            async fn put(&self, name: &ObjectName, body: Bytes, condition: Condition) -> Result<ETag> {
                let bytes = body.len() as u64;
                let call = self.inner.put(name, body, condition);
                self.count(StoreRequest::Put, 1, bytes, call).await
            }

            async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<()> {
                let bytes = body.len() as u64;
                let call = self.inner.put_new(name, body);
                self.count(StoreRequest::Put, 1, bytes, call).await
            }

            async fn put_leased(
                &self,
                name: &ObjectName,
                body: Bytes,
                condition: Condition,
                lease: LeaseId,
            ) -> Result<ETag> {
                let bytes = body.len() as u64;
                let call = self.inner.put_leased(name, body, condition, lease);
                self.count(StoreRequest::Put, 1, bytes, call).await
            }

            async fn read(&self, name: &ObjectName) -> Result<(Bytes, ETag)> {
                let call = self.inner.read(name);
                let answer = self.count(StoreRequest::Read, 1, 0, call).await;
                answer.inspect(|(bytes, _)| self.received(bytes))
            }

            async fn read_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes> {
                let call = self.inner.read_range(name, offset, length);
                let answer = self.count(StoreRequest::Read, 1, 0, call).await;
                answer.inspect(|bytes| self.received(bytes))
            }

            async fn read_pages(
                &self,
                name: &ObjectName,
                snapshot: Option<&SnapshotId>,
                offset: u64,
                length: u64,
            ) -> Result<Bytes> {
                let call = self.inner.read_pages(name, snapshot, offset, length);
                let answer = self.count(StoreRequest::Read, 1, 0, call).await;
                answer.inspect(|bytes| self.received(bytes))
            }

            async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
                self.count(StoreRequest::List, 1, 0, self.inner.list(prefix)).await
            }

            // One request for each piece.
            async fn write_pages(
                &self,
                name: &ObjectName,
                writes: &[PageWrite],
                guard: &PageGuard,
            ) -> Result<()> {
                let bytes = writes.iter().map(sent_bytes).sum();
                let call = self.inner.write_pages(name, writes, guard);
                self.count(StoreRequest::WritePages, writes.len() as u64, bytes, call).await
            }

            // A store in the cloud has nothing to flush.
            async fn flush_pages(&self, name: &ObjectName, guard: &PageGuard) -> Result<()> {
                self.inner.flush_pages(name, guard).await
            }

            $(async fn $method(&self, name: &ObjectName, $($arg: $type),*) -> Result<$out> {
                let call = self.inner.$method(name, $($arg),*);
                self.count(StoreRequest::$kind, 1, 0, call).await
            })*
        }
    };
}

plain! {
    CommitBlocks commit_blocks(blocks: &[BlockId], condition: Condition) -> ETag;
    Properties properties() -> Properties;
    Delete delete(condition: Condition) -> ();
    PageBlob create_pages(size: u64) -> ();
    Snapshot snapshot(label: &str, guard: &PageGuard) -> SnapshotId;
    List list_snapshots() -> Vec<SnapshotInfo>;
    List page_ranges(snapshot: Option<&SnapshotId>, offset: u64, length: u64) -> Vec<PageRange>;
    Properties page_properties() -> Properties;
    Delete delete_snapshot(snapshot: &SnapshotId) -> ();
    Delete delete_pages(lease: Option<LeaseId>) -> ();
    PageBlob raise_sequence_number(number: u64, lease: LeaseId) -> ();
    Lease acquire_lease(lease: LeaseId, seconds: u32) -> ();
    Lease renew_lease(lease: LeaseId) -> ();
    Lease break_lease() -> ();
    Lease release_lease(lease: LeaseId) -> ();
}

fn sent_bytes(write: &PageWrite) -> u64 {
    match &write.body {
        PageBody::Data(bytes) => bytes.len() as u64,
        PageBody::Clear(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Memory;

    #[tokio::test]
    async fn requests_and_bytes_are_counted_by_kind() {
        let metrics = Arc::new(Metrics::default());
        let memory = Arc::new(Memory::new(crate::clock::System::clock()));
        let store = Counted::new(memory, Arc::clone(&metrics));
        let name = ObjectName::new("log/a").unwrap();
        store.put(&name, Bytes::from_static(b"12345"), Condition::Absent).await.unwrap();
        store.put(&name, Bytes::from_static(b"12345"), Condition::Absent).await.unwrap_err();
        store.put_new(&name, Bytes::from_static(b"12345")).await.unwrap_err();
        store.read(&name).await.unwrap();
        store.read_range(&name, 1, 2).await.unwrap();
        store.list("log/").await.unwrap();
        let of = |kind| metrics.store.of(kind);
        assert_eq!([of(StoreRequest::Put), of(StoreRequest::Read)], [(3, 2), (2, 0)]);
        assert_eq!([of(StoreRequest::List), of(StoreRequest::Lease)], [(1, 0), (0, 0)]);
        let bytes = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!(bytes(&metrics.store.sent_bytes), 15);
        assert_eq!(bytes(&metrics.store.received_bytes), 7);
    }
}
