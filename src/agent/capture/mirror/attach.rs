//! From a guest's disk that nobody watches to one of which each write reaches the agent first.
//!
//! Owns: the order of the steps; each says why it stands where it stands. Does not own: when this is
//! tried ([`super::guest`]).

mod bitmaps;

use std::sync::Arc;

use serde_json::Value;

use crate::agent::disk::Disk;
use crate::agent::stream::Stream;
use crate::nbd::Client;

use super::device::{self, Device};
use super::error::MirrorError;
use super::names::Names;
use super::qmp::Qmp;
use super::reach::Reach;
use super::steps::{self, Mirror, Pause};

type Result<T> = std::result::Result<T, MirrorError>;

/// One disk and where it is found.
pub(super) struct Place {
    pub(super) disk: Arc<Disk>,
    pub(super) device: String,
    pub(super) names: Names,
    /// Where QEMU finds the agent.
    pub(super) target: Value,
}

/// What an attached disk's QEMU knows it by.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    pub(super) node: String,
    /// The guest's device that sits above the mirror, where it is one and not some other node.
    pub(super) above: Option<String>,
    /// The bitmap that records now.
    pub(super) bitmap: String,
}

/// One QEMU, connected.
pub(super) struct Link<'a> {
    pub(super) qmp: &'a mut Qmp,
    pub(super) reach: &'a Reach,
    pub(super) stream: &'a Stream,
}

impl Link<'_> {
    /// Attaches one disk. Afterwards every write of the guest is in the stream, or its bits are set.
    pub(super) fn attach(&mut self, place: &Place, pause: Pause<'_>) -> Result<Attached> {
        let names = &place.names;
        let qmp = &mut *self.qmp;
        steps::end_mirror(qmp, names, pause)?;
        steps::end_export(qmp, &names.bits, pause)?;
        steps::end_export(qmp, &names.reads, pause)?;
        let device = device::find(qmp, &place.device, names)?;
        if device.size_bytes != place.disk.size_bytes {
            return Err(MirrorError::Size {
                disk: place.disk.name.clone(),
                device: place.device.clone(),
                expected: place.disk.size_bytes,
                found: device.size_bytes,
            });
        }
        // Before anything of this disk is in the stream: should the other one come back, it is read as a whole.
        for (node, bitmap) in &device.elsewhere {
            steps::remove_bitmap(qmp, node, bitmap)?;
        }
        steps::serve(qmp, self.reach, &device.node, names)?;
        // Now, and not when a catch-up first needs it: nobody may connect while QEMU carries out a command.
        place.disk.source.connect(true).map_err(MirrorError::Reads)?;
        // What failed before is in the old bitmap.
        let nodes = [device.node.clone(), names.filter.clone()];
        qmp.watch(&names.job, nodes, device.topmost);
        // The mirror first: what the guest writes from here on reaches the agent by itself.
        let disk = place.disk.name.as_str();
        steps::start(qmp, &device.node, disk, names, &place.target)?;
        steps::await_mirror(qmp, names, pause)?;
        let above = device::above(qmp, &names.filter)?;
        // The new bitmap before the old is stopped: no write falls between them.
        let bitmaps = bitmaps::begin(qmp, &device, names)?;
        self.mark_what_was_missed(place, &device, bitmaps.before.as_deref(), pause)?;
        // The old bitmap is forgotten when its bits are on the agent's disk.
        bitmaps::forget(self.qmp, &device, names, &bitmaps)?;
        Ok(Attached { node: device.node, above, bitmap: bitmaps.now })
    }

    /// Sets the bits of what was written while no mirror ran.
    fn mark_what_was_missed(
        &mut self,
        place: &Place,
        device: &Device,
        recorded: Option<&str>,
        pause: Pause<'_>,
    ) -> Result<()> {
        let disk = &place.disk;
        let unordered = |ranges: Vec<_>, why| {
            let ranges = ranges.into_iter().map(|range| (disk.index, range));
            match self.stream.unordered_all(ranges, why).pop_first() {
                None => Ok(()),
                Some((_, error)) => {
                    let name = &disk.name;
                    let why = format!("disk {name}: the bitmap cannot be written: {error}");
                    Err(MirrorError::State(why))
                }
            }
        };
        let Some(bitmap) = recorded else {
            let why = "QEMU has no record of what was written before (it is new, or was started \
                       again): the whole disk is read again";
            tracing::warn!(disk = %disk.name, device = place.device, why);
            return unordered(std::iter::once(0..disk.size_bytes).collect(), why);
        };
        steps::serve_bitmap(self.qmp, &device.node, bitmap, &place.names)?;
        let context = format!("qemu:dirty-bitmap:{bitmap}");
        let mut client = Client::connect_for(&self.reach.reads, &place.names.bits, &context)?;
        // Who attaches holds what a bookmark and the agent's stop wait for.
        client.within(self.reach.patience)?;
        let dirty = client.dirty(0, disk.size_bytes)?;
        let bytes: u64 = dirty.iter().map(|range| range.end - range.start).sum();
        unordered(dirty, "what the guest wrote while no mirror ran is read again")?;
        drop(client);
        steps::end_export(self.qmp, &place.names.bits, pause)?;
        tracing::info!(disk = %disk.name, bytes, "written while no mirror ran, as QEMU recorded it");
        Ok(())
    }

    /// Begins a new bitmap and forgets the one before, so that little is read again after a loss.
    pub(super) fn rotate(&mut self, place: &Place, attached: &mut Attached) -> Result<()> {
        let next = place.names.next_bitmap(std::slice::from_ref(&attached.bitmap));
        steps::add_bitmap(self.qmp, &attached.node, &next)?;
        // A write that reached its disk before the new bitmap was there, and not yet the agent, is in the
        // old one alone. Drained and still synced, it reached the agent.
        steps::drain(self.qmp)?;
        if steps::mirror(self.qmp, &place.names)? != Mirror::Synced {
            return Err(steps::ended(self.qmp, &place.names)); // attaching finds both bitmaps
        }
        steps::remove_bitmap(self.qmp, &attached.node, &attached.bitmap)?;
        attached.bitmap = next;
        Ok(())
    }
}
