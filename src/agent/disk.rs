//! A captured disk, and the way of one write through it.
//!
//! Owns: the order [range lock → intent on disk → source → sequence → answer]. Does not own: what
//! the stream does with a change ([`super::stream`]).

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::model::{Change, DiskIndex, DiskName, Extent, WRITE_BYTES_MAX, ZERO_BYTES_MAX};
use crate::nbd::{BlockStatus, Export};
use crate::settings::AgentMode;

use super::bitmap::Bitmap;
use super::locks::RangeLocks;
use super::medium::Medium;
use super::source_identity::Changed;
use super::stream::Stream;
use super::syncs::Syncs;
use super::turnover::Turnover;

/// Most extents in one answer about allocation.
const STATUS_EXTENTS_MAX: usize = 1024;

/// One disk of the machine.
pub(super) struct Disk {
    /// Its number in records.
    pub(super) index: DiskIndex,
    /// Its name.
    pub(super) name: DiskName,
    /// Its size.
    pub(super) size_bytes: u64,
    /// Where its bytes are.
    pub(super) source: Box<dyn Medium>,
    /// What may differ from what is published.
    pub(super) bitmap: Bitmap,
    /// Who writes where.
    pub(super) locks: RangeLocks,
    /// Every sync of the source, the workload's and our own.
    pub(super) syncs: Syncs,
    /// Who waits for whom.
    pub(super) turnover: Arc<Turnover>,
}

impl Disk {
    /// fdatasync of the source. After a failure the page cache shows bytes that the disk may not
    /// hold, so no later one succeeds: neither the workload nor a cleared bit may rest on them.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.syncs.sync(self.source.as_ref())
    }

    /// When the source was changed last, on disk; `None` when that cannot be known, or somebody still
    /// writes or reads it.
    ///
    /// # Errors
    /// When the source cannot be synced.
    pub(super) fn changed(&self) -> io::Result<Option<Changed>> {
        if !self.locks.ranges().is_empty() {
            return Ok(None);
        }
        self.sync()?;
        self.source.changed()
    }
}

/// A disk as the workload sees it.
pub(super) struct Captured {
    /// The disk.
    pub(super) disk: Arc<Disk>,
    /// Where its changes go.
    pub(super) stream: Arc<Stream>,
    /// When a write is answered.
    pub(super) mode: AgentMode,
}

impl Captured {
    /// One change of the source and its place in the stream, as one unit.
    fn change(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
        source: impl FnOnce(&dyn Medium) -> io::Result<()>,
        changes: impl FnOnce() -> Vec<Change>,
    ) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let Disk { index, bitmap, locks, .. } = &*self.disk;
        let range = offset..offset + length;
        let asked = self.disk.turnover.asked();
        let held = locks.hold(range.clone());
        if self.stream.closed() {
            return Err(io::Error::other("the agent has stopped"));
        }
        bitmap.intend(range.clone())?;
        if let Err(error) = source(self.disk.source.as_ref()) {
            // Perhaps some of it was written: only the disk knows.
            self.stream.unknown(*index, range, &error);
            return Err(error);
        }
        let synced = if fua { self.disk.sync() } else { Ok(()) };
        let placed = self.stream.tee(*index, range, changes());
        drop(held);
        synced?;
        if let (AgentMode::Sync, Some(placed)) = (self.mode, placed) {
            drop(asked); // for the server now; `keeping::tell` bounds that wait
            self.stream.wait_durable(placed);
        }
        Ok(())
    }
}

/// Cuts a range into extents of at most `most` bytes.
pub(super) fn cut(offset: u64, length: u64, most: u32) -> impl Iterator<Item = Extent> {
    let most = u64::from(most);
    (0..length.div_ceil(most)).map(move |part| {
        let at = part * most;
        Extent::new(offset + at, (length - at).min(most), most as u32)
            .expect("NBD ranges are checked to be aligned and inside the disk")
    })
}

impl Export for Captured {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.disk.source.read_at(offset, target)
    }

    fn write(&self, offset: u64, payload: Bytes, fua: bool) -> io::Result<()> {
        let (disk, length) = (self.disk.index, payload.len() as u64);
        let changes = || {
            let part = |extent: Extent| {
                let start = (extent.offset() - offset) as usize;
                let payload = payload.slice(start..start + extent.length() as usize).into();
                Change::Write { disk, extent, payload }
            };
            cut(offset, length, WRITE_BYTES_MAX).map(part).collect()
        };
        self.change(offset, length, fua, |source| source.write_at(offset, &payload), changes)
    }

    fn zero(&self, offset: u64, length: u64, trim: bool, fua: bool) -> io::Result<()> {
        let disk = self.disk.index;
        let zero = |extent| Change::Zero { disk, extent };
        let changes = || cut(offset, length, ZERO_BYTES_MAX).map(zero).collect();
        self.change(offset, length, fua, |source| source.zero_at(offset, length, trim), changes)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.sync()
    }

    fn block_status(&self, offset: u64, length: u64) -> io::Result<Vec<BlockStatus>> {
        let end = offset + length;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < STATUS_EXTENTS_MAX {
            let data = self.disk.source.next_data(at, end)?;
            let (until, hole) = match data > at {
                true => (data, true),
                false => (self.disk.source.next_hole(at, end)?.max(at + 1), false),
            };
            extents.push(BlockStatus { length: until - at, hole, zero: hole });
            at = until;
        }
        Ok(extents)
    }
}
