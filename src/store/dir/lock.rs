//! Locks between processes and threads: flock(2) on a file per bucket of names.
//!
//! A lock ends with the process that holds it, so a killed owner never leaves one behind. A
//! *paused* owner keeps it: others wait until it goes on or is killed, which is what makes a
//! check and the write after it one step.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::ObjectName;

/// Held until dropped.
pub(super) struct Lock {
    _file: File,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn wait(file: &File, operation: FlockOperation) -> io::Result<()> {
    loop {
        match flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

impl Lock {
    /// Alone, for changes.
    pub(super) fn exclusive(locks: &Path, name: &ObjectName) -> io::Result<Self> {
        Self::of_name(locks, name, FlockOperation::LockExclusive)
    }

    /// Together with other readers.
    pub(super) fn shared(locks: &Path, name: &ObjectName) -> io::Result<Self> {
        Self::of_name(locks, name, FlockOperation::LockShared)
    }

    /// Two names may share a bucket: they wait for each other, nothing worse. A caller holds one
    /// lock at a time, so there is no order to get wrong.
    fn of_name(locks: &Path, name: &ObjectName, operation: FlockOperation) -> io::Result<Self> {
        let digest = Sha256::digest(name.as_str().as_bytes());
        let bucket = u16::from_le_bytes([digest[0], digest[1]]) % 1024;
        // Readers that overlap without end would keep a writer out for ever: who waits holds the
        // gate, and later ones queue behind it.
        let gate = open(&locks.join(format!("{bucket:03x}.gate")))?;
        wait(&gate, FlockOperation::LockExclusive)?;
        let file = open(&locks.join(format!("{bucket:03x}")))?;
        wait(&file, operation)?;
        Ok(Self { _file: file })
    }

    /// One file, waiting for it.
    pub(super) fn of_file(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        wait(&file, FlockOperation::LockExclusive)?;
        Ok(Self { _file: file })
    }

    /// One file, if nobody holds it.
    pub(super) fn try_file(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// Readers that overlap without end would starve a writer if later ones could pass it.
    #[test]
    fn who_waits_is_not_overtaken() {
        let directory = tempfile::tempdir().unwrap();
        let locks = directory.path();
        let name = &ObjectName::new("a").unwrap();
        let reader = Lock::shared(locks, name).unwrap();
        let gate = std::fs::read_dir(locks)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some())
            .unwrap();
        let (sender, order) = channel();
        std::thread::scope(|scope| {
            let (first, second) = (sender.clone(), sender);
            scope.spawn(move || {
                let _lock = Lock::exclusive(locks, name).unwrap();
                first.send("writer").unwrap();
            });
            // The writer waits once it holds the gate.
            let waits = (0..10_000_000).any(|_| Lock::try_file(&gate).unwrap().is_none());
            assert!(waits, "the writer does not queue");
            scope.spawn(move || {
                let _lock = Lock::shared(locks, name).unwrap();
                second.send("reader").unwrap();
            });
            let early = order.recv_timeout(Duration::from_millis(200));
            assert!(early.is_err(), "{early:?} passed a waiting writer or a reader");
            drop(reader);
            assert_eq!(order.recv(), Ok("writer"));
            assert_eq!(order.recv(), Ok("reader"));
        });
    }
}
