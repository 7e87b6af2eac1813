//! Objects that no manifest names and none ever will: found, and removed when that is safe.
//!
//! Owns: the proof that nobody can name them any more. Does not own: staged blocks that were never
//! committed (the store lets them go).
//!
//! *Deltas* say in their name who made them and for which records. A delta of an older generation
//! can never be named, because its owner's compare-and-swap fails; one that ends at or before
//! `published` can never be named, because names only follow `published`. One of the present
//! generation beyond `published` may be on its way at this moment: it is never touched.
//!
//! *Pages* do not say who made them, and the present owner writes one before the compare-and-swap
//! that names it. So the manifest is rewritten first, unchanged but for its version: whoever
//! prepared a page before that loses the compare-and-swap, reads again and makes another page. No
//! clock takes part in this proof, and the manifest that was replaced is proven to be the one that
//! was compared.
//!
//! A page that is named and cannot be read hides names. All of them are of deltas within its range, so
//! no delta that touches the range is an orphan while the manifest names the page.
//!
//! The grace is for people, not for safety: what a human may still want to look at stays a while.
//! Its clock is the store's own: the modification time of the manifest just written is its "now".

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::claim::Claim;
use super::context::{Patience, UploadContext};
use super::error::UploadError;
use super::truncate::{delete, delta_name, owned};
use crate::format::manifest::Manifest;
use crate::format::names;
use crate::model::{DeltaId, Generation, ObjectName, Sequence, Timestamp};
use crate::places::{Place, reached};
use crate::store::{Class, Listed, StoreError};

/// Whether orphans are removed or only named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Only named; the manifest is not touched.
    DryRun,
    /// Removed.
    Remove,
}

/// Finds the orphans of a machine that are older than `grace`, removes them unless this is a dry
/// run, and returns them.
///
/// # Errors
/// [`UploadError::Fenced`] unless `generation` owns the machine. `Retry` after a few attempts: what
/// is left is found the next time.
pub async fn remove_orphans(
    context: &UploadContext,
    generation: Generation,
    grace: Duration,
    removal: Removal,
) -> Result<Vec<Listed>, UploadError> {
    let mut patience = Patience::new(context);
    // Over all attempts: one that failed half-way has removed some, which no later one lists.
    let mut found = BTreeMap::new();
    loop {
        let attempt = attempt(context, generation, grace, removal, &mut found);
        match context.ask(attempt).await {
            Ok(()) => return Ok(found.into_values().collect()),
            Err(error) if error.class() == Class::Retry && !patience.is_spent() => {
                patience.wait(&error).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn attempt(
    context: &UploadContext,
    generation: Generation,
    grace: Duration,
    removal: Removal,
    found: &mut BTreeMap<ObjectName, Listed>,
) -> Result<(), UploadError> {
    // Listed before the manifest is read: what is made after that is not looked at.
    let there = list(context).await?;
    let claim = owned(context, generation).await?;
    let named = named(context, &claim.manifest).await?;
    let manifest = &claim.manifest;
    let orphaned = |row: &Listed| verdict(manifest, &named, &row.name) == Verdict::Orphan;
    let mut orphans: Vec<Listed> = there.into_iter().filter(orphaned).collect();
    if orphans.is_empty() {
        return Ok(());
    }
    let now = match removal {
        Removal::DryRun => context.clock.wall(),
        Removal::Remove => rewrite(context, claim).await?,
    };
    let grace = i64::try_from(grace.as_micros()).unwrap_or(i64::MAX);
    orphans.retain(|row| row.modified.0.saturating_add(grace) <= now.0);
    let names = orphans.iter().map(|row| row.name.clone()).collect();
    found.extend(orphans.into_iter().map(|row| (row.name.clone(), row)));
    if removal == Removal::Remove {
        reached(Place::Orphans);
        delete(context, names).await?;
    }
    Ok(())
}

async fn list(context: &UploadContext) -> Result<Vec<Listed>, UploadError> {
    let machine = context.log.machine();
    let mut there = Vec::new();
    for prefix in [names::deltas(machine), names::manifest_pages(machine)] {
        let rows = context.log.store().list(&prefix).await;
        there.extend(rows.map_err(|source| store_error(context, source))?);
    }
    Ok(there)
}

/// Writes the manifest again, one version later; gives the store's time of that.
async fn rewrite(context: &UploadContext, claim: Claim) -> Result<Timestamp, UploadError> {
    let Claim { mut manifest, etag } = claim;
    manifest.version = manifest.version.saturating_add(1);
    let entropy = context.entropy.as_ref();
    let written = context.log.replace(&manifest, Some(&etag), entropy).await;
    written.map_err(|source| UploadError::log(&manifest.machine, source))?;
    let name = names::manifest(&manifest.machine);
    let properties = context.log.store().properties(&name).await;
    let properties = properties.map_err(|source| store_error(context, source))?;
    Ok(properties.modified)
}

/// Everything that the manifest leads to.
struct Named {
    objects: HashSet<ObjectName>,
    /// Records whose deltas are named by pages that cannot be read: first and last.
    hidden: Vec<(Sequence, Sequence)>,
}

async fn named(context: &UploadContext, manifest: &Manifest) -> Result<Named, UploadError> {
    let machine = &manifest.machine;
    let read = context.log.legible(manifest, manifest.truncated).await;
    let read = read.map_err(|source| UploadError::log(machine, source))?;
    let pages = manifest.pages.iter().map(|page| names::manifest_page(machine, page.id));
    let deltas = read.entries.iter().map(|entry| delta_name(machine, entry));
    let objects = pages.chain(deltas).collect();
    let hidden = read.unread.iter().map(|page| (page.first, page.last)).collect();
    Ok(Named { objects, hidden })
}

fn store_error(context: &UploadContext, source: StoreError) -> UploadError {
    let machine = context.log.machine().clone();
    let name = names::manifest(&machine);
    UploadError::Store { machine, name, source: Box::new(source) }
}

/// What an object is to a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The manifest leads to it.
    Named,
    /// A page that cannot be read may name it.
    Hidden,
    /// It may be named yet.
    InFlight,
    /// It never will be (a page: once the manifest was rewritten).
    Orphan,
    /// Nothing that this room made.
    Stranger,
}

fn verdict(manifest: &Manifest, named: &Named, object: &ObjectName) -> Verdict {
    if named.objects.contains(object) {
        return Verdict::Named;
    }
    let machine = &manifest.machine;
    if let Some((generation, first, last, _)) = names::parse_delta(machine, object) {
        if named.hidden.iter().any(|hidden| first <= hidden.1 && last >= hidden.0) {
            return Verdict::Hidden;
        }
        let dead = generation < manifest.generation
            || (generation == manifest.generation && last <= manifest.published);
        return if dead { Verdict::Orphan } else { Verdict::InFlight };
    }
    let page = object.as_str().strip_prefix(&names::manifest_pages(machine));
    match page.and_then(DeltaId::parse) {
        Some(_) => Verdict::Orphan,
        None => Verdict::Stranger,
    }
}
