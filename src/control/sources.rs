//! Where the facts about a machine come from: the vault, the cloud log's manifest and, when it can be
//! reached, the process server that owns the machine.
//!
//! Owns: fetching. Does not own: what the facts mean (`status`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;

use super::{Client, ControlError};
use crate::cloud_log::LogStore;
use crate::format::manifest::Manifest;
use crate::model::{BookmarkId, MachineId, ServerId};
use crate::observe::{MachineFacts, ServerFacts, error_chain};
use crate::recover::{Point, Recovery};
use crate::seal::{KeyEncryptionKey, KeyRing};
use crate::vault::{MachineDocument, PointsDocument, ServerDocument, Vault};

/// The store, read with the key.
#[derive(Clone)]
pub struct Sources {
    /// The vault.
    pub vault: Vault,
    /// Opens the machines' data keys.
    pub kek: Arc<KeyEncryptionKey>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sources({:?})", self.vault)
    }
}

/// Everything that is known about one machine.
#[derive(Clone, Debug)]
pub struct MachineFactsheet {
    /// Its document.
    pub document: MachineDocument,
    /// Its manifest; `None` before the first claim.
    pub manifest: Option<Manifest>,
    /// What the applier did; `None` before its first start.
    pub points: Option<PointsDocument>,
    /// What its process server says now.
    pub live: Live,
    /// Servers that hold durable records of it, and how many, as far as they answer.
    pub held: Vec<(ServerId, u64)>,
}

/// What the process server said.
#[derive(Clone, Debug)]
pub enum Live {
    /// Nobody owns the machine, or nobody was asked.
    Unasked,
    /// It does not answer, and why.
    Silent {
        /// Whom.
        server: ServerDocument,
        /// Why.
        reason: String,
    },
    /// Its answer.
    Facts {
        /// About this machine; `None` when it does not know it.
        machine: Option<MachineFacts>,
        /// About itself, without its machines.
        server: Box<ServerFacts>,
    },
}

impl Sources {
    /// A machine's document.
    ///
    /// # Errors
    /// `UnknownMachine` when it is not enrolled.
    pub async fn document(&self, machine: &MachineId) -> Result<MachineDocument, ControlError> {
        let document = self.vault.machine(machine).await?;
        document.ok_or_else(|| ControlError::UnknownMachine { machine: machine.clone() })
    }

    /// A machine's cloud log.
    ///
    /// # Errors
    /// When its data keys do not open.
    pub fn log(&self, document: &MachineDocument) -> Result<LogStore, ControlError> {
        let keys = KeyRing::unwrap(&self.kek, document)?;
        let store = Arc::clone(self.vault.store());
        Ok(LogStore::new(store, document.machine.clone(), keys))
    }

    /// The process server that owns a machine; `None` while nobody does.
    ///
    /// # Errors
    /// When manifest or vault cannot be read.
    pub async fn owner(
        &self,
        document: &MachineDocument,
    ) -> Result<Option<ServerDocument>, ControlError> {
        let manifest = self.log(document)?.manifest().await?;
        self.owner_of(manifest.map(|(manifest, _)| manifest).as_ref()).await
    }

    async fn owner_of(
        &self,
        manifest: Option<&Manifest>,
    ) -> Result<Option<ServerDocument>, ControlError> {
        match manifest {
            Some(manifest) => Ok(self.vault.server(&manifest.owner).await?),
            None => Ok(None),
        }
    }

    /// A machine's recovery points, oldest first.
    ///
    /// # Errors
    /// When the machine is not enrolled, or its points cannot be read or believed.
    pub async fn points(&self, machine: &MachineId) -> Result<Vec<Point>, ControlError> {
        let document = self.document(machine).await?;
        let recovery = Recovery::new(self.log(&document)?, self.vault.clone());
        Ok(recovery.points().await?)
    }

    /// Keeps a recovery point past its time, or lets it go. Looks again after it was written down:
    /// retention may have given the point up after the first look, and cannot after the second.
    ///
    /// # Errors
    /// `UnknownPoint` when there is no such point, or there is none any more; else as
    /// [`Self::points`].
    pub async fn keep_point(
        &self,
        machine: &MachineId,
        bookmark: &str,
        keep: bool,
    ) -> Result<(), ControlError> {
        let unknown = || ControlError::UnknownPoint {
            machine: machine.clone(),
            bookmark: bookmark.to_owned(),
        };
        let id = self.known(machine, bookmark).await?.ok_or_else(unknown)?;
        self.vault.keep_bookmark(machine, id, keep).await?;
        if keep && self.known(machine, bookmark).await?.is_none() {
            self.vault.keep_bookmark(machine, id, false).await?;
            return Err(unknown());
        }
        Ok(())
    }

    /// A bookmark's id, if it is a recovery point.
    async fn known(
        &self,
        machine: &MachineId,
        bookmark: &str,
    ) -> Result<Option<BookmarkId>, ControlError> {
        let points = self.points(machine).await?;
        let known = points.iter().any(|point| point.bookmark == bookmark);
        Ok(BookmarkId::parse(bookmark).filter(|_| known))
    }

    /// Everything about a machine. A process server that does not answer is a fact, not an error.
    ///
    /// # Errors
    /// When the machine is not enrolled, or vault or manifest cannot be read.
    pub async fn factsheet(
        &self,
        machine: &MachineId,
        inquiry: &mut Inquiry,
    ) -> Result<MachineFactsheet, ControlError> {
        let document = self.document(machine).await?;
        let manifest = self.log(&document)?.manifest().await?;
        let manifest = manifest.map(|(manifest, _)| manifest);
        let points = self.vault.points(machine).await?;
        let owner = self.owner_of(manifest.as_ref()).await?;
        let live = match owner {
            Some(server) => inquiry.ask(server, machine).await,
            None => Live::Unasked,
        };
        let points = points.map(|(points, _)| points);
        let held = inquiry.held(&self.vault, machine).await?;
        Ok(MachineFactsheet { document, manifest, points, live, held })
    }
}

/// Asks process servers, each at most once, however many machines it owns. The default asks nobody.
#[derive(Debug, Default)]
pub struct Inquiry {
    /// Or why nobody can be asked.
    client: Option<Result<Client, String>>,
    heard: BTreeMap<ServerId, Result<Heard, String>>,
    /// Those that live.
    servers: Option<Vec<ServerDocument>>,
}

impl Inquiry {
    /// Asks through `client`.
    #[must_use]
    pub fn over(client: Client) -> Self {
        Self { client: Some(Ok(client)), ..Self::default() }
    }

    /// Nobody can be asked, for this reason: what stands in the store is all there is to say.
    #[must_use]
    pub fn unable(reason: String) -> Self {
        Self { client: Some(Err(reason)), ..Self::default() }
    }

    async fn ask(&mut self, server: ServerDocument, machine: &MachineId) -> Live {
        let client = match &self.client {
            Some(Ok(client)) => client,
            Some(Err(reason)) => return Live::Silent { server, reason: reason.clone() },
            None => return Live::Unasked,
        };
        let heard = match self.heard.entry(server.server.clone()) {
            Entry::Occupied(heard) => heard.into_mut(),
            Entry::Vacant(none) => {
                let answer = client.get(&server.address, "/v1/status").await;
                none.insert(answer.map(Heard::of).map_err(|error| error_chain(&error)))
            }
        };
        match heard {
            Ok(heard) => Live::Facts {
                machine: heard.machines.get(machine).cloned(),
                server: Box::new(heard.server.clone()),
            },
            Err(reason) => Live::Silent { server, reason: reason.clone() },
        }
    }

    /// Who of the living holds records of a machine. A server that does not answer is told of where it
    /// is somebody's owner.
    async fn held(
        &mut self,
        vault: &Vault,
        machine: &MachineId,
    ) -> Result<Vec<(ServerId, u64)>, ControlError> {
        if !matches!(self.client, Some(Ok(_))) {
            return Ok(Vec::new());
        }
        let servers = match self.servers.take() {
            Some(servers) => servers,
            None => {
                let all = vault.servers().await?.into_iter();
                all.filter(|(_, alive)| *alive).map(|(server, _)| server).collect()
            }
        };
        let mut held = Vec::new();
        for server in &servers {
            if let Live::Facts { server: facts, .. } = self.ask(server.clone(), machine).await
                && let Some(found) = facts.held.iter().find(|found| found.machine == *machine)
            {
                held.push((server.server.clone(), found.records));
            }
        }
        self.servers = Some(servers);
        Ok(held)
    }
}

/// One server's answer, its machines by name.
#[derive(Debug)]
struct Heard {
    server: ServerFacts,
    machines: BTreeMap<MachineId, MachineFacts>,
}

impl Heard {
    fn of(mut server: ServerFacts) -> Self {
        let machines = std::mem::take(&mut server.machines);
        let machines = machines.into_iter();
        Self { machines: machines.map(|facts| (facts.machine.clone(), facts)).collect(), server }
    }
}
