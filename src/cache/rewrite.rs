//! What recovery writes: a copy of the last segment after an unclean stop, because the page cache may
//! hold what the disk does not; and void records, so that what it keeps back stays back.
//!
//! Owns: *must* 7 and 10 of `docs/formats/cache-segment.md`. Does not own: what counts (`recovery`).

use super::error::CacheError;
use super::file::Slot;
use super::log::{Layout, padding};
use super::recovery::{Log, Place, Recovery, Scanned};
use super::streams::Found;
use crate::format::segment::{RECORD_ALIGN, RECORD_HEADER_BYTES};
use crate::model::Checksum;

impl Recovery<'_> {
    /// Makes what counts durable where it is not known to be, and moves `records` along. Gives all
    /// segments in log order.
    pub(super) fn rewrite(
        &mut self,
        log: &Log,
        records: &mut [Found],
    ) -> Result<Vec<Place>, CacheError> {
        let places = log.segments.iter().map(|segment| Place {
            slot: Some(segment.slot.clone()),
            voids: !segment.voids.is_empty(),
        });
        let mut places: Vec<_> = places.collect();
        if let Some(last) = log.last {
            let source = &log.segments[last];
            match source.scan.end {
                Some(end) if !source.damaged => close(source, end, &log.last_bytes)?,
                _ => {
                    let moved = records.iter_mut().filter(|record| record.segment == last);
                    let moved: Vec<_> = moved.collect();
                    places[last].slot = self.copy(source, moved, &log.last_bytes)?;
                    self.free(source.slot.clone())?;
                }
            }
        }
        while !self.to_void.is_empty() {
            let slot = Some(self.void()?);
            places.push(Place { slot, voids: true });
        }
        Ok(places)
    }

    /// Copies what counts of a segment into another one, which is closed and synced.
    fn copy(
        &mut self,
        source: &Scanned,
        records: Vec<&mut Found>,
        bytes: &[u8],
    ) -> Result<Option<Slot>, CacheError> {
        if records.is_empty() && source.voids.is_empty() {
            return Ok(None);
        }
        let of = source.header.ordinal;
        let mut copy = self.begin(source.slot.file.bytes(), Some(of))?;
        for &(machine, sequence) in &source.voids {
            let header = copy.layout.void(machine, sequence);
            copy.put(&header, &[])?;
        }
        for record in records {
            let (whose, position) = ((record.machine, record.generation), copy.layout.at());
            let payload = &bytes[record.payload.clone()];
            let sum = Checksum::of(payload);
            let (header, place) = copy.layout.add(whose, record.sequence, &record.change, sum);
            copy.put(&header, payload)?;
            (record.position, record.payload) = (position, place);
        }
        copy.close().map(Some)
    }

    /// Voids as much as fits one segment.
    fn void(&mut self) -> Result<Slot, CacheError> {
        let mut segment = self.begin(self.keeper.geometry.segment_bytes, None)?;
        while segment.layout.fits(0)
            && let Some((machine, sequence)) = self.to_void.pop()
        {
            let header = segment.layout.void(machine, sequence);
            segment.put(&header, &[])?;
        }
        segment.close()
    }

    /// Begins a blank segment of at least `bytes`: the reserve, or a new one.
    fn begin(&mut self, bytes: u64, copy_of: Option<u64>) -> Result<Rewritten, CacheError> {
        let blank = &mut self.keeper.blank;
        let slot = match blank.iter().position(|slot| slot.file.bytes() >= bytes) {
            Some(fitting) => blank.swap_remove(fitting),
            None => {
                let path = self.keeper.directory.path().to_owned();
                let made = self.keeper.create(bytes);
                made.map_err(CacheError::io(&path, "making a segment for recovery"))?
            }
        };
        let header = self.keeper.begin(&slot, copy_of);
        let action = "beginning a segment for recovery";
        let header = header.map_err(CacheError::io(slot.file.path(), action))?;
        let layout = Layout::new(&header);
        Ok(Rewritten { at: layout.at(), layout, slot })
    }
}

/// A segment that recovery writes.
struct Rewritten {
    slot: Slot,
    layout: Layout,
    /// Where the next write goes.
    at: u64,
}

impl Rewritten {
    /// Writes the record that was just laid out.
    fn put(&mut self, header: &[u8], payload: &[u8]) -> Result<(), CacheError> {
        let zeros = &[0; RECORD_ALIGN as usize][..padding(payload.len())];
        let record = [header, payload, zeros].concat();
        let written = self.slot.file.write(&record, self.at);
        self.at = self.layout.at();
        written.map_err(self.failed())
    }

    /// Syncs the records, then the end record that says so.
    fn close(mut self) -> Result<Slot, CacheError> {
        self.slot.file.sync().map_err(self.failed())?;
        self.layout.synced();
        let end = self.layout.end();
        self.put(&end, &[])?;
        self.slot.file.sync().map_err(self.failed())?;
        Ok(self.slot)
    }

    fn failed(&self) -> impl FnOnce(std::io::Error) -> CacheError + use<> {
        CacheError::io(self.slot.file.path(), "rewriting for recovery")
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
