//! `capture = "mirror"`: a QEMU guest's disks, with nothing inside the guest.
//!
//! The agent is the target of a mirror job in QEMU (`copy-mode=write-blocking`): a write comes here after it
//! is on the guest's disk and before the guest has its answer. `docs/capture.md` says why that is right.
//!
//! From the outside in: `guest` watches one QEMU, `state` says how a disk is; `attach` is the order of the
//! steps, `steps` their commands, `device` finds a disk, `qmp` speaks to the monitor; `source` reads a
//! disk, `target` takes its writes.

mod attach;
mod device;
mod error;
mod guest;
mod names;
mod qmp;
mod remote;
#[cfg(test)]
mod renewal_tests;
mod source;
mod state;
mod steps;
mod target;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::agent::disk::{Captured, Disk};
use crate::agent::error::AgentError;
use crate::agent::medium::Medium;
use crate::agent::stream::Stream;
use crate::clock::Clock;
use crate::model::DiskName;
use crate::nbd;
use crate::settings::AgentSettings;

pub use remote::GuestDevice;

use super::Observer;
use attach::Place;
use error::MirrorError;
use guest::{Guest, Mirrored, in_words};
use names::{Names, reads_socket};
use qmp::{Qmp, QmpError};
use source::GuestDisk;
use target::Target;

/// Asks QEMU for a disk's size. A guest that is off has the size that it had.
///
/// # Errors
/// When there is no such device, or nobody ever knew its size.
pub(super) fn open(
    settings: &AgentSettings,
    place: &GuestDevice<'_>,
) -> Result<(Box<dyn Medium>, u64), AgentError> {
    let names = Names::of(&settings.machine, place.disk, &settings.state_directory);
    let file = names::size_file(&settings.state_directory, place.disk);
    let asked = Qmp::connect(place.monitor)
        .map_err(MirrorError::from)
        .and_then(|mut qmp| device::find(&mut qmp, place.monitor, place.device, &names));
    let size_bytes = match asked {
        Ok(device) => {
            let written = fs::write(&file, device.size_bytes.to_string());
            written.map_err(|source| AgentError::io(&file, "remember the disk's size", source))?;
            device.size_bytes
        }
        Err(error @ MirrorError::Qmp(QmpError::Io { .. })) => {
            let known = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            let Some(known) = known else { return Err(refused(place.disk, &error)) };
            tracing::warn!(disk = %place.disk, why = in_words(&error), "its guest is off");
            known
        }
        Err(error) => return Err(refused(place.disk, &error)),
    };
    let socket = reads_socket(&settings.state_directory, place.monitor);
    Ok((Box::new(GuestDisk::new(socket, names.reads)), size_bytes))
}

fn refused(disk: &DiskName, error: &MirrorError) -> AgentError {
    AgentError::Capture { disk: disk.clone(), why: in_words(error) }
}

/// Begins to mirror all these disks, each QEMU with its own.
///
/// # Errors
/// When a socket or a thread cannot be made.
pub(super) fn start(
    settings: &AgentSettings,
    stream: &Arc<Stream>,
    clock: &Arc<dyn Clock>,
    places: &[(Arc<Disk>, GuestDevice<'_>)],
) -> Result<Vec<Arc<dyn Observer>>, AgentError> {
    let mut guests: BTreeMap<&Path, Vec<Mirrored>> = BTreeMap::new();
    for (disk, place) in places {
        let names = Names::of(&settings.machine, &disk.name, &settings.state_directory);
        let captured =
            Captured { disk: Arc::clone(disk), stream: Arc::clone(stream), mode: settings.mode };
        let (socket, export) = (names.target_socket.clone(), Arc::new(Target { captured }));
        let server = nbd::Server::bind_for_one(&socket, disk.name.as_str(), export);
        let server = server.map_err(|source| AgentError::Serve {
            disk: disk.name.clone(),
            socket,
            source: Box::new(source),
        })?;
        let (disk, device) = (Arc::clone(disk), place.device.to_owned());
        let mirrored = Mirrored { place: Place { disk, device, names }, server };
        guests.entry(place.monitor).or_default().push(mirrored);
    }
    let mut observers: Vec<Arc<dyn Observer>> = Vec::new();
    for (monitor, disks) in guests {
        let socket = reads_socket(&settings.state_directory, monitor);
        let watched = Guest::watch(monitor.to_owned(), socket, stream, clock, disks);
        observers.push(watched.map_err(|e| AgentError::io(monitor, "watch the guest", e))?);
    }
    Ok(observers)
}
