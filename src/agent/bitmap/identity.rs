//! What a bitmap must be about to be believed.

use crate::model::{DiskName, Epoch, MachineKey, Sequence};
use crate::settings::Capture;

use super::super::source_identity::SourceIdentity;
use super::layout::Header;

/// Who tells of a disk's writes. Whoever changes it loses what only the teller before could have told
/// of: nobody else reads the bits in the kernel or in QEMU, or compares with a scan's hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum Teller {
    /// The agent itself: nothing is written but through it (NBD, FUSE).
    Agent = 1,
    /// The program in the kernel.
    Kernel = 2,
    /// A guest's QEMU.
    Guest = 3,
    /// Nobody: a scan compares.
    Scan = 4,
}

impl Teller {
    pub(super) fn from_code(code: u8) -> Option<Self> {
        [Self::Agent, Self::Kernel, Self::Guest, Self::Scan]
            .into_iter()
            .find(|teller| *teller as u8 == code)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "nbd or fuse",
            Self::Kernel => "ebpf",
            Self::Guest => "mirror",
            Self::Scan => "scan",
        }
    }
}

impl From<&Capture> for Teller {
    fn from(capture: &Capture) -> Self {
        match capture {
            Capture::Nbd { .. } | Capture::Fuse { .. } => Self::Agent,
            Capture::Ebpf => Self::Kernel,
            Capture::Mirror { .. } => Self::Guest,
            Capture::Scan(_) => Self::Scan,
        }
    }
}

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
    /// Who tells of its writes.
    pub(in crate::agent) teller: Teller,
    /// What tells it from another disk of its size, where nobody told the teller (the agent itself) of
    /// what was put in its place meanwhile.
    pub(in crate::agent) source: SourceIdentity,
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
            teller: self.teller,
            source: self.source.clone(),
            epoch,
            witnessed,
            clean,
            changed: None,
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
        } else if header.teller != self.teller {
            let (was, is) = (header.teller.as_str(), self.teller.as_str());
            Some(format!("the disk was captured by {was} and is captured by {is} now"))
        } else if self.source.differs(&header.source) {
            let (was, is) = (&header.source, &self.source);
            Some(format!("another disk lies there (it was {was}; it is {is})"))
        } else {
            None
        }
    }
}
