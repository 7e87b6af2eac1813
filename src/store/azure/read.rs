//! Reading: whole objects, ranges, pages of a snapshot.

use std::num::NonZero;

use azure_storage_blob::models::{BlobClientDownloadOptions, BlobClientDownloadResult, BlobType};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use super::call::{etag, header};
use super::{Azure, ETag, Effect, ObjectName, Result, SnapshotId, StoreError};
use crate::store::READ_BYTES_MAX;

/// One request whatever the length: one answer is one version of the object.
const WHOLE: NonZero<usize> = NonZero::new(READ_BYTES_MAX as usize).expect("it is not zero");

/// What is read.
#[derive(Clone, Copy)]
pub(super) struct Span<'a> {
    pub(super) snapshot: Option<&'a SnapshotId>,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Azure {
    /// A whole block blob.
    pub(super) async fn read_whole(&self, name: &ObjectName) -> Result<(Bytes, ETag)> {
        let answer = self.download(name, BlobClientDownloadOptions::default()).await?;
        self.expect_kind(name, &answer, BlobType::BlockBlob)?;
        let version = etag(answer.properties.etag.clone());
        let length = total(&answer).or(answer.properties.content_length).unwrap_or_default();
        self.about(name).check_read(length, 0, length)?;
        Ok((self.collect(name, answer, length).await?, version))
    }

    /// A part of a blob of this kind; `OutOfRange` when it ends before.
    pub(super) async fn read_span(
        &self,
        name: &ObjectName,
        kind: BlobType,
        span: Span<'_>,
    ) -> Result<Bytes> {
        let Span { snapshot, offset, length } = span;
        let end = offset.checked_add(length);
        if length == 0 || length > READ_BYTES_MAX || end.is_none_or(|end| end > i64::MAX as u64) {
            return self.read_nothing(name, kind, span).await;
        }
        let options = BlobClientDownloadOptions {
            range: Some((offset..offset + length).into()),
            snapshot: snapshot.map(|id| id.0.clone()),
            ..Default::default()
        };
        let answer = match self.download(name, options).await {
            Err(StoreError::OutOfRange { .. }) => {
                return self.read_nothing(name, kind, span).await;
            }
            answer => answer?,
        };
        self.expect_kind(name, &answer, kind)?;
        if let Some(total) = total(&answer) {
            self.about(name).check_read(total, offset, length)?;
        }
        self.collect(name, answer, length).await
    }

    /// A range that cannot be asked for as it is: empty, too long, or beyond the end.
    async fn read_nothing(
        &self,
        name: &ObjectName,
        kind: BlobType,
        span: Span<'_>,
    ) -> Result<Bytes> {
        let length = match kind {
            BlobType::PageBlob => self.see_pages(name, None).await?.length,
            _ => {
                let found = self.see_blocks(name).await?;
                found.ok_or_else(|| self.about(name).not_found())?.length
            }
        };
        self.about(name).check_read(length, span.offset, span.length)?;
        match span.length {
            0 => Ok(Bytes::new()),
            _ => Err(self.about(name).damaged("it grew while it was being read")),
        }
    }

    async fn download(
        &self,
        name: &ObjectName,
        options: BlobClientDownloadOptions<'_>,
    ) -> Result<BlobClientDownloadResult> {
        let options = BlobClientDownloadOptions {
            parallel: Some(NonZero::<usize>::MIN),
            partition_size: Some(WHOLE),
            ..options
        };
        let answer = self.blob(name).download(Some(options)).await;
        let beyond = azure_core::http::StatusCode::RequestedRangeNotSatisfiable;
        if let Err(error) = &answer
            && error.http_status() == Some(beyond)
        {
            // Length and range are filled in by who asks again what the length is.
            let (store, name) = (self.store.clone(), name.to_string());
            return Err(StoreError::OutOfRange { store, name, length: 0, offset: 0, wanted: 0 });
        }
        self.told(name, Effect::Reads, answer)
    }

    fn expect_kind(
        &self,
        name: &ObjectName,
        answer: &BlobClientDownloadResult,
        kind: BlobType,
    ) -> Result<()> {
        let found = answer.properties.blob_type.unwrap_or(BlobType::BlockBlob);
        match (found == kind, kind) {
            (true, _) => Ok(()),
            (false, BlobType::PageBlob) => Err(self.about(name).is_blocks()),
            (false, _) => Err(self.about(name).is_pages()),
        }
    }

    /// Exactly `length` bytes, or the answer broke off.
    async fn collect(
        &self,
        name: &ObjectName,
        answer: BlobClientDownloadResult,
        length: u64,
    ) -> Result<Bytes> {
        let mut content = BytesMut::with_capacity(length as usize);
        let mut body = answer.body;
        while let Some(piece) = body.next().await {
            content.extend_from_slice(&self.told(name, Effect::Reads, piece)?);
            if content.len() as u64 > length {
                break;
            }
        }
        if content.len() as u64 != length {
            let found = content.len();
            let source = std::io::Error::other(format!("{found} bytes came, expected {length}"));
            let (store, name) = (self.store.clone(), name.to_string());
            return Err(StoreError::Transient { store, name, source: std::sync::Arc::new(source) });
        }
        Ok(content.freeze())
    }
}

/// The length of the whole blob: `Content-Range: bytes FIRST-LAST/TOTAL`.
fn total(answer: &BlobClientDownloadResult) -> Option<u64> {
    header(&answer.headers, "content-range").rsplit_once('/')?.1.parse().ok()
}
