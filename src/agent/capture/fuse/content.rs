//! Bytes of a file → sectors of an export.
//!
//! Owns: requests at any byte, and the end of service. Does not own: order and intents, which are
//! the export's.

use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use crate::model::{DiskName, SECTOR_BYTES};
use crate::nbd::Export;

type Served = Option<Arc<dyn Export>>;

/// One disk as the content of a file.
pub(super) struct Content {
    /// The file's name.
    pub(super) name: OsString,
    /// Its size, for good.
    pub(super) size_bytes: u64,
    /// The export, until service ends. Who changes part of a sector has it alone: the rest of the
    /// sector is read and written back, and nobody may write it in between.
    served: RwLock<Served>,
}

impl Content {
    pub(super) fn new(disk: &DiskName, export: &Arc<dyn Export>) -> Self {
        let (name, size_bytes) = (format!("{disk}.img").into(), export.size_bytes());
        Self { name, size_bytes, served: RwLock::new(Some(Arc::clone(export))) }
    }

    fn shared(&self) -> RwLockReadGuard<'_, Served> {
        self.served.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Served> {
        self.served.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the requests under way are answered; later ones are refused.
    pub(super) fn end(&self) {
        *self.alone() = None;
    }

    /// The range's bytes, fewer at the end of the file.
    pub(super) fn read(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let range = offset.min(self.size_bytes)..offset.saturating_add(length).min(self.size_bytes);
        let served = self.shared();
        let export = export(&served)?;
        let around = sectors(&range);
        let mut bytes = vec![0; (around.end - around.start) as usize];
        export.read(around.start, &mut bytes)?;
        bytes.drain(..(range.start - around.start) as usize);
        bytes.truncate((range.end - range.start) as usize);
        Ok(bytes)
    }

    /// Writes all of `bytes`.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = self.inside(offset, bytes.len() as u64)?;
        if aligned(&range) {
            let served = self.shared();
            return export(&served)?.write(offset, Bytes::copy_from_slice(bytes), false);
        }
        let served = self.alone();
        patch(export(&served)?, range, |target| target.copy_from_slice(bytes))
    }

    /// The range reads as zeros afterwards; with `trim` its room may be given back.
    pub(super) fn zero(&self, offset: u64, length: u64, trim: bool) -> io::Result<()> {
        let range = self.inside(offset, length)?;
        if aligned(&range) {
            let served = self.shared();
            return export(&served)?.zero(offset, length, trim, false);
        }
        let served = self.alone();
        let export = export(&served)?;
        let whole =
            range.start.next_multiple_of(SECTOR_BYTES)..range.end - range.end % SECTOR_BYTES;
        if whole.start >= whole.end {
            return patch(export, range, |target| target.fill(0));
        }
        export.zero(whole.start, whole.end - whole.start, trim, false)?;
        for edge in [range.start..whole.start, whole.end..range.end] {
            if !edge.is_empty() {
                patch(export, edge, |target| target.fill(0))?;
            }
        }
        Ok(())
    }

    /// Everything that was answered before is on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        let served = self.shared();
        export(&served)?.flush()
    }

    /// First byte at or after `offset` of data, or with `hole` of a hole; the end of the file
    /// counts as a hole.
    ///
    /// # Errors
    /// ENXIO when there is none, as lseek(2) says.
    pub(super) fn seek(&self, offset: u64, hole: bool) -> io::Result<u64> {
        let none = || io::Error::from_raw_os_error(rustix::io::Errno::NXIO.raw_os_error());
        if offset >= self.size_bytes {
            return Err(none());
        }
        let served = self.shared();
        let export = export(&served)?;
        let mut at = offset - offset % SECTOR_BYTES;
        while at < self.size_bytes {
            let before = at;
            for extent in export.block_status(at, self.size_bytes - at)? {
                if extent.hole == hole {
                    return Ok(at.max(offset));
                }
                at += extent.length;
            }
            if at == before {
                return Err(io::Error::other("the disk says nothing about its allocation"));
            }
        }
        if hole { Ok(self.size_bytes) } else { Err(none()) }
    }

    fn inside(&self, offset: u64, length: u64) -> io::Result<Range<u64>> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes => Ok(offset..end),
            _ => Err(io::Error::from_raw_os_error(rustix::io::Errno::FBIG.raw_os_error())),
        }
    }
}

fn export(served: &Served) -> io::Result<&dyn Export> {
    served.as_deref().ok_or_else(|| io::Error::other("the agent has stopped"))
}

fn aligned(range: &Range<u64>) -> bool {
    range.start.is_multiple_of(SECTOR_BYTES) && range.end.is_multiple_of(SECTOR_BYTES)
}

/// The whole sectors around a range.
fn sectors(range: &Range<u64>) -> Range<u64> {
    range.start - range.start % SECTOR_BYTES..range.end.next_multiple_of(SECTOR_BYTES)
}

/// Changes part of sectors; the caller is alone.
fn patch(export: &dyn Export, range: Range<u64>, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
    let around = sectors(&range);
    let mut bytes = vec![0; (around.end - around.start) as usize];
    export.read(around.start, &mut bytes)?;
    let (start, end) = (range.start - around.start, range.end - around.start);
    change(&mut bytes[start as usize..end as usize]);
    export.write(around.start, bytes.into(), false)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::nbd::BlockStatus;

    const BYTES: usize = 8 * 512;

    /// Sectors in memory; a sector of zeros is a hole.
    #[derive(Default)]
    struct Memory(Mutex<Vec<u8>>);

    impl Export for Memory {
        fn size_bytes(&self) -> u64 {
            BYTES as u64
        }
        fn read_only(&self) -> bool {
            false
        }
        fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
            let start = offset as usize;
            target.copy_from_slice(&self.0.lock().unwrap()[start..start + target.len()]);
            // Whoever may come between reading and writing back, comes now.
            (0..50).for_each(|_| std::thread::yield_now());
            Ok(())
        }
        fn write(&self, offset: u64, payload: Bytes, _: bool) -> io::Result<()> {
            assert_eq!((offset % 512, payload.len() % 512), (0, 0));
            let start = offset as usize;
            self.0.lock().unwrap()[start..start + payload.len()].copy_from_slice(&payload);
            Ok(())
        }
        fn zero(&self, offset: u64, length: u64, _: bool, _: bool) -> io::Result<()> {
            self.write(offset, vec![0; length as usize].into(), false)
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn block_status(&self, offset: u64, _: u64) -> io::Result<Vec<BlockStatus>> {
            let start = offset as usize;
            let hole = self.0.lock().unwrap()[start..start + 512].iter().all(|byte| *byte == 0);
            Ok(vec![BlockStatus { length: 512, hole, zero: hole }])
        }
    }

    fn memory() -> (Arc<Memory>, Content) {
        let memory = Arc::new(Memory(Mutex::new(vec![0; BYTES])));
        let export: Arc<dyn Export> = Arc::clone(&memory) as _;
        (memory, Content::new(&"root".parse().unwrap(), &export))
    }

    #[test]
    fn every_byte_range_is_written_zeroed_and_read() {
        let (memory, content) = memory();
        let mut model = vec![0; BYTES];
        for step in 0..4000_u64 {
            let offset = step.wrapping_mul(2_654_435_761) % BYTES as u64;
            let length = (step.wrapping_mul(40_503) % 1400).min(BYTES as u64 - offset);
            let target = &mut model[offset as usize..(offset + length) as usize];
            if step.is_multiple_of(3) {
                target.fill(0);
                content.zero(offset, length, true).unwrap();
            } else {
                target.fill(step as u8 | 1);
                content.write(offset, &vec![step as u8 | 1; length as usize]).unwrap();
            }
            assert_eq!(*memory.0.lock().unwrap(), model, "step {step}");
            let read = content.read(offset, length + 600).unwrap();
            let end = BYTES.min((offset + length) as usize + 600);
            assert_eq!(read, model[offset as usize..end]);
        }
    }

    #[test]
    fn parts_of_one_sector_written_at_the_same_time_all_stay() {
        let (memory, content) = memory();
        std::thread::scope(|scope| {
            for part in 0..4_usize {
                let content = &content;
                scope.spawn(move || {
                    for round in 0..500 {
                        let offset = (part * 128 + round % 100) as u64;
                        content.write(offset, &[part as u8 + 1]).unwrap();
                    }
                });
            }
        });
        let bytes = memory.0.lock().unwrap();
        for part in 0..4 {
            assert_eq!(bytes[part * 128..part * 128 + 100], [part as u8 + 1; 100]);
        }
    }

    #[test]
    fn seeking_the_end_and_the_end_of_service() {
        let (_memory, content) = memory();
        content.write(1024, &[7; 512]).unwrap();
        assert_eq!(content.seek(3, false).unwrap(), 1024);
        assert_eq!(content.seek(1100, false).unwrap(), 1100);
        assert_eq!(content.seek(1100, true).unwrap(), 1536);
        assert!(content.seek(1536, false).is_err(), "no data behind");
        assert!(content.seek(BYTES as u64, true).is_err());
        assert!(content.write(BYTES as u64 - 1, &[1, 2]).is_err(), "the size is fixed");
        assert!(content.write(u64::MAX, &[1, 2]).is_err());
        assert_eq!(content.read(u64::MAX, 5).unwrap(), Vec::<u8>::new());
        content.end();
        assert!(content.write(0, &[1]).is_err());
        assert!(content.read(0, 1).is_err());
        assert!(content.sync().is_err());
    }
}
