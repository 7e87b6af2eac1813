//! Files that commands write: whole, synced, never over another.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// For settings and certificates.
pub(super) const PUBLIC: u32 = 0o644;
/// For keys and tokens.
pub(super) const SECRET: u32 = 0o600;

/// A file or directory that could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// It exists.
    #[error("{path} exists already and is never overwritten; choose another directory, or remove it if nothing needs it", path = .0.display())]
    Exists(PathBuf),
    /// The operating system said no.
    #[error("{path}: cannot be written", path = .0.display())]
    Io(PathBuf, #[source] io::Error),
}

/// Makes a directory and its parents.
pub(super) fn make_directory(path: &Path) -> Result<(), FileError> {
    std::fs::create_dir_all(path).map_err(|source| FileError::Io(path.to_owned(), source))
}

/// Refuses when something is there.
pub(super) fn expect_absent(path: &Path) -> Result<(), FileError> {
    match path.symlink_metadata() {
        Ok(_) => Err(FileError::Exists(path.to_owned())),
        Err(_) => Ok(()), // what cannot be looked at is found out by making it
    }
}

/// Makes a new file of `mode` and syncs it with its directory.
pub(super) fn create(path: &Path, mode: u32, content: &str) -> Result<(), FileError> {
    write(path, mode, content).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => FileError::Exists(path.to_owned()),
        _ => FileError::Io(path.to_owned(), source),
    })
}

/// Puts a new file in the place of an older one, whole or not at all.
pub(super) fn replace(path: &Path, mode: u32, content: &str) -> Result<(), FileError> {
    let failed = |source| FileError::Io(path.to_owned(), source);
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    match std::fs::remove_file(&fresh) {
        Ok(()) => {} // left by a killed process
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    write(&fresh, mode, content).map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(failed)?;
    sync_directory(path).map_err(failed)
}

fn write(path: &Path, mode: u32, content: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    sync_directory(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}
