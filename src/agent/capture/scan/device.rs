//! The file or block device that is read: the disk itself, or a snapshot of it.
//!
//! Owns: that what is read is what the disk holds. Does not own: when it is read.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, SeekFrom, seek};

/// What direct I/O wants of an address; no block device has larger sectors.
const ALIGNMENT: usize = 4096;

/// Something that is read while others write to it.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    /// Past the page cache. That of a block device is not the one that a mounted file system writes
    /// through: a page read once would be shown forever.
    direct: bool,
}

impl Device {
    /// Opens it to be read; others may use it in any way.
    ///
    /// # Errors
    /// When it is missing, neither file nor block device, or smaller than `size_bytes`.
    pub(super) fn open(path: &Path, size_bytes: u64) -> io::Result<Self> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let kind = std::fs::metadata(path).map_err(named)?.file_type();
        let direct = kind.is_block_device();
        if !direct && !kind.is_file() {
            return Err(named(io::Error::other("it is neither a file nor a block device")));
        }
        let mut options = File::options();
        options.read(true);
        if direct {
            options.custom_flags(OFlags::DIRECT.bits() as i32);
        }
        let file = options.open(path).map_err(named)?;
        let device = Self { file, direct };
        let found = device.size_bytes().map_err(named)?;
        if found < size_bytes {
            let why = format!("it has {found} bytes, the disk {size_bytes}");
            return Err(named(io::Error::other(why)));
        }
        Ok(device)
    }

    pub(super) fn size_bytes(&self) -> io::Result<u64> {
        Ok(seek(&self.file, SeekFrom::End(0))?)
    }

    /// Fills `target`.
    pub(super) fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        if !self.direct {
            return self.file.read_exact_at(target, offset);
        }
        let mut buffer = vec![0; target.len() + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        // Where the allocator gives no alignment the kernel refuses, loudly.
        let start = if start > ALIGNMENT { 0 } else { start };
        let aligned = &mut buffer[start..start + target.len()];
        self.file.read_exact_at(aligned, offset)?;
        target.copy_from_slice(aligned);
        Ok(())
    }
}
