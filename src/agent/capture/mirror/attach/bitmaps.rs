//! Which of our dirty bitmaps in a QEMU records from here on, and which one holds what was missed.
//!
//! Owns: that they stay few however often attaching fails, and that none is believed before what is older
//! than it was marked. Does not own: reading them ([`super`]).

use super::super::device::Device;
use super::super::error::MirrorError;
use super::super::names::Names;
use super::super::qmp::Qmp;
use super::super::steps;

/// The bitmaps of one disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bitmaps {
    /// Records every write from here on.
    pub(super) now: String,
    /// Holds every write before that which the agent may have missed; `None`: nobody knows of them.
    pub(super) before: Option<String>,
}

/// No write falls between the two. Whatever this does not come to, the next attempt may rest on what it
/// finds then.
pub(super) fn begin(qmp: &mut Qmp, device: &Device, names: &Names) -> Result<Bitmaps, MirrorError> {
    let (node, all) = (&device.node, &device.bitmaps);
    let Some(recording) = &device.recording else {
        // The mark before the bitmap: whoever finds the bitmap alone believes it.
        if !all.contains(&names.unread) {
            steps::add_mark(qmp, node, &names.unread)?;
        }
        for worthless in all.iter().filter(|name| **name != names.unread) {
            steps::remove_bitmap(qmp, node, worthless)?;
        }
        let now = names.next_bitmap(&[]);
        steps::add_bitmap(qmp, node, &now)?;
        return Ok(Bitmaps { now, before: None });
    };
    let others: Vec<&String> = all.iter().filter(|name| *name != recording).collect();
    let Some((before, more)) = others.split_first() else {
        let now = names.next_bitmap(all);
        steps::add_bitmap(qmp, node, &now)?;
        return Ok(Bitmaps { now, before: Some(recording.clone()) });
    };
    // Attaching failed, or a renewal did. What records goes on: what it held is in both afterwards.
    let sources: Vec<&String> = more.iter().copied().chain([recording]).collect();
    steps::merge_bitmaps(qmp, node, before, &sources)?;
    for merged in more {
        steps::remove_bitmap(qmp, node, merged)?;
    }
    Ok(Bitmaps { now: recording.clone(), before: Some((*before).clone()) })
}

/// What was missed is on the agent's disk.
pub(super) fn forget(
    qmp: &mut Qmp,
    device: &Device,
    names: &Names,
    bitmaps: &Bitmaps,
) -> Result<(), MirrorError> {
    steps::remove_bitmap(qmp, &device.node, bitmaps.before.as_ref().unwrap_or(&names.unread))
}
