//! Page blobs: every write under the blob's own lease and sequence number.
//!
//! Owns: cutting a call into requests, their pace, and which of several errors is told. A request
//! that was sent is always waited for: one that is given up may still be carried out.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use azure_storage_blob::models::{
    BlobClientDeleteOptions, DeleteSnapshotsOptionType, HttpRange, PageBlobClientClearPagesOptions,
    PageBlobClientCreateOptions, PageBlobClientListPageRangesOptions,
    PageBlobClientSetSequenceNumberOptions, PageBlobClientUploadPagesOptions,
    SequenceNumberActionType,
};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::call::lease_text;
use super::read::Span;
use super::resend::resend;
use super::{
    Azure, Effect, LeaseId, ObjectName, PageBody, PageGuard, PageRange, PageWrite, Properties,
    Result, StoreError,
};
use crate::model::SECTOR_BYTES;
use crate::store::rules::push_range;

/// Page writes of one call that are on their way at once.
const WRITES_IN_FLIGHT: usize = 8;

impl Azure {
    pub(super) async fn make_pages(&self, name: &ObjectName, size: u64) -> Result<()> {
        self.about(name).check_page_blob_size(size)?;
        let options =
            PageBlobClientCreateOptions { if_none_match: Some("*".into()), ..Default::default() };
        self.sizes.forget(name);
        let answer = self.blob(name).page_blob_client().create(size, Some(options)).await;
        self.told(name, Effect::Changes, answer).map(drop)
    }

    /// The blob, if `guard` names its running lease and its sequence number.
    pub(super) async fn expect_guard(
        &self,
        name: &ObjectName,
        guard: &PageGuard,
    ) -> Result<Properties> {
        let found = self.see_pages(name, Some(guard.lease)).await?;
        if found.sequence_number != guard.sequence_number {
            return Err(self.about(name).fenced(format!(
                "its sequence number is {}, the call carries {}",
                found.sequence_number, guard.sequence_number
            )));
        }
        Ok(found)
    }

    pub(super) async fn write(
        &self,
        name: &ObjectName,
        writes: &[PageWrite],
        guard: &PageGuard,
    ) -> Result<()> {
        let size = match self.sizes.of(name) {
            Some(size) => size,
            None => self.see_pages(name, None).await?.length,
        };
        self.about(name).check_page_writes(size, writes)?;
        let stopped = &AtomicBool::new(false);
        let mut requests: Vec<BoxFuture<'_, Result<()>>> = Vec::with_capacity(writes.len());
        for write in writes {
            requests.push(Box::pin(async move {
                if stopped.load(Relaxed) {
                    return Ok(());
                }
                let sent = match &write.body {
                    PageBody::Data(bytes) => bytes.len() as u64,
                    PageBody::Clear(_) => 0,
                };
                let stop = || stopped.load(Relaxed);
                let done =
                    resend(self.clock.as_ref(), self.entropy.as_ref(), stop, || async move {
                        self.pace.turn(name, sent).await;
                        self.write_one(name, write, guard).await
                    })
                    .await;
                stopped.fetch_or(done.is_err(), Relaxed);
                done
            }));
        }
        let ended = stream::iter(requests).buffer_unordered(WRITES_IN_FLIGHT);
        let ended: Vec<_> = ended.collect().await;
        match ended.into_iter().filter_map(Result::err).max_by_key(weight) {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    async fn write_one(
        &self,
        name: &ObjectName,
        write: &PageWrite,
        guard: &PageGuard,
    ) -> Result<()> {
        let blob = self.blob(name).page_blob_client();
        let range: HttpRange = (write.offset..write.offset + write.body.length()).into();
        let lease_id = Some(lease_text(guard.lease));
        let if_sequence_number_equal_to = Some(number(guard.sequence_number));
        let answer = match &write.body {
            PageBody::Data(bytes) => {
                let options = PageBlobClientUploadPagesOptions {
                    lease_id,
                    if_sequence_number_equal_to,
                    ..Default::default()
                };
                let length = bytes.len() as u64;
                blob.upload_pages(bytes.clone().into(), length, range, Some(options))
                    .await
                    .map(drop)
            }
            PageBody::Clear(_) => {
                let options = PageBlobClientClearPagesOptions {
                    lease_id,
                    if_sequence_number_equal_to,
                    ..Default::default()
                };
                blob.clear_pages(range, Some(options)).await.map(drop)
            }
        };
        self.told(name, Effect::Changes, answer)
    }

    pub(super) async fn ranges(&self, name: &ObjectName, span: Span<'_>) -> Result<Vec<PageRange>> {
        let Span { snapshot, offset, length } = span;
        if snapshot.is_none() || length == 0 || offset.checked_add(length).is_none() {
            let size = self.see_pages(name, None).await?.length;
            self.about(name).check_range(size, offset, length)?;
        }
        if length == 0 {
            return Ok(Vec::new());
        }
        let (start, end) = (offset, offset + length);
        let aligned = start / SECTOR_BYTES * SECTOR_BYTES..end.next_multiple_of(SECTOR_BYTES);
        let options = PageBlobClientListPageRangesOptions {
            range: Some(aligned.into()),
            snapshot: snapshot.map(|id| id.0.clone()),
            ..Default::default()
        };
        let read = async || -> azure_core::Result<Vec<PageRange>> {
            let blob = self.blob(name).page_blob_client();
            let mut pages = blob.list_page_ranges(Some(options))?;
            let mut found = Vec::new();
            while let Some(page) = pages.try_next().await? {
                for range in page.into_model()?.page_ranges {
                    let (Some(first), Some(last)) = (range.start, range.end) else { continue };
                    let first = first.unsigned_abs().max(start);
                    push_range(&mut found, first, (last.unsigned_abs() + 1).min(end));
                }
            }
            Ok(found)
        };
        self.told(name, Effect::Reads, read().await)
    }

    pub(super) async fn raise(&self, name: &ObjectName, raised: u64, lease: LeaseId) -> Result<()> {
        self.about(name).check_sequence_number(raised)?;
        let options = PageBlobClientSetSequenceNumberOptions {
            blob_sequence_number: Some(number(raised)),
            lease_id: Some(lease_text(lease)),
            ..Default::default()
        };
        let blob = self.blob(name).page_blob_client();
        let answer = blob.set_sequence_number(SequenceNumberActionType::Max, Some(options)).await;
        self.told(name, Effect::Changes, answer).map(drop)
    }

    pub(super) async fn remove_pages(
        &self,
        name: &ObjectName,
        lease: Option<LeaseId>,
    ) -> Result<()> {
        self.see_pages(name, None).await?;
        self.sizes.forget(name);
        let options = BlobClientDeleteOptions {
            delete_snapshots: Some(DeleteSnapshotsOptionType::Include),
            lease_id: lease.map(lease_text),
            ..Default::default()
        };
        let answer = self.blob(name).delete(Some(options)).await;
        self.told(name, Effect::Changes, answer).map(drop)
    }
}

/// A newer owner says the most; then what may still happen; then what did not.
fn weight(error: &StoreError) -> u8 {
    match error {
        StoreError::Fenced { .. } => 3,
        StoreError::Ambiguous { .. } => 2,
        StoreError::Throttled { .. } | StoreError::Transient { .. } => 0,
        _ => 1,
    }
}

fn number(sequence_number: u64) -> i64 {
    i64::try_from(sequence_number).unwrap_or(i64::MAX)
}
