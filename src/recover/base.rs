//! The snapshot of a seed disk that lies under the deltas.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::RecoverError;
use super::resolve::ResolvedPoint;
use crate::format::bytes::FormatError;
use crate::format::names;
use crate::format::seed_disk::{FOOTER_BYTES, Footer, size_on_store, unique_id, virtual_bytes};
use crate::model::{DiskSpec, ObjectName};
use crate::store::{SnapshotId, Store, StoreError};

/// Most bytes of one read: what one Azure page write takes, too.
pub(super) const READ_BYTES: u64 = 4 << 20;

/// One disk of a snapshot point whose footer was proven to be this disk's.
pub(super) struct Base {
    store: Arc<dyn Store>,
    object: ObjectName,
    snapshot: SnapshotId,
}

impl Base {
    /// The base of `disk` at `point`; `None` when the deltas begin with the epoch.
    pub(super) async fn open(
        store: &Arc<dyn Store>,
        point: &ResolvedPoint,
        disk: &DiskSpec,
    ) -> Result<Option<Self>, RecoverError> {
        let Some(snapshot) = &point.base else {
            return Ok(None);
        };
        let missing = |field, found: String, expected: String| RecoverError::Chain {
            machine: point.machine.clone(),
            sequence: point.sequence,
            field,
            found,
            expected,
        };
        let Some(kept) = snapshot.disks.iter().find(|kept| kept.disk() == disk.index) else {
            let found = format!("without disk {}", disk.name);
            let expected = "all disks of the epoch".to_owned();
            return Err(missing("snapshot point", found, expected));
        };
        if (&kept.name, kept.size_bytes) != (&disk.name, disk.size_bytes) {
            let found = format!("{} of {} bytes", kept.name, kept.size_bytes);
            let expected = format!("{} of {} bytes", disk.name, disk.size_bytes);
            return Err(missing("disk of the snapshot point", found, expected));
        }
        let base = Self {
            store: Arc::clone(store),
            object: names::seed_disk(&point.machine, &disk.name, point.epoch),
            snapshot: kept.snapshot.clone(),
        };
        base.prove_footer(point, disk).await?;
        Ok(Some(base))
    }

    /// A seed disk without its footer, or with that of another disk, is not what was written.
    async fn prove_footer(
        &self,
        point: &ResolvedPoint,
        disk: &DiskSpec,
    ) -> Result<(), RecoverError> {
        let at = size_on_store(disk.size_bytes) - FOOTER_BYTES as u64;
        let bytes = self.read(at, FOOTER_BYTES as u64).await?;
        let wrong = |source| RecoverError::Footer {
            object: self.object.clone(),
            snapshot: self.snapshot.0.clone(),
            source,
        };
        let footer = Footer::decode(&bytes).map_err(wrong)?;
        let id = unique_id(&point.machine, &disk.name, point.epoch);
        let size = virtual_bytes(disk.size_bytes);
        if footer.id() != id {
            let (found, expected) = (hex::encode(footer.id()), hex::encode(id));
            return Err(wrong(FormatError::value("unique id", found, expected)));
        }
        if footer.disk_bytes() != size {
            let error = FormatError::value("current size", footer.disk_bytes(), size);
            return Err(wrong(error));
        }
        Ok(())
    }

    /// As messages name it.
    pub(super) fn name(&self) -> String {
        format!("{} snapshot {}", self.object, self.snapshot.0)
    }

    /// Bytes of the snapshot; callers ask for at most [`READ_BYTES`].
    pub(super) async fn read(&self, offset: u64, length: u64) -> Result<Bytes, RecoverError> {
        let snapshot = Some(&self.snapshot);
        let read = self.store.read_pages(&self.object, snapshot, offset, length).await;
        match read.map_err(|source| self.broken(source))? {
            bytes if bytes.len() as u64 == length => Ok(bytes),
            bytes => Err(self.broken(StoreError::Damaged {
                store: self.store.describe(),
                name: self.name(),
                detail: format!("{} bytes given for {offset}+{length}", bytes.len()),
            })),
        }
    }

    /// Ranges below `size_bytes` that may hold something else than zeros.
    pub(super) async fn ranges(&self, size_bytes: u64) -> Result<Vec<Range<u64>>, RecoverError> {
        let snapshot = Some(&self.snapshot);
        let ranges = self.store.page_ranges(&self.object, snapshot, 0, size_bytes).await;
        let ranges = ranges.map_err(|source| self.broken(source))?;
        let cut = ranges.into_iter().map(|range| range.start..range.end.min(size_bytes));
        Ok(cut.filter(|range| !range.is_empty()).collect())
    }

    fn broken(&self, source: StoreError) -> RecoverError {
        let object = self.object.clone();
        RecoverError::Store { object, source }
    }
}
