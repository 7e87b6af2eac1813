//! From a store's address to the store.

use std::sync::Arc;

use super::{Azure, Dir, Result, Store};
use crate::clock::System;
use crate::settings::StoreUrl;

/// Opens the store that `url` names. Blocks on file system calls.
///
/// # Errors
/// When it cannot be reached or made.
pub fn open(url: &StoreUrl) -> Result<Arc<dyn Store>> {
    match url {
        StoreUrl::Dir(path) => Ok(Arc::new(Dir::open(path, System::clock())?)),
        StoreUrl::Azure(url) => Ok(Arc::new(Azure::open(url, System::clock(), System::entropy())?)),
    }
}

/// Makes the place that `url` names, if it is not there: a new site does this once.
///
/// # Errors
/// When it cannot be made.
pub async fn create(url: &StoreUrl) -> Result<()> {
    match url {
        StoreUrl::Dir(_) => Ok(()), // opening makes it
        StoreUrl::Azure(url) => {
            Azure::open(url, System::clock(), System::entropy())?.create_container().await
        }
    }
}
