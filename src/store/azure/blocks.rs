//! Block ids: fixed length, and never those of another open store or of an earlier upload.
//!
//! Azure keeps what was staged for a week and takes any of it into a commit. So ids begin with a
//! random part for each upload of an object: blocks that were given up can never be committed, and
//! two stores that upload the same name never mix their blocks.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{BlockId, ObjectName};
use crate::clock::{Entropy, random16};

/// Uploads that were begun and neither committed nor given up.
#[derive(Default)]
pub(super) struct Staging(Mutex<HashMap<ObjectName, String>>);

impl Staging {
    fn uploads(&self) -> MutexGuard<'_, HashMap<ObjectName, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id of a block of the upload of `name`, which begins with it if need be.
    pub(super) fn id(&self, name: &ObjectName, block: BlockId, entropy: &dyn Entropy) -> Vec<u8> {
        let mut uploads = self.uploads();
        let upload = uploads.entry(name.clone());
        written(upload.or_insert_with(|| hex::encode(random16(entropy))), block)
    }

    /// The ids of a commit; `None`: nothing was staged.
    pub(super) fn ids(&self, name: &ObjectName, blocks: &[BlockId]) -> Option<Vec<Vec<u8>>> {
        let uploads = self.uploads();
        let upload = uploads.get(name)?;
        Some(blocks.iter().map(|block| written(upload, *block)).collect())
    }

    /// What was staged is committed or given up.
    pub(super) fn end(&self, name: &ObjectName) {
        self.uploads().remove(name);
    }
}

fn written(upload: &str, block: BlockId) -> Vec<u8> {
    format!("{upload}{:08x}", block.0).into_bytes()
}
