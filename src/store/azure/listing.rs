//! Listings: objects by prefix, snapshots of one blob.

use azure_storage_blob::models::{
    BlobContainerClientListBlobsOptions, BlobItem, BlobType, ListBlobsIncludeItem,
};
use futures_util::TryStreamExt;

use super::snapshots::label_of;
use super::{Azure, Effect, Listed, ObjectName, Result, SnapshotId, SnapshotInfo};
use crate::model::Timestamp;

impl Azure {
    /// What `kept` makes of each item, page by page: an item as it comes is many times a row.
    async fn items<T>(
        &self,
        prefix: &str,
        include: Option<Vec<ListBlobsIncludeItem>>,
        kept: impl Fn(BlobItem) -> Option<T> + Send,
    ) -> Result<Vec<T>> {
        let options = BlobContainerClientListBlobsOptions {
            include,
            prefix: (!prefix.is_empty()).then(|| prefix.to_owned()),
            ..Default::default()
        };
        let read = async || -> azure_core::Result<Vec<T>> {
            let mut items = self.container.list_blobs(Some(options))?;
            let mut found = Vec::new();
            while let Some(item) = items.try_next().await? {
                found.extend(kept(item));
            }
            Ok(found)
        };
        // For messages: a prefix need not be a name.
        let name = ObjectName::new(prefix.trim_end_matches('/'));
        let name = name.or_else(|_| ObjectName::new("listing")).expect("it is a name");
        self.told(&name, Effect::Reads, read().await)
    }

    pub(super) async fn list_objects(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut rows = self.items(prefix, None, row).await?;
        rows.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(rows)
    }

    pub(super) async fn snapshots_of(&self, name: &ObjectName) -> Result<Vec<SnapshotInfo>> {
        let include = vec![ListBlobsIncludeItem::Snapshots, ListBlobsIncludeItem::Metadata];
        let mut snapshots = Vec::new();
        let mut base = None;
        for version in self.items(name.as_str(), Some(include), |item| version(item, name)).await? {
            match version {
                Version::Snapshot(info) => snapshots.push(info),
                Version::Base(kind) => base = Some(kind),
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

/// What stands under one name.
enum Version {
    Snapshot(SnapshotInfo),
    Base(BlobType),
}

/// Names that only begin like `name` are not of it.
fn version(item: BlobItem, name: &ObjectName) -> Option<Version> {
    if item.name.as_deref() != Some(name.as_str()) {
        return None;
    }
    match item.snapshot {
        Some(id) => {
            let label = label_of(item.metadata.and_then(|metadata| metadata.values));
            Some(Version::Snapshot(SnapshotInfo { id: SnapshotId(id), label }))
        }
        None => item.properties?.blob_type.map(Version::Base),
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
