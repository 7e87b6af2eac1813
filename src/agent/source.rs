//! The source disk: a file or block device, by pread and pwrite.
//!
//! Owns: that what a trim or zero leaves behind reads as zeros, and what the file system knows
//! about holes. Does not own: order, intents, the stream.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom, fallocate, flock, seek};
use rustix::io::Errno;

use crate::model::{DISK_BYTES_MAX, SECTOR_BYTES};

use super::error::AgentError;
use super::medium::Medium;
use super::source_identity::{Changed, SourceIdentity};

/// Zeros written where the file system cannot make them itself, at a time.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A file or block device.
#[derive(Debug)]
pub(super) struct FileMedium {
    file: File,
    /// Only a regular file has an allocation map.
    maps: bool,
}

/// Opens a disk for the agent alone; returns it with its size.
///
/// # Errors
/// When it is missing, in use, neither file nor block device, or has an impossible size.
pub(super) fn open_disk(path: &Path) -> Result<(FileMedium, u64), AgentError> {
    let action = |action: &'static str| move |source| AgentError::io(path, action, source);
    let kind = std::fs::metadata(path).map_err(action("look at the disk"))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(AgentError::NoDisk { path: path.into() });
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if kind.is_block_device() {
        // The kernel refuses a device that is mounted or otherwise held.
        options.custom_flags(OFlags::EXCL.bits() as i32);
    }
    let file = options.open(path).map_err(action("open the disk"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(AgentError::DiskInUse { path: path.into() }),
        Err(error) => return Err(AgentError::io(path, "lock the disk", error.into())),
    }
    let bytes = seek(&file, SeekFrom::End(0))
        .map_err(|error| AgentError::io(path, "find the size of the disk", error.into()))?;
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) || bytes > DISK_BYTES_MAX {
        return Err(AgentError::DiskSize { path: path.into(), bytes });
    }
    let maps = kind.is_file();
    Ok((FileMedium { file, maps }, bytes))
}

impl FileMedium {
    /// Opens a file that exists.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, maps: true })
    }
}

impl Medium for FileMedium {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(target, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// fallocate on files; on block devices the same calls are the kernel's zeroing discard and
    /// zero-out, which never leave stale bytes behind.
    fn zero_at(&self, offset: u64, length: u64, release: bool) -> io::Result<()> {
        let flags = if release {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
        };
        match fallocate(&self.file, flags, offset, length) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let step = (end - at).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn identity(&self) -> SourceIdentity {
        SourceIdentity::of(&self.file)
    }

    /// A device has no times. [`Medium::sync`] leaves those of a file in memory.
    fn changed(&self) -> io::Result<Option<Changed>> {
        if !self.maps {
            return Ok(None);
        }
        self.file.sync_all()?;
        Ok(Some(Changed::of(&self.file.metadata()?)))
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<u64> {
        if !self.maps {
            return Ok(offset);
        }
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(at) => Ok(at.clamp(offset, end)),
            Err(Errno::NXIO) => Ok(end),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(offset), // no map: all is data
            Err(error) => Err(error.into()),
        }
    }

    fn next_hole(&self, offset: u64, end: u64) -> io::Result<u64> {
        if !self.maps {
            return Ok(end);
        }
        match seek(&self.file, SeekFrom::Hole(offset)) {
            Ok(at) => Ok(at.clamp(offset, end)),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(end),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_after_zero_and_trim_and_holes_are_known() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let (disk, bytes) = open_disk(file.path()).unwrap();
        assert_eq!(bytes, 1 << 20);
        disk.write_at(65536, &[7; 65536]).unwrap();
        assert_eq!(disk.next_data(131_072, bytes).unwrap(), bytes);
        assert!(disk.next_data(0, bytes).unwrap() <= 65536);
        for (at, release) in [(66_048, true), (70_144, false)] {
            disk.zero_at(at, 1024, release).unwrap();
            let mut read = [1; 1024 + 512];
            disk.read_at(at, &mut read).unwrap();
            assert_eq!(read[..1024], [0; 1024]);
            assert_eq!(read[1024..], [7; 512], "the neighbour stays");
        }
    }

    #[test]
    fn odd_sizes_and_second_users_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in [0, 511, 513] {
            file.as_file().set_len(bytes).unwrap();
            let refused = open_disk(file.path()).unwrap_err();
            assert!(matches!(refused, AgentError::DiskSize { .. }), "{bytes}");
        }
        file.as_file().set_len(512).unwrap();
        let held = open_disk(file.path()).unwrap();
        let refused = open_disk(file.path()).unwrap_err();
        assert!(matches!(refused, AgentError::DiskInUse { .. }));
        drop(held);
        assert!(matches!(open_disk(Path::new("/dev/null")), Err(AgentError::NoDisk { .. })));
    }
}
