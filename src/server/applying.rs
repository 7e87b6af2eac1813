//! Applies, retains and tidies every machine of the site, one task a machine.
//!
//! Owns: when each is done. Does not own: how (apply, upload). Runs in the process server, and
//! alone as `holdfast apply`: it meets uploading only in the store.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::standby::Standby;
use crate::apply::{Applier, ApplierContext, ApplyError};
use crate::clock::{Clock, Entropy};
use crate::cloud_log::{ENTRIES_MAX, LogStore};
use crate::format::manifest::Manifest;
use crate::model::{Epoch, MachineId, Sequence, Watermarks};
use crate::observe::{Meter, Metrics, Stage, error_chain};
use crate::seal::{KeyEncryptionKey, KeyRing};
use crate::settings::Tuning;
use crate::store::Class;
use crate::upload::{Cut, Removal, Uplink, UploadContext, remove_orphans, truncate};
use crate::vault::{PointsDocument, Policy, Vault};

/// How often the list of machines is read.
const ROLL_INTERVAL: Duration = Duration::from_secs(2);
/// How often retention and tidying run for a machine.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);
/// Machines that are applied at the same moment: bounds memory to this × a run's bytes.
const APPLYING_MAX: usize = 2;

/// What applying works with.
pub(super) struct Applying {
    pub(super) vault: Vault,
    pub(super) kek: Arc<KeyEncryptionKey>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tuning: Tuning,
    /// Shared with uploading where both run.
    pub(super) uplink: Arc<Uplink>,
    pub(super) drain: watch::Receiver<bool>,
}

impl Applying {
    /// Runs until the server drains.
    pub(super) async fn run(self: Arc<Self>) {
        let permits = Arc::new(Semaphore::new(APPLYING_MAX));
        let mut known = HashSet::new();
        let mut tasks = JoinSet::new();
        let mut drain = self.drain.clone();
        while !*drain.borrow_and_update() {
            match self.vault.machines().await {
                Ok(machines) => {
                    for machine in machines {
                        if known.insert(machine.clone()) {
                            let this = Arc::clone(&self);
                            tasks.spawn(this.machine(machine, Arc::clone(&permits)));
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(error = error_chain(&error), "the machines cannot be listed");
                }
            }
            tokio::select! {
                _ = drain.changed() => {}
                () = self.clock.sleep(ROLL_INTERVAL) => {}
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Applies one machine until the server drains.
    async fn machine(self: Arc<Self>, machine: MachineId, permits: Arc<Semaphore>) {
        let mut work = Work {
            applying: &self,
            machine,
            context: None,
            applier: None,
            standby: None,
            tidied_at: None,
            said: None,
        };
        let mut drain = self.drain.clone();
        let mut settings = self.tuning.subscribe();
        while !*drain.borrow_and_update() {
            settings.mark_unchanged();
            let permit = permits.acquire().await;
            let turn = Meter::new(&self.metrics, Stage::Apply).run(work.turn()).await;
            drop(permit);
            let wait = work.after(turn).await;
            tokio::select! {
                _ = drain.changed() => {}
                Ok(()) = settings.changed() => {} // a shorter interval begins now
                () = self.clock.sleep(wait) => {}
            }
        }
        if let Some(applier) = work.applier
            && let Err(error) = applier.release().await
        {
            tracing::debug!(error = error_chain(&error), "leases run out by themselves");
        }
    }
}

/// One machine's state between turns.
struct Work<'a> {
    applying: &'a Applying,
    machine: MachineId,
    context: Option<UploadContext>,
    applier: Option<Applier>,
    standby: Option<Standby>,
    tidied_at: Option<Duration>,
    said: Option<String>,
}

/// Why a turn did not end well.
#[derive(Debug, thiserror::Error)]
enum TurnError {
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("retention of machine {machine}")]
    Upload {
        machine: MachineId,
        #[source]
        source: crate::upload::UploadError,
    },
    #[error("machine {machine}")]
    Vault {
        machine: MachineId,
        #[source]
        source: crate::vault::VaultError,
    },
    #[error("keys of machine {machine}")]
    Keys {
        machine: MachineId,
        #[source]
        source: crate::seal::SealError,
    },
    #[error("cloud log of machine {machine}")]
    Log {
        machine: MachineId,
        #[source]
        source: crate::cloud_log::CloudLogError,
    },
}

impl TurnError {
    fn class(&self) -> Class {
        match self {
            Self::Apply(source) => source.class(),
            // The manifest changed hands since it was read: that concerns uploading, not applying.
            Self::Upload { source, .. } if source.class() == Class::Fence => Class::Retry,
            Self::Upload { source, .. } => source.class(),
            Self::Vault { source, .. } => source.class(),
            Self::Keys { source, .. } => source.class(),
            Self::Log { source, .. } => source.class(),
        }
    }
}

/// Whether to tidy although applying ended so. What passes by itself must not keep retention from
/// its work: a full store has room again only when something was given up.
fn tidies_after(applied: &Result<(), ApplyError>) -> bool {
    applied.as_ref().err().is_none_or(|error| error.class() == Class::Retry)
}

impl Work<'_> {
    /// Applies everything that is published, then retains and tidies if it is time.
    async fn turn(&mut self) -> Result<(), TurnError> {
        let machine = self.machine.clone();
        let vault = |source| TurnError::Vault { machine: machine.clone(), source };
        let Some(document) = self.applying.vault.machine(&machine).await.map_err(vault)? else {
            return Ok(());
        };
        if self.context.is_none() {
            let keys = |source| TurnError::Keys { machine: machine.clone(), source };
            self.context = Some(self.open(&document).map_err(keys)?);
        }
        let context = self.context.clone().expect("made in the line above");
        let log = |source| TurnError::Log { machine: machine.clone(), source };
        let Some((manifest, _)) = context.log.manifest().await.map_err(log)? else {
            return Ok(()); // nothing was published yet
        };
        if !self.applying.tuning.now().apply.enabled || !self.may_apply(&manifest).await? {
            return Ok(());
        }
        let policy = &document.policy;
        let mut applier = match self.applier.take() {
            Some(applier) => applier,
            None => Applier::claim(self.applier_context(&context)).await?,
        };
        let applied = self.apply_all(&mut applier, &manifest, policy).await;
        let tidied = if tidies_after(&applied) {
            self.tidy(&mut applier, &context, &manifest, policy).await
        } else {
            Ok(())
        };
        self.applier = Some(applier);
        applied?;
        tidied
    }

    /// Retention and orphans, if it is time. What a drain cuts short is left for the next start.
    async fn tidy(
        &mut self,
        applier: &mut Applier,
        context: &UploadContext,
        manifest: &Manifest,
        policy: &Policy,
    ) -> Result<(), TurnError> {
        let now = self.applying.clock.monotonic();
        if self.tidied_at.is_some_and(|at| now.saturating_sub(at) < TIDY_INTERVAL) {
            return Ok(());
        }
        self.tidied_at = Some(now);
        let decision = applier.retain(manifest, policy).await?;
        let machine = self.machine.clone();
        let upload = |source| TurnError::Upload { machine, source };
        let mut drain = self.applying.drain.clone();
        tokio::select! {
            cut = self.cut(context, manifest, decision) => cut.map_err(upload),
            _ = drain.wait_for(|drain| *drain) => Ok(()),
        }
    }

    async fn apply_all(
        &self,
        applier: &mut Applier,
        manifest: &Manifest,
        policy: &Policy,
    ) -> Result<(), ApplyError> {
        let metrics = &self.applying.metrics;
        let drain = &self.applying.drain;
        loop {
            let start = self.applying.clock.monotonic();
            applier.set_streams(self.applying.tuning.now().apply.streams);
            let step = applier.step(manifest, policy).await?;
            self.show(applier.points());
            let Some(step) = step else { return Ok(()) };
            let spent = self.applying.clock.monotonic().saturating_sub(start);
            metrics.latency(Stage::Apply, spent);
            if let Some(point) = &step.point {
                let point = point.point();
                tracing::info!(machine = %self.machine, sequence = point.sequence,
                    time = %point.time, name = %point.name, "recovery point kept as snapshots");
            }
            if *drain.borrow() {
                return Ok(());
            }
        }
    }

    async fn cut(
        &self,
        context: &UploadContext,
        manifest: &Manifest,
        decision: crate::apply::retention::Decision,
    ) -> Result<(), crate::upload::UploadError> {
        let generation = manifest.generation;
        let oldest = manifest.epochs.first().map_or(Epoch(0), |entry| entry.epoch);
        if decision.truncate_through > manifest.truncated || decision.epochs_from > oldest {
            let (through, epochs_from) = (decision.truncate_through, decision.epochs_from);
            let cut = Cut { generation, through, epochs_from };
            let cut = truncate(context, cut).await?;
            tracing::info!(machine = %self.machine, through = %cut.through,
                deltas = cut.removed.len(), "journal window: older deltas removed");
        }
        let grace = self.applying.tuning.now().upload.orphan_grace;
        let removed = remove_orphans(context, generation, grace, Removal::Remove).await?;
        if !removed.is_empty() {
            tracing::info!(machine = %self.machine, objects = removed.len(), "orphans removed");
        }
        Ok(())
    }

    /// Whether this applier owns the machine or may claim it; otherwise only the watermarks of
    /// whoever does are shown.
    async fn may_apply(&mut self, manifest: &Manifest) -> Result<bool, TurnError> {
        let Some(standby) = &mut self.standby else { return Ok(true) };
        let read = self.applying.vault.points(&self.machine).await;
        let machine = self.machine.clone();
        let read = read.map_err(|source| TurnError::Vault { machine, source })?;
        let points = read.map(|(document, _)| document);
        let applied = points.as_ref().map_or(0, |points| points.applied);
        let now = self.applying.clock.monotonic();
        let over = standby.over(applied, manifest.published.0, now);
        if let Some(points) = points {
            self.show(&points);
        }
        if over {
            self.standby = None;
        }
        Ok(over)
    }

    fn open(
        &self,
        document: &crate::vault::MachineDocument,
    ) -> Result<UploadContext, crate::seal::SealError> {
        let applying = self.applying;
        let keys = KeyRing::unwrap(&applying.kek, document)?;
        let store = Arc::clone(applying.vault.store());
        Ok(UploadContext {
            log: Arc::new(LogStore::new(store, self.machine.clone(), keys)),
            clock: Arc::clone(&applying.clock),
            entropy: Arc::clone(&applying.entropy),
            metrics: Arc::clone(&applying.metrics),
            uplink: Arc::clone(&applying.uplink),
            block_bytes: Arc::new(applying.tuning.now().upload.block_bytes.into()),
            entries_max: ENTRIES_MAX,
        })
    }

    fn applier_context(&self, context: &UploadContext) -> ApplierContext {
        let applying = self.applying;
        ApplierContext {
            store: Arc::clone(applying.vault.store()),
            vault: applying.vault.clone(),
            log: Arc::clone(&context.log),
            clock: Arc::clone(&applying.clock),
            entropy: Arc::clone(&applying.entropy),
            metrics: Arc::clone(&applying.metrics),
            streams: applying.tuning.now().apply.streams,
        }
    }

    fn show(&self, points: &PointsDocument) {
        let recoverable = points.snapshots.last().map_or(0, |point| point.sequence);
        let applied = Sequence(points.applied);
        let metrics = self.applying.metrics.machine(&self.machine);
        let recoverable = Sequence(recoverable);
        metrics.raise(Watermarks { applied, recoverable, ..Watermarks::default() });
        let newest = points.snapshots.last().map_or(0, |point| point.time.0);
        metrics.recoverable_time.fetch_max(newest, Ordering::AcqRel);
    }

    /// What follows from how a turn ended: how long to wait before the next.
    async fn after(&mut self, turn: Result<(), TurnError>) -> Duration {
        let interval = self.applying.tuning.now().apply.interval;
        let metrics = self.applying.metrics.machine(&self.machine);
        let error = match turn {
            Ok(()) => {
                if self.said.take().is_some() {
                    metrics.set_apply_trouble(None);
                }
                return interval;
            }
            Err(error) => error,
        };
        let text = error_chain(&error);
        let machine = &self.machine;
        let repeated = self.said.as_ref() == Some(&text);
        let wait = match error.class() {
            Class::Fence => {
                tracing::warn!(%machine, %text, "another applier has the machine: standing by");
                let applied = self.applier.take().map_or(0, |applier| applier.points().applied);
                self.standby = Some(Standby::new(applied, self.applying.clock.monotonic()));
                return interval;
            }
            Class::Retry => interval.max(Duration::from_secs(1)),
            Class::Reject | Class::Poison | Class::Bug => interval.max(Duration::from_secs(10)),
        };
        if !repeated {
            match error.class() {
                Class::Retry => tracing::warn!(%machine, %text, "applying waits"),
                _ => tracing::error!(%machine, %text, "applying stopped before this"),
            }
        }
        metrics.set_apply_trouble(Some(text.clone()));
        self.said = Some(text);
        wait
    }
}
