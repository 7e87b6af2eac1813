//! How the agent and one QEMU reach each other: by sockets on one host, over TLS between two.
//!
//! Owns: what stands in QEMU's commands about it. Does not own: certificates (`crate::agent::tls`), the
//! commands ([`super::steps`]).

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde_json::{Value, json};

use crate::agent::disk::Disk;
use crate::agent::error::AgentError;
use crate::agent::tls::{self, Identity};
use crate::nbd::{self, Client, Export, Peer, ServerTls};
use crate::settings::{AgentSettings, QemuAddress, RemoteMirror};

use super::names::{Names, reads_socket};
use super::remote::GuestDevice;

/// How long QEMU holds the guest's writes while its connection to the agent is broken, before it gives
/// the mirror up, seconds: an agent that restarts is back by then, and no guest gives up its disk.
const RECONNECT_S: u32 = 5;
/// The same between two hosts, where seconds have passed before QEMU knows that the path is lost (docs/capture.md).
const RECONNECT_REMOTE_S: u32 = 1;

/// Longest wait for a part of a reply of its NBD server: a guest's storage that takes longer counts as gone.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A QEMU, from the agent.
pub(super) struct Reach {
    /// Its monitor.
    pub(super) monitor: Peer,
    /// Its NBD server, where the guest's disks are read.
    pub(super) reads: Peer,
    /// What that server does TLS by.
    credentials: String,
    /// [`PATIENCE`].
    pub(super) patience: Duration,
}

impl Reach {
    /// Reads the certificates where QEMU is on another host.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub(super) fn of(
        settings: &AgentSettings,
        place: &GuestDevice<'_>,
    ) -> Result<Self, AgentError> {
        let (monitor, remote) = match (tls::peer(settings, place.monitor)?, place.remote) {
            (Peer::Socket(path), _) => return Ok(Self::here(&path, &settings.state_directory)),
            (monitor, Some(remote)) => (monitor, remote),
            (_, None) => {
                let why = "QEMU on another host needs `listen`".to_owned();
                return Err(AgentError::Capture { disk: place.disk.clone(), why });
            }
        };
        Identity::towards_qemu(settings).carries(&remote.address.0)?;
        let mut reads = monitor.clone();
        if let Peer::Tls { port, .. } = &mut reads {
            *port = remote.reads_port;
        }
        let credentials = settings.mirror.server_credentials.clone();
        Ok(Self { monitor, reads, credentials, patience: PATIENCE })
    }

    /// A QEMU on this host.
    pub(super) fn here(monitor: &Path, state_directory: &Path) -> Self {
        let reads = reads_socket(state_directory, monitor);
        let credentials = String::new();
        let (monitor, reads) = (monitor.into(), Peer::Socket(reads));
        Self { monitor, reads, credentials, patience: PATIENCE }
    }

    /// What QEMU is asked for when it is to serve its disks.
    pub(super) fn reads_server(&self) -> Value {
        match &self.reads {
            Peer::Socket(path) => {
                let path = path.to_string_lossy();
                json!({ "addr": { "type": "unix", "data": { "path": path } } })
            }
            // At each address of its host, like the monitor's name may mean any: certificates keep others out.
            Peer::Tls { port, .. } => json!({
                "addr": { "type": "inet", "data": { "host": "", "port": port.to_string() } },
                "tls-creds": self.credentials,
            }),
        }
    }

    /// Whether QEMU serves its disks there, and not somewhere else. To be asked between two commands.
    pub(super) fn serves(&self) -> bool {
        match &self.reads {
            Peer::Socket(path) => std::os::unix::net::UnixStream::connect(path).is_ok(),
            peer @ Peer::Tls { .. } => Client::answers(peer),
        }
    }
}

/// Where QEMU finds the agent: a part of its `blockdev-add`.
pub(super) fn target(settings: &AgentSettings, names: &Names, place: &GuestDevice<'_>) -> Value {
    let Some(RemoteMirror { address: (host, port), .. }) = place.remote else {
        return here(names);
    };
    json!({
        "server": { "type": "inet", "host": host, "port": port.to_string(), "keep-alive": true },
        "tls-creds": settings.mirror.client_credentials, "tls-hostname": host,
        "reconnect-delay": RECONNECT_REMOTE_S,
    })
}

/// The same on one host.
pub(super) fn here(names: &Names) -> Value {
    let path = names.target_socket.to_string_lossy();
    json!({ "server": { "type": "unix", "path": path }, "reconnect-delay": RECONNECT_S })
}

/// Takes the guest's writes from that QEMU, and from nobody else.
///
/// # Errors
/// When it cannot listen there, or a certificate cannot be used.
pub(super) fn serve(
    settings: &AgentSettings,
    place: &GuestDevice<'_>,
    names: &Names,
    disk: &Disk,
    export: Arc<dyn Export>,
) -> Result<nbd::Server, AgentError> {
    let refused = |at: String| {
        let disk = disk.name.clone();
        move |source: io::Error| AgentError::Serve { disk, at, source: Box::new(source) }
    };
    let (QemuAddress::Tls { host, .. }, Some(remote)) = (place.monitor, place.remote) else {
        let socket = &names.target_socket;
        let server = nbd::Server::bind_for_one(socket, disk.name.as_str(), export);
        return server.map_err(refused(socket.display().to_string()));
    };
    let config = Arc::new(Identity::towards_qemu(settings).server_config()?);
    let at = remote.listen.to_string();
    let client = ServerName::try_from(host.clone());
    let client = client.map_err(|error| refused(at.clone())(io::Error::other(error)))?;
    let tls = ServerTls::new(config, client);
    let listener = TcpListener::bind(remote.listen).map_err(refused(at.clone()))?;
    let server = nbd::Server::start_for_one(listener, disk.name.as_str(), export, tls);
    server.map_err(refused(at))
}
