//! Old entries move to immutable pages, so that the manifest stays small.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::error::CloudLogError;
use super::log_store::LogStore;
use crate::clock::{Entropy, random16};
use crate::format::manifest::{DeltaEntry, Manifest, ManifestPage, PAGE_KIND, PageEntry};
use crate::format::names;
use crate::model::DeltaId;
use crate::seal::seal_document;
use crate::store::{Condition, StoreError};

/// Entries that a manifest holds itself: past this the older half moves to a page. About 100 bytes
/// each, so a publish writes about 100 KiB at most.
pub const ENTRIES_MAX: usize = 1024;

impl LogStore {
    /// Moves the oldest entries of a `manifest` that holds more than `entries_max` to new pages of
    /// half as many each. The pages exist when this returns; they count once a
    /// [`LogStore::replace`] named them. True when something moved.
    ///
    /// A page made here belongs to the manifest version that was read before it: who loses the
    /// compare-and-swap must read again and make new ones, never carry a page over. The removal of
    /// unnamed pages relies on that.
    ///
    /// # Errors
    /// When a page cannot be written; drop `manifest` then.
    pub async fn page_out(
        &self,
        manifest: &mut Manifest,
        entries_max: usize,
        entropy: &dyn Entropy,
    ) -> Result<bool, CloudLogError> {
        let moved = (entries_max / 2).max(1);
        let mut any = false;
        while manifest.entries.len() > entries_max.max(1) {
            let page = self.new_page(&manifest.entries[..moved], entropy).await?;
            manifest.entries.drain(..moved);
            manifest.pages.push(page);
            any = true;
        }
        Ok(any)
    }

    async fn new_page(
        &self,
        entries: &[DeltaEntry],
        entropy: &dyn Entropy,
    ) -> Result<PageEntry, CloudLogError> {
        let content = ManifestPage { machine: self.machine.clone(), entries: entries.to_vec() };
        let plain = content.encode().map_err(|source| CloudLogError::Next {
            machine: self.machine.clone(),
            source: Box::new(source),
        })?;
        let key = self.keys.newest();
        let sealed = seal_document(PAGE_KIND, &self.machine, key, entropy, &plain);
        let page = PageEntry {
            id: DeltaId(random16(entropy)),
            first: entries[0].first,
            last: entries[entries.len() - 1].last,
            sha256: Sha256::digest(&sealed).into(),
        };
        self.put_page(&page, Bytes::from(sealed)).await?;
        Ok(page)
    }

    /// Writes a page under its fresh name. A lost answer is settled by reading the page back: a
    /// page that is not there yet is an error, and what may land later is an orphan.
    async fn put_page(&self, page: &PageEntry, body: Bytes) -> Result<(), CloudLogError> {
        let name = names::manifest_page(&self.machine, page.id);
        match self.store.put(&name, body, Condition::Absent).await {
            Ok(_) => Ok(()),
            Err(source @ (StoreError::AlreadyExists { .. } | StoreError::Ambiguous { .. })) => {
                match self.page(page).await {
                    Ok(_) => Ok(()),
                    Err(CloudLogError::Missing { machine, .. }) => {
                        Err(CloudLogError::Unsettled { machine, source: Box::new(source) })
                    }
                    Err(other) => Err(other),
                }
            }
            Err(source) => Err(self.store_error(name, source)),
        }
    }
}
