//! Sealed documents: the manifest and its pages, small objects that are read and written whole.
//!
//! Owns: their envelope. Does not own: what stands inside.
//!
//! ```text
//! magic 8 · version u32 · data key u32 · salt 32 · commitment 32 · sealed body · tag 16
//! ```
//!
//! What chooses the key comes first, then what proves it, then what it protects. The salt is fresh
//! for every write, so the derived key seals one content ever and its nonce may be constant.

use super::encrypt::{ObjectKey, TAG_BYTES};
use super::error::{Disbelief, SealError};
use super::key::{DataKey, KeyRing};
use crate::clock::Entropy;
use crate::format::bytes::{FormatError, Reader, Writer};
use crate::model::{MachineId, MachineKey};

const MAGIC: [u8; 8] = *b"HOLDFDOC";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 4 + 32 + 32;
const NONCE: [u8; 12] = [0; 12];

/// Seals a document of `machine`; `kind` names what it is and is authenticated with it.
#[must_use]
pub fn seal_document(
    kind: &'static str,
    machine: &MachineId,
    key: &DataKey,
    entropy: &dyn Entropy,
    plain: &[u8],
) -> Vec<u8> {
    let mut salt = [0; 32];
    entropy.fill(&mut salt);
    let object_key = object_key(kind, machine, key, &salt);
    let mut writer = Writer(Vec::with_capacity(HEADER_BYTES + plain.len() + TAG_BYTES));
    writer.put(&MAGIC).u32(VERSION).u32(key.id());
    writer.put(&salt).put(&object_key.commitment()).put(plain);
    let mut bytes = writer.0;
    let aad = aad(kind, machine, &bytes[..HEADER_BYTES]);
    object_key.seal(NONCE, &aad, &mut bytes, HEADER_BYTES);
    bytes
}

/// Opens what [`seal_document`] made for the same kind and machine.
///
/// # Errors
/// Names kind and machine, and says whether it is no such document, was sealed under a key that
/// the machine does not have, or was altered.
pub fn open_document(
    kind: &'static str,
    machine: &MachineId,
    keys: &KeyRing,
    bytes: &[u8],
) -> Result<Vec<u8>, SealError> {
    open(kind, machine, keys, bytes).map_err(|source| SealError::Document {
        kind,
        machine: machine.clone(),
        source,
    })
}

fn open(
    kind: &str,
    machine: &MachineId,
    keys: &KeyRing,
    bytes: &[u8],
) -> Result<Vec<u8>, Disbelief> {
    let mut reader = Reader::new(bytes);
    let magic: [u8; 8] = reader.array("magic")?;
    if magic != MAGIC {
        let found = hex::encode(magic);
        return Err(FormatError::value("magic", found, hex::encode(MAGIC)).into());
    }
    let version = reader.u32("version")?;
    if version != VERSION {
        return Err(FormatError::value("version", version, VERSION).into());
    }
    let key = keys.find(reader.u32("data key")?)?;
    let salt = reader.array("salt")?;
    let commitment = reader.array("commitment")?;
    let object_key = object_key(kind, machine, key, &salt);
    if !object_key.is_committed_by(&commitment) {
        return Err(Disbelief::Commitment);
    }
    let mut body = bytes[HEADER_BYTES..].to_vec();
    let aad = aad(kind, machine, &bytes[..HEADER_BYTES]);
    let opened = object_key.open(NONCE, &aad, &mut body);
    let length = opened.map_err(|_| Disbelief::Altered)?.len();
    body.truncate(length);
    Ok(body)
}

fn object_key(kind: &str, machine: &MachineId, key: &DataKey, salt: &[u8; 32]) -> ObjectKey {
    let machine = MachineKey::of(machine).0;
    key.object_key(salt, &[b"holdfast document 1", &machine, kind.as_bytes()])
}

fn aad(kind: &str, machine: &MachineId, header: &[u8]) -> Vec<u8> {
    [header, &MachineKey::of(machine).0, kind.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::super::key::KeyEncryptionKey;
    use super::*;
    use crate::clock::System;
    use crate::model::Timestamp;

    fn ring(machine: &MachineId) -> KeyRing {
        let kek = KeyEncryptionKey::of([7; 32].into());
        let (key, _) = kek.make_data_key(machine, 1, &System, Timestamp(0));
        KeyRing::of(machine.clone(), key)
    }

    #[test]
    fn a_document_opens_only_as_what_it_is() {
        let (web, db): (MachineId, MachineId) = ("web".parse().unwrap(), "db".parse().unwrap());
        let keys = ring(&web);
        let sealed = seal_document("manifest", &web, keys.newest(), &System, b"content");
        let plain = open_document("manifest", &web, &keys, &sealed).unwrap();
        assert_eq!(plain, b"content");
        let refused = |kind, machine, keys: &KeyRing, bytes: &[u8]| {
            let error = open_document(kind, machine, keys, bytes).unwrap_err();
            assert!(error.to_string().contains(machine.as_str()), "{error}");
        };
        refused("page", &web, &keys, &sealed);
        refused("manifest", &db, &keys, &sealed);
        refused("manifest", &web, &ring(&web), &sealed);
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            refused("manifest", &web, &keys, &flipped);
        }
        for length in 0..sealed.len() {
            refused("manifest", &web, &keys, &sealed[..length]);
        }
        refused("manifest", &web, &keys, &[&sealed[..], b"x"].concat());
    }

    #[test]
    fn no_two_writes_share_a_key() {
        let web: MachineId = "web".parse().unwrap();
        let keys = ring(&web);
        let one = seal_document("manifest", &web, keys.newest(), &System, b"content");
        let two = seal_document("manifest", &web, keys.newest(), &System, b"content");
        assert_ne!(one[16..48], two[16..48], "the salt is fresh");
        assert_ne!(one[80..], two[80..]);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let web: MachineId = "web".parse().unwrap();
        let keys = ring(&web);
        let sealed = seal_document("manifest", &web, keys.newest(), &System, b"content");
        let cause = |bytes: &[u8]| match open_document("manifest", &web, &keys, bytes) {
            Err(SealError::Document { source, .. }) => source,
            other => panic!("{other:?}"),
        };
        let with = |at: usize, byte: u8| [&sealed[..at], &[byte], &sealed[at + 1..]].concat();
        assert!(matches!(cause(&with(0, 0)), Disbelief::Layout(_)));
        assert!(matches!(cause(&with(8, 9)), Disbelief::Layout(_)));
        assert!(matches!(cause(&with(12, 9)), Disbelief::UnknownKey { id: 9, .. }));
        assert_eq!(cause(&with(20, !sealed[20])), Disbelief::Commitment);
        assert_eq!(cause(&with(81, !sealed[81])), Disbelief::Altered);
    }
}
