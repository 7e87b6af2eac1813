//! What can be read of a log of which a page cannot.
//!
//! Owns: telling a page that is gone or altered (the rest can be read without it) from a store that
//! does not answer (then nothing is known). Does not own: what may be done without the page; that is
//! for callers to decide.

use super::error::CloudLogError;
use super::log_store::LogStore;
use crate::format::manifest::{DeltaEntry, Manifest};
use crate::model::{MachineId, Sequence};
use crate::store::Class;

/// A page that the manifest names and that is gone or altered. Which records its deltas hold is known
/// all the same: the manifest says it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the page of the manifest that names the deltas of records {first} to {last} of machine {machine} \
     cannot be read: put the object back"
)]
pub struct UnreadPage {
    /// Whose.
    pub machine: MachineId,
    /// First record of its first delta.
    pub first: Sequence,
    /// Last record of its last delta.
    pub last: Sequence,
    /// Which object, and what is wrong with it.
    #[source]
    pub why: CloudLogError,
}

/// The entries of a log, as far as its pages can be read.
#[derive(Debug, Default)]
pub struct Legible {
    /// Ascending; gapless but for what `unread` covers.
    pub entries: Vec<DeltaEntry>,
    /// Ascending.
    pub unread: Vec<UnreadPage>,
}

impl LogStore {
    /// All entries that hold records after `after`, but for those of pages that are gone or altered.
    /// Reads only the pages that are needed.
    ///
    /// # Errors
    /// When the store does not answer, or when records after `after` were truncated.
    pub async fn legible(
        &self,
        manifest: &Manifest,
        after: Sequence,
    ) -> Result<Legible, CloudLogError> {
        if after < manifest.truncated {
            let (truncated, asked) = (manifest.truncated, after);
            let machine = self.machine.clone();
            return Err(CloudLogError::Truncated { machine, truncated, asked });
        }
        let mut legible = Legible::default();
        for page in manifest.pages.iter().filter(|page| page.last > after) {
            match self.page(page).await {
                Ok(entries) => legible.entries.extend(entries),
                Err(why) if why.class() == Class::Poison => {
                    let (machine, first, last) = (self.machine.clone(), page.first, page.last);
                    legible.unread.push(UnreadPage { machine, first, last, why });
                }
                Err(error) => return Err(error),
            }
        }
        legible.entries.extend(manifest.entries.iter().cloned());
        legible.entries.retain(|entry| entry.last > after);
        Ok(legible)
    }
}
