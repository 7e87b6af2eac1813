//! A captured block device as the catch-up reads it: past the page cache, which knows nothing of what
//! a file system above it wrote.
//!
//! Owns: that a read returns only when what it may have seen is complete and told. Does not own:
//! writing; nobody writes here.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::{OFlags, SeekFrom, seek};

use crate::agent::error::AgentError;
use crate::agent::medium::{Gate, Medium};
use crate::model::{DISK_BYTES_MAX, SECTOR_BYTES};

use super::shared::Shared;

/// What direct reads are aligned to in memory.
const ALIGN: usize = 4096;

/// What else than its permissions keeps a device from being opened.
const FORBIDDEN: &str = "open the disk; the agent's user, its unit (DeviceAllow=) and the device rules of \
                         its container must let it read the device";

/// A block device that others write.
pub(super) struct DeviceMedium {
    file: File,
    gate: OnceLock<Arc<dyn Gate>>,
}

/// Opens a device for reading.
pub(super) fn open(path: &Path) -> Result<(DeviceMedium, u64), AgentError> {
    super::device::part(path)?;
    let action = |action: &'static str| move |source| AgentError::io(path, action, source);
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlags::DIRECT.bits() as i32);
    let file = options.open(path).map_err(|source| {
        let forbidden = source.kind() == io::ErrorKind::PermissionDenied;
        action(if forbidden { FORBIDDEN } else { "open the disk" })(source)
    })?;
    let bytes = seek(&file, SeekFrom::End(0))
        .map_err(|error| AgentError::io(path, "find the size of the disk", error.into()))?;
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) || bytes > DISK_BYTES_MAX {
        return Err(AgentError::DiskSize { path: path.into(), bytes });
    }
    Ok((DeviceMedium { file, gate: OnceLock::new() }, bytes))
}

fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "a disk captured by eBPF is only read"))
}

impl Medium for DeviceMedium {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let gate = self.gate.get().ok_or_else(|| io::Error::other("capture has not begun"))?;
        gate.before(&(offset..offset + target.len() as u64)).map_err(io::Error::other)?;
        let mut room = vec![0; target.len() + ALIGN];
        let start = room.as_ptr().align_offset(ALIGN).min(ALIGN);
        let room = &mut room[start..start + target.len()];
        self.file.read_exact_at(room, offset)?;
        target.copy_from_slice(room);
        gate.after().map_err(io::Error::other)
    }

    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        refused()
    }

    fn zero_at(&self, _offset: u64, _length: u64, _release: bool) -> io::Result<()> {
        refused()
    }

    /// Nothing rests on it: what the device loses with its power is found by the resync that follows
    /// every boot.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64, _end: u64) -> io::Result<u64> {
        Ok(offset)
    }

    fn next_hole(&self, _offset: u64, end: u64) -> io::Result<u64> {
        Ok(end)
    }

    fn guard(&self, gate: Arc<dyn Gate>) {
        let _first = self.gate.set(gate);
    }
}

/// Lets the reads of one disk through.
pub(super) struct DiskGate {
    pub(super) shared: Arc<Shared>,
    pub(super) disk: u16,
}

impl Gate for DiskGate {
    fn before(&self, range: &std::ops::Range<u64>) -> Result<(), String> {
        self.shared.landed(u64::from(self.disk), range)
    }

    fn after(&self) -> Result<(), String> {
        self.shared.settle()
    }
}
