//! The points document: announced before a run, recorded after it. The only place that mints
//! [`Applied`] and [`RecoveryPoint`].
//!
//! Does not own: whether pages are durable; the caller flushed before it asks for a record.

use super::due::Due;
use super::error::ApplyError;
use super::retention::Decision;
use crate::model::{DeltaId, Epoch, MachineId, Sequence};
use crate::store::ETag;
use crate::vault::{PointsDocument, SnapshotDisk, SnapshotPoint, Vault, VaultError};

/// Proof that the seed disks hold everything through a sequence, durably, and that it is on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    through: Sequence,
}

impl Applied {
    /// Everything through here.
    #[must_use]
    pub fn through(self) -> Sequence {
        self.through
    }
}

/// Proof that a bookmark is kept as snapshots of all disks. Made only from [`Applied`] at exactly
/// the bookmark's sequence: the snapshots hold every write up to it and none after it.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveryPoint {
    point: SnapshotPoint,
}

impl RecoveryPoint {
    /// What the points document says of it.
    #[must_use]
    pub fn point(&self) -> &SnapshotPoint {
        &self.point
    }
}

/// The points document as this applier last saw it.
pub(super) struct Checkpoint {
    vault: Vault,
    machine: MachineId,
    ours: u64,
    present: PointsDocument,
    /// Its version: a change is one request while nobody else writes.
    version: ETag,
}

impl Checkpoint {
    /// Takes the machine's seed disks over: its applier generation grows by one, so every older
    /// applier fails its next change.
    pub(super) async fn claim(vault: Vault, machine: &MachineId) -> Result<Self, ApplyError> {
        let claimed = vault
            .update_points_known(machine, None, |mut document| {
                document.applier_generation = document.applier_generation.saturating_add(1);
                Ok(document)
            })
            .await;
        let machine = machine.clone();
        match claimed {
            Ok((present, version)) => {
                let ours = present.applier_generation;
                Ok(Self { vault, machine, ours, present, version })
            }
            Err(source) => Err(ApplyError::Points { machine, source }),
        }
    }

    pub(super) fn document(&self) -> &PointsDocument {
        &self.present
    }

    pub(super) fn generation(&self) -> u64 {
        self.ours
    }

    /// Announces a run through `through`: from now on the seed disks may hold parts of it.
    pub(super) async fn announce(
        &mut self,
        epoch: Epoch,
        through: Sequence,
    ) -> Result<(), ApplyError> {
        let same = self.present.epoch == epoch.0;
        if same && self.present.applying >= through.0 {
            return Ok(());
        }
        self.change(|document| {
            if document.epoch != epoch.0 {
                document.epoch = epoch.0;
                document.applying = 0;
            }
            document.applying = document.applying.max(through.0);
        })
        .await
    }

    /// Records that the seed disks hold everything through `through`; the caller flushed them.
    /// `delta`: the last one of the run.
    pub(super) async fn record(
        &mut self,
        through: Sequence,
        delta: Option<DeltaId>,
    ) -> Result<Applied, ApplyError> {
        self.change(|document| {
            document.applied = through.0;
            document.applied_delta = delta.map(|id| id.to_string());
            document.quarantine = None;
        })
        .await?;
        Ok(Applied { through })
    }

    /// Records a run that ends at a bookmark, with the snapshots taken there. `delta`: the last one of
    /// the run.
    pub(super) async fn record_point(
        &mut self,
        due: Due<'_>,
        disks: Vec<SnapshotDisk>,
        delta: Option<DeltaId>,
    ) -> Result<(Applied, RecoveryPoint), ApplyError> {
        let Due { bookmark, time } = due;
        let point = SnapshotPoint {
            bookmark: bookmark.bookmark.id.to_string(),
            name: bookmark.bookmark.name.clone(),
            kind: bookmark.bookmark.kind,
            time,
            sequence: bookmark.sequence.0,
            epoch: self.present.epoch,
            disks,
        };
        let added = point.clone();
        self.change(move |document| {
            document.applied = added.sequence;
            document.applied_delta = delta.map(|id| id.to_string());
            document.quarantine = None;
            document.snapshots.retain(|kept| kept.sequence != added.sequence);
            document.snapshots.push(added.clone());
        })
        .await?;
        Ok((Applied { through: bookmark.sequence }, RecoveryPoint { point }))
    }

    /// Leaves what is left of an epoch whose seed disks cannot be brought forward: the next run
    /// begins with the record after `through`, on another epoch's disks.
    pub(super) async fn leave_epoch(&mut self, through: Sequence) -> Result<(), ApplyError> {
        self.change(|document| {
            document.applied = through.0;
            document.applied_delta = None;
        })
        .await
    }

    /// Says why applying stopped.
    pub(super) async fn quarantine(&mut self, why: String) -> Result<(), ApplyError> {
        if self.present.quarantine.as_ref() == Some(&why) {
            return Ok(());
        }
        self.change(move |document| document.quarantine = Some(why.clone())).await
    }

    /// Records what retention gives up, if the document is still the one it was decided on: false
    /// when somebody changed it meanwhile. Nothing is deleted or cut before this said true; from
    /// then on no recovery begins to rely on it.
    pub(super) async fn give_up(
        &mut self,
        decision: &Decision,
        decided_on: &ETag,
    ) -> Result<bool, ApplyError> {
        let mut next = self.present.clone();
        next.snapshots.retain(|kept| !decision.drop_snapshots.contains(&kept.sequence));
        next.truncate_through = next.truncate_through.max(decision.truncate_through.0);
        if next == self.present {
            return Ok(true);
        }
        let swapped = self.vault.swap_points(&self.machine, decided_on, &next).await;
        let Some(version) = swapped.map_err(|source| self.failed(source))? else {
            return Ok(false);
        };
        (self.present, self.version) = (next, version);
        Ok(true)
    }

    /// Writes the document again as it is: what was on its way to it from this applier's earlier
    /// tries can no longer arrive, and no newer applier had begun.
    pub(super) async fn confirm(&mut self) -> Result<(), ApplyError> {
        self.change(|_| {}).await
    }

    /// Compare-and-swap; pins set by others meanwhile are kept, a newer applier fences.
    async fn change(&mut self, edit: impl Fn(&mut PointsDocument)) -> Result<(), ApplyError> {
        let ours = self.ours;
        let known = Some((self.present.clone(), self.version.clone()));
        let changed = self.vault.update_points_known(&self.machine, known, |mut document| {
            if document.applier_generation == ours {
                edit(&mut document);
            }
            Ok(document)
        });
        let (document, version) = changed.await.map_err(|source| self.failed(source))?;
        self.accept(document, version)
    }

    /// Reads the document again: fails when a newer applier took over. Gives its version.
    pub(super) async fn reload(&mut self) -> Result<ETag, ApplyError> {
        let read = self.vault.points(&self.machine).await;
        match read.map_err(|source| self.failed(source))? {
            Some((document, version)) => {
                self.accept(document, version.clone())?;
                Ok(version)
            }
            None => Err(self.fenced(0)),
        }
    }

    fn accept(&mut self, document: PointsDocument, version: ETag) -> Result<(), ApplyError> {
        if document.applier_generation != self.ours {
            return Err(self.fenced(document.applier_generation));
        }
        (self.present, self.version) = (document, version);
        Ok(())
    }

    fn fenced(&self, theirs: u64) -> ApplyError {
        ApplyError::Fenced { machine: self.machine.clone(), ours: self.ours, theirs }
    }

    fn failed(&self, source: VaultError) -> ApplyError {
        ApplyError::Points { machine: self.machine.clone(), source }
    }
}
