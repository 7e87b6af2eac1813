//! What a bitmap must be about to be believed.

use crate::model::{DiskName, Epoch, MachineKey, Sequence};

use super::layout::Header;

/// What a bitmap must be about to be believed.
#[derive(Clone, Debug)]
pub(in crate::agent) struct Identity {
    /// Whose disk.
    pub(in crate::agent) machine: MachineKey,
    /// Which.
    pub(in crate::agent) disk: DiskName,
    /// Its size.
    pub(in crate::agent) disk_bytes: u64,
    /// Bytes that one bit stands for.
    pub(in crate::agent) chunk_bytes: u32,
    /// CRC-32 over all disks of the machine.
    pub(in crate::agent) disks_crc: u32,
}

impl Identity {
    /// Number of chunks.
    pub(in crate::agent) fn chunks(&self) -> u64 {
        self.disk_bytes.div_ceil(u64::from(self.chunk_bytes))
    }

    pub(super) fn header(
        &self,
        epoch: Epoch,
        witnessed: Sequence,
        clean: bool,
        turn: u64,
    ) -> Header {
        Header {
            machine: self.machine,
            disk: self.disk.clone(),
            disk_bytes: self.disk_bytes,
            chunk_bytes: self.chunk_bytes,
            disks_crc: self.disks_crc,
            epoch,
            witnessed,
            clean,
            turn,
        }
    }

    pub(super) fn mismatch(&self, header: &Header) -> Option<String> {
        if header.machine != self.machine || header.disk != self.disk {
            let (machine, disk) = (&header.machine, &header.disk);
            Some(format!("it belongs to disk {disk} of machine {machine}"))
        } else if header.disk_bytes != self.disk_bytes {
            let (was, is) = (header.disk_bytes, self.disk_bytes);
            Some(format!("the disk had {was} bytes and has {is} now"))
        } else if header.chunk_bytes != self.chunk_bytes {
            let (was, is) = (header.chunk_bytes, self.chunk_bytes);
            Some(format!("a bit stood for {was} bytes and stands for {is} now"))
        } else if header.disks_crc != self.disks_crc {
            Some("the machine has other disks now".to_owned())
        } else {
            None
        }
    }
}
