//! Giving machines up to other process servers in good order: steps M1 to M5 of docs/scale-out.md.
//!
//! Owns: their order. Does not own: who takes the machine (`peers`), publishing (pipeline).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::machines::{Registry, Served, State};
use super::recovered::Fate;
use crate::format::wire::{Redirect, Refusal, Refuse};
use crate::ingest::{LastWord, OpenError};
use crate::model::{MachineId, MachineKey, ServerId};
use crate::observe::error_chain;
use crate::places::{Place, reached};
use crate::seal::{KeyRing, SealError};
use crate::upload::{self, UploadError};
use crate::vault::{ServerDocument, VaultError};

/// How long a machine may take to be given up before nobody waits for it any more.
pub(super) const GIVE_UP_MAX: Duration = Duration::from_secs(30);
/// What was durable is published within so long, and the age of a batch: then it is near enough for the
/// door to be closed.
const NEAR: Duration = Duration::from_secs(4);
/// Machines that are given up at once when the whole server drains.
const AT_ONCE: usize = 64;

/// Why a machine was not given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandoverError {
    /// It is not served here.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its document cannot be read.
    #[error("machine {machine}")]
    Vault {
        machine: MachineId,
        #[source]
        source: VaultError,
    },
    /// It was never enrolled.
    #[error("machine {machine} is not enrolled on this site")]
    Unknown { machine: MachineId },
    /// Its keys cannot be unwrapped.
    #[error("machine {machine}")]
    Keys {
        machine: MachineId,
        #[source]
        source: SealError,
    },
    /// Nobody's agent is at the door, and it is not this server's to give.
    #[error(
        "machine {machine} is not this server's to give up, {}: start its owner, or let its agent \
         connect, which takes it over", owned_by(owner.as_ref())
    )]
    NotOwner { machine: MachineId, owner: Option<ServerId> },
    /// Row K3: they may be the only copies.
    #[error(
        "acknowledged records of machine {machine} are held here, and may be the only copies: let its \
         agent connect to this server, which lets them go when the agent has them itself"
    )]
    Held { machine: MachineId },
    /// Who should have it does not answer, or drains.
    #[error("machine {machine} was not given up: {why}")]
    Target { machine: MachineId, why: String },
    /// It is being given up already, was fenced, or its uploads stopped.
    #[error("machine {machine} is leaving already, or its uploads stopped: see `holdfast status`")]
    Leaving { machine: MachineId },
    /// Somebody took it, or its uploads stopped, before it could be given up.
    #[error("not everything of machine {machine} could be published; it was not given up")]
    Unpublished { machine: MachineId },
    /// The manifest could not be changed.
    #[error("machine {machine} could not be given up")]
    Upload {
        machine: MachineId,
        #[source]
        source: UploadError,
    },
    /// It takes too long. What was begun goes on.
    #[error(
        "machine {machine} could not be given up within 30 s: its uploads are behind, or the store is \
         away; see `holdfast status`"
    )]
    Late { machine: MachineId },
}

impl Registry {
    /// Gives a machine up to `to`, and waits for that.
    pub(super) async fn hand_over(
        self: &Arc<Self>,
        machine: &MachineId,
        to: ServerDocument,
    ) -> Result<(), HandoverError> {
        let given_up = async {
            let served = match self.served(machine) {
                Some(served) => served,
                None => self.served_to_give_up(machine).await?,
            };
            self.hand_over_served(served, to).await
        };
        tokio::select! {
            given_up = given_up => given_up,
            () = self.shared().clock.sleep(GIVE_UP_MAX) => {
                Err(HandoverError::Late { machine: machine.clone() })
            }
        }
    }

    /// A machine that is claimed only to be given up: whoever wants that has no agent at the door, so
    /// it must be this server's, and nothing that is kept of it may be lost by the claim.
    async fn served_to_give_up(&self, machine: &MachineId) -> Result<Arc<Served>, HandoverError> {
        let shared = self.shared();
        let source = |source| HandoverError::Vault { machine: machine.clone(), source };
        let document = shared.vault.machine(machine).await.map_err(source)?;
        let document =
            document.ok_or_else(|| HandoverError::Unknown { machine: machine.clone() })?;
        let keys = KeyRing::unwrap(&shared.kek, &document)
            .map_err(|source| HandoverError::Keys { machine: machine.clone(), source })?;
        let seen = upload::look(&shared.upload_context(machine, keys)).await;
        let seen =
            seen.map_err(|source| HandoverError::Upload { machine: machine.clone(), source })?;
        let manifest = seen.map(|claim| claim.manifest);
        let owner = manifest.as_ref().map(|manifest| manifest.owner.clone());
        if owner.as_ref() != Some(&shared.server) {
            return Err(HandoverError::NotOwner { machine: machine.clone(), owner });
        }
        let key = MachineKey::of(machine);
        let fate = self.kept().fate(key, manifest.as_ref(), &shared.server);
        if self.keeps(key) && fate != Fate::Claim {
            return Err(HandoverError::Held { machine: machine.clone() });
        }
        Ok(self.claimed(machine, &document).await?.0)
    }

    async fn hand_over_served(
        self: &Arc<Self>,
        served: Arc<Served>,
        to: ServerDocument,
    ) -> Result<(), HandoverError> {
        let machine = served.link.machine().clone();
        if served.link.has_ended() || served.moving.load(Ordering::Acquire) {
            return Err(HandoverError::Leaving { machine });
        }
        self.nearly_published(&served).await;
        if served.link.has_ended() || served.moving.swap(true, Ordering::AcqRel) {
            return Err(HandoverError::Leaving { machine });
        }
        let this = Arc::clone(self);
        // A task of its own: once begun it ends, whoever stops waiting.
        // Only a drain ends it early: it would keep the cache log open.
        let mut drain = self.shared().drain.clone();
        let task = self.runtime().spawn(async move {
            tokio::select! {
                given_up = Arc::clone(&this).give_up(&served, &to) => given_up,
                _ = drain.wait_for(|drain| *drain) => {
                    let machine = served.link.machine().clone();
                    Err(HandoverError::Unpublished { machine })
                }
            }
        });
        task.await.unwrap_or_else(|_| Err(HandoverError::Unpublished { machine }))
    }

    /// Waits, with the door open, until what is left to publish came within a few seconds, or the
    /// pipeline has ended: once the door is closed the agent's writes wait for what is left.
    async fn nearly_published(&self, served: &Served) {
        let shared = self.shared();
        let near = shared.tuning.subscribe().borrow().batch.age_max + NEAR;
        let mut state = served.state.subscribe();
        loop {
            let began = shared.clock.monotonic();
            tokio::select! {
                () = served.link.caught_up() => {}
                _ = state.wait_for(|state| !matches!(state, State::Running)) => return,
            }
            if shared.clock.monotonic().saturating_sub(began) < near {
                return;
            }
        }
    }

    /// Gives all machines up, as far as there is somebody to take them.
    pub(super) async fn hand_over_all(self: &Arc<Self>) {
        let mut claims = self.all_claims();
        // Nobody waits behind a claim that waits itself, or behind who has much to publish.
        claims.sort_by_key(|claimed| match claimed.peek() {
            Some(Ok(served)) => served.link.metrics().backlog_bytes.load(Ordering::Relaxed),
            Some(Err(_)) | None => u64::MAX,
        });
        let moves = stream::iter(claims).map(|claimed| async move {
            let Ok(served) = claimed.await else { return }; // not this server's to give
            let machine = served.link.machine().clone();
            let to = match self.shared().peers.successor(&machine).await {
                Ok(Some(to)) => to,
                Ok(None) => return,
                Err(error) => {
                    return tracing::warn!(%machine, error = error_chain(&error), "stays here");
                }
            };
            if let Err(error) = self.hand_over_served(served, to).await {
                tracing::warn!(%machine, error = error_chain(&error), "stays here");
            }
        });
        moves.buffer_unordered(AT_ONCE).collect::<()>().await;
    }

    async fn give_up(
        self: Arc<Self>,
        served: &Arc<Served>,
        to: &ServerDocument,
    ) -> Result<(), HandoverError> {
        let machine = served.link.machine().clone();
        served.link.close_door(); // M1
        self.detach(&served.link).await; // M2
        let mut state = served.state.subscribe();
        let over = state.wait_for(|state| !matches!(state, State::Running)).await;
        let published = over.is_ok_and(|state| matches!(*state, State::Published)); // M3
        let given_up = match published {
            true => self.give_to(served, &to.server).await, // M4
            false => Err(HandoverError::Unpublished { machine: machine.clone() }),
        };
        served.link.end(last_word(&given_up, to)); // M5
        self.forget(served);
        given_up?;
        self.shared().metrics.scale.moves.fetch_add(1, Ordering::Relaxed);
        tracing::info!(%machine, to = %to.server, "given up");
        Ok(())
    }
}

impl Registry {
    async fn give_to(&self, served: &Served, to: &ServerId) -> Result<(), HandoverError> {
        let machine = || served.link.machine().clone();
        // Publishing took its time: who died meanwhile would only be taken over from.
        let target = self.shared().peers.target(to).await;
        target.map_err(|why| HandoverError::Target { machine: machine(), why })?;
        reached(Place::GiveUp);
        let given_up = upload::give_up(&served.context, served.generation, to).await;
        given_up.map_err(|source| HandoverError::Upload { machine: machine(), source })?;
        Ok(())
    }
}

fn owned_by(owner: Option<&ServerId>) -> String {
    owner.map_or_else(|| "nobody owns it yet".to_owned(), |owner| format!("{owner} owns it"))
}

fn last_word(given_up: &Result<(), HandoverError>, to: &ServerDocument) -> LastWord {
    match given_up {
        Ok(()) => LastWord::Redirect(Redirect {
            addresses: vec![to.address.clone()],
            reason: format!("moved to process server {}", to.server),
        }),
        Err(error) => {
            LastWord::Refuse(Refuse { code: Refusal::NotOwner, text: error_chain(error) })
        }
    }
}
