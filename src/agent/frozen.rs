//! The note in the state directory that the application may be frozen.
//!
//! Owns: `STATE/frozen`, there and synced before freeze is run, gone when a thaw has succeeded; whether a
//! freeze that nobody waits for still runs. Does not own: thawing ([`super::quiesce`]).
//!
//! A command of freeze has the note as its standard input, which is at its end and locked. So the
//! lock is held as long as that command runs, whatever became of the agent.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Where the note lies.
#[derive(Clone, Debug)]
pub(super) struct Frozen {
    path: PathBuf,
}

/// The note, written and locked.
#[derive(Debug)]
pub(super) struct Note(File);

impl Note {
    /// What a command of freeze reads: nothing.
    ///
    /// # Errors
    /// Without file handles.
    pub(super) fn input(&self) -> io::Result<Stdio> {
        Ok(self.0.try_clone()?.into())
    }
}

impl Frozen {
    pub(super) fn of(state_directory: &Path) -> Self {
        Self { path: state_directory.join("frozen") }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes that freeze is about to run, and how it is undone. Blocks until that is on disk.
    ///
    /// # Errors
    /// When it cannot be written, or a freeze from before still runs.
    pub(super) fn note(&self, thaw: &str) -> io::Result<Note> {
        let mut options = File::options();
        let file = options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let mut file = file.open(&self.path)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("an earlier freeze still runs"),
            TryLockError::Error(error) => error,
        })?;
        file.set_len(0)?;
        file.write_all(format!("{thaw}\n").as_bytes())?;
        file.sync_all()?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()?;
        Ok(Note(file))
    }

    /// How to undo a freeze that no thaw was seen to follow.
    pub(super) fn left(&self) -> Option<String> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Whether a command of freeze still runs, of this life or of one before.
    pub(super) fn runs(&self) -> bool {
        let file = File::open(&self.path);
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// It was thawed.
    ///
    /// # Errors
    /// When the note cannot be removed.
    pub(super) fn forget(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
