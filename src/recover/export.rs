//! One disk at one point as a file: raw or fixed VHD.
//!
//! Owns: that the file appears under its name whole, synced, or not at all, and that holes stay
//! holes. Does not own: showing progress.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::RecoverError;
use super::base::READ_BYTES;
use super::reader::DiskReader;
use crate::format::seed_disk::{FOOTER_BYTES, Footer, unique_id};
use crate::model::MachineId;

/// Pieces read and written at the same time; 4 MiB each.
const STREAMS: usize = 8;

/// What the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// The disk's bytes.
    Raw,
    /// The disk's bytes and the footer of a fixed VHD. Azure takes it as a managed disk when the
    /// disk is a multiple of 1 MiB.
    Vhd,
}

/// How far long work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes to do; holes are none.
    pub total_bytes: u64,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Length of the file.
    pub file_bytes: u64,
    /// Bytes that were read and written; the rest are holes.
    pub copied_bytes: u64,
}

/// Writes the disk to a new file `out`, telling `progress` at the start and after every piece.
///
/// # Errors
/// When `out` exists, cannot be written, or the point cannot be read; no file is left behind.
pub async fn export(
    machine: &MachineId,
    reader: &Arc<DiskReader>,
    format: ExportFormat,
    out: &Path,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Exported, RecoverError> {
    let size_bytes = reader.size_bytes();
    let footer = match format {
        ExportFormat::Raw => None,
        ExportFormat::Vhd => Some(footer(machine, reader)?),
    };
    let file_bytes = size_bytes + footer.map_or(0, |footer| footer.len() as u64);
    let partial = Partial::create(out, file_bytes)?;
    let copied_bytes = copy_all(reader, &partial.target, reader.ranges().await?, progress).await?;
    if let Some(footer) = footer {
        let written = partial.target.file.write_all_at(&footer, size_bytes);
        written.map_err(|source| partial.target.failed("writing the footer", source))?;
    }
    partial.publish().await?;
    Ok(Exported { file_bytes, copied_bytes })
}

/// Where bytes go.
pub(super) struct Target {
    pub(super) path: PathBuf,
    pub(super) file: Arc<std::fs::File>,
}

impl Target {
    pub(super) fn failed(&self, action: &'static str, source: io::Error) -> RecoverError {
        RecoverError::File { path: self.path.clone(), action, source }
    }
}

/// Copies these ranges of the disk, several pieces at a time, telling `progress` at the start and after
/// every piece; returns their bytes.
pub(super) async fn copy_all(
    reader: &Arc<DiskReader>,
    target: &Target,
    ranges: &[Range<u64>],
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<u64, RecoverError> {
    let total_bytes = ranges.iter().map(|range| range.end - range.start).sum();
    let mut done_bytes = 0;
    progress(Progress { done_bytes, total_bytes });
    let mut pieces = stream::iter(ranges.iter().cloned().flat_map(pieces))
        .map(|piece| copy(Arc::clone(reader), target, piece))
        .buffer_unordered(STREAMS);
    while let Some(copied) = pieces.try_next().await? {
        done_bytes += copied;
        progress(Progress { done_bytes, total_bytes });
    }
    Ok(done_bytes)
}

fn footer(machine: &MachineId, reader: &DiskReader) -> Result<[u8; FOOTER_BYTES], RecoverError> {
    let disk = reader.disk();
    let id = unique_id(machine, &disk.name, reader.epoch());
    let footer = Footer::new(disk.size_bytes, id)
        .map_err(|source| RecoverError::NoVhd { disk: disk.name.clone(), source })?;
    Ok(footer.encode())
}

/// Cuts a range at multiples of 4 MiB.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let next = |at: u64| (at / READ_BYTES + 1) * READ_BYTES;
    let end = range.end;
    let starts = std::iter::successors(Some(range.start), move |at| {
        Some(next(*at)).filter(|next| *next < end)
    });
    starts.map(move |start| start..next(start).min(end))
}

/// Reads, opens and writes one piece; a task of its own, so that pieces share all cores.
async fn copy(
    reader: Arc<DiskReader>,
    target: &Target,
    piece: Range<u64>,
) -> Result<u64, RecoverError> {
    let (length, file) = (piece.end - piece.start, Arc::clone(&target.file));
    let copied = tokio::spawn(async move {
        let bytes = reader.read(piece.start, length).await?;
        Ok::<_, RecoverError>(blocking(move || file.write_all_at(&bytes, piece.start)).await)
    });
    let written = copied.await.unwrap_or_else(|gone| Ok(Err(io::Error::other(gone))))?;
    written.map_err(|source| target.failed("writing", source))?;
    Ok(length)
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|gone| Err(io::Error::other(gone)))
}

/// A file that becomes `out` when it is whole, and goes away when dropped before. Where the file
/// system can, it has no name until then, so that not even a kill leaves anything.
struct Partial {
    target: Target,
    directory: PathBuf,
    /// Of a file system that knows no files without a name.
    path: Option<tempfile::TempPath>,
}

/// A new file in `directory`, without a name where that is possible.
fn make(directory: &Path) -> io::Result<(std::fs::File, Option<tempfile::TempPath>)> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok((file.into(), None)),
        // Each file system and kernel says in its own way that it knows none.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
            let mut named = tempfile::Builder::new();
            let made = named.prefix(".holdfast-export-").tempfile_in(directory)?;
            let (file, path) = made.into_parts();
            Ok((file, Some(path)))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Gives a file without a name its first one (open(2), O_TMPFILE).
fn name(file: &std::fs::File, out: &Path) -> io::Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, from, CWD, out, AtFlags::SYMLINK_FOLLOW)?)
}

impl Partial {
    fn create(out: &Path, file_bytes: u64) -> Result<Self, RecoverError> {
        if out.symlink_metadata().is_ok() {
            return Err(RecoverError::OutputExists { path: out.to_owned() });
        }
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = parent.unwrap_or(Path::new(".")).to_owned();
        let failed = |action, source| RecoverError::File { path: out.to_owned(), action, source };
        let (file, path) = make(&directory).map_err(|e| failed("making the file", e))?;
        let sized = file.set_len(file_bytes);
        sized.map_err(|source| failed("setting its length", source))?;
        let target = Target { path: out.to_owned(), file: Arc::new(file) };
        Ok(Self { target, directory, path })
    }

    /// Data first, then the name, then the directory: what is there under the name is whole.
    async fn publish(self) -> Result<(), RecoverError> {
        let Self { target: Target { path: out, file }, directory, path } = self;
        let failed = |source| RecoverError::File {
            path: out.clone(),
            action: "syncing and naming it",
            source,
        };
        let linked = Arc::clone(&file);
        blocking(move || file.sync_all()).await.map_err(failed)?;
        let named = match path {
            Some(path) => path.persist_noclobber(&out).map_err(|error| error.error),
            None => name(&linked, &out),
        };
        match named {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(RecoverError::OutputExists { path: out });
            }
            Err(error) => return Err(failed(error)),
        }
        blocking(move || std::fs::File::open(directory)?.sync_all()).await.map_err(failed)
    }
}
