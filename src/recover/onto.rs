//! One disk at one point onto a block device that is there already: new hardware, a new volume.
//!
//! Owns: that nobody else uses the device, and that all bytes of the disk are on it and synced when it
//! says so. Does not own: showing progress. What is cut off half-way leaves a device that holds neither.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::RecoverError;
use super::export::{Exported, Progress, Target, blocking, copy_all};
use super::reader::DiskReader;

/// Zeros that are written at a time where a device cannot make them by itself.
const ZEROS_BYTES: u64 = 1 << 20;

/// Writes the disk onto `device`, from its first byte; what lies behind the disk's end stays.
///
/// # Errors
/// When `device` is no block device, is in use or too small, cannot be written, or the point cannot be read.
pub async fn export_onto(
    reader: &Arc<DiskReader>,
    device: &Path,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Exported, RecoverError> {
    let size_bytes = reader.size_bytes();
    let target = Target { path: device.to_owned(), file: Arc::new(open(device, size_bytes)?) };
    let ranges = reader.ranges().await?;
    for hole in holes(ranges, size_bytes) {
        let file = Arc::clone(&target.file);
        let made = blocking(move || zero(&file, hole)).await;
        made.map_err(|source| target.failed("writing zeros", source))?;
    }
    let copied_bytes = copy_all(reader, &target, ranges, progress).await?;
    let file = Arc::clone(&target.file);
    let synced = blocking(move || file.sync_all()).await;
    synced.map_err(|source| target.failed("syncing", source))?;
    Ok(Exported { file_bytes: size_bytes, copied_bytes })
}

/// The device, for us alone: a mounted one, or one below dm or md, is refused by the kernel.
fn open(device: &Path, size_bytes: u64) -> Result<File, RecoverError> {
    let failed = |action, source| RecoverError::File { path: device.to_owned(), action, source };
    let kind = device.metadata().map_err(|source| failed("opening it", source))?.file_type();
    if !kind.is_block_device() {
        return Err(RecoverError::NoDevice { path: device.to_owned() });
    }
    let exclusive = OFlags::EXCL.bits().cast_signed();
    let file = match OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(device)
    {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            return Err(RecoverError::DeviceInUse { path: device.to_owned() });
        }
        opened => opened.map_err(|source| failed("opening it", source))?,
    };
    let found = seek(&file, SeekFrom::End(0));
    let found = found.map_err(|errno| failed("asking for its size", errno.into()))?;
    match found < size_bytes {
        true => Err(RecoverError::DeviceSmall { path: device.to_owned(), found, size_bytes }),
        false => Ok(file),
    }
}

/// What lies between ascending ranges, to the end.
fn holes(filled: &[Range<u64>], end: u64) -> Vec<Range<u64>> {
    let starts = std::iter::once(0).chain(filled.iter().map(|range| range.end));
    let ends = filled.iter().map(|range| range.start).chain([end]);
    starts.zip(ends).map(|(start, end)| start..end).filter(|hole| !hole.is_empty()).collect()
}

/// The device makes zeros, or they are written.
fn zero(file: &File, hole: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, hole.start, hole.end - hole.start) {
        Err(Errno::OPNOTSUPP | Errno::INVAL) => {}
        made => return Ok(made?),
    }
    let zeros = vec![0; ZEROS_BYTES as usize];
    let mut at = hole.start;
    while at < hole.end {
        let length = ZEROS_BYTES.min(hole.end - at);
        file.write_all_at(&zeros[..length as usize], at)?;
        at += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_lie_between_what_is_filled() {
        let filled = [Range { start: 512, end: 1024 }, Range { start: 4096, end: 8192 }];
        assert_eq!(holes(&filled, 8192), [0..512, 1024..4096]);
        assert_eq!(holes(&filled, 9000), [0..512, 1024..4096, 8192..9000]);
        assert_eq!(holes(&[], 512), [Range { start: 0, end: 512 }]);
    }
}
