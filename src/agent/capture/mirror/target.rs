//! The disk as QEMU's mirror job writes it.
//!
//! Owns: that a write which the agent refuses ends the order of the stream before QEMU hears of it. Does
//! not own: the way of a write ([`crate::agent::disk`]).

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::agent::disk::Captured;
use crate::agent::stream::Stream;
use crate::model::DiskIndex;
use crate::nbd::{BlockStatus, Export};

/// A captured disk behind a mirror job. Its source is the guest's own disk, where a write stands
/// already when it comes here.
pub(super) struct Target {
    pub(super) captured: Captured,
}

impl Target {
    /// QEMU ends the job after an error and lets the guest go on: what it writes then comes to nobody.
    fn told(&self, outcome: io::Result<()>) -> io::Result<()> {
        let (stream, disk): (&Arc<Stream>, DiskIndex) =
            (&self.captured.stream, self.captured.disk.index);
        if let Err(error) = &outcome
            && !stream.closed()
        {
            stream.withhold(disk, &format!("a write of the mirror was refused: {error}"));
        }
        outcome
    }
}

impl Export for Target {
    fn size_bytes(&self) -> u64 {
        self.captured.size_bytes()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.captured.read(offset, target)
    }

    fn write(&self, offset: u64, payload: Bytes, fua: bool) -> io::Result<()> {
        self.told(self.captured.write(offset, payload, fua))
    }

    fn zero(&self, offset: u64, length: u64, trim: bool, fua: bool) -> io::Result<()> {
        self.told(self.captured.zero(offset, length, trim, fua))
    }

    fn flush(&self) -> io::Result<()> {
        self.captured.flush()
    }

    /// The agent keeps no copy, so it knows of no hole.
    fn block_status(&self, _offset: u64, length: u64) -> io::Result<Vec<BlockStatus>> {
        Ok(vec![BlockStatus { length, hole: false, zero: false }])
    }
}
