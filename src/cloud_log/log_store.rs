//! Reading one machine's cloud log.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::error::CloudLogError;
use crate::format::bytes::FormatError;
use crate::format::manifest::{
    DeltaEntry, MANIFEST_KIND, Manifest, ManifestPage, PAGE_KIND, PageEntry,
};
use crate::format::names;
use crate::model::{DeltaId, MachineId, Sequence};
use crate::seal::{Expected, KeyRing, OpenDelta, SealError, open_document};
use crate::store::{ETag, ObjectName, Store, StoreError};

/// One machine's log in a store.
pub struct LogStore {
    pub(super) store: Arc<dyn Store>,
    pub(super) machine: MachineId,
    pub(super) keys: KeyRing,
}

impl LogStore {
    /// The log of `machine`, opened and sealed under `keys`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, machine: MachineId, keys: KeyRing) -> Self {
        Self { store, machine, keys }
    }

    /// Whose log.
    #[must_use]
    pub fn machine(&self) -> &MachineId {
        &self.machine
    }

    /// Where it stands.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The machine's keys.
    #[must_use]
    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// The manifest as it is now, with the ETag that [`LogStore::replace`] wants. `None` before
    /// the machine's first claim.
    ///
    /// # Errors
    /// When the store does not answer or the manifest cannot be believed.
    pub async fn manifest(&self) -> Result<Option<(Manifest, ETag)>, CloudLogError> {
        let name = names::manifest(&self.machine);
        let (sealed, etag) = match self.store.read(&name).await {
            Ok(read) => read,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(self.store_error(name, source)),
        };
        let manifest = self.believe(name, &sealed)?;
        Ok(Some((manifest, etag)))
    }

    pub(super) fn believe(
        &self,
        name: ObjectName,
        sealed: &[u8],
    ) -> Result<Manifest, CloudLogError> {
        let plain = self.open(MANIFEST_KIND, &name, sealed)?;
        let manifest =
            Manifest::decode(&plain).map_err(|source| self.format_error(&name, source))?;
        let (found, expected) = (&manifest.machine, &self.machine);
        self.same(&name, "machine", found == expected, found, expected)?;
        Ok(manifest)
    }

    /// All entries that hold records after `after`, ascending and gapless, from pages and from the
    /// document itself. Reads only the pages that are needed.
    ///
    /// # Errors
    /// When a page is missing, swapped or altered, or when records after `after` were truncated.
    pub async fn entries(
        &self,
        manifest: &Manifest,
        after: Sequence,
    ) -> Result<Vec<DeltaEntry>, CloudLogError> {
        let legible = self.legible(manifest, after).await?;
        match legible.unread.into_iter().next() {
            Some(page) => Err(page.why),
            None => Ok(legible.entries),
        }
    }

    /// The entries of one page, compared with what the manifest says about it.
    pub(super) async fn page(&self, page: &PageEntry) -> Result<Vec<DeltaEntry>, CloudLogError> {
        let name = names::manifest_page(&self.machine, page.id);
        let sealed = self.named(&name).await?;
        let hash: [u8; 32] = Sha256::digest(&sealed).into();
        let (found, expected) = (hex::encode(hash), hex::encode(page.sha256));
        self.same(&name, "SHA-256", hash == page.sha256, found, expected)?;
        let plain = self.open(PAGE_KIND, &name, &sealed)?;
        let content =
            ManifestPage::decode(&plain).map_err(|source| self.format_error(&name, source))?;
        let (found, expected) = (&content.machine, &self.machine);
        self.same(&name, "machine", found == expected, found, expected)?;
        let first = content.entries.first().map(|entry| entry.first);
        let last = content.entries.last().map(|entry| entry.last);
        let range = (Some(page.first), Some(page.last));
        self.same(
            &name,
            "range",
            (first, last) == range,
            format_args!("{first:?} to {last:?}"),
            format_args!("{} to {}", page.first, page.last),
        )?;
        Ok(content.entries)
    }

    /// Opens the delta that an entry names; its frames are fetched when they are asked for. Where
    /// the delta before it is known, the chain is compared, too.
    ///
    /// # Errors
    /// When it is missing, or anything about it is not what the manifest says.
    pub async fn open_delta(
        &self,
        entry: &DeltaEntry,
        previous: Option<DeltaId>,
    ) -> Result<OpenDelta, CloudLogError> {
        let DeltaEntry { generation, first, last, id, .. } = *entry;
        let name = names::delta(&self.machine, generation, first, last, id);
        let expected = Expected::of(&self.machine, entry, previous.map(Some));
        let store = self.store.as_ref();
        match OpenDelta::open(store, &name, &expected, &self.keys).await {
            Ok(delta) => Ok(delta),
            Err(SealError::Fetch { source, .. })
                if matches!(*source, StoreError::NotFound { .. }) =>
            {
                Err(self.missing(&name))
            }
            Err(source) => Err(self.sealed_error(&name, source)),
        }
    }

    /// An object that the manifest names, whole.
    pub(super) async fn named(&self, name: &ObjectName) -> Result<Bytes, CloudLogError> {
        match self.store.read(name).await {
            Ok((bytes, _)) => Ok(bytes),
            Err(StoreError::NotFound { .. }) => Err(self.missing(name)),
            Err(source) => Err(self.store_error(name.clone(), source)),
        }
    }

    fn open(
        &self,
        kind: &'static str,
        name: &ObjectName,
        sealed: &[u8],
    ) -> Result<Vec<u8>, CloudLogError> {
        open_document(kind, &self.machine, &self.keys, sealed)
            .map_err(|source| self.sealed_error(name, source))
    }

    pub(super) fn same(
        &self,
        name: &ObjectName,
        field: &'static str,
        same: bool,
        found: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> Result<(), CloudLogError> {
        if same {
            return Ok(());
        }
        Err(CloudLogError::Mismatch {
            machine: self.machine.clone(),
            name: name.clone(),
            field,
            found: found.to_string(),
            expected: expected.to_string(),
        })
    }

    fn missing(&self, name: &ObjectName) -> CloudLogError {
        CloudLogError::Missing { machine: self.machine.clone(), name: name.clone() }
    }

    pub(super) fn store_error(&self, name: ObjectName, source: StoreError) -> CloudLogError {
        let machine = self.machine.clone();
        CloudLogError::Store { machine, name, source: Box::new(source) }
    }

    fn sealed_error(&self, name: &ObjectName, source: SealError) -> CloudLogError {
        CloudLogError::Sealed {
            machine: self.machine.clone(),
            name: name.clone(),
            source: Box::new(source),
        }
    }

    fn format_error(&self, name: &ObjectName, source: FormatError) -> CloudLogError {
        CloudLogError::Format {
            machine: self.machine.clone(),
            name: name.clone(),
            source: Box::new(source),
        }
    }
}
