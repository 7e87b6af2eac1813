//! AES-256-GCM, key derivation and key commitment: the only home of `aes-gcm`.
//!
//! Owns: one derived key per sealed object, its commitment, sealing and opening in place.
//! Does not own: what is authenticated with it (callers pass the bytes), where salts come from.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Bytes that sealing adds: the authentication tag.
pub(super) const TAG_BYTES: usize = 16;

/// A key for exactly one object (or for wrapping), with what proves that it is the one.
pub(crate) struct ObjectKey {
    cipher: Aes256Gcm,
    commitment: [u8; 32],
}

/// The tag does not match the bytes, the nonce, the AAD or the key.
#[derive(Debug)]
pub(crate) struct TagMismatch;

impl ObjectKey {
    /// HKDF-SHA256 of `secret` with `salt`, bound to the parts of `info` run together.
    pub(crate) fn derive(secret: &[u8; 32], salt: &[u8; 32], info: &[&[u8]]) -> Self {
        let mut okm = Zeroizing::new([0; 64]);
        Hkdf::<Sha256>::new(Some(salt), secret)
            .expand_multi_info(info, &mut *okm)
            .expect("64 bytes are far below HKDF-SHA256's bound of 8,160");
        let (key, rest) = okm.split_at(32);
        let mut commitment = [0; 32];
        commitment.copy_from_slice(rest);
        let cipher = Aes256Gcm::new_from_slice(key).expect("the key has 32 bytes");
        Self { cipher, commitment }
    }

    /// What a header stores so that a reader can tell whether it derived the same key: AES-GCM
    /// alone lets one ciphertext open under two keys.
    pub(crate) fn commitment(&self) -> [u8; 32] {
        self.commitment
    }

    /// Compares a stored commitment with this key's, in constant time.
    pub(crate) fn is_committed_by(&self, commitment: &[u8; 32]) -> bool {
        self.commitment.ct_eq(commitment).into()
    }

    /// Seals `buffer[from..]` where it lies and appends the tag.
    pub(crate) fn seal(&self, nonce: [u8; 12], aad: &[u8], buffer: &mut Vec<u8>, from: usize) {
        let tag = self
            .cipher
            .encrypt_inout_detached(&nonce.into(), aad, (&mut buffer[from..]).into())
            .expect("frames and documents are far below AES-GCM's 64 GiB");
        buffer.extend_from_slice(&tag);
    }

    /// Opens `sealed` where it lies; the plaintext is everything but the tag. Nothing is decrypted
    /// before the tag was found right.
    pub(crate) fn open<'a>(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], TagMismatch> {
        let (body, tag) = sealed.split_last_chunk_mut::<TAG_BYTES>().ok_or(TagMismatch)?;
        self.cipher
            .decrypt_inout_detached(&nonce.into(), aad, (&mut *body).into(), &(*tag).into())
            .map_err(|_| TagMismatch)?;
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_and_nothing_else_does() {
        let key = ObjectKey::derive(&[1; 32], &[2; 32], &[b"test"]);
        let mut sealed = b"head plain text".to_vec();
        key.seal([3; 12], b"aad", &mut sealed, 5);
        assert_eq!(sealed.len(), 15 + TAG_BYTES);
        let body = sealed.split_off(5);
        assert_eq!(key.open([3; 12], b"aad", &mut body.clone()).unwrap(), b"plain text");
        assert!(key.open([4; 12], b"aad", &mut body.clone()).is_err());
        assert!(key.open([3; 12], b"aae", &mut body.clone()).is_err());
        assert!(key.open([3; 12], b"aad", &mut body[1..].to_vec()).is_err());
        assert!(key.open([3; 12], b"aad", &mut [0; 15]).is_err());
        let other = ObjectKey::derive(&[1; 32], &[2; 32], &[b"tesu"]);
        assert!(other.open([3; 12], b"aad", &mut body.clone()).is_err());
        assert!(
            !other.is_committed_by(&key.commitment()) && key.is_committed_by(&key.commitment())
        );
    }

    /// AES-256-GCM test case 14 of the GCM specification pins cipher, nonce and tag order; RFC 5869
    /// test case 1 pins the derivation that feeds it.
    #[test]
    fn published_vectors() {
        let key = ObjectKey { cipher: Aes256Gcm::new(&[0; 32].into()), commitment: [0; 32] };
        let mut sealed = vec![0; 16];
        key.seal([0; 12], b"", &mut sealed, 0);
        assert_eq!(
            hex::encode(sealed),
            "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
        );
        let salt: Vec<u8> = (0..13).collect();
        let info: Vec<u8> = (0xf0..0xfa).collect();
        let mut okm = [0; 42];
        Hkdf::<Sha256>::new(Some(&salt), &[0x0b; 22])
            .expand_multi_info(&[&info], &mut okm)
            .unwrap();
        assert_eq!(
            hex::encode(okm),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
        );
    }
}
