//! One segment of the log in memory: bytes that can be read while anybody holds it.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc::UnboundedSender;

use super::file::Slot;
use super::map::Mapping;

/// A segment whose records are still needed by somebody. When its last holder drops it, its slot
/// goes back to the pool.
#[derive(Debug)]
pub(crate) struct Segment {
    bytes: SegmentBytes,
    recycle: Option<(Slot, UnboundedSender<Slot>)>,
    /// A later segment that must not be recycled before this one. Dropped after the slot is sent.
    later: OnceLock<Arc<Self>>,
}

#[derive(Debug)]
pub(super) enum SegmentBytes {
    /// The twin for tests and simulation.
    Memory(Vec<u8>),
    /// A file.
    Mapped(Mapping),
}

impl Segment {
    pub(crate) fn in_memory(bytes: Vec<u8>) -> Self {
        Self { bytes: SegmentBytes::Memory(bytes), recycle: None, later: OnceLock::new() }
    }

    /// The segment in `slot`, which goes to `pool` afterwards.
    pub(super) fn in_slot(slot: Slot, pool: UnboundedSender<Slot>) -> std::io::Result<Self> {
        Ok(Self { bytes: slot.file.view()?, recycle: Some((slot, pool)), later: OnceLock::new() })
    }

    /// From now on `later` is recycled after this one. The first such segment stays: it is held in
    /// turn by whatever else has to be.
    pub(super) fn outlived_by(&self, later: &Arc<Self>) {
        self.later.get_or_init(|| Arc::clone(later));
    }

    /// From now on the bytes before `end` can be read: they are on the disk.
    pub(super) fn allow(&self, end: u64) {
        if let SegmentBytes::Mapped(mapping) = &self.bytes {
            mapping.allow(usize::try_from(end).unwrap_or(usize::MAX));
        }
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> &[u8] {
        match &self.bytes {
            SegmentBytes::Memory(bytes) => &bytes[range],
            SegmentBytes::Mapped(mapping) => mapping.slice(range),
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // A panic drops records that nobody published: their segment must outlive the process.
        if let Some((slot, pool)) = self.recycle.take().filter(|_| !std::thread::panicking()) {
            let _pool_may_be_gone = pool.send(slot); // then the next start frees it
        }
    }
}
