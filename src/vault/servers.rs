//! Process servers: each has a document, and shows by its lease that it is alive. And the wishes which
//! of them shall serve a machine.
//!
//! Owns: that a server's document is written by the holder of its lease alone. Does not own: when a
//! lease is renewed, and what follows when one runs out.

use super::{AssignmentDocument, ServerDocument, Vault, VaultError};
use crate::format::names;
use crate::model::{MachineId, ServerId};
use crate::store::{Condition, LeaseId, StoreError};

/// How long the lease of a server's document runs, seconds: the shortest that stores give.
pub const LEASE_SECONDS: u32 = 15;

/// Writes of one server that meet each other: its load, and that it leaves.
const WRITE_TRIES: u32 = 5;

impl Vault {
    /// Takes a server's name: the lease of its document, which is `first` when there is none yet.
    /// Returns what the document said before. Repeating it with the same lease is harmless.
    ///
    /// # Errors
    /// The store's `Fenced` while another process has that name.
    pub async fn take_server(
        &self,
        first: &ServerDocument,
        lease: LeaseId,
    ) -> Result<ServerDocument, VaultError> {
        let name = names::server_document(&first.server);
        match self.create(&name, first).await {
            Ok(_) | Err(VaultError::Exists { .. }) => {}
            // Somebody holds it, so it is there.
            Err(VaultError::Store { source: StoreError::Fenced { .. }, .. }) => {}
            Err(error) => return Err(error),
        }
        let taken = self.store().acquire_lease(&name, lease, LEASE_SECONDS).await;
        taken.map_err(|source| VaultError::Store { name: name.to_string(), source })?;
        let before = self.server(&first.server).await?;
        before.ok_or_else(|| VaultError::Missing { name: name.to_string() })
    }

    /// Prolongs the lease of a server's document.
    ///
    /// # Errors
    /// The store's `Fenced` when another process has the name now.
    pub async fn renew_server(&self, server: &ServerId, lease: LeaseId) -> Result<(), VaultError> {
        let name = names::server_document(server);
        let renewed = self.store().renew_lease(&name, lease).await;
        renewed.map_err(|source| VaultError::Store { name: name.to_string(), source })
    }

    /// Writes a server's document under its lease: what `now` says once the present one was read. An
    /// older write that is still on its way finds another version then and has no effect.
    ///
    /// # Errors
    /// As [`Vault::renew_server`].
    pub async fn write_server(
        &self,
        server: &ServerId,
        lease: LeaseId,
        now: impl Fn() -> ServerDocument,
    ) -> Result<(), VaultError> {
        let name = names::server_document(server);
        for _ in 0..WRITE_TRIES {
            let present = self.read::<ServerDocument>(&name).await?;
            let (_, version) =
                present.ok_or_else(|| VaultError::Missing { name: name.to_string() })?;
            let body = self.wrapped(&name, &now())?;
            let condition = Condition::Matches(version);
            match self.store().put_leased(&name, body, condition, lease).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Precondition { .. }) => {} // an older one of ours, or its answer was lost
                Err(source) => return Err(VaultError::Store { name: name.to_string(), source }),
            }
        }
        Err(VaultError::Contended { name: name.to_string(), tries: WRITE_TRIES })
    }

    /// Gives a server's name back.
    ///
    /// # Errors
    /// The store's error; the lease then runs out by itself.
    pub async fn release_server(
        &self,
        server: &ServerId,
        lease: LeaseId,
    ) -> Result<(), VaultError> {
        let name = names::server_document(server);
        let released = self.store().release_lease(&name, lease).await;
        released.map_err(|source| VaultError::Store { name: name.to_string(), source })
    }

    /// A process server; `None` when it never started.
    ///
    /// # Errors
    /// When its document was altered or the store does not answer.
    pub async fn server(&self, server: &ServerId) -> Result<Option<ServerDocument>, VaultError> {
        let read = self.read(&names::server_document(server)).await?;
        Ok(read.map(|(document, _)| document))
    }

    /// A process server, and whether its lease runs.
    ///
    /// # Errors
    /// As [`Vault::server`].
    pub async fn server_state(
        &self,
        server: &ServerId,
    ) -> Result<Option<(ServerDocument, bool)>, VaultError> {
        let name = names::server_document(server);
        let leased = match self.store().properties(&name).await {
            Ok(properties) => properties.leased,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(source) => return Err(VaultError::Store { name: name.to_string(), source }),
        };
        Ok(self.server(server).await?.map(|document| (document, leased)))
    }

    /// Names of all process servers that ever started.
    ///
    /// # Errors
    /// The store's error.
    pub async fn server_names(&self) -> Result<Vec<ServerId>, VaultError> {
        let listed = self.list(names::SERVERS).await?;
        Ok(listed.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// All process servers by name, and whether the lease of each runs.
    ///
    /// # Errors
    /// When a document was altered or the store does not answer.
    pub async fn servers(&self) -> Result<Vec<(ServerDocument, bool)>, VaultError> {
        let mut servers = Vec::new();
        for name in self.server_names().await? {
            servers.extend(self.server_state(&name).await?);
        }
        Ok(servers)
    }

    /// The wish which server shall serve a machine; `None`: the least loaded.
    ///
    /// # Errors
    /// When the document was altered or the store does not answer.
    pub async fn assignment(&self, machine: &MachineId) -> Result<Option<ServerId>, VaultError> {
        let read = self.read::<AssignmentDocument>(&names::assignment(machine)).await?;
        Ok(read.and_then(|(document, _)| document.server))
    }

    /// Wishes a server for a machine, or the least loaded. Counts when the machine is placed next.
    ///
    /// # Errors
    /// `Refused` when no server of that name ever started; or the store's error.
    pub async fn assign(
        &self,
        machine: &MachineId,
        server: Option<&ServerId>,
    ) -> Result<(), VaultError> {
        let name = names::assignment(machine);
        if let Some(server) = server
            && self.server(server).await?.is_none()
        {
            let reason = format!("no process server {server} ever started on this store");
            return Err(VaultError::Refused { name: name.to_string(), reason });
        }
        let document = AssignmentDocument { machine: machine.clone(), server: server.cloned() };
        match self.create(&name, &document).await {
            Err(VaultError::Exists { .. }) => {
                self.update(&name, |_: AssignmentDocument| Ok(document.clone())).await.map(drop)
            }
            created => created.map(drop),
        }
    }
}
