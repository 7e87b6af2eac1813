//! Why a guest's disk is not mirrored now.

use crate::model::DiskName;
use crate::nbd::NbdError;

use super::qmp::QmpError;

/// Each with the thing and the cure.
#[derive(Debug, thiserror::Error)]
pub(in crate::agent) enum MirrorError {
    /// The monitor.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Reading from QEMU.
    #[error(transparent)]
    Nbd(#[from] NbdError),
    /// The disk cannot be read through QEMU.
    #[error("connecting to QEMU's disk")]
    Reads(#[source] std::io::Error),
    /// No such device.
    #[error("QEMU at {socket} has no device {device}; it has {}", listed(.known))]
    NoDevice {
        /// Which monitor.
        socket: String,
        /// Asked for.
        device: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Another job stands above the device.
    #[error(
        "device {device} of QEMU at {socket} is already mirrored by another job ({found}); cancel \
         that first (query-block-jobs, block-job-cancel)"
    )]
    AlreadyMirrored {
        /// Which monitor.
        socket: String,
        /// Which device.
        device: String,
        /// The driver of the node that is there.
        found: String,
    },
    /// Not the disk that is protected.
    #[error(
        "disk {disk} has {expected} bytes and device {device} of QEMU has {found}: it is another \
         disk, or it was resized; restart the agent to begin a new epoch with its new size"
    )]
    Size {
        /// Which disk.
        disk: DiskName,
        /// Which device.
        device: String,
        /// The disk's.
        expected: u64,
        /// The device's.
        found: u64,
    },
    /// QEMU serves NBD to somebody else.
    #[error(
        "QEMU at {socket} runs an NBD server for something else, and has but one; end that \
         (nbd-server-stop) so that the agent can read the disk through it"
    )]
    OtherServer {
        /// Which monitor.
        socket: String,
    },
    /// Something did not come about, or did not last.
    #[error("{0}")]
    State(String),
}

impl MirrorError {
    /// Whether the monitor is of no use any more: its answers are out of step, or it is gone.
    pub(super) fn ends_connection(&self) -> bool {
        matches!(self, Self::Qmp(error) if !matches!(error, QmpError::Refused { .. }))
    }

    /// Whether nobody is there: QEMU is not running.
    pub(super) fn off(&self) -> bool {
        matches!(self, Self::Qmp(error) if error.gone())
    }
}

fn listed(devices: &[String]) -> String {
    if devices.is_empty() { "none".to_owned() } else { devices.join(", ") }
}
