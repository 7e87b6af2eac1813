//! Machines whose records lie unpublished in the cache log although nobody serves them: claimed,
//! held, or let go, by rows K1 to K5 of docs/scale-out.md.
//!
//! Owns: when that is looked at. Does not own: the table ([`super::recovered`]).

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::machines::{Registry, unreadable};
use super::recovered::Fate;
use crate::ingest::OpenError;
use crate::model::{MachineId, MachineKey};
use crate::observe::{HeldFacts, error_chain};
use crate::seal::KeyRing;
use crate::upload;
use crate::vault::VaultError;

/// Before a claim that failed is made again; and the least between two looks at all of them, however
/// many machines are fenced one after another.
const AGAIN: Duration = Duration::from_secs(1);
/// Machines that are looked at side by side.
pub(super) const LOOKS_MAX: usize = 64;
/// How long a look at one may take: an object that does not answer stops nobody.
pub(super) const LOOK_MAX: Duration = Duration::from_secs(10);
/// Longest pause between looks at what is held.
const HELD_INTERVAL_MAX: Duration = Duration::from_secs(30);

/// What is left after a look at all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Left {
    /// Nothing.
    Nothing,
    /// Records that are held.
    Held,
    /// A machine that could not be claimed or read.
    Waiting,
}

impl Registry {
    /// Looks after them until the server drains.
    pub(super) async fn keep(self: Arc<Self>) {
        let shared = Arc::clone(self.shared());
        let mut drain = shared.drain.clone();
        let mut pause = AGAIN;
        while !*drain.borrow_and_update() {
            // A claim waits as long as the store says "later": a server that drains does not.
            let left = tokio::select! {
                left = self.look_after_kept() => left,
                _ = drain.changed() => return,
            };
            let left = left.unwrap_or_else(|error| {
                tracing::warn!(error = error_chain(&error), "kept records wait");
                Left::Waiting
            });
            pause = match left {
                Left::Held => (pause * 2).min(HELD_INTERVAL_MAX),
                Left::Waiting | Left::Nothing => AGAIN,
            };
            let rest = async {
                shared.clock.sleep(AGAIN).await;
                tokio::select! {
                    () = self.kept_changed() => AGAIN,
                    () = shared.clock.sleep(pause - AGAIN), if left != Left::Nothing => pause,
                }
            };
            tokio::select! {
                _ = drain.changed() => {}
                next = rest => pause = next,
            }
        }
    }

    /// Looks at each machine that has records here.
    pub(super) async fn look_after_kept(&self) -> Result<Left, VaultError> {
        let keys = self.kept().machines();
        if keys.is_empty() {
            self.count_kept(&[]);
            return Ok(Left::Nothing);
        }
        let enrolled = self.shared().vault.machines().await?;
        let waiting = enrolled.into_iter().map(|one| (MachineKey::of(&one), one));
        let waiting: Vec<_> = waiting.filter(|(key, _)| keys.contains(key)).collect();
        let unenrolled = keys.iter().filter(|key| waiting.iter().all(|(known, _)| known != *key));
        let left = self.tell_unenrolled(unenrolled);
        // Side by side: one that cannot be claimed must not keep the others' records from the store.
        let looks = stream::iter(waiting.clone()).map(|(_, machine)| self.look_after(machine));
        let looks = looks.buffer_unordered(LOOKS_MAX);
        let left = looks.fold(left, |worst, one| async move { worst.max(one) }).await;
        self.count_kept(&waiting);
        Ok(left)
    }

    async fn look_after(&self, machine: MachineId) -> Left {
        let fate = tokio::select! {
            fate = self.fate_of(&machine) => fate,
            () = self.shared().clock.sleep(LOOK_MAX) => {
                tracing::warn!(%machine, "kept records wait: the store does not answer for it");
                return Left::Waiting;
            }
        };
        match fate {
            Ok(left) => left,
            Err(OpenError::Elsewhere { .. }) => Left::Held, // taken meanwhile: K5
            Err(error) => {
                tracing::error!(%machine, error = error_chain(&error), "kept records wait");
                Left::Waiting
            }
        }
    }

    async fn fate_of(&self, machine: &MachineId) -> Result<Left, OpenError> {
        let shared = self.shared();
        let document = match shared.vault.machine(machine).await {
            Ok(None) => return Ok(Left::Nothing),
            Ok(Some(document)) => document,
            Err(error) => return Err(unreadable(machine, error)),
        };
        let refused = |error: &dyn std::error::Error| OpenError::NotOwner {
            machine: machine.clone(),
            reason: error_chain(error),
        };
        let keys = KeyRing::unwrap(&shared.kek, &document).map_err(|error| refused(&error))?;
        let context = shared.upload_context(machine, keys);
        let seen = upload::look(&context).await.map_err(|error| refused(&error))?;
        let (key, manifest) = (MachineKey::of(machine), seen.map(|claim| claim.manifest));
        let fate = self.kept().fate(key, manifest.as_ref(), &shared.server);
        match fate {
            Fate::Claim => self.claimed(machine, &document).await.map(|_| Left::Nothing),
            Fate::GiveUp => {
                self.kept().give_up(key);
                tracing::info!(%machine, "what was held here is published by another server");
                Ok(Left::Nothing)
            }
            Fate::Hold => {
                let owner = manifest.map(|manifest| manifest.owner.to_string());
                tracing::warn!(%machine, owner, "acknowledged records are held here: the agent has \
                    not sent them to the machine's process server yet");
                Ok(Left::Held)
            }
        }
    }

    /// Machines whose documents are gone: nobody can open what was sealed for them, and nobody lets
    /// their records go by itself.
    fn tell_unenrolled<'a>(&self, keys: impl Iterator<Item = &'a MachineKey>) -> Left {
        let machines = keys.count() as u64;
        self.shared().metrics.scale.held_unenrolled.store(machines, Ordering::Relaxed);
        if machines == 0 {
            return Left::Nothing;
        }
        tracing::warn!(
            machines,
            "acknowledged records are held here of machines that are not \
            enrolled: enrol them again, or start the server on a new cache directory"
        );
        Left::Held
    }

    /// `looked_at`: the enrolled ones of them.
    fn count_kept(&self, looked_at: &[(MachineKey, MachineId)]) {
        let kept = self.kept();
        let held = looked_at.iter().map(|(key, machine)| HeldFacts {
            machine: machine.clone(),
            records: kept.records_of(*key) as u64,
        });
        let held = held.filter(|held| held.records > 0).collect();
        let scale = &self.shared().metrics.scale;
        scale.held_records.store(kept.records() as u64, Ordering::Relaxed);
        *scale.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }
}
