//! Listings: objects by prefix, snapshots of one blob.

use azure_storage_blob::models::{
    BlobContainerClientListBlobsOptions, BlobItem, BlobType, ListBlobsIncludeItem,
};
use futures_util::TryStreamExt;

use super::snapshots::label_of;
use super::{Azure, Effect, Listed, ObjectName, Result, SnapshotId, SnapshotInfo};
use crate::model::Timestamp;

impl Azure {
    async fn items(
        &self,
        prefix: &str,
        include: Option<Vec<ListBlobsIncludeItem>>,
    ) -> Result<Vec<BlobItem>> {
        let options = BlobContainerClientListBlobsOptions {
            include,
            prefix: (!prefix.is_empty()).then(|| prefix.to_owned()),
            ..Default::default()
        };
        let read = async || -> azure_core::Result<Vec<BlobItem>> {
            self.container.list_blobs(Some(options))?.try_collect().await
        };
        // For messages: a prefix need not be a name.
        let name = ObjectName::new(prefix.trim_end_matches('/'));
        let name = name.or_else(|_| ObjectName::new("listing")).expect("it is a name");
        self.told(&name, Effect::Reads, read().await)
    }

    pub(super) async fn list_objects(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut rows: Vec<Listed> =
            self.items(prefix, None).await?.into_iter().filter_map(row).collect();
        rows.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(rows)
    }

    pub(super) async fn snapshots_of(&self, name: &ObjectName) -> Result<Vec<SnapshotInfo>> {
        let include = vec![ListBlobsIncludeItem::Snapshots, ListBlobsIncludeItem::Metadata];
        let items = self.items(name.as_str(), Some(include)).await?;
        let mut snapshots = Vec::new();
        let mut base = None;
        for item in items.into_iter().filter(|item| item.name.as_deref() == Some(name.as_str())) {
            match item.snapshot.clone() {
                Some(id) => {
                    let label = label_of(item.metadata.and_then(|metadata| metadata.values));
                    snapshots.push(SnapshotInfo { id: SnapshotId(id), label });
                }
                None => base = item.properties.and_then(|found| found.blob_type),
            }
        }
        match base {
            None => Err(self.about(name).not_found()),
            Some(BlobType::PageBlob) => {
                snapshots.sort_unstable_by(|a, b| a.id.cmp(&b.id));
                Ok(snapshots)
            }
            Some(_) => Err(self.about(name).is_blocks()),
        }
    }
}

/// What is not ours is not listed.
fn row(item: BlobItem) -> Option<Listed> {
    let found = item.properties?;
    Some(Listed {
        name: ObjectName::new(item.name?).ok()?,
        length: found.content_length?,
        modified: Timestamp(found.last_modified.map_or(0, |at| at.unix_timestamp()) * 1_000_000),
    })
}
