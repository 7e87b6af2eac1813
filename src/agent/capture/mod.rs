//! How the writes of a disk come to be known. One stream behind all ways; `docs/capture.md` says
//! which way promises what.
//!
//! NBD stands in the way of a write (`super::disk`): it gives a sequence before the workload has its
//! answer. An [`Observer`] hears of a write after the fact.
//!
//! Owns: opening a disk by its way of capture, starting and stopping them. Does not own: the stream.

pub(super) mod mirror;

use std::sync::Arc;

use crate::model::DiskIndex;
use crate::nbd;
use crate::settings::{AgentDisk, AgentSettings, Capture};

use super::error::AgentError;
use super::medium::Medium;
use super::run::Agent;
use super::source;

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
}

/// Opens a disk for its way of capture; returns it with its size.
///
/// # Errors
/// When it is missing, in use, or not what that way can capture.
pub(super) fn open(
    settings: &AgentSettings,
    disk: &AgentDisk,
) -> Result<(Box<dyn Medium>, u64), AgentError> {
    match &disk.capture {
        Capture::Mirror { monitor, device } => {
            mirror::open(settings, &mirror::GuestDevice { disk: &disk.name, monitor, device })
        }
        Capture::Nbd { .. } => {
            let (medium, bytes) = source::open_disk(&disk.path)?;
            Ok((Box::new(medium), bytes))
        }
    }
}

/// Starts what captures the agent's disks. The stream is in bitmap mode and connected to nobody.
///
/// # Errors
/// When one of them cannot start.
pub(super) fn start(agent: &Agent, disks: &[AgentDisk]) -> Result<Captures, AgentError> {
    let mut captures = Captures::default();
    let mut mirrors = Vec::new();
    for disk in disks {
        match &disk.capture {
            Capture::Mirror { monitor, device } => {
                let place = mirror::GuestDevice { disk: &disk.name, monitor, device };
                mirrors.push((agent.disk(&disk.name)?, place));
            }
            Capture::Nbd { socket } => {
                let export = agent.export(&disk.name)?;
                let server = nbd::Server::bind(socket, disk.name.as_str(), export);
                captures.servers.push(server.map_err(|source| AgentError::Serve {
                    disk: disk.name.clone(),
                    socket: socket.clone(),
                    source: Box::new(source),
                })?);
            }
        }
    }
    let (settings, stream) = agent.parts();
    stream.observe_with(mirror::start(settings, stream, &mirrors)?);
    Ok(captures)
}

impl Captures {
    /// No write comes any more when this returns. Blocks.
    pub(super) fn stop(self, observers: &[Arc<dyn Observer>]) {
        self.servers.into_iter().for_each(nbd::Server::stop);
        observers.iter().for_each(|observer| observer.stop());
    }
}
