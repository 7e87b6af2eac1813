//! Where the cloud log, the seed disks and the vault live: one trait, several homes.
//!
//! Every method either has its whole effect or none; a returned `Ok` means the effect survives a
//! loss of power of whatever stands behind the store (page writes: once [`Store::flush_pages`]
//! returned). `Ambiguous` errors may have had their effect: the caller reads back and compares.

mod azure;
mod counted;
mod dir;
mod error;
pub mod faulty;
mod lease;
mod memory;
mod open;
mod rules;
mod types;

use async_trait::async_trait;
use bytes::Bytes;

pub use crate::model::ObjectName;
pub use azure::Azure;
pub use counted::Counted;
pub use dir::{Dir, Step, Watch};
pub use error::{Class, StoreError};
pub use faulty::Faulty;
pub use lease::LEASE_SECONDS;
pub use memory::Memory;
pub use open::{create, open};
pub use rules::{LABEL_BYTES_MAX, PAGE_BLOB_BYTES_MAX, READ_BYTES_MAX};
pub use types::{
    BlockId, Condition, ETag, LeaseId, Listed, PageBody, PageGuard, PageRange, PageWrite,
    Properties, SnapshotId, SnapshotInfo,
};

/// Result of a store call.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Longest page write, bytes (Azure: Put Page).
pub const PAGE_WRITE_BYTES_MAX: u32 = 4 << 20;
/// Longest block, bytes. Azure allows 4,000 MiB; one block is one buffer here.
pub const BLOCK_BYTES_MAX: u32 = 64 << 20;
/// Most blocks of one object (Azure).
pub const BLOCKS_MAX: usize = 50_000;

/// What `dir:`, `memory` and Azure have in common.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// For messages: which store this is, without secrets.
    fn describe(&self) -> String;

    // ── block blobs: deltas, manifests, vault documents ──────────────────────────────────────

    /// Uploads one block of `name`; invisible until committed. Repeating it with the same id
    /// replaces the block. All ids of one object have equal length.
    async fn stage_block(&self, name: &ObjectName, block: BlockId, body: Bytes) -> Result<()>;

    /// Makes the staged blocks, in this order, the content of `name`, if `condition` holds.
    /// Uncommitted blocks that are not named are discarded.
    async fn commit_blocks(
        &self,
        name: &ObjectName,
        blocks: &[BlockId],
        condition: Condition,
    ) -> Result<ETag>;

    /// Writes a small object whole.
    async fn put(&self, name: &ObjectName, body: Bytes, condition: Condition) -> Result<ETag>;

    /// [`Store::put`] where nothing may stand yet and nobody asks for the version: a store that has
    /// to compute one is spared that.
    async fn put_new(&self, name: &ObjectName, body: Bytes) -> Result<()> {
        self.put(name, body, Condition::Absent).await.map(drop)
    }

    /// [`Store::put`] under the object's own lease: `Fenced` unless `lease` is the running one. While
    /// a lease runs every change of the object without it ([`Store::put`], [`Store::commit_blocks`],
    /// [`Store::delete`]) is `Fenced`; so is staging on Azure.
    async fn put_leased(
        &self,
        name: &ObjectName,
        body: Bytes,
        condition: Condition,
        lease: LeaseId,
    ) -> Result<ETag>;

    /// Reads an object whole, with the ETag that a later conditional write may name.
    async fn read(&self, name: &ObjectName) -> Result<(Bytes, ETag)>;

    /// Reads `length` bytes from `offset`; `OutOfRange` when the object ends before.
    async fn read_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes>;

    /// Length, ETag and modification time.
    async fn properties(&self, name: &ObjectName) -> Result<Properties>;

    /// All committed block blobs and page blobs whose name begins with `prefix`, sorted by name.
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>>;

    /// Removes a block blob. `NotFound` when it was not there; blocks that this store staged for
    /// it are given up in both cases.
    async fn delete(&self, name: &ObjectName, condition: Condition) -> Result<()>;

    // ── page blobs: seed disks ───────────────────────────────────────────────────────────────

    /// Creates a page blob of zeros, `size` a multiple of 512, if there is none (`AlreadyExists`).
    /// Its sequence number is 0.
    async fn create_pages(&self, name: &ObjectName, size: u64) -> Result<()>;

    /// Writes or clears pages. The writes do not overlap and have no order among them; each is
    /// aligned to 512 and data is at most [`PAGE_WRITE_BYTES_MAX`]. Refused as `Fenced` unless
    /// `guard` names the current lease **and** the blob's sequence number equals the guard's.
    /// Durable once `flush_pages` returned.
    async fn write_pages(
        &self,
        name: &ObjectName,
        writes: &[PageWrite],
        guard: &PageGuard,
    ) -> Result<()>;

    /// Makes all page writes that returned before it durable.
    async fn flush_pages(&self, name: &ObjectName, guard: &PageGuard) -> Result<()>;

    /// Keeps the present content as a snapshot. `label` (≤ 256 bytes, e.g. a bookmark id) is kept
    /// with it so that a repeated call after a lost answer can be recognised by listing.
    async fn snapshot(
        &self,
        name: &ObjectName,
        label: &str,
        guard: &PageGuard,
    ) -> Result<SnapshotId>;

    /// Snapshots of a page blob, oldest first.
    async fn list_snapshots(&self, name: &ObjectName) -> Result<Vec<SnapshotInfo>>;

    /// Reads from the blob (`None`) or one of its snapshots; holes read as zeros.
    async fn read_pages(
        &self,
        name: &ObjectName,
        snapshot: Option<&SnapshotId>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes>;

    /// Ranges within `offset..offset + length` that may hold something else than zeros, sorted.
    async fn page_ranges(
        &self,
        name: &ObjectName,
        snapshot: Option<&SnapshotId>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<PageRange>>;

    /// Size in bytes of a page blob, its sequence number, its lease state.
    async fn page_properties(&self, name: &ObjectName) -> Result<Properties>;

    /// Removes one snapshot; the others keep their bytes.
    async fn delete_snapshot(&self, name: &ObjectName, snapshot: &SnapshotId) -> Result<()>;

    /// Removes a page blob with all its snapshots.
    async fn delete_pages(&self, name: &ObjectName, lease: Option<LeaseId>) -> Result<()>;

    /// Sets the blob's sequence number to the larger of the present one and `number`.
    async fn raise_sequence_number(
        &self,
        name: &ObjectName,
        number: u64,
        lease: LeaseId,
    ) -> Result<()>;

    // ── leases on either kind ────────────────────────────────────────────────────────────────

    /// Takes the lease with an id proposed by the caller, so that a repeated call after a lost
    /// answer succeeds. `Fenced` while another id holds it. `seconds`: 15 to 60.
    async fn acquire_lease(&self, name: &ObjectName, lease: LeaseId, seconds: u32) -> Result<()>;

    /// Prolongs it. `Fenced` when another id holds it now, or when it ran out and the object was
    /// changed since.
    async fn renew_lease(&self, name: &ObjectName, lease: LeaseId) -> Result<()>;

    /// Ends whichever lease there is at once: the older owner is fenced from this moment.
    async fn break_lease(&self, name: &ObjectName) -> Result<()>;

    /// Gives the lease back.
    async fn release_lease(&self, name: &ObjectName, lease: LeaseId) -> Result<()>;
}
