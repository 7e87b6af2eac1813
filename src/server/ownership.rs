//! Who serves a machine whose agent is at the door: rows A to H of docs/scale-out.md.
//!
//! Owns: the decision, and that it is made over exactly the manifest that was looked at. Does not own:
//! liveness and placing (`peers`), the compare-and-swap (upload), serving (`machines`).

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::machines::{Registry, Served, State, draining, unreadable};
use super::peers::{Found, Place};
use crate::ingest::OpenError;
use crate::model::{MachineId, MachineKey};
use crate::observe::error_chain;
use crate::store::Class;
use crate::upload::{self, Claim, Patience, UploadContext, UploadError};
use crate::vault::ServerDocument;

/// Hellos within [`INSISTS_WITHIN`] after which the owner is asked to give the machine up.
const INSISTS: u32 = 3;
/// See [`INSISTS`].
const INSISTS_WITHIN: Duration = Duration::from_secs(60);

/// What follows from a manifest.
enum Decision {
    /// Rows A, B, D, E, G: the next generation is this server's; `from` somebody who is gone.
    Take { from: Option<String> },
    /// The same, for another one.
    Give { to: ServerDocument, from: Option<String> },
    /// Rows C and H.
    Serves(ServerDocument),
}

/// Agents that come although another server is well.
#[derive(Debug, Default)]
pub(super) struct Insisting(Mutex<HashMap<MachineId, (u32, Duration)>>);

impl Insisting {
    /// Whether this one has come so often that its owner is asked.
    fn came(&self, machine: &MachineId, now: Duration) -> bool {
        let mut came = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        came.retain(|_, (_, last)| now.saturating_sub(*last) < INSISTS_WITHIN);
        let (times, last) = came.entry(machine.clone()).or_insert((0, now));
        (*times, *last) = (*times + 1, now);
        let asked = *times >= INSISTS;
        if asked {
            came.remove(machine);
        }
        asked
    }
}

impl Registry {
    /// The next generation of the machine's manifest, this server's.
    ///
    /// # Errors
    /// `Elsewhere` when another one serves it, or shall; else why it cannot be known.
    pub(super) async fn own(&self, context: &UploadContext) -> Result<Claim, OpenError> {
        let machine = context.log.machine();
        let refused = |error: UploadError| OpenError::NotOwner {
            machine: machine.clone(),
            reason: error_chain(&error),
        };
        let us = &self.shared().server;
        let mut patience = Patience::new(context);
        loop {
            let seen = upload::look(context).await.map_err(refused)?;
            let (to, from) = match self.decide(machine, seen.as_ref()).await? {
                Decision::Serves(owner) => return Err(self.redirected(machine, &owner)),
                Decision::Take { from } => (None, from),
                Decision::Give { to, from } => (Some(to), from),
            };
            let owner = to.as_ref().map_or(us, |to| &to.server);
            let claim = match upload::claim_over(context, owner, seen).await {
                // Somebody was faster, or time has passed: what that means for the decision is looked up
                // from the top of the table. If only the answer was lost, that is row A.
                Err(error) if error.class() == Class::Retry => {
                    patience.wait(&error).await;
                    continue;
                }
                claimed => claimed.map_err(refused)?,
            };
            if let Some(from) = from {
                self.shared().metrics.scale.takeovers.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%machine, %owner, generation = %claim.manifest.generation, from,
                    "taken over");
            }
            match to {
                None => return Ok(claim),
                Some(to) => return Err(elsewhere(machine, &to, "is its process server now")),
            }
        }
    }

    /// Waits until a machine whose link has ended here can be claimed anew, for its agent at the door.
    ///
    /// # Errors
    /// `Elsewhere` when another one serves it, or shall.
    pub(super) async fn gone(&self, served: &Served) -> Result<(), OpenError> {
        let (mut state, mut fenced) = (served.state.subscribe(), served.fenced.subscribe());
        tokio::select! {
            biased;
            _ = state.wait_for(|state| *state == State::Gone) => return Ok(()),
            _ = fenced.wait_for(|fenced| *fenced) => {}
        }
        self.make_way(served).await?;
        drop(state.wait_for(|state| *state == State::Gone).await); // we hold the sender
        Ok(())
    }

    /// Rows A to H, and only then K2, while the last records may wait in the log's queue for the very room that
    /// the first ones take. In this order: as long as the manifest does not name this server the agent may be
    /// sent elsewhere, and what is let go here is held nowhere (K5).
    async fn make_way(&self, served: &Served) -> Result<(), OpenError> {
        let machine = served.link.machine();
        let mut drain = self.shared().drain.clone();
        tokio::select! {
            biased;
            _ = drain.wait_for(|drain| *drain) => return Err(draining(machine)),
            // Nobody publishes by this claim: who is welcomed takes the generation behind it.
            owned = self.own(&served.context) => drop(owned?),
        }
        tracing::warn!(%machine, "records of the cache log are given up: the machine was taken while \
            they were here, and its agent, which is at the door, sends them again");
        self.kept().give_up(served.link.key());
        Ok(())
    }

    async fn decide(
        &self,
        machine: &MachineId,
        seen: Option<&Claim>,
    ) -> Result<Decision, OpenError> {
        let shared = self.shared();
        let peers = &shared.peers;
        let vault = |error| unreadable(machine, error);
        let owner = seen.map(|claim| &claim.manifest.owner);
        let (gone, from) = match owner {
            // A; a server that leaves keeps only what its own cache log must publish.
            Some(owner) if *owner == shared.server => {
                let keeps = !peers.is_leaving() || self.keeps(MachineKey::of(machine));
                if keeps || !peers.has_others() {
                    return Ok(Decision::Take { from: None });
                }
                (None, None)
            }
            Some(owner) => match peers.find(owner).await.map_err(vault)? {
                Found::Well(owner) => return Ok(Decision::Serves(owner)), // C, H
                Found::Gone(why) => (Some(owner), Some(why)),             // D, E, G
            },
            None => (None, None), // B
        };
        Ok(match peers.place(machine, gone).await.map_err(vault)? {
            Place::Here => Decision::Take { from },
            Place::There(to) => Decision::Give { to, from },
        })
    }

    /// Row C; the third time row H.
    fn redirected(&self, machine: &MachineId, owner: &ServerDocument) -> OpenError {
        let shared = self.shared();
        if !peers_leave(self) && self.insisting().came(machine, shared.clock.monotonic()) {
            let (shared, machine, owner) = (Arc::clone(shared), machine.clone(), owner.clone());
            self.runtime().spawn(async move {
                let server = &owner.server;
                tracing::info!(%machine, %server, "its agent comes here again and again: asked for it");
                if let Err(why) = shared.peers.ask_for(&owner, &machine).await {
                    tracing::warn!(%machine, %server, why, "does not give the machine up");
                }
            });
        }
        elsewhere(machine, owner, "serves it")
    }
}

fn peers_leave(registry: &Registry) -> bool {
    registry.shared().peers.is_leaving()
}

/// Sends the agent to `owner`.
pub(super) fn elsewhere(machine: &MachineId, owner: &ServerDocument, why: &str) -> OpenError {
    OpenError::Elsewhere {
        machine: machine.clone(),
        addresses: vec![owner.address.clone()],
        reason: format!("process server {} {why}", owner.server),
    }
}
