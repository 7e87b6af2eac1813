//! The points document: announced before a run, recorded after it. The only place that mints
//! [`Applied`] and [`RecoveryPoint`].
//!
//! Does not own: whether pages are durable; the caller flushed before it asks for a record.

use super::error::ApplyError;
use crate::format::manifest::BookmarkEntry;
use crate::format::names;
use crate::model::{Epoch, MachineId, Sequence};
use crate::store::ETag;
use crate::vault::{PointsDocument, SnapshotDisk, SnapshotPoint, Vault};

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
#[derive(Debug)]
pub(super) struct Checkpoint {
    vault: Vault,
    machine: MachineId,
    ours: u64,
    present: PointsDocument,
    etag: ETag,
}

impl Checkpoint {
    /// Takes the machine's seed disks over: its applier generation grows by one, so every older
    /// applier fails its next compare-and-swap.
    pub(super) async fn claim(vault: Vault, machine: &MachineId) -> Result<Self, ApplyError> {
        let name = names::points_document(machine);
        let points = |source| ApplyError::Points { machine: machine.clone(), source };
        let (present, etag) = vault
            .upsert(&name, || empty(machine), |document: &mut PointsDocument| {
                document.applier_generation += 1;
            })
            .await
            .map_err(points)?;
        let ours = present.applier_generation;
        Ok(Self { vault, machine: machine.clone(), ours, present, etag })
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
    pub(super) async fn record(&mut self, through: Sequence) -> Result<Applied, ApplyError> {
        self.change(|document| {
            document.applied = through.0;
            document.quarantine = None;
        })
        .await?;
        Ok(Applied { through })
    }

    /// Records a run that ends at `bookmark`, with the snapshots taken there.
    pub(super) async fn record_point(
        &mut self,
        bookmark: &BookmarkEntry,
        disks: Vec<SnapshotDisk>,
    ) -> Result<(Applied, RecoveryPoint), ApplyError> {
        let point = SnapshotPoint {
            bookmark: bookmark.bookmark.id.to_string(),
            name: bookmark.bookmark.name.clone(),
            kind: bookmark.bookmark.kind,
            time: bookmark.bookmark.time,
            sequence: bookmark.sequence.0,
            epoch: self.present.epoch,
            disks,
        };
        let added = point.clone();
        self.change(move |document| {
            document.applied = added.sequence;
            document.quarantine = None;
            document.snapshots.retain(|kept| kept.sequence != added.sequence);
            document.snapshots.push(added.clone());
        })
        .await?;
        Ok((Applied { through: bookmark.sequence }, RecoveryPoint { point }))
    }

    /// Says why applying stopped.
    pub(super) async fn quarantine(&mut self, why: String) -> Result<(), ApplyError> {
        if self.present.quarantine.as_ref() == Some(&why) {
            return Ok(());
        }
        self.change(move |document| document.quarantine = Some(why.clone())).await
    }

    /// Forgets snapshots that retention gave up; they are deleted from the store afterwards.
    pub(super) async fn forget(&mut self, sequences: &[u64]) -> Result<(), ApplyError> {
        self.change(|document| {
            document.snapshots.retain(|kept| !sequences.contains(&kept.sequence));
        })
        .await
    }

    /// Compare-and-swap; pins set by others meanwhile are kept, a newer applier fences.
    async fn change(&mut self, edit: impl Fn(&mut PointsDocument)) -> Result<(), ApplyError> {
        let name = names::points_document(&self.machine);
        loop {
            let mut next = self.present.clone();
            edit(&mut next);
            match self.vault.replace(&name, &next, &self.etag).await {
                Ok(etag) => {
                    (self.present, self.etag) = (next, etag);
                    return Ok(());
                }
                Err(error) if error.is_conflict() => self.reload().await?,
                Err(source) => {
                    return Err(ApplyError::Points { machine: self.machine.clone(), source });
                }
            }
        }
    }

    /// Reads the document again; every turn of the loop above means that somebody else's change
    /// went through, and only pins are changed by anybody but the applier.
    pub(super) async fn reload(&mut self) -> Result<(), ApplyError> {
        let name = names::points_document(&self.machine);
        let points = |source| ApplyError::Points { machine: self.machine.clone(), source };
        let read = self.vault.read::<PointsDocument>(&name).await.map_err(points)?;
        let theirs = read.as_ref().map_or(0, |(document, _)| document.applier_generation);
        match read {
            Some((document, etag)) if theirs == self.ours => {
                (self.present, self.etag) = (document, etag);
                Ok(())
            }
            _ => {
                let (machine, ours) = (self.machine.clone(), self.ours);
                Err(ApplyError::Fenced { machine, ours, theirs })
            }
        }
    }
}

fn empty(machine: &MachineId) -> PointsDocument {
    PointsDocument {
        machine: machine.clone(),
        applier_generation: 0,
        epoch: 0,
        applied: 0,
        applying: 0,
        snapshots: Vec::new(),
        pinned: Vec::new(),
        quarantine: None,
    }
}
