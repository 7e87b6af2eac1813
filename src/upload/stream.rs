//! One sealed object into the store: blocks in parallel, one commit, only if nothing is there.
//!
//! Owns: the retries, and finding out what a lost or refused answer meant. Does not own: order; an
//! object in the store means nothing until the manifest names it.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, TryStreamExt};

use super::context::{Patience, UploadContext, ended};
use super::error::UploadError;
use crate::places::{Place, reached};
use crate::store::{BLOCK_BYTES_MAX, BlockId, Class, Condition, ObjectName, StoreError};

/// Blocks of one object in flight at once.
const BLOCKS_IN_FLIGHT: usize = 4;

/// Brings `body` to `name`, however often the store says "later".
///
/// # Errors
/// When something else stands under the name, or the store refuses for good.
pub(super) async fn upload(
    context: &UploadContext,
    name: &ObjectName,
    body: &Bytes,
) -> Result<(), UploadError> {
    let mut patience = Patience::new(context);
    // Once for all attempts: a block of an earlier one may arrive late, and must then be the same.
    let block_bytes =
        context.block_bytes.load(Ordering::Relaxed).clamp(1, BLOCK_BYTES_MAX) as usize;
    let bytes = body.len() as u64;
    let mut paid = false;
    loop {
        // Before a stream is taken: who waits for the rate must not keep streams from others. What
        // never left is not paid for again.
        if !paid {
            context.waited(context.uplink.send(context.who(), bytes)).await;
        }
        // Held for the attempt only: who waits for a store that is away must not keep the
        // machines from it whose objects would get through.
        let stream = context.waited(context.uplink.stream(context.who(), bytes)).await;
        let result = ended(stream.pass, attempt(context, name, body, block_bytes).await);
        drop(stream.turn);
        let Err(error) = result else {
            context.uplink.stored(bytes);
            return Ok(());
        };
        if error.class() != Class::Retry {
            return Err(error);
        }
        paid = !matches!(error.store_error(), Some(StoreError::Ambiguous { .. }));
        patience.wait(&error).await;
    }
}

async fn attempt(
    context: &UploadContext,
    name: &ObjectName,
    body: &Bytes,
    block_bytes: usize,
) -> Result<(), UploadError> {
    reached(Place::Upload);
    match write(context, name, body, block_bytes).await {
        Ok(()) => Ok(()),
        Err(
            answer @ (StoreError::Ambiguous { .. }
            | StoreError::AlreadyExists { .. }
            | StoreError::Precondition { .. }),
        ) => match stands(context, name, body, block_bytes).await? {
            true => Ok(()),
            // Not there: the answer to an older attempt, or one that is still on its way. The
            // same bytes again, under the same name: whichever lands first wins, and both are ours.
            false => Err(store_error(context, name, lost(answer))),
        },
        Err(error) => Err(store_error(context, name, error)),
    }
}

async fn write(
    context: &UploadContext,
    name: &ObjectName,
    body: &Bytes,
    block_bytes: usize,
) -> Result<(), StoreError> {
    let store = context.log.store();
    if body.len() <= block_bytes {
        return store.put_new(name, body.clone()).await;
    }
    let blocks = pieces(body.len(), block_bytes).zip(0..).map(|(range, id)| {
        let piece = body.slice(range);
        async move { store.stage_block(name, BlockId(id), piece).await }
    });
    let staged = stream::iter(blocks).buffer_unordered(BLOCKS_IN_FLIGHT);
    let count = staged.try_fold(0_u32, async |count, ()| Ok(count + 1)).await?;
    let ids: Vec<_> = (0..count).map(BlockId).collect();
    store.commit_blocks(name, &ids, Condition::Absent).await.map(|_| ())
}

/// Whether exactly `body` stands under `name`; `false` when nothing does. Compared byte for byte,
/// a block at a time: the bytes are still here, so no hash need be trusted.
async fn stands(
    context: &UploadContext,
    name: &ObjectName,
    body: &Bytes,
    block_bytes: usize,
) -> Result<bool, UploadError> {
    let store = context.log.store();
    let length = match store.properties(name).await {
        Ok(properties) => properties.length,
        Err(StoreError::NotFound { .. }) => return Ok(false),
        Err(error) => return Err(store_error(context, name, error)),
    };
    let foreign = |found: String| UploadError::Foreign {
        machine: context.log.machine().clone(),
        name: name.clone(),
        found,
        expected: body.len() as u64,
    };
    if length != body.len() as u64 {
        return Err(foreign(format!("{length} bytes")));
    }
    for range in pieces(body.len(), block_bytes) {
        let (offset, wanted) = (range.start as u64, range.len() as u64);
        let found = store.read_range(name, offset, wanted).await;
        let found = found.map_err(|error| store_error(context, name, error))?;
        if found != body[range] {
            return Err(foreign(format!("other bytes at {offset}+{wanted}")));
        }
    }
    Ok(true)
}

fn pieces(length: usize, piece: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..length).step_by(piece).map(move |start| start..(start + piece).min(length))
}

fn store_error(context: &UploadContext, name: &ObjectName, source: StoreError) -> UploadError {
    UploadError::Store {
        machine: context.log.machine().clone(),
        name: name.clone(),
        source: Box::new(source),
    }
}

/// A refusal for a reason that is no longer there says as little as a lost answer.
fn lost(answer: StoreError) -> StoreError {
    match answer {
        StoreError::AlreadyExists { store, name } | StoreError::Precondition { store, name } => {
            let source = std::io::Error::other("refused, and yet nothing stands there");
            StoreError::Ambiguous { store, name, source: std::sync::Arc::new(source) }
        }
        other => other,
    }
}
