//! Block blobs: staging, committing, small objects whole, removal.

use std::num::NonZero;

use azure_storage_blob::models::{
    BlobClientDeleteOptions, BlockBlobClientCommitBlockListOptions,
    BlockBlobClientCommitBlockListResultHeaders, BlockBlobClientUploadOptions, BlockLookupList,
};
use bytes::Bytes;

use super::call::{conditions, etag, lease_text};
use super::{Azure, BlockId, Condition, ETag, Effect, LeaseId, ObjectName, Result, StoreError};
use crate::store::BLOCK_BYTES_MAX;

/// One request whatever the length: Azure's client would cut longer bodies into blocks of its own.
const WHOLE: NonZero<u64> = NonZero::new(BLOCK_BYTES_MAX as u64).expect("it is not zero");

impl Azure {
    pub(super) async fn stage(&self, name: &ObjectName, block: BlockId, body: Bytes) -> Result<()> {
        self.about(name).check_block(body.len())?;
        let id = self.staging.id(name, block, self.entropy.as_ref());
        let (blob, length) = (self.blob(name).block_blob_client(), body.len() as u64);
        let answer = blob.stage_block(&id, length, body.into(), None).await;
        self.told(name, Effect::Changes, answer).map(drop)
    }

    pub(super) async fn commit(
        &self,
        name: &ObjectName,
        blocks: &[BlockId],
        condition: Condition,
    ) -> Result<ETag> {
        self.about(name).check_block_list(blocks)?;
        let Some(ids) = self.staging.ids(name, blocks).or_else(|| no_ids(blocks)) else {
            // Azure would say so, too, but only of a condition that holds.
            let present = self.see_blocks(name).await?.map(|found| found.etag);
            self.about(name).check_condition(&condition, present.as_ref())?;
            return Err(self.about(name).not_staged(blocks[0]));
        };
        // `Latest`: a repeated commit finds the blocks that the first one made committed.
        let list = BlockLookupList { latest: Some(ids), ..Default::default() };
        let list = self.told(name, Effect::Reads, list.try_into())?;
        let (if_match, if_none_match) = conditions(&condition);
        let options =
            BlockBlobClientCommitBlockListOptions { if_match, if_none_match, ..Default::default() };
        let blob = self.blob(name).block_blob_client();
        let answer = blob.commit_block_list(list, Some(options)).await;
        let done = self.told(name, Effect::Changes, answer)?;
        self.staging.end(name);
        Ok(etag(self.told(name, Effect::Changes, done.etag())?))
    }

    pub(super) async fn put_whole(
        &self,
        name: &ObjectName,
        body: Bytes,
        condition: &Condition,
        lease: Option<LeaseId>,
    ) -> Result<ETag> {
        self.about(name).check_put(body.len())?;
        if *condition == Condition::Always {
            self.see_blocks(name).await?; // Azure would replace a page blob
        }
        let (if_match, if_none_match) = conditions(condition);
        let options = BlockBlobClientUploadOptions {
            if_match,
            if_none_match,
            lease_id: lease.map(lease_text),
            parallel: Some(NonZero::<usize>::MIN),
            partition_size: Some(WHOLE),
            ..Default::default()
        };
        let blob = self.blob(name).block_blob_client();
        let answer = blob.upload(body.into(), Some(options)).await;
        Ok(etag(self.told(name, Effect::Changes, answer)?.etag))
    }

    pub(super) async fn remove(&self, name: &ObjectName, condition: &Condition) -> Result<()> {
        self.staging.end(name); // who gives an object up gives its blocks up
        let found = self.see_blocks(name).await?.ok_or_else(|| self.about(name).not_found())?;
        self.about(name).check_condition(condition, Some(&found.etag))?;
        // Exactly what was seen: not a page blob that came in its place, nor a later version.
        let if_match = Some(found.etag.0.as_str().into());
        let options = BlobClientDeleteOptions { if_match, ..Default::default() };
        let answer = self.blob(name).delete(Some(options)).await;
        match self.told(name, Effect::Changes, answer) {
            // Changed meanwhile, and the caller did not mean one version: no effect, try again.
            Err(StoreError::Precondition { store, name }) if *condition == Condition::Always => {
                let source = std::io::Error::other("it was changed while it was being removed");
                Err(StoreError::Transient { store, name, source: std::sync::Arc::new(source) })
            }
            told => told.map(drop),
        }
    }
}

/// A commit of no blocks at all makes an empty object and needs none staged.
fn no_ids(blocks: &[BlockId]) -> Option<Vec<Vec<u8>>> {
    blocks.is_empty().then(Vec::new)
}
