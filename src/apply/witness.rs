//! Whether seed disks are ahead of the points document: then it was set back (a backup of it was
//! put in its place), and a snapshot made now would hold writes from after its bookmark. Or behind it: a
//! disk that is gone. And whether the log is the one that was applied: the manifest may have been set
//! back, and the document not.
//!
//! Owns: what a disk can tell of its own past, which is the number of the last applier that took it
//! and the labels of its snapshots. What no snapshot was made of leaves no trace there
//! (`docs/durability.md`, "A store that was set back in part").

use super::applier::Applier;
use super::error::ApplyError;
use super::seed;
use crate::format::manifest::{EpochEntry, Manifest};
use crate::format::names;
use crate::model::{DeltaId, Epoch, ObjectName, Sequence};
use crate::store::{SnapshotInfo, StoreError};
use crate::vault::PointsDocument;

impl Applier {
    /// An epoch is announced before its disks are made, so those of one that the document does not
    /// know are not there.
    pub(super) async fn check_new_epoch(
        &mut self,
        manifest: &Manifest,
        epoch: Epoch,
    ) -> Result<(), ApplyError> {
        if self.checkpoint.document().epoch == epoch.0 {
            return Ok(());
        }
        for (object, number) in self.numbers(manifest, epoch).await? {
            if number.is_some() {
                self.checkpoint.reload().await?;
                // Ours by now: an announcement whose answer was lost.
                if self.checkpoint.document().epoch != epoch.0 {
                    let witness =
                        "it is there, and its epoch was never begun (removing it helps, too)"
                            .to_owned();
                    return Err(self.ahead(object, epoch, witness));
                }
            }
        }
        Ok(())
    }

    /// Before the disks are taken: no applier that the document does not know of had them. `first`:
    /// this one never tried to take them, so its own number is not on them either.
    pub(super) async fn check_numbers(
        &mut self,
        manifest: &Manifest,
        epoch: Epoch,
        first: bool,
    ) -> Result<(), ApplyError> {
        let ours = self.checkpoint.generation();
        for (object, number) in self.numbers(manifest, epoch).await? {
            let Some(number) = number else {
                self.check_unused(manifest, epoch, object)?;
                continue;
            };
            if number > ours || (first && number == ours) {
                self.checkpoint.reload().await?; // a newer applier's number fences us here
                let witness =
                    format!("applier generation {number} had it, the document gave {ours}");
                return Err(self.ahead(object, epoch, witness));
            }
        }
        Ok(())
    }

    /// A disk that is not there may be made: unless something was applied to it.
    fn check_unused(
        &self,
        manifest: &Manifest,
        epoch: Epoch,
        object: ObjectName,
    ) -> Result<(), ApplyError> {
        let (machine, applied) = (manifest.machine.clone(), self.checkpoint.document().applied);
        let begins = manifest.epochs.iter().find(|entry| entry.epoch == epoch);
        let used = self.checkpoint.document().epoch == epoch.0
            && begins.is_some_and(|entry| applied >= entry.first.0);
        match used {
            true => Err(ApplyError::Missing { machine, object, epoch, applied: Sequence(applied) }),
            false => Ok(()),
        }
    }

    /// After the disks were taken, so that no older applier adds a snapshot any more: none was made
    /// of what the document does not know to be on them.
    pub(super) async fn check_labels(
        &mut self,
        manifest: &Manifest,
        epoch: Epoch,
    ) -> Result<(), ApplyError> {
        for object in disks(manifest, epoch) {
            let there = self.context.store.list_snapshots(&object).await;
            let there = there.map_err(|source| self.store_failed(source))?;
            self.check_snapshots(&object, epoch, &there).await?;
        }
        Ok(())
    }

    /// The same for snapshots that were listed.
    pub(super) async fn check_snapshots(
        &mut self,
        object: &ObjectName,
        epoch: Epoch,
        there: &[SnapshotInfo],
    ) -> Result<(), ApplyError> {
        let ours = self.checkpoint.generation();
        let document = self.checkpoint.document();
        let witness = |snapshot: &&SnapshotInfo| is_ahead(document, ours, epoch, &snapshot.label);
        let Some(label) = there.iter().find(witness).map(|snapshot| &snapshot.label) else {
            return Ok(());
        };
        self.checkpoint.reload().await?;
        Err(self.ahead(object.clone(), epoch, format!("it has the snapshot `{label}`")))
    }

    /// The sequence number of each disk of an epoch; `None`: it is not there.
    async fn numbers(
        &self,
        manifest: &Manifest,
        epoch: Epoch,
    ) -> Result<Vec<(ObjectName, Option<u64>)>, ApplyError> {
        let mut numbers = Vec::new();
        for object in disks(manifest, epoch) {
            let number = match self.context.store.page_properties(&object).await {
                Ok(properties) => Some(properties.sequence_number),
                Err(StoreError::NotFound { .. }) => None,
                Err(source) => return Err(self.store_failed(source)),
            };
            numbers.push((object, number));
        }
        Ok(numbers)
    }

    /// The document claims more than a manifest publishes: so does the manifest that stands there now, or
    /// it was set back.
    pub(super) async fn check_published(&self, applied: Sequence) -> Result<(), ApplyError> {
        let machine = self.context.log.machine().clone();
        let read = self.context.log.manifest().await;
        let read = read.map_err(|source| ApplyError::Log { machine, source })?;
        let published = read.map_or(Sequence::ZERO, |(manifest, _)| manifest.published);
        match published < applied {
            true => Err(self.set_back(applied, format!("its log ends at record {published}"))),
            false => Ok(()),
        }
    }

    /// The delta of the log that ends at `applied` is the one that was applied.
    pub(super) fn check_applied(
        &self,
        applied: Sequence,
        found: Option<DeltaId>,
    ) -> Result<(), ApplyError> {
        let expected = self.checkpoint.document().applied_delta.as_ref();
        match (found.map(|id| id.to_string()), expected) {
            (None, _) => Err(self.set_back(applied, "no delta of its log ends there".to_owned())),
            (Some(found), Some(expected)) if found != *expected => {
                let witness = format!("delta {found} of its log ends there, not {expected}");
                Err(self.set_back(applied, witness))
            }
            (Some(_), _) => Ok(()),
        }
    }

    fn set_back(&self, applied: Sequence, witness: String) -> ApplyError {
        let machine = self.context.log.machine().clone();
        let epoch = Epoch(self.checkpoint.document().epoch);
        ApplyError::SetBack { machine, applied, epoch, witness }
    }

    fn ahead(&self, object: ObjectName, epoch: Epoch, witness: String) -> ApplyError {
        let machine = self.context.log.machine().clone();
        ApplyError::Ahead { machine, object, epoch, witness }
    }
}

/// Where the machine can be applied again although the seed disks of `stuck` cannot be: a later
/// epoch whose beginning is still in the log. Its disks are others.
pub(super) fn way_out<'a>(
    manifest: &'a Manifest,
    points: &PointsDocument,
    stuck: Epoch,
) -> Option<&'a EpochEntry> {
    let begun = points.applied.max(manifest.truncated.0);
    manifest.epochs.iter().find(|entry| entry.epoch > stuck && entry.first.0 > begun)
}

fn disks(manifest: &Manifest, epoch: Epoch) -> impl Iterator<Item = ObjectName> {
    let entry = manifest.epochs.iter().find(|entry| entry.epoch == epoch);
    let disks = entry.into_iter().flat_map(|entry| &entry.disks);
    disks.map(move |spec| names::seed_disk(&manifest.machine, &spec.name, epoch))
}

/// Whether a snapshot was made by an applier, or at a place, that the document has not come to.
/// Disks of epochs that are over are never written again: they cannot be ahead.
fn is_ahead(points: &PointsDocument, ours: u64, epoch: Epoch, label: &str) -> bool {
    let applying = match epoch.0.cmp(&points.epoch) {
        std::cmp::Ordering::Less => return false,
        std::cmp::Ordering::Equal => points.applying.max(points.applied),
        std::cmp::Ordering::Greater => 0,
    };
    seed::made_by(label).is_some_and(|by| by.generation > ours || by.sequence > applying)
}
