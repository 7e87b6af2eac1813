//! One machine's applier: run after run, each announced, written, flushed, snapshotted, recorded.
//!
//! Owns: the order of those steps. Does not own: time (the caller steps it) and the manifest.

use std::sync::Arc;
use std::time::Duration;

use super::checkpoint::{Applied, Checkpoint, RecoveryPoint};
use super::due::{self, Run};
use super::error::ApplyError;
use super::plan;
use super::retention::{self, Decision};
use super::seed::{self, SeedDisks};
use super::write;
use crate::clock::{Clock, Entropy};
use crate::cloud_log::LogStore;
use crate::format::manifest::{EpochEntry, Manifest};
use crate::format::names;
use crate::model::{Epoch, Sequence};
use crate::observe::{Metrics, Stage, error_chain};
use crate::seal::OpenDelta;
use crate::store::{Class, PageGuard, SnapshotId, Store, StoreError};
use crate::vault::{PinDocument, PointsDocument, Policy, Vault};

/// Leases live 60 s; they are renewed when a third of that has passed.
const RENEW_AFTER: Duration = Duration::from_secs(20);

/// What an applier works with.
pub struct ApplierContext {
    /// Where seed disks and log are.
    pub store: Arc<dyn Store>,
    /// Points document, pins.
    pub vault: Vault,
    /// The machine's cloud log.
    pub log: Arc<LogStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Lease ids.
    pub entropy: Arc<dyn Entropy>,
    /// Stage figures.
    pub metrics: Arc<Metrics>,
    /// Page writes in flight.
    pub streams: usize,
}

/// What one step did.
#[derive(Debug)]
pub struct Step {
    /// How far the seed disks are now.
    pub applied: Applied,
    /// The point that was made, if the run ended in one.
    pub point: Option<RecoveryPoint>,
}

/// The applier of one machine, holding its seed disks.
pub struct Applier {
    context: ApplierContext,
    checkpoint: Checkpoint,
    guard: PageGuard,
    seed: Option<SeedDisks>,
    renewed_at: Duration,
}

impl Applier {
    /// Takes the machine over.
    ///
    /// # Errors
    /// When the points document cannot be changed.
    pub async fn claim(context: ApplierContext) -> Result<Self, ApplyError> {
        let machine = context.log.machine().clone();
        let checkpoint = Checkpoint::claim(context.vault.clone(), &machine).await?;
        let lease = seed::lease_id(context.entropy.as_ref());
        let guard = PageGuard { lease, sequence_number: checkpoint.generation() };
        let renewed_at = context.clock.monotonic();
        Ok(Self { context, checkpoint, guard, seed: None, renewed_at })
    }

    /// Changes how many page writes are in flight, from the next step on.
    pub fn set_streams(&mut self, streams: usize) {
        self.context.streams = streams;
    }

    /// The points document as last written.
    #[must_use]
    pub fn points(&self) -> &PointsDocument {
        self.checkpoint.document()
    }

    /// Applies the next run. `None`: everything that `manifest` names is applied.
    ///
    /// # Errors
    /// `Retry`: step again later. `Fence`: another applier owns the disks; drop this one.
    /// `Poison`: what cannot be read is quarantined; earlier points stay.
    pub async fn step(
        &mut self,
        manifest: &Manifest,
        policy: &Policy,
    ) -> Result<Option<Step>, ApplyError> {
        self.renew().await?;
        let applied = Sequence(self.checkpoint.document().applied);
        if applied < manifest.truncated {
            let machine = manifest.machine.clone();
            return Err(ApplyError::Gap { machine, applied, truncated: manifest.truncated });
        }
        let entries = self.entries(manifest, applied).await?;
        let points = self.checkpoint.document();
        let Some(run) = due::next_run(&entries, points, policy, due::RUN_BYTES_MAX) else {
            return Ok(None);
        };
        match self.apply(manifest, &run).await {
            Ok(step) => Ok(Some(step)),
            Err(error) => {
                if error.class() == Class::Poison {
                    self.checkpoint.quarantine(error_chain(&error)).await?;
                }
                Err(error)
            }
        }
    }

    async fn apply(&mut self, manifest: &Manifest, run: &Run<'_>) -> Result<Step, ApplyError> {
        let machine = manifest.machine.clone();
        let through = run.deltas.last().map_or(Sequence::ZERO, |entry| entry.last);
        let deltas = self.open(run).await?;
        self.checkpoint.announce(run.epoch, through).await?;
        self.take_seed_disks(manifest, run.epoch).await?;
        let seed = self.seed.as_ref().expect("taken in the line above");
        let plan = plan::plan(&deltas.iter().map(OpenDelta::index).collect::<Vec<_>>());
        let store = &self.context.store;
        let streams = self.context.streams;
        let written = write::write(store, &machine, seed, &deltas, &plan, streams).await?;
        let failed = |source| ApplyError::Store { machine: machine.clone(), source };
        seed.flush(store).await.map_err(failed)?;
        let source_bytes = run.deltas.iter().map(|entry| entry.source_bytes).sum();
        self.context.metrics.moved(Stage::Apply, source_bytes, written);
        let Some(bookmark) = run.snapshot else {
            let applied = self.checkpoint.record(through).await?;
            return Ok(Step { applied, point: None });
        };
        let label = bookmark.bookmark.id.to_string();
        let disks = seed.snapshot(store, &label).await.map_err(failed)?;
        let (applied, point) = self.checkpoint.record_point(bookmark, disks).await?;
        Ok(Step { applied, point: Some(point) })
    }

    async fn open(&self, run: &Run<'_>) -> Result<Vec<OpenDelta>, ApplyError> {
        let mut deltas = Vec::with_capacity(run.deltas.len());
        let mut previous = None;
        for entry in run.deltas {
            let opened = self.context.log.open_delta(entry, previous).await;
            let machine = self.context.log.machine().clone();
            deltas.push(opened.map_err(|source| ApplyError::Log { machine, source })?);
            previous = Some(entry.id);
        }
        Ok(deltas)
    }

    async fn entries(
        &self,
        manifest: &Manifest,
        after: Sequence,
    ) -> Result<Vec<crate::format::manifest::DeltaEntry>, ApplyError> {
        let machine = manifest.machine.clone();
        let read = self.context.log.entries(manifest, after).await;
        read.map_err(|source| ApplyError::Log { machine, source })
    }

    async fn take_seed_disks(
        &mut self,
        manifest: &Manifest,
        epoch: Epoch,
    ) -> Result<(), ApplyError> {
        if self.seed.as_ref().is_some_and(|seed| seed.epoch == epoch) {
            return Ok(());
        }
        let machine = &manifest.machine;
        let entry = manifest.epochs.iter().find(|entry| entry.epoch == epoch);
        let unknown = || ApplyError::UnknownEpoch { machine: machine.clone(), epoch };
        let specs = &entry.ok_or_else(unknown)?.disks;
        let store = &self.context.store;
        let taken = SeedDisks::take(store, machine, epoch, specs, self.guard).await;
        let failed = |source| ApplyError::Store { machine: machine.clone(), source };
        self.seed = Some(taken.map_err(failed)?);
        self.renewed_at = self.context.clock.monotonic();
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), ApplyError> {
        let now = self.context.clock.monotonic();
        if let Some(seed) = &self.seed
            && now.saturating_sub(self.renewed_at) >= RENEW_AFTER
        {
            let machine = self.context.log.machine().clone();
            match seed.renew(&self.context.store).await {
                Ok(()) => self.renewed_at = now,
                // The lease ran out or was broken; whether we may take it again is decided by
                // the points document, whose compare-and-swap fences us if we may not.
                Err(StoreError::Fenced { .. }) => {
                    self.checkpoint.reload().await?;
                    self.seed = None;
                }
                Err(source) => return Err(ApplyError::Store { machine, source }),
            }
        }
        Ok(())
    }

    /// Drops the snapshots that the policy no longer keeps and says how much of the log may go.
    ///
    /// # Errors
    /// As [`Applier::step`]; nothing that a kept point needs was deleted.
    pub async fn retain(
        &mut self,
        manifest: &Manifest,
        policy: &Policy,
    ) -> Result<Decision, ApplyError> {
        self.checkpoint.reload().await?;
        let entries = self.entries(manifest, manifest.truncated).await?;
        let pins = self.pins().await?;
        let decision = retention::decide(self.checkpoint.document(), &entries, &pins, policy);
        if !decision.drop_snapshots.is_empty() {
            self.checkpoint.forget(&decision.drop_snapshots).await?;
        }
        for epoch in &manifest.epochs {
            if epoch.epoch < decision.epochs_from {
                self.delete_seed_disks(manifest, epoch).await?;
            } else {
                self.delete_unnamed_snapshots(manifest, epoch).await?;
            }
        }
        Ok(decision)
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
                Err(source) => {
                    return Err(ApplyError::Store { machine: manifest.machine.clone(), source });
                }
            }
        }
        Ok(())
    }

    /// Pins of recoveries that still run.
    async fn pins(&self) -> Result<Vec<PinDocument>, ApplyError> {
        let machine = self.context.log.machine();
        let now = self.context.clock.wall();
        match self.context.vault.pins(machine).await {
            Ok(pins) => {
                Ok(pins.into_iter().map(|(_, pin)| pin).filter(|pin| pin.expires > now).collect())
            }
            Err(source) => Err(ApplyError::Points { machine: machine.clone(), source }),
        }
    }

    /// Snapshots that no point names: given up by retention, or left by a crash between making
    /// and recording (then the next run makes its own again).
    async fn delete_unnamed_snapshots(
        &self,
        manifest: &Manifest,
        epoch: &EpochEntry,
    ) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Store { machine: manifest.machine.clone(), source };
        let store = &self.context.store;
        for spec in &epoch.disks {
            let object = names::seed_disk(&manifest.machine, &spec.name, epoch.epoch);
            let there = match store.list_snapshots(&object).await {
                Ok(there) => there,
                Err(StoreError::NotFound { .. }) => continue,
                Err(source) => return Err(failed(source)),
            };
            let points = self.checkpoint.document().snapshots.iter();
            let named: Vec<&SnapshotId> = points
                .filter(|point| point.epoch == epoch.epoch.0)
                .flat_map(|point| &point.disks)
                .filter(|disk| disk.name == spec.name)
                .map(|disk| &disk.snapshot)
                .collect();
            for snapshot in there.iter().filter(|snapshot| !named.contains(&&snapshot.id)) {
                store.delete_snapshot(&object, &snapshot.id).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Gives the seed disks back in an orderly way.
    ///
    /// # Errors
    /// When the store does not answer; the leases then run out by themselves.
    pub async fn release(self) -> Result<(), ApplyError> {
        let machine = self.context.log.machine().clone();
        match &self.seed {
            Some(seed) => seed
                .release(&self.context.store)
                .await
                .map_err(|source| ApplyError::Store { machine, source }),
            None => Ok(()),
        }
    }
}
