//! Giving machines up to other process servers in good order: steps M1 to M5 of docs/scale-out.md.
//!
//! Owns: their order. Does not own: who takes the machine (`peers`), publishing (pipeline).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::machines::{Registry, Served, State};
use crate::format::wire::{Redirect, Refusal, Refuse};
use crate::ingest::{LastWord, OpenError};
use crate::model::MachineId;
use crate::observe::error_chain;
use crate::places::{Place, reached};
use crate::upload::{self, UploadError};
use crate::vault::{ServerDocument, VaultError};

/// How long a machine may take to be given up before nobody waits for it any more.
pub(super) const GIVE_UP_MAX: Duration = Duration::from_secs(30);
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
    /// It takes too long; it goes on.
    #[error(
        "machine {machine} is being given up, and that takes more than 30 s: is the store away?"
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
        let source = |source| HandoverError::Vault { machine: machine.clone(), source };
        let document = self.shared().vault.machine(machine).await.map_err(source)?;
        let document =
            document.ok_or_else(|| HandoverError::Unknown { machine: machine.clone() })?;
        let (served, _) = self.claimed(machine, &document).await?;
        if served.link.has_ended() || served.moving.swap(true, Ordering::AcqRel) {
            return Err(HandoverError::Leaving { machine: machine.clone() });
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
        tokio::select! {
            ended = task => ended.unwrap_or_else(|_| {
                Err(HandoverError::Unpublished { machine: machine.clone() })
            }),
            () = self.shared().clock.sleep(GIVE_UP_MAX) => {
                Err(HandoverError::Late { machine: machine.clone() })
            }
        }
    }

    /// Gives all machines up, as far as there is somebody to take them.
    pub(super) async fn hand_over_all(self: &Arc<Self>) {
        let machines = self.machines();
        let moves = stream::iter(machines).map(|machine| async move {
            let to = match self.shared().peers.successor(&machine).await {
                Ok(Some(to)) => to,
                Ok(None) => return,
                Err(error) => {
                    return tracing::warn!(%machine, error = error_chain(&error), "stays here");
                }
            };
            if let Err(error) = self.hand_over(&machine, to).await {
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
            true => {
                reached(Place::GiveUp);
                let given_up = upload::give_up(&served.context, served.generation, &to.server);
                given_up.await.map(drop).map_err(|source| {
                    let machine = machine.clone();
                    HandoverError::Upload { machine, source }
                }) // M4
            }
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
