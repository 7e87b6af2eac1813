//! The last segment after an unclean stop: what counts of it is copied, because the page cache may
//! hold what the disk does not.
//!
//! Owns: *must* 7 of `docs/formats/cache-segment.md`. Does not own: what counts (`recovery`).

use super::error::CacheError;
use super::file::Slot;
use super::log::{Layout, padding};
use super::recovery::{Log, Recovery, Scanned};
use super::streams::Found;
use crate::format::segment::{RECORD_ALIGN, RECORD_HEADER_BYTES};

impl Recovery<'_> {
    /// Unless it was closed, copies what counts of the last segment into another one, closes and
    /// syncs that, and only then lets the last one go. Gives the slots of all segments, in order; the records are moved.
    pub(super) fn rewrite(
        &mut self,
        log: &Log,
        records: &mut [Found],
    ) -> Result<Vec<Option<Slot>>, CacheError> {
        let slots = log
            .segments
            .iter()
            .map(|segment| Some(segment.slot.clone()));
        let mut slots: Vec<_> = slots.collect();
        let Some(last) = log.last else {
            return Ok(slots);
        };
        let source = &log.segments[last];
        if let Some(end) = source.scan.end {
            close(source, end, &log.last_bytes)?;
            return Ok(slots);
        }
        let moved = records.iter_mut().filter(|record| record.segment == last);
        let mut moved: Vec<_> = moved.collect();
        slots[last] = match moved.is_empty() {
            true => None,
            false => Some(self.copy(source, &mut moved, &log.last_bytes)?),
        };
        self.free(source.slot.clone())?;
        Ok(slots)
    }

    fn copy(
        &mut self,
        source: &Scanned,
        records: &mut [&mut Found],
        bytes: &[u8],
    ) -> Result<Slot, CacheError> {
        let slot = self.spare(source.slot.file.bytes())?;
        let path = slot.file.path().to_owned();
        let failed = || CacheError::io(&path, "copying the last segment's records");
        let header = self.keeper.begin(&slot, Some(source.header.ordinal));
        let mut layout = Layout::new(&header.map_err(failed())?);
        for record in records {
            let (at, payload) = (layout.at(), &bytes[record.payload.clone()]);
            let (header, place) =
                layout.add(record.machine, record.sequence, &record.change, payload);
            let zeros = &[0; RECORD_ALIGN as usize][..padding(payload.len())];
            let copy = [&header[..], payload, zeros].concat();
            slot.file.write(&copy, at).map_err(failed())?;
            (record.position, record.payload) = (at, place);
        }
        slot.file.sync().map_err(failed())?;
        layout.synced();
        let at = layout.at();
        slot.file.write(&layout.end(), at).map_err(failed())?;
        slot.file.sync().map_err(failed())?;
        Ok(slot)
    }

    /// A blank segment of at least `bytes`: the reserve, or a new one.
    fn spare(&mut self, bytes: u64) -> Result<Slot, CacheError> {
        let blank = &mut self.keeper.blank;
        if let Some(fitting) = blank.iter().position(|slot| slot.file.bytes() >= bytes) {
            return Ok(blank.swap_remove(fitting));
        }
        let path = self.keeper.directory.path().to_owned();
        let action = "making a segment for the last one's records";
        let made = self.keeper.create(bytes);
        made.map_err(CacheError::io(&path, action))
    }
}

/// The last segment has its end record, so all before it is on the disk. The end record itself may
/// be in the page cache only, and must be on the disk before the log goes on (*must* 5).
fn close(source: &Scanned, end: u64, bytes: &[u8]) -> Result<(), CacheError> {
    let at = usize::try_from(end).expect("it was found at this offset");
    let file = &source.slot.file;
    let written = file.write(&bytes[at..at + RECORD_HEADER_BYTES], end);
    let synced = written.and_then(|()| file.sync());
    synced.map_err(CacheError::io(file.path(), "closing the last segment"))
}
