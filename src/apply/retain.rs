//! Retention carried out: what the decision gives up is unnamed first, deleted afterwards.
//!
//! Owns: that nothing is deleted which a recovery began to rely on, or a newer applier made. Does
//! not own: the decision ([`retention`]), and the log, which its caller cuts.
//!
//! Against recoveries: the document is read, then the pins, then the document is swapped, on the
//! version that was read. A recovery writes its pin, then the document, then looks again
//! (`recover::Pin`). So either its pin was seen, or the swap fails and all is decided anew, or the
//! recovery sees what was given up and does not rely on it.
//!
//! Against other appliers: a snapshot names its maker's generation. An older applier deletes none
//! of a newer one, and a newer one never builds on one of an older.

use super::applier::Applier;
use super::error::ApplyError;
use super::retention::{self, Decision};
use super::seed;
use crate::cloud_log::{Legible, UnreadPage};
use crate::format::manifest::{EpochEntry, Manifest};
use crate::format::names;
use crate::model::{DiskSpec, Epoch, ObjectName};
use crate::store::{SnapshotInfo, StoreError};
use crate::vault::{PinDocument, Policy, VaultError};

/// How often others may change the document between decision and swap.
const TRIES: u32 = 16;

impl Applier {
    /// Drops the snapshots that the policy no longer keeps and says how much of the log may go.
    ///
    /// # Errors
    /// As [`Applier::step`]; nothing that a kept point needs was deleted.
    pub async fn retain(
        &mut self,
        manifest: &Manifest,
        policy: &Policy,
    ) -> Result<Decision, ApplyError> {
        let decision = self.decide(manifest, policy).await?;
        for epoch in &manifest.epochs {
            if epoch.epoch < decision.epochs_from {
                self.delete_seed_disks(manifest, epoch).await?;
            } else {
                self.delete_unnamed_snapshots(manifest, epoch).await?;
            }
        }
        Ok(decision)
    }

    /// Pages of the manifest that could not be read when [`Self::retain`] last looked: what they name
    /// is kept until its time has come, and points that need it cannot be recovered to.
    #[must_use]
    pub fn unread(&self) -> &[UnreadPage] {
        &self.unread
    }

    /// Decides until a decision is recorded that nobody else's change came before.
    async fn decide(
        &mut self,
        manifest: &Manifest,
        policy: &Policy,
    ) -> Result<Decision, ApplyError> {
        let log = self.legible(manifest, manifest.truncated).await?;
        let decided = self.decide_on(manifest, policy, &log).await;
        self.unread = log.unread;
        decided
    }

    async fn decide_on(
        &mut self,
        manifest: &Manifest,
        policy: &Policy,
        log: &Legible,
    ) -> Result<Decision, ApplyError> {
        for _ in 0..TRIES {
            let decided_on = self.checkpoint.reload().await?;
            let pins = self.pins().await?;
            let decision = retention::decide(self.checkpoint.document(), log, &pins, policy);
            if self.checkpoint.give_up(&decision, &decided_on).await? {
                return Ok(decision);
            }
        }
        let name = names::points_document(&manifest.machine).to_string();
        let source = VaultError::Contended { name, tries: TRIES };
        Err(ApplyError::Points { machine: manifest.machine.clone(), source })
    }

    /// Pins of recoveries that still run. Those of killed ones are removed.
    async fn pins(&self) -> Result<Vec<PinDocument>, ApplyError> {
        let machine = self.context.log.machine();
        let vault = &self.context.vault;
        let failed = |source| ApplyError::Points { machine: machine.clone(), source };
        let pins = vault.pins(machine).await.map_err(failed)?;
        let pins = self.context.pins.sort(pins, self.context.clock.monotonic());
        for id in &pins.dead {
            vault.remove_pin(machine, id).await.map_err(failed)?;
        }
        Ok(pins.running)
    }

    /// Of an epoch without points; called again until the manifest has forgotten the epoch.
    async fn delete_seed_disks(
        &self,
        manifest: &Manifest,
        epoch: &EpochEntry,
    ) -> Result<(), ApplyError> {
        for spec in &epoch.disks {
            let object = names::seed_disk(&manifest.machine, &spec.name, epoch.epoch);
            let store = &self.context.store;
            let deleted = async {
                store.break_lease(&object).await?;
                store.delete_pages(&object, None).await
            };
            match deleted.await {
                Ok(()) | Err(StoreError::NotFound { .. }) => {}
                Err(source) => return Err(self.store_failed(source)),
            }
        }
        Ok(())
    }

    /// Snapshots of appliers that no point names: given up by retention, or left by a crash between
    /// making and recording (then the next run makes its own again). Others are somebody else's: ours
    /// get their label with the same request that makes them.
    async fn delete_unnamed_snapshots(
        &mut self,
        manifest: &Manifest,
        epoch: &EpochEntry,
    ) -> Result<(), ApplyError> {
        for spec in &epoch.disks {
            let object = names::seed_disk(&manifest.machine, &spec.name, epoch.epoch);
            let there = match self.context.store.list_snapshots(&object).await {
                Ok(there) => there,
                Err(StoreError::NotFound { .. }) => continue,
                Err(source) => return Err(self.store_failed(source)),
            };
            let left = |snapshot: &SnapshotInfo| {
                seed::made_by(&snapshot.label).is_some()
                    && !self.is_named(epoch.epoch, spec, snapshot)
            };
            if !there.iter().any(left) {
                continue;
            }
            // The record of one of them may still be on its way: this makes it fail.
            self.checkpoint.confirm().await?;
            // Nothing is unnamed because the document was set back: the snapshots say that it was.
            if let Err(error) = self.check_snapshots(&object, epoch.epoch, &there).await {
                return Err(self.judge(error).await?);
            }
            for snapshot in &there {
                if !self.is_named(epoch.epoch, spec, snapshot) && self.may_delete(snapshot) {
                    self.delete_snapshot(&object, snapshot).await?;
                }
            }
        }
        Ok(())
    }

    /// Ids count for one disk alone: after a crash between two disks' snapshots one disk's leftover has
    /// the id of another one's that is named.
    fn is_named(&self, epoch: Epoch, spec: &DiskSpec, snapshot: &SnapshotInfo) -> bool {
        let points = self.checkpoint.document().snapshots.iter();
        let mut disks = points.filter(|point| point.epoch == epoch.0).flat_map(|p| &p.disks);
        disks.any(|disk| disk.index == spec.index.0 && disk.snapshot == snapshot.id)
    }

    /// Not somebody else's, and not a newer applier's: that may be named by now, in a document that we
    /// have not seen.
    fn may_delete(&self, snapshot: &SnapshotInfo) -> bool {
        seed::made_by(&snapshot.label)
            .is_some_and(|by| by.generation <= self.checkpoint.generation())
    }

    async fn delete_snapshot(
        &self,
        object: &ObjectName,
        snapshot: &SnapshotInfo,
    ) -> Result<(), ApplyError> {
        match self.context.store.delete_snapshot(object, &snapshot.id).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.store_failed(source)),
        }
    }

    pub(super) fn store_failed(&self, source: StoreError) -> ApplyError {
        ApplyError::Store { machine: self.context.log.machine().clone(), source }
    }
}
