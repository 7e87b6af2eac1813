//! The key-encryption key from its file, and the data keys that it wraps.
//!
//! Owns: reading the key file, wrapping and unwrapping, the ring of one machine's data keys.
//! Does not own: where wrapped keys are kept (the vault's machine document).

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::encrypt::{ObjectKey, TAG_BYTES};
use super::error::{Disbelief, SealError};
use crate::clock::Entropy;
use crate::model::{DeltaId, MachineId, MachineKey, Timestamp};
use crate::vault::{MachineDocument, WrappedKey};

/// A key file is 64 digits; more than this is not looked at.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// The root of all keys of an installation: 32 bytes in a file that only its owner can read.
pub struct KeyEncryptionKey {
    secret: Zeroizing<[u8; 32]>,
    id: String,
}

/// One of a machine's keys. Clones share the one copy in memory, wiped with the last of them.
#[derive(Clone)]
pub struct DataKey {
    id: u32,
    secret: Arc<Zeroizing<[u8; 32]>>,
}

/// All data keys of one machine.
#[derive(Clone, Debug)]
pub struct KeyRing {
    machine: MachineId,
    keys: Vec<DataKey>, // ascending by id, never empty
}

impl KeyEncryptionKey {
    /// Reads 64 hexadecimal digits from a file; white space after them is allowed.
    ///
    /// # Errors
    /// When the file cannot be read, others may read it, or it holds something else.
    pub fn load(path: &Path) -> Result<Self, SealError> {
        let failed = |source| SealError::KeyFile { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            let path = path.to_owned();
            return Err(SealError::KeyFileMode { path, mode });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX as usize));
        file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
        let digits = text.trim_ascii_end();
        let mut secret = Zeroizing::new([0; 32]);
        hex::decode_to_slice(digits, &mut *secret).map_err(|_| SealError::KeyFileContent {
            path: path.to_owned(),
            found: digits.len(),
        })?;
        Ok(Self::of(secret))
    }

    /// Makes a new key and its file, mode 0600. A file that exists is never overwritten: what an
    /// older key wrapped would be lost with it.
    ///
    /// # Errors
    /// When the file exists or cannot be written and synced.
    pub fn create(path: &Path, entropy: &dyn Entropy) -> Result<Self, SealError> {
        let mut secret = Zeroizing::new([0; 32]);
        entropy.fill(&mut *secret);
        let mut line = Zeroizing::new(hex::encode(*secret));
        line.push('\n');
        let write = || -> std::io::Result<()> {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(line.as_bytes())?;
            file.sync_all()?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|source| SealError::KeyFile { path: path.to_owned(), source })?;
        Ok(Self::of(secret))
    }

    /// From its bytes.
    #[must_use]
    pub fn of(secret: Zeroizing<[u8; 32]>) -> Self {
        let digest: [u8; 32] = Sha256::digest(*secret).into();
        let id = hex::encode(&digest[..8]);
        Self { secret, id }
    }

    /// Names the key without telling it: the first 8 bytes of its SHA-256, in hexadecimal.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A key for one purpose; `info` names the purpose and its version.
    #[must_use]
    pub fn derive(&self, info: &str) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, &*self.secret)
            .expand(info.as_bytes(), &mut *key)
            .expect("32 bytes are far below HKDF-SHA256's bound of 8,160");
        key
    }

    /// Makes a machine's data key number `id`, and its wrapped form for the vault.
    #[must_use]
    pub fn make_data_key(
        &self,
        machine: &MachineId,
        id: u32,
        entropy: &dyn Entropy,
        now: Timestamp,
    ) -> (DataKey, WrappedKey) {
        let mut secret = Zeroizing::new([0; 32]);
        entropy.fill(&mut *secret);
        let mut nonce = [0; 12]; // random: one use a data key stays far from 2^32 uses
        entropy.fill(&mut nonce);
        let mut sealed = Vec::with_capacity(32 + TAG_BYTES); // no reallocation, no stray copy
        sealed.extend_from_slice(&*secret);
        self.wrapping_key().seal(nonce, &wrapping_aad(machine, id), &mut sealed, 0);
        let wrapped = WrappedKey {
            id,
            wrapped_by: self.id.clone(),
            nonce: hex::encode(nonce),
            sealed: hex::encode(sealed),
            created: now,
        };
        (DataKey::of(id, secret), wrapped)
    }

    /// Opens a wrapped data key of `machine`.
    ///
    /// # Errors
    /// Names the machine, the key and, when another key-encryption key wrapped it, that one.
    pub fn unwrap(&self, machine: &MachineId, wrapped: &WrappedKey) -> Result<DataKey, SealError> {
        let (machine, id) = (machine.clone(), wrapped.id);
        if wrapped.wrapped_by != self.id {
            return Err(SealError::OtherKeyEncryptionKey {
                machine,
                id,
                wrapped_by: wrapped.wrapped_by.clone(),
                loaded: self.id.clone(),
            });
        }
        let mut nonce = [0; 12];
        let mut sealed = Zeroizing::new([0; 32 + TAG_BYTES]);
        let text = |field, expected| SealError::WrappedKeyText {
            machine: machine.clone(),
            id,
            field,
            expected,
        };
        hex::decode_to_slice(&wrapped.nonce, &mut nonce).map_err(|_| text("nonce", "12 bytes"))?;
        hex::decode_to_slice(&wrapped.sealed, &mut *sealed)
            .map_err(|_| text("sealed", "48 bytes"))?;
        let aad = wrapping_aad(&machine, id);
        match self.wrapping_key().open(nonce, &aad, &mut *sealed) {
            Ok(plain) => {
                let mut secret = Zeroizing::new([0; 32]);
                secret.copy_from_slice(plain);
                Ok(DataKey::of(id, secret))
            }
            Err(_) => Err(SealError::WrappedKeyAltered { machine, id }),
        }
    }

    /// A key of its own for wrapping: the root key itself only ever feeds HKDF.
    fn wrapping_key(&self) -> ObjectKey {
        ObjectKey::derive(&self.secret, &[0; 32], &[b"holdfast wrap 1"])
    }
}

fn wrapping_aad(machine: &MachineId, id: u32) -> Vec<u8> {
    let machine = MachineKey::of(machine).0;
    [&b"holdfast data key 1"[..], &machine, &id.to_le_bytes()].concat()
}

impl fmt::Debug for KeyEncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyEncryptionKey({})", self.id)
    }
}

impl DataKey {
    fn of(id: u32, secret: Zeroizing<[u8; 32]>) -> Self {
        let secret = Arc::new(secret);
        Self { id, secret }
    }

    /// Its number within the machine, from 1.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The key of one delta.
    pub(super) fn delta_key(&self, salt: &[u8; 32], machine: MachineKey, id: DeltaId) -> ObjectKey {
        self.object_key(salt, &[b"holdfast delta 1", &machine.0, &id.0])
    }

    /// The key of one object: HKDF over this key, the object's salt and what it is.
    pub(super) fn object_key(&self, salt: &[u8; 32], info: &[&[u8]]) -> ObjectKey {
        ObjectKey::derive(&self.secret, salt, info)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({})", self.id)
    }
}

impl KeyRing {
    /// Unwraps all data keys of a machine.
    ///
    /// # Errors
    /// When one of them does not open, or there is none, or their ids do not ascend.
    pub fn unwrap(kek: &KeyEncryptionKey, document: &MachineDocument) -> Result<Self, SealError> {
        let machine = document.machine.clone();
        let wrapped = &document.data_keys;
        if wrapped.is_empty() || !wrapped.is_sorted_by(|a, b| a.id < b.id) {
            let found = ids(wrapped.iter().map(|key| key.id));
            return Err(SealError::DataKeys { machine, found });
        }
        let keys: Result<_, _> = wrapped.iter().map(|key| kek.unwrap(&machine, key)).collect();
        Ok(Self { machine, keys: keys? })
    }

    /// A ring of one key, as made by [`KeyEncryptionKey::make_data_key`].
    #[must_use]
    pub fn of(machine: MachineId, key: DataKey) -> Self {
        let keys = vec![key];
        Self { machine, keys }
    }

    /// Whose keys.
    #[must_use]
    pub fn machine(&self) -> &MachineId {
        &self.machine
    }

    /// The key that seals.
    #[must_use]
    pub fn newest(&self) -> &DataKey {
        self.keys.last().expect("a ring is never empty")
    }

    /// The key that sealed something.
    #[must_use]
    pub fn by_id(&self, id: u32) -> Option<&DataKey> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// The same, or why not.
    pub(super) fn find(&self, id: u32) -> Result<&DataKey, Disbelief> {
        let known = || ids(self.keys.iter().map(DataKey::id));
        self.by_id(id).ok_or_else(|| Disbelief::UnknownKey { id, known: known() })
    }
}

fn ids(ids: impl Iterator<Item = u32>) -> String {
    let ids: Vec<_> = ids.map(|id| id.to_string()).collect();
    match ids.as_slice() {
        [] => "none".to_owned(),
        ids => ids.join(", "),
    }
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
