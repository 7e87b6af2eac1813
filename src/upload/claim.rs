//! Takes a machine: the next generation of its manifest, ours.
//!
//! Owns: the first manifest and the change of owner. Does not own: whether this server should have
//! the machine; two servers that both believe so take it from each other in turn, and the one
//! whose generation is no longer the newest can publish nothing.

use super::context::{Patience, UploadContext};
use super::error::UploadError;
use super::truncate::owned;
use crate::cloud_log::CloudLogError;
use crate::format::manifest::Manifest;
use crate::model::{Generation, MachineId, ServerId};
use crate::store::{Class, ETag};

/// An ownership: the manifest that says so, as it stood when it was last known to.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The manifest; `published` and `last_delta` are where the stream goes on.
    pub manifest: Manifest,
    /// Its version in the store.
    pub etag: ETag,
}

/// Takes the machine over for `owner`. Waits as long as the store says "later", with the reason in
/// the machine's trouble.
///
/// # Errors
/// When the manifest cannot be believed, or the store refuses for good.
pub async fn claim(context: &UploadContext, owner: &ServerId) -> Result<Claim, UploadError> {
    let machine = context.log.machine();
    let mut patience = Patience::new(context);
    loop {
        let attempt = async {
            let attempt = attempt(context, owner).await;
            attempt.map_err(|source| UploadError::log(machine, source))
        };
        match context.ask(attempt).await {
            Err(error) if error.class() == Class::Retry => patience.wait(&error).await,
            ended => return ended,
        }
    }
}

/// The claim of `generation` as it stands now, for an owner that kept nothing but that number: one
/// read. Waits as [`claim`] does.
///
/// # Errors
/// [`UploadError::Fenced`] when another generation owns the machine; else as [`claim`].
pub async fn resume(context: &UploadContext, generation: Generation) -> Result<Claim, UploadError> {
    let mut patience = Patience::new(context);
    loop {
        match context.ask(owned(context, generation)).await {
            Err(error) if error.class() == Class::Retry => patience.wait(&error).await,
            ended => return ended,
        }
    }
}

async fn attempt(context: &UploadContext, owner: &ServerId) -> Result<Claim, CloudLogError> {
    let present = context.log.manifest().await?;
    let (manifest, expected) = next(context.log.machine(), owner, present);
    let entropy = context.entropy.as_ref();
    let etag = context.log.replace(&manifest, expected.as_ref(), entropy).await?;
    Ok(Claim { manifest, etag })
}

/// The manifest that makes `owner` the owner, and the version it must replace. The same server
/// claims anew, too: what an earlier life of it still has in flight is fenced like a stranger's.
fn next(
    machine: &MachineId,
    owner: &ServerId,
    present: Option<(Manifest, ETag)>,
) -> (Manifest, Option<ETag>) {
    match present {
        None => (Manifest::first(machine.clone(), owner.clone()), None),
        Some((mut manifest, etag)) => {
            manifest.generation = Generation(manifest.generation.0.saturating_add(1));
            manifest.version = manifest.version.saturating_add(1);
            if manifest.owner != *owner {
                manifest.owner = owner.clone();
                manifest.owned_since = manifest.generation;
            }
            (manifest, Some(etag))
        }
    }
}
