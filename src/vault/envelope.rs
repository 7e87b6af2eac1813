//! The bytes of a document in the store: JSON that people can read, with a code that only holders of
//! the key can make.
//!
//! ```json
//! {"document": { … }, "write": "<32 hex>", "mac": "<64 hex>"}
//! ```
//!
//! The code is HMAC-SHA256 over object name ‖ 0 ‖ write ‖ 0 ‖ the document's very text, so a
//! document cannot be moved to another name. `write` is random in every write: two writers never
//! produce equal bytes, so a writer whose answer was lost knows its own write when it reads back.
//! A whole older document put back in its place is not noticed here.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::VaultError;
use crate::model::ObjectName;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    document: Box<RawValue>,
    write: String,
    mac: String,
}

/// The key under which documents are authenticated.
pub(super) struct MacKey(Zeroizing<[u8; 32]>);

impl MacKey {
    pub(super) fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self(key)
    }

    fn code(&self, name: &ObjectName, write: &str, document: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_slice())
            .expect("HMAC takes keys of any length");
        mac.update(name.as_str().as_bytes());
        mac.update(&[0]); // neither a name nor hexadecimal digits hold a zero
        mac.update(write.as_bytes());
        mac.update(&[0]);
        mac.update(document.as_bytes());
        mac
    }

    pub(super) fn wrap<T: Serialize>(
        &self,
        name: &ObjectName,
        write: [u8; 16],
        document: &T,
    ) -> Result<Bytes, VaultError> {
        let shape = |source| VaultError::Shape { name: name.to_string(), source };
        let document = serde_json::value::to_raw_value(document).map_err(shape)?;
        let write = hex::encode(write);
        let code = self.code(name, &write, document.get()).finalize();
        let envelope = Envelope { mac: hex::encode(code.into_bytes()), document, write };
        Ok(serde_json::to_vec(&envelope).map_err(shape)?.into())
    }

    /// The document, once its code was found right. Nothing of it is parsed before.
    pub(super) fn unwrap<T: DeserializeOwned>(
        &self,
        name: &ObjectName,
        body: &[u8],
    ) -> Result<T, VaultError> {
        let shape = |source| VaultError::Shape { name: name.to_string(), source };
        let altered = || VaultError::Altered { name: name.to_string() };
        let envelope: Envelope = serde_json::from_slice(body).map_err(shape)?;
        let code = hex::decode(&envelope.mac).map_err(|_| altered())?;
        self.code(name, &envelope.write, envelope.document.get())
            .verify_slice(&code) // constant time
            .map_err(|_| altered())?;
        serde_json::from_str(envelope.document.get()).map_err(shape)
    }
}
