//! Machines whose records lie unpublished in the cache log although nobody serves them: claimed,
//! held, or let go, by rows K1 to K5 of docs/scale-out.md.
//!
//! Owns: when that is looked at. Does not own: the table ([`super::recovered`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::machines::{Registry, unreadable};
use super::recovered::Fate;
use crate::ingest::OpenError;
use crate::model::{MachineId, MachineKey};
use crate::observe::error_chain;
use crate::seal::KeyRing;
use crate::upload;
use crate::vault::VaultError;

/// Before a claim that failed is made again.
const AGAIN: Duration = Duration::from_secs(1);
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
            tokio::select! {
                _ = drain.changed() => {}
                () = self.kept_changed() => pause = AGAIN,
                () = shared.clock.sleep(pause), if left != Left::Nothing => {}
            }
        }
    }

    /// Looks at each machine that has records here.
    pub(super) async fn look_after_kept(&self) -> Result<Left, VaultError> {
        let keys = self.kept().machines();
        if keys.is_empty() {
            self.count_kept();
            return Ok(Left::Nothing);
        }
        let enrolled = self.shared().vault.machines().await?;
        let waiting = enrolled.into_iter().filter(|one| keys.contains(&MachineKey::of(one)));
        // Side by side: one that cannot be claimed must not keep the others' records from the store.
        let looks = stream::iter(waiting).map(|machine| self.look_after(machine));
        // As many as there are: how many are made at once is the claims' own to say.
        let left = looks.buffer_unordered(usize::MAX);
        let left = left.fold(Left::Nothing, |worst, one| async move { worst.max(one) }).await;
        self.count_kept();
        Ok(left)
    }

    async fn look_after(&self, machine: MachineId) -> Left {
        match self.fate_of(&machine).await {
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

    fn count_kept(&self) {
        let records = self.kept().records() as u64;
        self.shared().metrics.scale.held_records.store(records, Ordering::Relaxed);
    }
}
