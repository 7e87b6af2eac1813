//! The one place where a delta becomes *published*: the manifest names it.
//!
//! Owns: minting [`Published`], the checks before the manifest is extended, and what follows when
//! somebody else changed it. Does not own: the objects (uploaded before), retention.
//!
//! Must: an object stands before its name does; a name follows the one before it without a gap; the
//! records are let go after the manifest was written, never before.

use std::sync::atomic::Ordering;

use super::claim::Claim;
use super::context::{Patience, UploadContext};
use super::error::UploadError;
use super::queue::Waiting;
use crate::format::manifest::{DeltaEntry, EpochEntry, Manifest};
use crate::model::{Sequence, Watermarks};
use crate::observe::Stage;
use crate::places::{Place, reached};
use crate::store::{Class, ETag};

/// Deltas that the manifest names: they survive the loss of this process server. The only thing
/// that an ack of *published* can be made from.
#[derive(Debug)]
pub struct Published {
    through: Sequence,
    entries: Vec<DeltaEntry>,
    version: u64,
    etag: ETag,
}

impl Published {
    /// Everything through here is published.
    #[must_use]
    pub fn through(&self) -> Sequence {
        self.through
    }

    /// What became published, in order; never empty.
    #[must_use]
    pub fn entries(&self) -> &[DeltaEntry] {
        &self.entries
    }

    /// Version of the manifest that names them.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// That manifest's version in the store.
    #[must_use]
    pub fn etag(&self) -> &ETag {
        &self.etag
    }
}

/// How a publish ended; who could not publish gets everything back.
pub(super) type Outcome = Result<(Claim, Published), (UploadError, Vec<Waiting>)>;

/// Names `run` (uploaded, ascending, not empty) by one change of the manifest.
pub(super) async fn publish(context: UploadContext, claim: Claim, run: Vec<Waiting>) -> Outcome {
    match name(&context, claim, &run).await {
        Ok(claim) => {
            let published = mint(&context, &claim, &run);
            drop(run); // here, and only here, records leave the cache log
            Ok((claim, published))
        }
        Err(error) => Err((error, run)),
    }
}

/// Only after [`name`] returned the manifest that names all of `run`.
fn mint(context: &UploadContext, claim: &Claim, run: &[Waiting]) -> Published {
    let through = run.last().map_or(Sequence::ZERO, |delta| delta.place().last);
    assert!(through <= claim.manifest.published, "named before minted");
    let machine = context.metrics.machine(context.log.machine());
    let now = context.clock.monotonic();
    for delta in run {
        let entry = delta.sealed.entry();
        let bytes = entry.object_bytes;
        machine.published_bytes.fetch_add(bytes, Ordering::Relaxed);
        context.metrics.moved(Stage::Upload, bytes, bytes);
        let latency = now.saturating_sub(delta.accepted_at);
        context.metrics.latency(Stage::Upload, latency);
        for at in &entry.bookmarks {
            let time = entry.moment(at).0;
            machine.recoverable_time.fetch_max(time, Ordering::AcqRel);
        }
    }
    machine.raise(Watermarks { published: through, ..Watermarks::default() });
    Published {
        through,
        entries: run.iter().map(|delta| delta.sealed.entry().clone()).collect(),
        version: claim.manifest.version,
        etag: claim.etag.clone(),
    }
}

/// Extends the manifest until it names all of `run`, or never can.
async fn name(
    context: &UploadContext,
    claim: Claim,
    run: &[Waiting],
) -> Result<Claim, UploadError> {
    let ours = claim.manifest.clone();
    let mut present = claim;
    let mut patience = Patience::new(context);
    loop {
        let error = match context.ask(attempt(context, &present, run)).await {
            Ok(Some(written)) => return Ok(written),
            Ok(None) => return Ok(present),
            Err(error) => error,
        };
        if error.class() != Class::Retry {
            return Err(error);
        }
        patience.wait(&error).await;
        // Whatever went wrong, the next attempt begins with what stands there now.
        present = reread(context, &mut patience).await?;
        still_ours(&ours, &present.manifest)?;
    }
}

/// One compare-and-swap. `None`: all of `run` is named already (the answer had been lost).
async fn attempt(
    context: &UploadContext,
    present: &Claim,
    run: &[Waiting],
) -> Result<Option<Claim>, UploadError> {
    let manifest = &present.manifest;
    let named = run.partition_point(|delta| delta.place().last <= manifest.published);
    check_named(context, manifest, &run[..named]).await?;
    if named == run.len() {
        return Ok(None);
    }
    let mut next = extend(manifest, &run[named..])?;
    let entropy = context.entropy.as_ref();
    let log = &context.log;
    let failed = |source| UploadError::log(&manifest.machine, source);
    let paged = log.page_out(&mut next, context.entries_max, entropy).await;
    paged.map_err(failed)?;
    reached(Place::Publish);
    let etag = log.replace(&next, Some(&present.etag), entropy).await;
    let etag = etag.map_err(failed)?;
    reached(Place::Published);
    Ok(Some(Claim { manifest: next, etag }))
}

/// What an earlier attempt named must be named as what it is; a published watermark beyond it is
/// not enough. What was truncated since had been named.
async fn check_named(
    context: &UploadContext,
    manifest: &Manifest,
    run: &[Waiting],
) -> Result<(), UploadError> {
    let Some(first) = run.first() else {
        return Ok(());
    };
    let after = Sequence(first.place().first.0.saturating_sub(1)).max(manifest.truncated);
    let entries = context.log.entries(manifest, after).await;
    let failed = |source| UploadError::log(&manifest.machine, source);
    let entries = entries.map_err(failed)?;
    for delta in run.iter().filter(|delta| delta.place().last > manifest.truncated) {
        let at = entries.partition_point(|entry| entry.last < delta.place().last);
        let entry = delta.sealed.entry();
        if entries.get(at) != Some(entry) {
            return Err(UploadError::Contradiction {
                machine: manifest.machine.clone(),
                detail: format!(
                    "is published through {}, but does not name delta {} ({}..={})",
                    manifest.published, entry.id, entry.first, entry.last
                ),
            });
        }
    }
    Ok(())
}

/// The manifest after `run`.
fn extend(manifest: &Manifest, run: &[Waiting]) -> Result<Manifest, UploadError> {
    let mut next = manifest.clone();
    next.version = next.version.saturating_add(1);
    for delta in run {
        let sealed = &delta.sealed;
        let (entry, machine) = (sealed.entry(), &manifest.machine);
        if entry.first != next.published.next() {
            return Err(UploadError::Place {
                machine: machine.clone(),
                first: entry.first,
                last: entry.last,
                expected: next.published,
            });
        }
        if sealed.previous() != next.last_delta {
            return Err(UploadError::Chain {
                machine: machine.clone(),
                id: entry.id,
                found: sealed.previous(),
                expected: next.last_delta,
            });
        }
        next.epochs.extend(sealed.epoch_begin().map(|begin| EpochEntry {
            epoch: begin.epoch,
            first: entry.first,
            disks: begin.disks.clone(),
        }));
        if next.epochs.last().map(|epoch| epoch.epoch) != Some(entry.epoch) {
            return Err(UploadError::Epoch {
                machine: machine.clone(),
                id: entry.id,
                epoch: entry.epoch,
            });
        }
        next.catching_up = sealed.ends_catching_up();
        next.published = entry.last;
        next.last_delta = Some(entry.id);
        next.entries.push(entry.clone());
    }
    Ok(next)
}

async fn reread(
    context: &UploadContext,
    patience: &mut Patience<'_>,
) -> Result<Claim, UploadError> {
    loop {
        match context.ask(present(context)).await {
            Err(error) if error.class() == Class::Retry => patience.wait(&error).await,
            ended => return ended,
        }
    }
}

/// The manifest as it stands now; a machine that was claimed has one.
pub(super) async fn present(context: &UploadContext) -> Result<Claim, UploadError> {
    let machine = context.log.machine();
    match context.log.manifest().await {
        Ok(Some((manifest, etag))) => Ok(Claim { manifest, etag }),
        Ok(None) => Err(UploadError::Contradiction {
            machine: machine.clone(),
            detail: "is gone".to_owned(),
        }),
        Err(source) => Err(UploadError::log(machine, source)),
    }
}

/// Same owner, same generation, never older than what we knew: then somebody only truncated or
/// paged, and our names can be added to what they left. Else we are fenced.
pub(super) fn still_ours(ours: &Manifest, present: &Manifest) -> Result<(), UploadError> {
    let newer = present.generation > ours.generation;
    if newer || (present.generation == ours.generation && present.owner != ours.owner) {
        return Err(UploadError::Fenced {
            machine: ours.machine.clone(),
            ours: ours.generation,
            theirs: present.generation,
            their_owner: present.owner.clone(),
        });
    }
    let older = present.generation < ours.generation;
    if older || present.version < ours.version || present.published < ours.published {
        return Err(UploadError::Contradiction {
            machine: ours.machine.clone(),
            detail: format!(
                "went back from generation {}, version {} (published {}) to {}, {} (published {})",
                ours.generation,
                ours.version,
                ours.published,
                present.generation,
                present.version,
                present.published
            ),
        });
    }
    Ok(())
}
