//! What is asked of a QEMU while no agent runs: whether a disk could be mirrored, and to forget one.
//!
//! Owns: that nothing of ours is left behind after the second. Does not own: settings.

use serde_json::json;

use crate::agent::error::AgentError;
use crate::model::DiskName;
use crate::settings::{AgentDisk, AgentSettings, Capture, QemuAddress, RemoteMirror};

use super::device;
use super::error::MirrorError;
use super::names::Names;
use super::qmp::Qmp;
use super::reach::Reach;
use super::{refused, steps};

/// A guest's disk as `holdfast agent attach-qemu` names it.
#[derive(Clone, Copy, Debug)]
pub struct GuestDevice<'a> {
    /// Its name in the agent's settings.
    pub disk: &'a DiskName,
    /// QEMU's monitor.
    pub monitor: &'a QemuAddress,
    /// The device there.
    pub device: &'a str,
    /// Where QEMU on another host and the agent meet.
    pub remote: Option<&'a RemoteMirror>,
}

impl<'a> GuestDevice<'a> {
    /// A disk of the settings, if it is one of a guest.
    #[must_use]
    pub fn of(disk: &'a AgentDisk) -> Option<Self> {
        let Capture::Mirror { monitor, device, remote } = &disk.capture else { return None };
        Some(Self { disk: &disk.name, monitor, device, remote: remote.as_ref() })
    }

    fn names(&self, settings: &AgentSettings) -> Names {
        Names::of(&settings.machine, self.disk, &settings.state_directory)
    }

    /// Its size, when it can be mirrored. Blocks.
    ///
    /// # Errors
    /// When the monitor does not answer, has no such device, or another job mirrors it.
    pub fn probe(&self, settings: &AgentSettings) -> Result<u64, AgentError> {
        let names = self.names(settings);
        let reach = Reach::of(settings, self)?;
        let probed = Qmp::connect(&reach.monitor)
            .map_err(MirrorError::from)
            .and_then(|mut qmp| device::find(&mut qmp, self.device, &names));
        probed.map(|device| device.size_bytes).map_err(|error| refused(self.disk, &error))
    }

    /// Takes everything of the agent out of QEMU: mirror, exports, dirty bitmaps, and the NBD server
    /// when it serves nothing else. Blocks; `pause` lets a moment pass.
    ///
    /// # Errors
    /// When the monitor does not answer, or QEMU refuses.
    pub fn forget(
        &self,
        settings: &AgentSettings,
        mut pause: impl FnMut(),
    ) -> Result<(), AgentError> {
        let (names, reach) = (self.names(settings), Reach::of(settings, self)?);
        let mut wait = || {
            pause();
            true
        };
        let mut forgotten = || -> Result<(), MirrorError> {
            let mut qmp = Qmp::connect(&reach.monitor)?;
            steps::end_mirror(&mut qmp, &names, &mut wait)?;
            steps::end_export(&mut qmp, &names.bits, &mut wait)?;
            steps::end_export(&mut qmp, &names.reads, &mut wait)?;
            let device = device::find(&mut qmp, self.device, &names)?;
            for bitmap in &device.bitmaps {
                steps::remove_bitmap(&mut qmp, &device.node, bitmap)?;
            }
            for (node, bitmap) in &device.elsewhere {
                steps::remove_bitmap(&mut qmp, node, bitmap)?;
            }
            let exports = qmp.execute("query-block-exports", json!({}))?;
            if exports.as_array().is_some_and(|exports| exports.iter().all(|e| e["type"] != "nbd"))
            {
                steps::if_there(&mut qmp, "nbd-server-stop", json!({}))?;
            }
            Ok(())
        };
        forgotten().map_err(|error| refused(self.disk, &error))
    }
}
