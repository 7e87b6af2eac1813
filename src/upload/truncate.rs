//! Removes the oldest part of a machine's log: names first, then objects.
//!
//! Owns: the order of those steps. Does not own: how much may go (retention decides; it has looked
//! at snapshots, pins and the policy).
//!
//! Must: an object is deleted only after a manifest without its name was written, and only while
//! the generation that decided so still owns the machine. A crash in between leaves orphans, which
//! [`super::remove_orphans`] finds.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::claim::Claim;
use super::context::{Patience, UploadContext};
use super::error::UploadError;
use super::publish::present;
use crate::cloud_log::CloudLogError;
use crate::format::manifest::{DeltaEntry, Manifest};
use crate::format::names;
use crate::model::{Epoch, Generation, MachineId, Sequence};
use crate::places::{Place, reached};
use crate::store::{Class, Condition, ObjectName, StoreError};

/// Deletions in flight at once.
const DELETIONS_IN_FLIGHT: usize = 8;

/// What retention gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Ownership under which it was decided.
    pub generation: Generation,
    /// Deltas that end at or before this may go.
    pub through: Sequence,
    /// Epochs before this one have no kept point.
    pub epochs_from: Epoch,
}

/// What a truncation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// The log begins after this now.
    pub through: Sequence,
    /// Objects that were deleted.
    pub removed: Vec<ObjectName>,
}

/// Removes what `cut` allows, in whole deltas and whole pages: a page that the cut goes through
/// stays until all of it may go. A page need not be readable for that: names go by its range.
///
/// # Errors
/// [`UploadError::Fenced`] when another generation owns the machine: then nothing is deleted that
/// was not unnamed before. `Retry` after a few attempts: the next cut, or the removal of orphans,
/// does what is left. Others as [`super::claim()`].
pub async fn truncate(context: &UploadContext, cut: Cut) -> Result<Truncated, UploadError> {
    let mut patience = Patience::new(context);
    let mut unnamed = BTreeMap::new();
    loop {
        let step = unname(context, cut, &mut unnamed).await;
        match step {
            Ok(()) => break,
            Err(error) if error.class() == Class::Retry && !patience.is_spent() => {
                patience.wait(&error).await;
            }
            Err(error) => return Err(error),
        }
    }
    loop {
        let step = delete_unnamed(context, cut, &unnamed).await;
        match step {
            Err(error) if error.class() == Class::Retry && !patience.is_spent() => {
                patience.wait(&error).await;
            }
            ended => return ended,
        }
    }
}

/// One compare-and-swap that removes names. `unnamed` collects, over all attempts, what each of
/// them would have unnamed: an attempt whose answer was lost may have been the one.
async fn unname(
    context: &UploadContext,
    cut: Cut,
    unnamed: &mut BTreeMap<ObjectName, Sequence>,
) -> Result<(), UploadError> {
    let Claim { manifest, etag } = owned(context, cut.generation).await?;
    let Some(next) = shorten(&manifest, cut) else {
        return Ok(());
    };
    let log = &context.log;
    let failed = |source: CloudLogError| UploadError::log(log.machine(), source);
    // What a page names that cannot be read is left to the removal of orphans.
    let read = log.legible(&manifest, manifest.truncated).await.map_err(failed)?;
    for entry in read.entries {
        unnamed.insert(delta_name(log.machine(), &entry), entry.last);
    }
    for page in &manifest.pages {
        unnamed.insert(names::manifest_page(log.machine(), page.id), page.last);
    }
    let entropy = context.entropy.as_ref();
    let written = log.replace(&next, Some(&etag), entropy).await;
    written.map(|_| ()).map_err(failed)
}

/// Deletes what no name leads to any more, after looking once more who owns the machine.
async fn delete_unnamed(
    context: &UploadContext,
    cut: Cut,
    unnamed: &BTreeMap<ObjectName, Sequence>,
) -> Result<Truncated, UploadError> {
    let through = owned(context, cut.generation).await?.manifest.truncated;
    reached(Place::Cut);
    let gone = unnamed.iter().filter(|(_, last)| **last <= through);
    let removed = delete(context, gone.map(|(name, _)| name.clone()).collect()).await?;
    Ok(Truncated { through, removed })
}

/// The present manifest, if `generation` is its owner.
pub(super) async fn owned(
    context: &UploadContext,
    generation: Generation,
) -> Result<Claim, UploadError> {
    let claim = present(context).await?;
    if claim.manifest.generation != generation {
        return Err(UploadError::Fenced {
            machine: context.log.machine().clone(),
            ours: generation,
            theirs: claim.manifest.generation,
            their_owner: claim.manifest.owner,
        });
    }
    Ok(claim)
}

/// Deletes objects, in any order; one that is gone already is as good.
pub(super) async fn delete(
    context: &UploadContext,
    objects: Vec<ObjectName>,
) -> Result<Vec<ObjectName>, UploadError> {
    let deletions = objects.into_iter().map(|name| async move {
        match context.log.store().delete(&name, Condition::Always).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(name),
            Err(source) => Err(UploadError::Store {
                machine: context.log.machine().clone(),
                name,
                source: Box::new(source),
            }),
        }
    });
    stream::iter(deletions).buffered(DELETIONS_IN_FLIGHT).try_collect().await
}

pub(super) fn delta_name(machine: &MachineId, entry: &DeltaEntry) -> ObjectName {
    names::delta(machine, entry.generation, entry.first, entry.last, entry.id)
}

/// The manifest without what may go; `None` when nothing does.
fn shorten(manifest: &Manifest, cut: Cut) -> Option<Manifest> {
    let mut next = manifest.clone();
    let pages = next.pages.partition_point(|page| page.last <= cut.through);
    let gone = next.pages.drain(..pages).map(|page| page.last).next_back();
    next.truncated = gone.unwrap_or(next.truncated);
    if next.pages.is_empty() {
        let entries = next.entries.partition_point(|entry| entry.last <= cut.through);
        let gone = next.entries.drain(..entries).map(|entry| entry.last).next_back();
        next.truncated = gone.unwrap_or(next.truncated);
    }
    // An epoch is over when the next one begins at or before the first record that is left.
    let left = next.truncated.next();
    let over = next
        .epochs
        .windows(2)
        .take_while(|pair| pair[1].first <= left && pair[0].epoch < cut.epochs_from);
    let over = over.count();
    next.epochs.drain(..over);
    if next.truncated == manifest.truncated && over == 0 {
        return None;
    }
    next.version = next.version.saturating_add(1);
    Some(next)
}
