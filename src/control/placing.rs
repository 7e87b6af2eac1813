//! Which process server serves a machine: the servers there are, the wish, the planned move.
//!
//! Owns: asking the owner to give a machine up. Does not own: who takes over what nobody serves
//! (process servers decide that when an agent comes).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sources::Sources;
use super::{Client, ControlError};
use crate::model::{MachineId, ServerId, Timestamp};
use crate::vault::ServerDocument;

/// Time for a process server to publish what it has of a machine and give it up; a little more than
/// it waits itself.
const PATIENCE: Duration = Duration::from_secs(35);

/// Body of `POST /v1/machines/{machine}/move`, at the sidecar and at the process server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveOrder {
    /// Where to.
    pub to: ServerId,
    /// Not while the machine's agent is connected to its owner.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unless_connected: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveAnswer {
    /// Which machine.
    pub machine: MachineId,
    /// Whose it is now.
    pub server: ServerId,
    /// False: it was there already.
    pub moved: bool,
}

/// Body of `PUT /v1/machines/{machine}/assignment`, and of its answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Which server; none: the least loaded.
    pub server: Option<ServerId>,
}

/// A process server as people see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerView {
    /// Which.
    pub server: ServerId,
    /// `host:port` of its data port.
    pub address: String,
    /// Whether its lease runs.
    pub alive: bool,
    /// It drains.
    pub leaving: bool,
    /// When it last started.
    pub started: Timestamp,
    /// Version of its program.
    pub version: String,
    /// Machines that it served when it last said so.
    pub machines: u64,
    /// Bytes of writes a second, over about a minute.
    pub churn_bytes_per_s: u64,
    /// Fill of its cache log, 0 to 1.
    pub cache_fill: f64,
}

impl ServerView {
    fn of(document: ServerDocument, alive: bool) -> Self {
        let load = document.load;
        Self {
            server: document.server,
            address: document.address,
            alive,
            leaving: document.leaving,
            started: document.started,
            version: document.version,
            machines: load.machines,
            churn_bytes_per_s: load.churn_bytes_per_s,
            cache_fill: load.cache_fill,
        }
    }
}

impl Sources {
    /// All process servers that ever started on this store, by name.
    ///
    /// # Errors
    /// When a document was altered or the store does not answer.
    pub async fn servers(&self) -> Result<Vec<ServerView>, ControlError> {
        let servers = self.vault.servers().await?.into_iter();
        Ok(servers.map(|(document, alive)| ServerView::of(document, alive)).collect())
    }
}

/// Wishes a server for an enrolled machine; it counts when the machine is placed next.
///
/// # Errors
/// When the machine is not enrolled, or no such server ever started.
pub async fn assign(
    sources: &Sources,
    machine: &MachineId,
    wish: &Wish,
) -> Result<(), ControlError> {
    sources.document(machine).await?;
    Ok(sources.vault.assign(machine, wish.server.as_ref()).await?)
}

/// Asks the machine's owner to give it up to another process server, now.
///
/// # Errors
/// When nobody owns it, its owner is gone or refuses, or the other one is not there.
pub async fn move_machine(
    sources: &Sources,
    client: &Client,
    machine: &MachineId,
    order: &MoveOrder,
) -> Result<MoveAnswer, ControlError> {
    let document = sources.document(machine).await?;
    let owner = sources.owner(&document).await?;
    let owner = owner.ok_or_else(|| ControlError::NoOwner { machine: machine.clone() })?;
    if owner.server == order.to {
        let (machine, server) = (machine.clone(), owner.server);
        return Ok(MoveAnswer { machine, server, moved: false });
    }
    let path = format!("/v1/machines/{machine}/move");
    let client = client.with_timeout(PATIENCE);
    match client.post(&owner.address, &path, order).await {
        Err(source @ (ControlError::Unreachable { .. } | ControlError::Timeout { .. })) => {
            Err(ControlError::OwnerGone {
                machine: machine.clone(),
                owner: owner.server,
                to: order.to.clone(),
                source: Box::new(source),
            })
        }
        answered => answered,
    }
}
