//! The seed disks of one epoch: made, fenced, snapshotted.
//!
//! Owns: the lease and the sequence number on each page blob. Every change goes out under both,
//! so an older applier that wakes up changes nothing (`docs/formats/seed-disk.md`).

use std::sync::Arc;

use bytes::Bytes;

use crate::format::manifest::BookmarkEntry;
use crate::format::names;
use crate::format::seed_disk::{self, Footer};
use crate::model::{BookmarkKind, DiskIndex, DiskSpec, Epoch, MachineId, ObjectName};
use crate::places::{Place, reached};
use crate::store::{
    LeaseId, PageBody, PageGuard, PageWrite, Result, SnapshotId, Store, StoreError,
};
use crate::vault::SnapshotDisk;

/// Seconds that a lease lives without renewal.
const LEASE_SECONDS: u32 = 60;

/// All seed disks of one epoch, owned.
#[derive(Debug)]
pub(super) struct SeedDisks {
    pub(super) epoch: Epoch,
    pub(super) disks: Vec<SeedDisk>,
    guard: PageGuard,
}

/// One of them.
#[derive(Debug)]
pub(super) struct SeedDisk {
    pub(super) spec: DiskSpec,
    pub(super) object: ObjectName,
}

impl SeedDisks {
    /// Makes what is missing and takes over what is there. From its return on every older
    /// applier is refused by the store itself.
    pub(super) async fn take(
        store: &Arc<dyn Store>,
        machine: &MachineId,
        epoch: Epoch,
        specs: &[DiskSpec],
        guard: PageGuard,
    ) -> Result<Self> {
        let mut disks = Vec::with_capacity(specs.len());
        for spec in specs {
            let object = names::seed_disk(machine, &spec.name, epoch);
            let size = seed_disk::size_on_store(spec.size_bytes);
            match store.create_pages(&object, size).await {
                Ok(()) | Err(StoreError::AlreadyExists { .. }) => {}
                Err(error) => return Err(error),
            }
            fence(store, &object, guard).await?;
            write_footer(store, machine, epoch, spec, &object, &guard).await?;
            disks.push(SeedDisk { spec: spec.clone(), object });
        }
        Ok(Self { epoch, disks, guard })
    }

    pub(super) fn guard(&self) -> &PageGuard {
        &self.guard
    }

    pub(super) fn disk(&self, index: DiskIndex) -> Option<&SeedDisk> {
        self.disks.iter().find(|disk| disk.spec.index == index)
    }

    /// Keeps the leases alive; called at least every third of their life.
    pub(super) async fn renew(&self, store: &Arc<dyn Store>) -> Result<()> {
        for disk in &self.disks {
            store.renew_lease(&disk.object, self.guard.lease).await?;
        }
        Ok(())
    }

    /// Gives the leases back.
    pub(super) async fn release(&self, store: &Arc<dyn Store>) -> Result<()> {
        for disk in &self.disks {
            store.release_lease(&disk.object, self.guard.lease).await?;
        }
        Ok(())
    }

    /// Makes every page write durable.
    pub(super) async fn flush(&self, store: &Arc<dyn Store>) -> Result<()> {
        for disk in &self.disks {
            store.flush_pages(&disk.object, &self.guard).await?;
        }
        Ok(())
    }

    /// A snapshot of every disk. One that an earlier, interrupted try of this same applier made is
    /// found by its label: the disks have not changed since, because nothing beyond the bookmark is
    /// written before the point is recorded. One that an older applier made is never built on: that
    /// applier may be deleting it at this moment.
    pub(super) async fn snapshot(
        &self,
        store: &Arc<dyn Store>,
        bookmark: &BookmarkEntry,
    ) -> Result<Vec<SnapshotDisk>> {
        let label = label(self.guard.sequence_number, bookmark);
        let label = label.as_str();
        let mut made = Vec::with_capacity(self.disks.len());
        for disk in &self.disks {
            let snapshot = self.snapshot_once(store, &disk.object, label).await?;
            made.push(SnapshotDisk {
                index: disk.spec.index.0,
                name: disk.spec.name.clone(),
                size_bytes: disk.spec.size_bytes,
                snapshot,
            });
        }
        Ok(made)
    }

    async fn snapshot_once(
        &self,
        store: &Arc<dyn Store>,
        object: &ObjectName,
        label: &str,
    ) -> Result<SnapshotId> {
        let there = store.list_snapshots(object).await?;
        match there.into_iter().rev().find(|snapshot| snapshot.label == label) {
            Some(found) => Ok(found.id),
            None => {
                reached(Place::Snapshot);
                store.snapshot(object, label, &self.guard).await
            }
        }
    }
}

/// What is written on a snapshot: the applier's generation, the bookmark's id, its sequence (agents
/// choose ids, so an id alone may come twice); and for people who look at the storage account alone,
/// what kind of point it is and when it was. Machine, disk and epoch stand in the blob's name.
fn label(generation: u64, bookmark: &BookmarkEntry) -> String {
    let BookmarkEntry { sequence, bookmark } = bookmark;
    let kind = match bookmark.kind {
        BookmarkKind::CrashConsistent => "crash-consistent",
        BookmarkKind::ApplicationConsistent => "application-consistent",
    };
    format!("{generation}:{}@{sequence} {kind} {}", bookmark.id, bookmark.time)
}

/// Who made a snapshot, and where in the stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct MadeBy {
    pub(super) generation: u64,
    pub(super) sequence: u64,
}

/// What a label says; `None`: it is none of an applier's.
pub(super) fn made_by(label: &str) -> Option<MadeBy> {
    let (generation, rest) = label.split_once(':')?;
    let sequence = rest.split_once('@')?.1.split(' ').next()?;
    Some(MadeBy { generation: generation.parse().ok()?, sequence: sequence.parse().ok()? })
}

/// Order matters: the older lease ends first (its holder is refused from then on), then ours
/// begins, then the number rises, so that even a request that the store had already accepted
/// under the old lease and number is refused or over before we read what is there.
async fn fence(store: &Arc<dyn Store>, object: &ObjectName, guard: PageGuard) -> Result<()> {
    reached(Place::Fence);
    store.break_lease(object).await?;
    store.acquire_lease(object, guard.lease, LEASE_SECONDS).await?;
    store.raise_sequence_number(object, guard.sequence_number, guard.lease).await
}

async fn write_footer(
    store: &Arc<dyn Store>,
    machine: &MachineId,
    epoch: Epoch,
    spec: &DiskSpec,
    object: &ObjectName,
    guard: &PageGuard,
) -> Result<()> {
    let id = seed_disk::unique_id(machine, &spec.name, epoch);
    let end = seed_disk::virtual_bytes(spec.size_bytes);
    let footer = Footer::new(end, id).map_err(|error| StoreError::Refused {
        store: store.describe(),
        name: object.to_string(),
        detail: error.to_string(),
    })?;
    let body = Bytes::copy_from_slice(&footer.encode());
    let write = PageWrite { offset: end, body: PageBody::Data(body) };
    store.write_pages(object, &[write], guard).await?;
    store.flush_pages(object, guard).await
}

/// A fresh lease id.
pub(super) fn lease_id(entropy: &dyn crate::clock::Entropy) -> LeaseId {
    LeaseId(crate::clock::random16(entropy))
}
