//! What the directory store does to a file system, one named step at a time.
//!
//! Every change that a loss of power could tear passes through here and is announced to a
//! [`Watch`] before it happens: tests stop, kill or cut the power at each.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::direct::{self, Buffers};

/// One change of the file system that is about to happen.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Bytes of a file change (or become zeros).
    Write {
        /// Which file.
        path: &'a Path,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// What was written to a file becomes durable.
    Sync {
        /// Which file.
        path: &'a Path,
    },
    /// A finished file appears under a name, or replaces what is there.
    Place {
        /// Where it stood.
        from: &'a Path,
        /// Where it appears.
        path: &'a Path,
    },
    /// A name disappears.
    Remove {
        /// Which.
        path: &'a Path,
    },
    /// Names that appeared or disappeared in a directory become durable.
    SyncDirectory {
        /// Which directory.
        path: &'a Path,
    },
}

/// Sees every step before it happens; an error stops it there.
pub trait Watch: Send + Sync + 'static {
    /// Called before the step.
    ///
    /// # Errors
    /// The step does not happen and the store's call ends with this error.
    fn before(&self, step: Step<'_>) -> io::Result<()>;
}

/// An open file that knows its path.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

/// The file system, watched.
#[derive(Clone, Default)]
pub(super) struct Disk {
    watch: Option<Arc<dyn Watch>>,
    /// The first sync of a directory that failed: names that can be read may not be on the disk.
    distrusted: Arc<OnceLock<Distrust>>,
    pub(super) buffers: Buffers,
}

/// Which directory, and what the system said.
struct Distrust {
    directory: PathBuf,
    cause: io::Error,
}

/// The directory that a path stands in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().expect("every path here lies below the store's directory")
}

/// `None` instead of "not found".
pub(super) fn if_found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Opened {
    /// An existing file; symbolic links are not followed.
    pub(super) fn open(path: PathBuf, write: bool) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(&path)?;
        Ok(Self { file, path })
    }

    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { file, path })
    }

    pub(super) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    pub(super) fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(target, offset)
    }

    /// Ranges within `start..end` that the file system does not know to be zeros.
    pub(super) fn data_ranges(&self, start: u64, end: u64) -> io::Result<Vec<(u64, u64)>> {
        let mut ranges = Vec::new();
        let mut at = start;
        while at < end {
            let from = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(from) if from < end => from,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            let until = rustix::fs::seek(&self.file, SeekFrom::Hole(from))?.min(end);
            ranges.push((from, until));
            at = until;
        }
        Ok(ranges)
    }
}

impl Disk {
    pub(super) fn watched(watch: Arc<dyn Watch>) -> Self {
        Self { watch: Some(watch), ..Self::default() }
    }

    /// # Errors
    /// When a directory did not sync in this open store's life: what its names say then may be gone
    /// after a loss of power, and a later sync that succeeds proves nothing.
    pub(super) fn trusted(&self) -> io::Result<()> {
        match self.distrusted.get() {
            None => Ok(()),
            Some(Distrust { directory, cause }) => Err(io::Error::new(
                cause.kind(),
                format!(
                    "directory {} did not sync ({cause}); check the file system, then start anew",
                    directory.display()
                ),
            )),
        }
    }

    fn announce(&self, step: Step<'_>) -> io::Result<()> {
        match &self.watch {
            Some(watch) => watch.before(step),
            None => Ok(()),
        }
    }

    pub(super) fn write(&self, target: &Opened, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        self.announce(Step::Write { path: &target.path, offset, length })?;
        target.file.write_all_at(bytes, offset)
    }

    /// The same for what nobody reads soon: long runs go past the page cache.
    pub(super) fn write_through(
        &self,
        target: &Opened,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        let length = bytes.len() as u64;
        self.announce(Step::Write { path: &target.path, offset, length })?;
        direct::write(&target.file, offset, bytes, &self.buffers).map(drop)
    }

    /// Reads a long run past the page cache, too.
    pub(super) fn read_through(
        &self,
        from: &Opened,
        offset: u64,
        target: &mut [u8],
    ) -> io::Result<()> {
        direct::read(&from.file, offset, target, &self.buffers)
    }

    /// Makes a range zeros, giving its room back where the file system can.
    pub(super) fn zero(&self, target: &Opened, offset: u64, length: u64) -> io::Result<()> {
        self.announce(Step::Write { path: &target.path, offset, length })?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&target.file, punch, offset, length) {
            Err(Errno::OPNOTSUPP) => {
                let zeros = vec![0; 1 << 20];
                let mut at = offset;
                while at < offset + length {
                    let piece = (offset + length - at).min(1 << 20);
                    target.file.write_all_at(&zeros[..piece as usize], at)?;
                    at += piece;
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Reserves room for `offset..offset + length`, so that writing there cannot run out of it
    /// half-way, and notes in `taken` the holes that it filled. With `unshare` also the room that
    /// overwriting bytes shared with a clone takes.
    pub(super) fn reserve(
        &self,
        target: &Opened,
        offset: u64,
        length: u64,
        unshare: bool,
        taken: &mut Vec<Range<u64>>,
    ) -> io::Result<()> {
        let allocate = |flags, range: Range<u64>| {
            let length = range.end - range.start;
            match rustix::fs::fallocate(&target.file, flags, range.start, length) {
                Err(Errno::OPNOTSUPP) => Ok(()), // then the write itself says when there is no room
                other => other.map_err(io::Error::from),
            }
        };
        let end = offset + length;
        let mut at = offset;
        let data = target.data_ranges(offset, end)?;
        for (start, next) in data.into_iter().chain([(end, end)]) {
            if at < start {
                // Noted first: an attempt that fails may have taken a part.
                taken.push(at..start);
                allocate(FallocateFlags::KEEP_SIZE, at..start)?;
            }
            at = next;
        }
        if unshare {
            let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::UNSHARE_RANGE;
            allocate(flags, offset..end)?;
        }
        Ok(())
    }

    pub(super) fn sync(&self, target: &Opened) -> io::Result<()> {
        self.announce(Step::Sync { path: &target.path })?;
        target.file.sync_data()
    }

    /// Content, length and times: for files that are about to be placed.
    pub(super) fn sync_all(&self, target: &Opened) -> io::Result<()> {
        self.announce(Step::Sync { path: &target.path })?;
        target.file.sync_all()
    }

    /// The file appears at `to`; fails when something is there.
    pub(super) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.announce(Step::Place { from, path: to })?;
        std::fs::hard_link(from, to)
    }

    /// The file appears at `to`, in place of what is there.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.announce(Step::Place { from, path: to })?;
        std::fs::rename(from, to)
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.announce(Step::Remove { path })?;
        std::fs::remove_file(path)
    }

    pub(super) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let synced =
            self.announce(Step::SyncDirectory { path }).and_then(|()| File::open(path)?.sync_all());
        // Not there any more: neither are the names in it.
        if let Some(error) = synced.as_ref().err().filter(|e| e.kind() != ErrorKind::NotFound) {
            let cause = io::Error::new(error.kind(), error.to_string());
            self.distrusted.get_or_init(|| Distrust { directory: path.to_owned(), cause });
        }
        synced
    }
}

/// A file that is removed unless it was placed.
pub(super) struct Temporary(pub(super) Opened);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing here; what stays is swept at the next open.
        let _ = std::fs::remove_file(&self.0.path);
    }
}
