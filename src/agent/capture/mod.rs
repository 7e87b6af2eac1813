//! How the writes of a disk come to be known. One stream behind all ways; `docs/capture.md` says
//! which way promises what.
//!
//! NBD and [`fuse`] stand in the way of a write (`super::disk`): they give a sequence before the
//! workload has its answer. An [`Observer`] hears of a write after the fact.
//!
//! Owns: opening a disk by its way of capture, starting and stopping them. Does not own: the stream.

mod fuse;
mod scan;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Entropy;
use crate::model::DiskIndex;
use crate::nbd;
use crate::settings::{AgentDisk, AgentSettings, Capture};

use super::error::AgentError;
use super::medium::Medium;
use super::run::Agent;
use super::source;

pub(super) use scan::Scanned;

/// How well a disk's changes are known at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CaptureMode {
    /// Every change with its bytes, in order.
    Ordered,
    /// Where something was written, not what: it is read again.
    Extents,
    /// In which chunks something was written: they are read again.
    Bitmap,
}

impl CaptureMode {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::Extents => "extents",
            Self::Bitmap => "bitmap",
        }
    }
}

/// Somebody who sees writes that were made without asking the agent. It tells the stream of them with
/// [`super::stream::Stream::observed`] and [`super::stream::Stream::unordered`].
pub(super) trait Observer: Send + Sync {
    /// Blocks until everything that the workload did before this call is in the stream, or its bits are
    /// set. A bookmark that is placed after that stands behind all of it.
    ///
    /// # Errors
    /// In words, when that cannot be had: then no bookmark is placed.
    fn settle(&self) -> Result<(), String>;
    /// How well each of its disks is known now, and why not better.
    fn modes(&self) -> Vec<(DiskIndex, CaptureMode, String)>;
    /// Ends it in order: what was seen is in the stream when this returns, and nothing follows.
    fn stop(&self);
}

/// Everything that captures for one agent.
#[derive(Default)]
pub(super) struct Captures {
    servers: Vec<nbd::Server>,
    mounts: Vec<fuse::Mounted>,
    scans: Vec<scan::Running>,
}

/// What opening the disks needs, and what it leaves to [`start`].
pub(super) struct Opening<'a> {
    pub(super) settings: &'a AgentSettings,
    pub(super) entropy: &'a dyn Entropy,
    /// Disks to be scanned.
    pub(super) scanned: Vec<Scanned>,
}

/// Opens a disk for its way of capture; returns it with its size.
///
/// # Errors
/// When it is missing, in use, or not what that way can capture.
pub(super) fn open(
    disk: &AgentDisk,
    opening: &mut Opening<'_>,
) -> Result<(Box<dyn Medium>, u64), AgentError> {
    match &disk.capture {
        Capture::Nbd { .. } | Capture::Fuse { .. } => {
            let (medium, bytes) = source::open_disk(&disk.path)?;
            Ok((Box::new(medium), bytes))
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
pub(super) fn start(agent: &Agent, scanned: Vec<Scanned>) -> Result<Captures, AgentError> {
    let mut captures = Captures::default();
    let mut files = BTreeMap::<_, Vec<_>>::new();
    for disk in agent.disks() {
        match &disk.capture {
            Capture::Nbd { socket } => {
                let export = agent.export(&disk.name)?;
                let server = nbd::Server::bind(socket, disk.name.as_str(), export);
                captures.servers.push(server.map_err(|source| AgentError::Serve {
                    disk: disk.name.clone(),
                    socket: socket.clone(),
                    source: Box::new(source),
                })?);
            }
            Capture::Fuse { mount } => {
                let file = (disk.name.clone(), agent.export(&disk.name)?);
                files.entry(mount).or_default().push(file);
            }
            Capture::Scan(_) => {}
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
    agent.stream().observe_with(observers);
    Ok(captures)
}

impl Captures {
    /// No write comes any more when this returns. Blocks.
    pub(super) fn stop(self, observers: &[Arc<dyn Observer>]) {
        self.servers.into_iter().for_each(nbd::Server::stop);
        self.mounts.into_iter().for_each(fuse::Mounted::stop);
        observers.iter().for_each(|observer| observer.stop());
    }
}
