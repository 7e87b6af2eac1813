//! One machine's applier: run after run, each announced, written, flushed, snapshotted, recorded.
//!
//! Owns: the order of those steps. Does not own: time (the caller steps it) and the manifest.

use std::sync::Arc;
use std::time::Duration;

use super::bodies::Bodies;
use super::checkpoint::{Applied, Checkpoint, RecoveryPoint};
use super::due::{self, Due, Run};
use super::error::ApplyError;
use super::pins::PinsSeen;
use super::plan;
use super::seed::{self, SeedDisks};
use super::witness;
use super::write;
use crate::clock::{Clock, Entropy};
use crate::cloud_log::{Legible, LogStore, UnreadPage};
use crate::format::manifest::{DeltaEntry, Manifest};
use crate::model::{DeltaId, Epoch, Sequence};
use crate::observe::{Metrics, Stage, error_chain};
use crate::places::{Place, reached};
use crate::seal::OpenDelta;
use crate::store::{Class, PageGuard, Store, StoreError};
use crate::vault::{PointsDocument, Policy, SnapshotDisk, Vault};

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
    /// Memory that they are joined in.
    pub bodies: Bodies,
    /// Pins of recoveries, as they were seen so far.
    pub pins: PinsSeen,
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
    pub(super) context: ApplierContext,
    pub(super) checkpoint: Checkpoint,
    /// Not here while a run is under way. Whatever ends a run early leaves nothing here, so the
    /// next one takes the disks anew: requests still on their way carry a lease that has ended.
    seed: Option<SeedDisks>,
    /// Whose disks this applier may have put its number on.
    tried: Option<Epoch>,
    renewed_at: Duration,
    pub(super) unread: Vec<UnreadPage>,
}

impl Applier {
    /// Takes the machine over.
    ///
    /// # Errors
    /// When the points document cannot be changed.
    pub async fn claim(context: ApplierContext) -> Result<Self, ApplyError> {
        let machine = context.log.machine().clone();
        let checkpoint = Checkpoint::claim(context.vault.clone(), &machine).await?;
        let renewed_at = context.clock.monotonic();
        Ok(Self { context, checkpoint, seed: None, tried: None, renewed_at, unread: Vec::new() })
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
    /// `Poison`: what cannot be read is quarantined; earlier points stay. Once the log has a later
    /// epoch, the next step leaves the rest of this one and goes on there.
    pub async fn step(
        &mut self,
        manifest: &Manifest,
        policy: &Policy,
    ) -> Result<Option<Step>, ApplyError> {
        self.renew().await?;
        let stopped = match self.next_step(manifest, policy).await {
            Ok(step) => return Ok(step),
            Err(error) => error,
        };
        let stuck = match &stopped {
            ApplyError::Ahead { epoch, .. }
            | ApplyError::Missing { epoch, .. }
            | ApplyError::SetBack { epoch, .. }
            | ApplyError::Damaged { epoch, .. } => *epoch,
            ApplyError::Gap { .. } => Epoch(self.checkpoint.document().epoch),
            _ => return Err(stopped),
        };
        let Some(next) = witness::way_out(manifest, self.checkpoint.document(), stuck) else {
            return Err(stopped);
        };
        let (machine, text) = (&manifest.machine, error_chain(&stopped));
        tracing::error!(%machine, %text, next = %next.epoch, "the machine was resynced: going on");
        self.checkpoint.leave_epoch(Sequence(next.first.0 - 1)).await?;
        self.next_step(manifest, policy).await
    }

    async fn next_step(
        &mut self,
        manifest: &Manifest,
        policy: &Policy,
    ) -> Result<Option<Step>, ApplyError> {
        let applied = Sequence(self.checkpoint.document().applied);
        match self.run_after(manifest, policy, applied).await {
            Ok(step) => Ok(step),
            Err(error) => {
                let error = match error.is_damage() {
                    true => self.damaged(manifest, applied, error),
                    false => error,
                };
                Err(self.judge(error).await?)
            }
        }
    }

    async fn run_after(
        &mut self,
        manifest: &Manifest,
        policy: &Policy,
        applied: Sequence,
    ) -> Result<Option<Step>, ApplyError> {
        if applied < manifest.truncated {
            let machine = manifest.machine.clone();
            return Err(ApplyError::Gap { machine, applied, truncated: manifest.truncated });
        }
        if applied > manifest.published {
            self.check_published(applied).await?;
            return Ok(None); // somebody else applied what `manifest` does not name yet
        }
        let (before, entries) = self.entries_after(manifest, applied).await?;
        let points = self.checkpoint.document();
        match due::next_run(&entries, points, policy, due::RUN_BYTES_MAX) {
            Some(run) => self.apply(manifest, run, before).await.map(Some),
            None => Ok(None),
        }
    }

    /// What stops the run after `applied`, with the epoch that it is of and the cure.
    fn damaged(&self, manifest: &Manifest, applied: Sequence, error: ApplyError) -> ApplyError {
        let begun = manifest.epochs.iter().rfind(|entry| entry.first <= applied.next());
        let epoch = begun.map_or(Epoch(self.checkpoint.document().epoch), |entry| entry.epoch);
        let machine = manifest.machine.clone();
        ApplyError::Damaged { machine, applied, epoch, source: Box::new(error) }
    }

    async fn apply(
        &mut self,
        manifest: &Manifest,
        run: Run<'_>,
        before: Option<DeltaId>,
    ) -> Result<Step, ApplyError> {
        let (run, deltas) = self.open(run, before).await?;
        let last = run.deltas.last();
        let (through, delta) = (last.map_or(Sequence::ZERO, |e| e.last), last.map(|e| e.id));
        self.check_new_epoch(manifest, run.epoch).await?;
        self.checkpoint.announce(run.epoch, through).await?;
        let seed = self.take_seed_disks(manifest, run.epoch).await?;
        reached(Place::Announced);
        let work = self.write(&seed, &deltas, run.snapshot);
        let (done, renewed_at) = self.under_lease(&seed, work).await;
        let (written, disks) = done?;
        (self.seed, self.renewed_at) = (Some(seed), renewed_at);
        reached(Place::Record);
        let source_bytes = run.deltas.iter().map(|entry| entry.source_bytes).sum();
        self.context.metrics.moved(Stage::Apply, source_bytes, written);
        let Some(due) = run.snapshot else {
            let applied = self.checkpoint.record(through, delta).await?;
            return Ok(Step { applied, point: None });
        };
        let (applied, point) = self.checkpoint.record_point(due, disks, delta).await?;
        Ok(Step { applied, point: Some(point) })
    }

    /// Pages, flush, and the snapshots if the run ends in one. Gives the bytes written.
    async fn write(
        &self,
        seed: &SeedDisks,
        deltas: &[OpenDelta],
        snapshot: Option<Due<'_>>,
    ) -> Result<(u64, Vec<SnapshotDisk>), ApplyError> {
        let ApplierContext { store, streams, bodies, .. } = &self.context;
        let machine = self.context.log.machine();
        let failed = |source| ApplyError::Store { machine: machine.clone(), source };
        let plan = plan::plan(&deltas.iter().map(OpenDelta::index).collect::<Vec<_>>());
        let memory = write::Memory { streams: *streams, bodies };
        let written = write::write(store, machine, seed, deltas, &plan, memory).await?;
        reached(Place::Flush);
        seed.flush(store).await.map_err(failed)?;
        let disks = match snapshot {
            Some(due) => seed.snapshot(store, due.bookmark).await.map_err(failed)?,
            None => Vec::new(),
        };
        Ok((written, disks))
    }

    /// Opens the run's deltas, as many as fit: their indexes are in memory at once.
    async fn open<'a>(
        &self,
        run: Run<'a>,
        before: Option<DeltaId>,
    ) -> Result<(Run<'a>, Vec<OpenDelta>), ApplyError> {
        let mut deltas = Vec::with_capacity(run.deltas.len());
        let mut previous = before;
        let mut index_entries = 0;
        for entry in run.deltas {
            let opened = self.context.log.open_delta(entry, previous).await;
            let machine = self.context.log.machine().clone();
            let opened = opened.map_err(|source| ApplyError::Log { machine, source })?;
            index_entries += opened.index().entries.len();
            if !deltas.is_empty() && index_entries > due::RUN_INDEX_ENTRIES_MAX {
                break;
            }
            deltas.push(opened);
            previous = Some(entry.id);
        }
        Ok((run.shortened(deltas.len()), deltas))
    }

    /// Deltas after `applied`, and the one that ends there, where the manifest still names it: the
    /// first of a run must chain to it.
    async fn entries_after(
        &self,
        manifest: &Manifest,
        applied: Sequence,
    ) -> Result<(Option<DeltaId>, Vec<DeltaEntry>), ApplyError> {
        let named = applied > manifest.truncated;
        let after = if named { Sequence(applied.0 - 1) } else { applied };
        let read = self.legible(manifest, after).await?;
        let hidden = !read.unread.is_empty();
        // A page that ends at `applied` is not missed: it names nothing that is still to be applied.
        if let Some(page) = read.unread.into_iter().find(|page| page.last > applied) {
            return Err(ApplyError::Log { machine: page.machine, source: page.why });
        }
        let mut entries = read.entries;
        let before = entries.first().filter(|entry| entry.last == applied).map(|entry| entry.id);
        if named && !hidden {
            self.check_applied(applied, before)?;
        }
        if before.is_some() {
            entries.remove(0);
        }
        Ok((before, entries))
    }

    pub(super) async fn legible(
        &self,
        manifest: &Manifest,
        after: Sequence,
    ) -> Result<Legible, ApplyError> {
        let machine = manifest.machine.clone();
        let read = self.context.log.legible(manifest, after).await;
        read.map_err(|source| ApplyError::Log { machine, source })
    }

    /// The seed disks that are held, or taken now under a lease that was never used before.
    async fn take_seed_disks(
        &mut self,
        manifest: &Manifest,
        epoch: Epoch,
    ) -> Result<SeedDisks, ApplyError> {
        if let Some(seed) = self.seed.take()
            && seed.epoch == epoch
        {
            return Ok(seed);
        }
        let machine = &manifest.machine;
        let entry = manifest.epochs.iter().find(|entry| entry.epoch == epoch);
        let unknown = || ApplyError::UnknownEpoch { machine: machine.clone(), epoch };
        let specs = &entry.ok_or_else(unknown)?.disks;
        self.check_numbers(manifest, epoch, self.tried != Some(epoch)).await?;
        self.tried = Some(epoch);
        let lease = seed::lease_id(self.context.entropy.as_ref());
        let guard = PageGuard { lease, sequence_number: self.checkpoint.generation() };
        self.renewed_at = self.context.clock.monotonic();
        let taken = SeedDisks::take(&self.context.store, machine, epoch, specs, guard).await;
        let taken = taken.map_err(|source| self.store_failed(source))?;
        self.check_labels(manifest, epoch).await?;
        Ok(taken)
    }

    /// Does `work` while the leases are kept alive beside it. Gives when they last were, too.
    async fn under_lease<T>(
        &self,
        seed: &SeedDisks,
        work: impl Future<Output = T>,
    ) -> (T, Duration) {
        let clock = &self.context.clock;
        let mut work = std::pin::pin!(work);
        let mut renewed_at = self.renewed_at;
        loop {
            let wait = (renewed_at + RENEW_AFTER).saturating_sub(clock.monotonic());
            let renewal = async {
                clock.sleep(wait).await;
                let at = clock.monotonic();
                if let Err(error) = seed.renew(&self.context.store).await {
                    // If the lease is lost the work itself is refused; else the next renewal counts.
                    let machine = self.context.log.machine();
                    tracing::debug!(%machine, error = error_chain(&error), "lease not renewed");
                }
                at
            };
            tokio::select! {
                biased;
                done = &mut work => return (done, renewed_at),
                at = renewal => renewed_at = at,
            }
        }
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

    /// What the end of a run means. A lease that was lost while the points document still names
    /// this applier is taken again; what cannot be believed is quarantined.
    pub(super) async fn judge(&mut self, error: ApplyError) -> Result<ApplyError, ApplyError> {
        match error {
            ApplyError::Store { machine, source: source @ StoreError::Fenced { .. } } => {
                self.checkpoint.reload().await?;
                Ok(ApplyError::LeaseLost { machine, source })
            }
            error => {
                if error.class() == Class::Poison {
                    self.checkpoint.quarantine(error_chain(&error)).await?;
                }
                Ok(error)
            }
        }
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
