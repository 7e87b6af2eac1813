//! Snapshots of page blobs: made under lease and version, found by their label.

use std::collections::HashMap;

use azure_storage_blob::models::{
    BlobClientCreateSnapshotOptions, BlobClientCreateSnapshotResultHeaders, BlobClientDeleteOptions,
};

use super::call::lease_text;
use super::{Azure, Effect, ObjectName, PageGuard, Result, SnapshotId, StoreError};

/// Key of a snapshot's metadata.
const LABEL: &str = "label";

impl Azure {
    /// Azure checks no sequence number when it makes a snapshot: it is read together with the blob's
    /// version, and the snapshot is made of that version or not at all. So one that is made late, by
    /// a request that somebody had given up, cannot hold later pages.
    pub(super) async fn keep(
        &self,
        name: &ObjectName,
        label: &str,
        guard: &PageGuard,
    ) -> Result<SnapshotId> {
        self.about(name).check_label(label)?;
        let found = self.expect_guard(name, guard).await?;
        let options = BlobClientCreateSnapshotOptions {
            if_match: Some(found.etag.0.as_str().into()),
            lease_id: Some(lease_text(guard.lease)),
            metadata: Some(HashMap::from([(LABEL.to_owned(), written(label))])),
            ..Default::default()
        };
        let answer = self.blob(name).create_snapshot(Some(options)).await;
        let made = match self.told(name, Effect::Changes, answer) {
            // Nobody but the holder of the lease changes the blob: this was ourselves.
            Err(StoreError::Precondition { store, name }) => {
                let source = std::io::Error::other("pages were written while it was being kept");
                let source = std::sync::Arc::new(source);
                return Err(StoreError::Transient { store, name, source });
            }
            made => made?,
        };
        match self.told(name, Effect::Changes, made.snapshot())? {
            Some(id) => Ok(SnapshotId(id)),
            None => Err(self.about(name).damaged("Azure names no snapshot that it made")),
        }
    }

    pub(super) async fn drop_snapshot(&self, name: &ObjectName, id: &SnapshotId) -> Result<()> {
        let snapshot = Some(id.0.clone());
        let options = BlobClientDeleteOptions { snapshot, ..Default::default() };
        let answer = self.blob(name).delete(Some(options)).await;
        self.told(name, Effect::Changes, answer).map(drop)
    }
}

/// Metadata are HTTP headers: what is no visible ASCII, and `%`, is written as `%XX`.
fn written(label: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'%';
    label
        .bytes()
        .map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02x}") })
        .collect()
}

/// The label that a snapshot's metadata hold; empty when somebody else made it.
pub(super) fn label_of(metadata: Option<HashMap<String, String>>) -> String {
    let value = metadata.and_then(|mut values| values.remove(LABEL)).unwrap_or_default();
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|digits| hex::decode(digits).ok());
        match (first, code) {
            (b'%', Some(code)) => {
                bytes.extend(code);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_back_as_they_were() {
        for label in ["", "7:0a1b@42", "100 %", "größer\n\0", "%zz"] {
            let kept = written(label);
            assert!(kept.bytes().all(|byte| byte.is_ascii_graphic()), "{kept:?}");
            assert_eq!(label_of(Some(HashMap::from([(LABEL.to_owned(), kept)]))), label);
        }
        assert_eq!(label_of(None), "");
    }
}
