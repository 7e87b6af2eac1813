//! A shard's directory on a real file system.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

use super::append::UringAppender;
use super::error::CacheError;
use super::file::{Appender, Aside, SegmentDirectory, SegmentFile, Slot};
use super::map::Mapping;
use super::segment::SegmentBytes;

const LOCK: &str = "lock";
const SUFFIX: &str = ".segment";
/// Of what was set aside.
const ASIDE: &str = ".damaged";

/// A directory of segments, locked for as long as it or any of its files is held.
#[derive(Debug)]
pub(super) struct DiskDirectory {
    path: PathBuf,
    lock: Arc<File>,
}

impl DiskDirectory {
    /// Makes the directory if needed, and locks it.
    pub(super) fn lock(path: &Path) -> Result<Self, CacheError> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(path);
        made.map_err(CacheError::io(path, "making the directory"))?;
        if let Some(parent) = path.parent() {
            let synced = sync_directory(parent);
            synced.map_err(CacheError::io(parent, "syncing the directory"))?;
        }
        let lock_path = path.join(LOCK);
        let lock = open_private(&lock_path, OpenOptions::new().create(true).truncate(false));
        let mut lock = lock.map_err(CacheError::io(&lock_path, "opening the lock file"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let known = (&lock).take(20).read_to_string(&mut holder).is_ok();
                let holder = match holder.trim() {
                    "" => "unknown",
                    holder if known => holder,
                    _ => "unknown",
                };
                return Err(CacheError::Busy {
                    directory: path.to_owned(),
                    holder: holder.to_owned(),
                });
            }
            Err(cause) => {
                return Err(CacheError::io(&lock_path, "locking")(cause.into()));
            }
        }
        let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.map_err(CacheError::io(&lock_path, "writing the process id"))?;
        Ok(Self { path: path.to_owned(), lock: Arc::new(lock) })
    }

    /// Removes the directory, in which no segment is left.
    pub(super) fn remove_itself(&self) -> io::Result<()> {
        std::fs::remove_file(self.path.join(LOCK))?;
        std::fs::remove_dir(&self.path)?;
        self.path.parent().map_or(Ok(()), sync_directory)
    }

    /// Files that are called a number and `suffix`.
    fn numbered(&self, suffix: &str) -> io::Result<Vec<(u32, PathBuf)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(suffix));
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                found.push((number, self.path.join(&name)));
            }
        }
        Ok(found)
    }

    fn slot(&self, number: u32, path: PathBuf, file: File) -> io::Result<Slot> {
        let bytes = file.metadata()?.len();
        let file = DiskFile { path, file, bytes, _lock: Arc::clone(&self.lock) };
        Ok(Slot { number, file: Arc::new(file) })
    }
}

impl SegmentDirectory for DiskDirectory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn slots(&self) -> io::Result<Vec<Slot>> {
        let mut slots = Vec::new();
        for (number, path) in self.numbered(SUFFIX)? {
            let file = open_private(&path, &mut OpenOptions::new())?;
            file.sync_all()?; // whoever made it may have died before it was on the disk
            slots.push(self.slot(number, path, file)?);
        }
        sync_directory(&self.path)?;
        slots.sort_by_key(|slot| slot.number);
        Ok(slots)
    }

    fn create(&self, number: u32, bytes: u64) -> io::Result<Slot> {
        let path = self.path.join(format!("{number:08}{SUFFIX}"));
        let file = open_private(&path, OpenOptions::new().create_new(true))?;
        let made = fallocate(&file, FallocateFlags::empty(), 0, bytes)
            .map_err(io::Error::from)
            .and_then(|()| zero_fill(&file, bytes))
            .and_then(|()| file.sync_all())
            .and_then(|()| sync_directory(&self.path));
        if let Err(cause) = made {
            std::fs::remove_file(&path)?;
            return Err(cause);
        }
        self.slot(number, path, file)
    }

    fn remove(&self, slot: &Slot) -> io::Result<()> {
        std::fs::remove_file(slot.file.path())?;
        sync_directory(&self.path)
    }

    fn set_aside(&self, slot: &Slot) -> io::Result<PathBuf> {
        let path = self.path.join(format!("{:08}{ASIDE}", slot.number));
        if path.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into()); // somebody's only look at what was there
        }
        std::fs::rename(slot.file.path(), &path)?;
        sync_directory(&self.path)?;
        Ok(path)
    }

    fn aside(&self) -> io::Result<Vec<Aside>> {
        let mut aside = Vec::new();
        for (number, path) in self.numbered(ASIDE)? {
            let bytes = std::fs::metadata(&path)?.len();
            aside.push(Aside { number, path, bytes });
        }
        aside.sort_by_key(|aside| aside.number);
        Ok(aside)
    }
}

/// One file; keeps the directory's lock.
#[derive(Debug)]
struct DiskFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    _lock: Arc<File>,
}

impl SegmentFile for DiskFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(target, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn view(&self) -> io::Result<SegmentBytes> {
        Mapping::of(&self.file).map(SegmentBytes::Mapped)
    }

    fn appender(&self) -> io::Result<Box<dyn Appender>> {
        let file = self.file.try_clone()?;
        Ok(Box::new(UringAppender::of(file)))
    }
}

/// Segments hold what stands on the machines' disks: nobody else may read them.
fn open_private(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.read(true).write(true).mode(0o600).open(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Written zeros, so that a later sync has no extent to convert.
fn zero_fill(file: &File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let piece = zeros.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
        file.write_all_at(&zeros[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}
