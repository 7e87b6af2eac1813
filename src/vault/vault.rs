//! Reading, making and changing one document.
//!
//! Owns: authentication, compare-and-swap, what a lost answer means. Does not own: what a document
//! says; that is in the file of its kind beside this one.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::VaultError;
use super::envelope::MacKey;
use crate::clock::{Entropy, System, random16};
use crate::model::ObjectName;
use crate::store::{Condition, ETag, Store, StoreError};

/// How often a change is tried against other writers, and a write whose answer was lost repeated.
const TRIES: u32 = 16;

/// The documents of one store.
#[derive(Clone)]
pub struct Vault {
    store: Arc<dyn Store>,
    key: Arc<MacKey>,
    entropy: Arc<dyn Entropy>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({})", self.store.describe())
    }
}

/// What became of a conditional write.
enum Written {
    /// It is there, or was until somebody else wrote over it.
    Ours(ETag),
    /// The condition did not hold.
    Refused,
}

impl Vault {
    /// The vault in `store`; documents are authenticated under `mac_key`, which is derived from the
    /// key-encryption key.
    pub fn new(store: Arc<dyn Store>, mac_key: impl Into<Zeroizing<[u8; 32]>>) -> Self {
        Self { store, key: Arc::new(MacKey::new(mac_key.into())), entropy: System::entropy() }
    }

    /// The store that holds the documents.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// A document and its version; `None` when there is none.
    ///
    /// # Errors
    /// When it was altered, has another shape, or the store does not answer.
    pub async fn read<T: DeserializeOwned>(
        &self,
        name: &ObjectName,
    ) -> Result<Option<(T, ETag)>, VaultError> {
        match self.store.read(name).await {
            Ok((body, etag)) => Ok(Some((self.key.unwrap(name, &body)?, etag))),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(source) => Err(broken(name, source)),
        }
    }

    /// Makes a document.
    ///
    /// # Errors
    /// `Exists` when there is one, whatever it says; or the store's error.
    pub async fn create<T: Serialize>(
        &self,
        name: &ObjectName,
        document: &T,
    ) -> Result<ETag, VaultError> {
        let body = self.wrap(name, document)?;
        match self.write(name, &body, Condition::Absent).await? {
            Written::Ours(etag) => Ok(etag),
            Written::Refused => Err(VaultError::Exists { name: name.to_string() }),
        }
    }

    /// Changes a document: `change` gets what is there and returns what shall be there. It is called
    /// again when somebody else was faster. Returns what was written.
    ///
    /// # Errors
    /// `Missing` when there is none, whatever `change` refuses with, `Contended` after many tries,
    /// or the store's error.
    pub async fn update<T, F>(&self, name: &ObjectName, change: F) -> Result<(T, ETag), VaultError>
    where
        T: Serialize + DeserializeOwned,
        F: FnMut(T) -> Result<T, VaultError>,
    {
        self.update_known(name, None, change).await
    }

    /// Like [`Vault::update`], beginning with the version that the caller read or wrote last: a
    /// single request, unless somebody else wrote since.
    ///
    /// # Errors
    /// As there.
    pub async fn update_known<T, F>(
        &self,
        name: &ObjectName,
        mut known: Option<(T, ETag)>,
        mut change: F,
    ) -> Result<(T, ETag), VaultError>
    where
        T: Serialize + DeserializeOwned,
        F: FnMut(T) -> Result<T, VaultError>,
    {
        for _ in 0..TRIES {
            let present = match known.take() {
                Some(known) => Some(known),
                None => self.read::<T>(name).await?,
            };
            let Some((present, etag)) = present else {
                return Err(VaultError::Missing { name: name.to_string() });
            };
            let next = change(present)?;
            let body = self.wrap(name, &next)?;
            if let Written::Ours(etag) = self.write(name, &body, Condition::Matches(etag)).await? {
                return Ok((next, etag));
            }
        }
        Err(VaultError::Contended { name: name.to_string(), tries: TRIES })
    }

    /// Writes a document if it is still the version that `expected` names, and gives the new one;
    /// `None` when it is not.
    pub(super) async fn swap<T: Serialize>(
        &self,
        name: &ObjectName,
        expected: &ETag,
        document: &T,
    ) -> Result<Option<ETag>, VaultError> {
        let body = self.wrap(name, document)?;
        match self.write(name, &body, Condition::Matches(expected.clone())).await? {
            Written::Ours(etag) => Ok(Some(etag)),
            Written::Refused => Ok(None),
        }
    }

    /// Writes a document whatever was there before.
    ///
    /// # Errors
    /// The store's error.
    pub async fn replace<T: Serialize>(
        &self,
        name: &ObjectName,
        document: &T,
    ) -> Result<ETag, VaultError> {
        let body = self.wrap(name, document)?;
        match self.write(name, &body, Condition::Always).await? {
            Written::Ours(etag) => Ok(etag),
            Written::Refused => Err(VaultError::Contended { name: name.to_string(), tries: TRIES }),
        }
    }

    /// Removes a document. Returns whether there was one.
    ///
    /// # Errors
    /// The store's error.
    pub async fn delete(&self, name: &ObjectName) -> Result<bool, VaultError> {
        match self.store.delete(name, Condition::Always).await {
            Ok(()) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(source @ StoreError::Ambiguous { .. }) => match self.store.read(name).await {
                Err(StoreError::NotFound { .. }) => Ok(true),
                Ok(_) | Err(_) => Err(broken(name, source)),
            },
            Err(source) => Err(broken(name, source)),
        }
    }

    /// Names of the documents below `prefix`, with the prefix cut off.
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<String>, VaultError> {
        let listed = self.store.list(prefix).await;
        let listed =
            listed.map_err(|source| VaultError::Store { name: prefix.to_owned(), source })?;
        let names = listed.iter().filter_map(|object| object.name.as_str().strip_prefix(prefix));
        Ok(names.map(str::to_owned).collect())
    }

    /// A document as it is stored, for a write under a lease.
    pub(super) fn wrapped<T: Serialize>(
        &self,
        name: &ObjectName,
        document: &T,
    ) -> Result<Bytes, VaultError> {
        self.wrap(name, document)
    }

    fn wrap<T: Serialize>(&self, name: &ObjectName, document: &T) -> Result<Bytes, VaultError> {
        let write = random16(self.entropy.as_ref());
        self.key.wrap(name, write, document)
    }

    /// One conditional write. A refusal or a lost answer is never believed without reading back: the
    /// first of two tries may have won although the second was refused.
    async fn write(
        &self,
        name: &ObjectName,
        body: &Bytes,
        condition: Condition,
    ) -> Result<Written, VaultError> {
        let mut last = None;
        for _ in 0..TRIES {
            let error = match self.store.put(name, body.clone(), condition.clone()).await {
                Ok(etag) => return Ok(Written::Ours(etag)),
                Err(error) => error,
            };
            let lost = matches!(error, StoreError::Ambiguous { .. });
            let refused = matches!(
                error,
                StoreError::AlreadyExists { .. }
                    | StoreError::Precondition { .. }
                    | StoreError::NotFound { .. }
            );
            if !lost && !refused {
                return Err(broken(name, error));
            }
            let present = match self.store.read(name).await {
                Ok(present) => Some(present),
                Err(StoreError::NotFound { .. }) => None,
                Err(source) => return Err(broken(name, source)),
            };
            let unchanged = match (&present, &condition) {
                (Some((found, etag)), _) if found == body => {
                    return Ok(Written::Ours(etag.clone()));
                }
                (Some((_, etag)), Condition::Matches(expected)) => etag == expected,
                (None, Condition::Absent) | (_, Condition::Always) => true,
                (Some(_), Condition::Absent) | (None, Condition::Matches(_)) => false,
            };
            if !unchanged {
                return Ok(Written::Refused);
            }
            // Not there (yet): the same bytes again, so that a late first try is still ours.
            last = Some(error);
        }
        match last {
            Some(source) => Err(broken(name, source)),
            None => Ok(Written::Refused),
        }
    }
}

fn broken(name: &ObjectName, source: StoreError) -> VaultError {
    VaultError::Store { name: name.to_string(), source }
}
