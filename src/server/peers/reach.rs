//! One process server asks another: are you there, and give this machine to me.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::Clock;
use crate::control::{Client, ControlError, MoveAnswer, MoveOrder};
use crate::model::{MachineId, ServerId};
use crate::observe::error_chain;
use crate::settings::TlsFiles;

/// Time that a server has to answer a dial.
const DIAL_MAX: Duration = Duration::from_secs(2);
/// Time that a server has to give a machine up.
const MOVE_MAX: Duration = Duration::from_secs(40);

/// The way to other process servers.
#[async_trait]
pub(in crate::server) trait Reach: Send + Sync + 'static {
    /// Whether somebody who serves answers at `address` (`host:port`), and why not.
    async fn dial(&self, address: &str) -> Result<(), String>;
    /// Asks the server at `address` to give `machine` to `to`.
    async fn ask_for(
        &self,
        address: &str,
        machine: &MachineId,
        to: &ServerId,
    ) -> Result<(), String>;
}

/// Over HTTPS with the operator's certificate. Without one a server is alive when its port takes
/// connections, and nobody can be asked for anything.
pub(in crate::server) struct Line {
    client: Option<Client>,
    clock: Arc<dyn Clock>,
}

impl Line {
    pub(in crate::server) fn new(files: &TlsFiles, clock: Arc<dyn Clock>) -> Self {
        let client = Client::operator(files, Arc::clone(&clock), DIAL_MAX);
        let client = client.inspect_err(|error| {
            tracing::warn!(
                error = error_chain(error),
                "other process servers cannot be asked: the operator's certificate is missing here"
            );
        });
        Self { client: client.ok(), clock }
    }
}

#[async_trait]
impl Reach for Line {
    async fn dial(&self, address: &str) -> Result<(), String> {
        if let Some(client) = &self.client {
            return client.healthy(address).await.map_err(|error| error_chain(&error));
        }
        tokio::select! {
            connected = tokio::net::TcpStream::connect(address) => {
                connected.map(drop).map_err(|error| format!("{address}: {error}"))
            }
            () = self.clock.sleep(DIAL_MAX) => Err(format!("{address} does not answer")),
        }
    }

    async fn ask_for(
        &self,
        address: &str,
        machine: &MachineId,
        to: &ServerId,
    ) -> Result<(), String> {
        let Some(client) = &self.client else {
            return Err("the operator's certificate is missing here".to_owned());
        };
        let path = format!("/v1/machines/{machine}/move");
        // Whoever is at this server's door and whoever is connected there need not be the same agent.
        let order = MoveOrder { to: to.clone(), unless_connected: true };
        let asked: Result<MoveAnswer, ControlError> =
            client.with_timeout(MOVE_MAX).post(address, &path, &order).await;
        asked.map(drop).map_err(|error| error_chain(&error))
    }
}
