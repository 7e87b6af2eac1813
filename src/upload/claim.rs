//! Takes a machine, and gives it up: the next generation of its manifest.
//!
//! Owns: the first manifest and the change of owner. Does not own: whether this server should have
//! the machine: whoever decides that looks at the manifest first, and claims over exactly what it
//! saw. Two servers that both believe so race by compare-and-swap, and one of them is told.

use super::context::{Patience, UploadContext};
use super::error::UploadError;
use super::publish::present;
use super::truncate::owned;
use crate::format::manifest::Manifest;
use crate::model::{Generation, ServerId};
use crate::places::{Place, reached};
use crate::store::{Class, ETag};

/// An ownership: the manifest that says so, as it stood when it was last known to.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The manifest; `published` and `last_delta` are where the stream goes on.
    pub manifest: Manifest,
    /// Its version in the store.
    pub etag: ETag,
}

/// The manifest as it stands; `None` before the first claim. Waits as long as the store says
/// "later", with the reason in the machine's trouble.
///
/// # Errors
/// When the manifest cannot be believed, or the store refuses for good.
pub async fn look(context: &UploadContext) -> Result<Option<Claim>, UploadError> {
    let machine = context.log.machine();
    let mut patience = Patience::new(context);
    loop {
        let attempt = async {
            let read = context.log.manifest().await;
            read.map_err(|source| UploadError::log(machine, source))
        };
        match context.ask(attempt).await {
            Err(error) if error.class() == Class::Retry => patience.wait(&error).await,
            ended => return Ok(ended?.map(|(manifest, etag)| Claim { manifest, etag })),
        }
    }
}

/// Takes the machine over for `owner`, over exactly what was `seen`: one attempt, because whatever
/// changed since, and be it the time alone, may change the decision.
///
/// # Errors
/// Of class `Retry` when it changed, or the store says "later": wait, look again, decide again. Else
/// as [`look`].
pub async fn claim_over(
    context: &UploadContext,
    owner: &ServerId,
    seen: Option<Claim>,
) -> Result<Claim, UploadError> {
    context.ask(write_next(context, owner, seen)).await
}

/// Looks and claims, whoever owns the machine: for who need not ask whether the owner lives.
///
/// # Errors
/// As [`claim_over`].
pub async fn claim(context: &UploadContext, owner: &ServerId) -> Result<Claim, UploadError> {
    let mut patience = Patience::new(context);
    loop {
        let seen = look(context).await?;
        match claim_over(context, owner, seen).await {
            Err(error) if error.class() == Class::Retry => patience.wait(&error).await,
            ended => return ended,
        }
    }
}

/// Makes `to` the owner of a machine that `generation` owns. Whoever calls has published everything
/// that is durable here, or another one would have to send it again. Waits as [`look`] does. What an
/// attempt did whose answer was lost is found, and is as good.
///
/// # Errors
/// [`UploadError::Fenced`] when another generation owns the machine. Else as there.
pub async fn give_up(
    context: &UploadContext,
    generation: Generation,
    to: &ServerId,
) -> Result<Claim, UploadError> {
    let mut patience = Patience::new(context);
    loop {
        let attempt = async {
            match owned(context, generation).await {
                Ok(present) => write_next(context, to, Some(present)).await,
                Err(UploadError::Fenced { theirs, their_owner, .. })
                    if theirs == following(generation) && their_owner == *to =>
                {
                    present(context).await
                }
                Err(error) => Err(error),
            }
        };
        match context.ask(attempt).await {
            Err(error) if error.class() == Class::Retry => patience.wait(&error).await,
            ended => return ended,
        }
    }
}

/// The claim of `generation` as it stands now, for an owner that kept nothing but that number: one
/// read. Waits as [`look`] does.
///
/// # Errors
/// [`UploadError::Fenced`] when another generation owns the machine; else as [`look`].
pub async fn resume(context: &UploadContext, generation: Generation) -> Result<Claim, UploadError> {
    let mut patience = Patience::new(context);
    loop {
        match context.ask(owned(context, generation)).await {
            Err(error) if error.class() == Class::Retry => patience.wait(&error).await,
            ended => return ended,
        }
    }
}

/// One compare-and-swap over `present`.
async fn write_next(
    context: &UploadContext,
    owner: &ServerId,
    present: Option<Claim>,
) -> Result<Claim, UploadError> {
    let manifest = next(context, owner, present.as_ref().map(|claim| &claim.manifest));
    let etag = present.map(|claim| claim.etag);
    reached(Place::Claim);
    let written = context.log.replace(&manifest, etag.as_ref(), context.entropy.as_ref());
    let etag = written.await.map_err(|source| UploadError::log(context.log.machine(), source))?;
    Ok(Claim { manifest, etag })
}

fn following(generation: Generation) -> Generation {
    Generation(generation.0.saturating_add(1))
}

/// The manifest that makes `owner` the owner. The same server claims anew, too: what an earlier life
/// of it still has in flight is fenced like a stranger's.
fn next(context: &UploadContext, owner: &ServerId, present: Option<&Manifest>) -> Manifest {
    let Some(present) = present else {
        return Manifest::first(context.log.machine().clone(), owner.clone());
    };
    let mut manifest = present.clone();
    manifest.generation = following(manifest.generation);
    manifest.version = manifest.version.saturating_add(1);
    if manifest.owner != *owner {
        manifest.owner = owner.clone();
        manifest.owned_since = manifest.generation;
    }
    manifest
}
