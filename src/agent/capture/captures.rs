//! Every way of capture, opened by a disk's settings, started once the stream is there, and ended.
//!
//! Owns: which way a disk goes. Does not own: what a way does.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Entropy;
use crate::nbd;
use crate::settings::{AgentDisk, AgentSettings, Capture};

use super::super::error::AgentError;
use super::super::medium::Medium;
use super::super::run::{Agent, Shared};
use super::super::source;
use super::{Observer, Scanned, ebpf, fuse, mirror, scan};

/// Everything that captures for one agent.
#[derive(Default)]
pub(in crate::agent) struct Captures {
    servers: Vec<nbd::Server>,
    mounts: Vec<fuse::Mounted>,
    scans: Vec<scan::Running>,
}

/// What opening the disks needs, and what it leaves to [`start`].
pub(in crate::agent) struct Opening<'a> {
    pub(in crate::agent) settings: &'a AgentSettings,
    pub(in crate::agent) entropy: &'a dyn Entropy,
    /// Disks to be scanned.
    pub(in crate::agent) scanned: Vec<Scanned>,
}

/// Opens a disk for its way of capture; returns it with its size.
///
/// # Errors
/// When it is missing, in use, or not what that way can capture.
pub(in crate::agent) fn open(
    disk: &AgentDisk,
    opening: &mut Opening<'_>,
) -> Result<(Box<dyn Medium>, u64), AgentError> {
    match &disk.capture {
        Capture::Nbd { .. } | Capture::Fuse { .. } => {
            let (medium, bytes) = source::open_disk(&disk.path)?;
            Ok((Box::new(medium), bytes))
        }
        Capture::Ebpf => ebpf::open(disk),
        Capture::Mirror { monitor, device, remote } => {
            let (disk, remote) = (&disk.name, remote.as_ref());
            let place = mirror::GuestDevice { disk, monitor, device, remote };
            mirror::open(opening.settings, &place)
        }
        Capture::Scan(settings) => {
            let (agent, entropy) = (opening.settings, opening.entropy);
            let scanned = Scanned::open(disk, settings, agent, entropy)?;
            let opened = (scanned.medium(), scanned.size_bytes());
            opening.scanned.push(scanned);
            Ok(opened)
        }
    }
}

/// Starts what captures the agent's disks. The stream is in bitmap mode and connected to nobody.
///
/// # Errors
/// When one of them cannot start.
pub(in crate::agent) fn start(
    agent: &Agent,
    scanned: Vec<Scanned>,
) -> Result<Captures, AgentError> {
    let mut captures = Captures::default();
    let (mut files, mut mirrored) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
    for disk in agent.disks() {
        match &disk.capture {
            Capture::Nbd { socket } => {
                let export = agent.export(&disk.name)?;
                let server = nbd::Server::bind(socket, disk.name.as_str(), export);
                captures.servers.push(server.map_err(|source| AgentError::Serve {
                    disk: disk.name.clone(),
                    at: socket.display().to_string(),
                    source: Box::new(source),
                })?);
            }
            Capture::Fuse { mount } => {
                let file = (disk.name.clone(), agent.export(&disk.name)?);
                files.entry(mount).or_default().push(file);
            }
            Capture::Mirror { monitor, device, remote } => {
                let served = agent.disk(&disk.name)?;
                let (disk, remote) = (&disk.name, remote.as_ref());
                mirrored.push((served, mirror::GuestDevice { disk, monitor, device, remote }));
            }
            Capture::Ebpf | Capture::Scan(_) => {}
        }
    }
    for (directory, disks) in files {
        let mounted = fuse::mount(directory, &disks);
        captures.mounts.push(mounted.map_err(|source| AgentError::Mount { source })?);
    }
    let mut observers: Vec<Arc<dyn Observer>> = Vec::new();
    for scanned in scanned {
        let (running, observer) = scanned.start(agent.stream(), agent.clock())?;
        captures.scans.push(running);
        observers.push(observer);
    }
    let Shared { stream, settings, clock, entropy, .. } = agent.shared();
    observers.extend(mirror::start(settings, stream, clock, &mirrored)?);
    if agent.disks().iter().any(|disk| disk.capture == Capture::Ebpf) {
        observers.push(ebpf::start(stream, settings, clock, entropy.as_ref())?);
    }
    stream.observe_with(observers);
    Ok(captures)
}

impl Captures {
    /// No write comes any more when this returns. Blocks.
    pub(in crate::agent) fn stop(self, observers: &[Arc<dyn Observer>]) {
        self.servers.into_iter().for_each(nbd::Server::stop);
        self.mounts.into_iter().for_each(fuse::Mounted::stop);
        observers.iter().for_each(|observer| observer.stop());
    }
}
