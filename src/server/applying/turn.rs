//! One machine's turn: look whether something was published, apply it, retain and tidy if it is
//! time.
//!
//! Owns: what is kept of a machine between its turns. That is little: keys, points and seed disks
//! are let go when nothing was applied for five minutes. Does not own: when the next turn is
//! ([`super::rhythm`], [`super::agenda`]) and how things are done (apply, upload).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Applying;
use super::error::TurnError;
use super::rhythm::{Rhythm, TIDY_IDLE_INTERVAL};
use super::standby::Standby;
use crate::apply::{Applier, ApplierContext, ApplyError, PinsSeen};
use crate::clock::fraction;
use crate::cloud_log::{ENTRIES_MAX, LogStore};
use crate::format::manifest::Manifest;
use crate::model::{Epoch, Generation, MachineId, Sequence, Watermarks};
use crate::observe::{Stage, error_chain};
use crate::seal::KeyRing;
use crate::store::Class;
use crate::upload::{Cut, Removal, UploadContext, UploadError, remove_orphans, truncate};
use crate::vault::{MachineDocument, PointsDocument, Policy};

/// A machine gives way to those that wait after this long.
const TURN_MAX: Duration = Duration::from_secs(5);
/// How old the policy may be that is followed.
const POLICY_AGE_MAX: Duration = Duration::from_secs(30);
/// Pause between looks at another applier that should be moving.
const STANDBY_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause between looks at machines that other process servers publish.
const FOREIGN_INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// One machine between turns.
pub(super) struct Work {
    applying: Arc<Applying>,
    machine: MachineId,
    rhythm: Rhythm,
    open: Option<Box<Open>>,
    /// Outlives appliers: a pin ends when it was long seen unchanged.
    pins: PinsSeen,
    /// Under which ownership it was seen last, and whose it was to apply; another one decides anew
    /// who applies.
    seen: Option<(Generation, bool)>,
    standby: Option<Standby>,
    /// Everything through here is on the seed disks, as far as we know.
    applied: Option<u64>,
    said: Option<String>,
    /// What retention could not read when it last looked. It stops nothing, and a human should know.
    unread: Option<String>,
    /// The last turn ended because others wait, not because all was done.
    more: bool,
}

/// What is needed to apply, while something happens.
struct Open {
    context: UploadContext,
    policy: Policy,
    policy_read_at: Duration,
    applier: Option<Applier>,
}

/// How long a machine waits after a turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    /// Even if there is news.
    pub(super) not_before: Duration,
    /// Without news.
    pub(super) next: Duration,
}

/// Whether to tidy although applying ended so. What passes by itself must not keep retention from
/// its work: a full store has room again only when something was given up.
fn tidies_after(applied: &Result<(), ApplyError>) -> bool {
    applied.as_ref().err().is_none_or(|error| error.class() == Class::Retry)
}

impl Work {
    pub(super) fn new(applying: &Arc<Applying>, machine: MachineId) -> Self {
        let spread = fraction(applying.entropy.as_ref());
        let now = applying.clock.monotonic();
        Self {
            applying: Arc::clone(applying),
            machine,
            rhythm: Rhythm::new(now, spread),
            open: None,
            pins: PinsSeen::default(),
            seen: None,
            standby: None,
            applied: None,
            said: None,
            unread: None,
            more: false,
        }
    }

    /// Whatever is due now; then how long to wait.
    pub(super) async fn turn(&mut self, woken: bool) -> Pause {
        let now = self.applying.clock.monotonic();
        let settings = self.applying.tuning.now();
        let told = self.applying.publisher.is_some();
        let longest = if told { FOREIGN_INTERVAL_MAX } else { settings.apply.idle_interval_max };
        self.rhythm.pace(settings.apply.interval, longest);
        let turn = if woken || self.rhythm.looks(now) || self.rhythm.tidies(now) {
            self.work(now).await
        } else {
            Ok(())
        };
        let wait = self.after(turn);
        let now = self.applying.clock.monotonic();
        if self.rhythm.rests(now) {
            self.open = None; // the leases run out by themselves, and fence nobody then
            self.rhythm.rested();
        }
        Pause { not_before: now + wait, next: self.rhythm.next() }
    }

    /// Gives the seed disks back.
    pub(super) async fn release(self) {
        if let Some(applier) = self.open.and_then(|open| open.applier)
            && let Err(error) = applier.release().await
        {
            tracing::debug!(error = error_chain(&error), "leases run out by themselves");
        }
    }

    async fn work(&mut self, now: Duration) -> Result<(), TurnError> {
        let Some(mut open) = self.opened(now).await? else {
            self.note_part(false, false);
            self.unread = None;
            self.rhythm.untold(now); // not enrolled any more
            self.rhythm.tidied(now);
            return Ok(());
        };
        let worked = self.work_on(&mut open, now).await;
        self.open = Some(open);
        worked
    }

    async fn work_on(&mut self, open: &mut Open, now: Duration) -> Result<(), TurnError> {
        let log = |source| TurnError::Log { machine: self.machine.clone(), source };
        let Some((manifest, _)) = open.context.log.manifest().await.map_err(log)? else {
            self.untold(None, now);
            self.rhythm.tidied(now);
            self.note_part(false, self.applying.publisher.is_none());
            return Ok(()); // nothing was published yet
        };
        if self.seen.is_none() && self.is_recent(&manifest) {
            self.rhythm.inherited(now);
        }
        self.note_owner(&manifest, now);
        let tidies = self.rhythm.tidies(now);
        let may_apply = self.may_apply(&manifest, now).await?;
        self.note_part(self.applying.publisher.as_ref() == Some(&manifest.owner), may_apply);
        if !may_apply {
            self.rhythm.tidied(now);
            return Ok(());
        }
        if tidies || !self.has_applied(&manifest) {
            self.apply_and_tidy(open, &manifest, tidies, now).await?;
        }
        if self.has_applied(&manifest) {
            self.untold(Some(&manifest), now);
        } else {
            self.rhythm.unfinished(now);
        }
        Ok(())
    }

    async fn apply_and_tidy(
        &mut self,
        open: &mut Open,
        manifest: &Manifest,
        tidies: bool,
        now: Duration,
    ) -> Result<(), TurnError> {
        if open.applier.is_none() {
            // To find out that all is applied costs one read, to claim the seed disks several.
            self.read_applied().await?;
            if self.has_applied(manifest) && !tidies {
                return Ok(());
            }
            open.applier = Some(Applier::claim(self.applier_context(&open.context)).await?);
        }
        let applier = open.applier.as_mut().expect("made in the lines above");
        let applied = self.apply_all(applier, manifest, &open.policy).await;
        let tidied = if tidies && tidies_after(&applied) {
            self.rhythm.tidied(now);
            self.tidy(applier, &open.context, manifest, &open.policy).await
        } else {
            Ok(())
        };
        applied?;
        tidied
    }

    /// Retention and orphans. What a drain cuts short is left for the next start.
    async fn tidy(
        &mut self,
        applier: &mut Applier,
        context: &UploadContext,
        manifest: &Manifest,
        policy: &Policy,
    ) -> Result<(), TurnError> {
        let decision = applier.retain(manifest, policy).await?;
        self.unread = applier.unread().first().map(|page| error_chain(page));
        let upload = |source| TurnError::Upload { machine: self.machine.clone(), source };
        let mut drain = self.applying.drain.clone();
        tokio::select! {
            cut = self.cut(context, manifest, decision) => cut.map_err(upload),
            _ = drain.wait_for(|drain| *drain) => Ok(()),
        }
    }

    /// Whether it was written to after the tidying that every idle machine gets.
    fn is_recent(&self, manifest: &Manifest) -> bool {
        let idle = i64::try_from(TIDY_IDLE_INTERVAL.as_secs()).unwrap_or(i64::MAX);
        let now = self.applying.clock.wall();
        manifest.entries.last().is_some_and(|newest| newest.created.plus_seconds(idle) >= now)
    }

    /// Not when more is applied than the manifest names: then the applier looks what that means.
    fn has_applied(&self, manifest: &Manifest) -> bool {
        self.applied == Some(manifest.published.0)
    }

    /// The machine's keys and policy; `None` when it is not enrolled.
    async fn opened(&mut self, now: Duration) -> Result<Option<Box<Open>>, TurnError> {
        if self.open.as_ref().is_some_and(|open| now < open.policy_read_at + POLICY_AGE_MAX) {
            return Ok(self.open.take());
        }
        let vault = |source| TurnError::Vault { machine: self.machine.clone(), source };
        let Some(document) = self.applying.vault.machine(&self.machine).await.map_err(vault)?
        else {
            return Ok(None);
        };
        if let Some(mut open) = self.open.take() {
            (open.policy, open.policy_read_at) = (document.policy, now);
            return Ok(Some(open));
        }
        let keys = |source| TurnError::Keys { machine: self.machine.clone(), source };
        let context = self.context(&document).map_err(keys)?;
        let (policy, policy_read_at) = (document.policy, now);
        Ok(Some(Box::new(Open { context, policy, policy_read_at, applier: None })))
    }

    /// A change of ownership decides who applies: the process server that publishes, or who stands in
    /// for it while it is gone. Another one stands by, and `holdfast apply` asks nobody.
    fn note_owner(&mut self, manifest: &Manifest, now: Duration) {
        let peers = self.applying.peers.as_ref();
        let steward = peers.map(|peers| peers.steward(&self.machine, &manifest.owner));
        let steward = steward.as_ref().unwrap_or(&manifest.owner);
        let ours = self.applying.publisher.as_ref().is_none_or(|publisher| publisher == steward);
        let seen = Some((manifest.generation, ours));
        let alone = self.applying.publisher.is_none();
        if std::mem::replace(&mut self.seen, seen) == seen {
            return;
        }
        self.applied = None; // what is shown of it may have been another ownership's: it is read again
        if !alone {
            self.standby = (!ours).then(|| Standby::new(0, now));
        }
        if !ours {
            self.unread = None; // whoever applies it says so
        }
    }

    /// Whose the machine is, and whether it is applied here: that decides what is shown of it.
    fn note_part(&self, owned: bool, applies: bool) {
        let metrics = self.applying.metrics.machine(&self.machine);
        metrics.owned.store(owned, Ordering::Relaxed);
        metrics.applies.store(applies, Ordering::Relaxed);
    }

    /// Nothing is left to do: who says when there is more?
    fn untold(&mut self, manifest: Option<&Manifest>, now: Duration) {
        let publisher = self.applying.publisher.as_ref();
        match manifest {
            Some(manifest) if publisher != Some(&manifest.owner) => self.rhythm.untold(now),
            None if publisher.is_none() => self.rhythm.untold(now),
            Some(_) | None => self.rhythm.told(),
        }
    }

    /// Whether this applier owns the machine or may claim it; otherwise only the watermarks of
    /// whoever does are shown.
    async fn may_apply(&mut self, manifest: &Manifest, now: Duration) -> Result<bool, TurnError> {
        if self.standby.is_none() {
            return Ok(true);
        }
        self.read_applied().await?;
        let (applied, published) = (self.applied.unwrap_or(0), manifest.published.0);
        let over = self.standby.as_mut().is_none_or(|s| s.over(applied, published, now));
        if over {
            self.standby = None;
        } else if applied < published {
            self.rhythm.again_after(now, STANDBY_PAUSE);
        } else {
            self.untold(Some(manifest), now);
        }
        Ok(over)
    }

    async fn read_applied(&mut self) -> Result<(), TurnError> {
        let read = self.applying.vault.points(&self.machine).await;
        let read =
            read.map_err(|source| TurnError::Vault { machine: self.machine.clone(), source })?;
        self.applied = Some(read.as_ref().map_or(0, |(points, _)| points.applied));
        if let Some((points, _)) = read {
            self.show(&points);
        }
        Ok(())
    }

    async fn apply_all(
        &mut self,
        applier: &mut Applier,
        manifest: &Manifest,
        policy: &Policy,
    ) -> Result<(), ApplyError> {
        let applying = Arc::clone(&self.applying);
        let clock = &applying.clock;
        let begin = clock.monotonic();
        loop {
            let start = clock.monotonic();
            applier.set_streams(applying.tuning.now().apply.streams);
            let step = applier.step(manifest, policy).await?;
            self.applied = Some(applier.points().applied);
            self.show(applier.points());
            let Some(step) = step else { return Ok(()) };
            let now = clock.monotonic();
            self.rhythm.applied(now);
            applying.metrics.latency(Stage::Apply, now.saturating_sub(start));
            if let Some(point) = &step.point {
                let point = point.point();
                tracing::info!(machine = %self.machine, sequence = point.sequence,
                    time = %point.time, name = %point.name, "recovery point kept as snapshots");
            }
            self.more = now.saturating_sub(begin) >= TURN_MAX;
            if self.more || *applying.drain.borrow() {
                return Ok(());
            }
        }
    }

    async fn cut(
        &self,
        context: &UploadContext,
        manifest: &Manifest,
        decision: crate::apply::retention::Decision,
    ) -> Result<(), UploadError> {
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

    fn context(&self, document: &MachineDocument) -> Result<UploadContext, crate::seal::SealError> {
        let applying = &self.applying;
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
        let applying = &self.applying;
        ApplierContext {
            store: Arc::clone(applying.vault.store()),
            vault: applying.vault.clone(),
            log: Arc::clone(&context.log),
            clock: Arc::clone(&applying.clock),
            entropy: Arc::clone(&applying.entropy),
            metrics: Arc::clone(&applying.metrics),
            streams: applying.tuning.now().apply.streams,
            bodies: applying.bodies.clone(),
            pins: self.pins.clone(),
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
        metrics.snapshot_time.store(newest, Ordering::Relaxed);
        metrics.set_quarantine(points.quarantine.clone());
    }

    /// What follows from how a turn ended: how long to wait even if there is news.
    fn after(&mut self, turn: Result<(), TurnError>) -> Duration {
        let interval = self.applying.tuning.now().apply.interval;
        let metrics = self.applying.metrics.machine(&self.machine);
        let error = match turn {
            Ok(()) => {
                let said = std::mem::replace(&mut self.said, self.unread.clone());
                if let Some(text) = &self.unread
                    && said != self.unread
                {
                    tracing::error!(machine = %self.machine, %text, "part of the log cannot be read");
                }
                // Each time: what is shown of a machine is forgotten when it goes to another server.
                metrics.set_apply_trouble(self.unread.clone());
                return if std::mem::take(&mut self.more) { Duration::ZERO } else { interval };
            }
            Err(error) => error,
        };
        let now = self.applying.clock.monotonic();
        let text = error_chain(&error);
        let machine = &self.machine;
        let repeated = self.said.as_ref() == Some(&text);
        let wait = match error.class() {
            Class::Fence => {
                tracing::warn!(%machine, %text, "another applier has the machine: standing by");
                (self.open, self.unread) = (None, None);
                metrics.applies.store(false, Ordering::Relaxed);
                self.standby = Some(Standby::new(self.applied.unwrap_or(0), now));
                self.rhythm.again_after(now, STANDBY_PAUSE);
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
        if self.seen.is_none() {
            metrics.applies.store(true, Ordering::Relaxed); // whose it is cannot be known
        }
        self.said = Some(text);
        self.rhythm.troubled(now);
        self.rhythm.again_after(now, wait);
        wait
    }
}
