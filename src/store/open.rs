//! From a store's address to the store.

use std::sync::Arc;

use super::{Dir, Result, Store};
use crate::clock::System;
use crate::settings::StoreUrl;

/// Opens the store that `url` names. Blocks on file system calls.
///
/// # Errors
/// When it cannot be reached or made.
pub fn open(url: &StoreUrl) -> Result<Arc<dyn Store>> {
    match url {
        StoreUrl::Dir(path) => Ok(Arc::new(Dir::open(path, System::clock())?)),
    }
}
