//! Block blobs in a directory: each a file of exactly the object's bytes.
//!
//! Owns publishing (temporary file, sync, then link or rename, then directory sync) and
//! compare-and-swap under the name's lock. Does not own page blobs; it only refuses to touch them.

use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::disk::{Opened, Temporary, if_found, parent};
use super::root::Root;
use super::{BlockId, Condition, ETag, LeaseId, ObjectName, Properties, Result, StoreError};
use crate::model::Timestamp;
use crate::store::rules::{About, content_etag};

/// Bytes that are copied or hashed at a time.
const PIECE: usize = 1 << 20;

/// Whoever reads less at a time comes back for what follows, and the kernel has it by then.
const READ_AHEAD_BYTES: u64 = 512 << 10;

/// What stands at a name.
pub(super) enum Found {
    Nothing,
    Blocks(Opened),
    Pages,
}

fn kind_of(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        ErrorKind::NotADirectory => Some("lies under another object"),
        ErrorKind::IsADirectory | ErrorKind::DirectoryNotEmpty => {
            Some("is a path to other objects")
        }
        ErrorKind::InvalidFilename => Some("has a part that is longer than the file system allows"),
        _ => None,
    }
}

/// An error of placing something at a name: a name that cannot be, no room, or the system.
pub(super) fn place_error(about: About<'_>, action: &'static str, error: io::Error) -> StoreError {
    match kind_of(&error) {
        Some(why) => about.refused(why),
        None => about.io(action, error),
    }
}

pub(super) fn modified(file: &std::fs::Metadata) -> Timestamp {
    use std::os::unix::fs::MetadataExt;
    Timestamp(file.mtime() * 1_000_000 + file.mtime_nsec() / 1_000)
}

fn etag_of(file: &Opened) -> io::Result<ETag> {
    let mut digest = Sha256::new();
    let mut piece = vec![0; PIECE.min(file.length()?.max(1) as usize)];
    let mut at = 0;
    loop {
        match file.file.read_at(&mut piece, at)? {
            0 => return Ok(ETag(hex::encode(digest.finalize()))),
            count => {
                digest.update(&piece[..count]);
                at += count as u64;
            }
        }
    }
}

impl Root {
    /// Opens what stands at a name. Object files are never changed in place, so what was opened
    /// stays one version whatever happens to the name.
    pub(super) fn find(&self, name: &ObjectName) -> Result<Found> {
        let fail = |error| place_error(self.about(name), "opening", error);
        let path = self.object(name);
        let Some(opened) = if_found(Opened::open(path, false)).map_err(fail)? else {
            return Ok(Found::Nothing);
        };
        if !opened.file.metadata().map_err(fail)?.is_file() {
            return Ok(Found::Nothing); // a directory on the way to other objects
        }
        let state = self.beside(name).join("state");
        match if_found(std::fs::symlink_metadata(state)).map_err(fail)? {
            Some(_) => Ok(Found::Pages),
            None => Ok(Found::Blocks(opened)),
        }
    }

    fn blocks(&self, name: &ObjectName) -> Result<Opened> {
        match self.find(name)? {
            Found::Nothing => Err(self.about(name).not_found()),
            Found::Pages => Err(self.about(name).is_pages()),
            Found::Blocks(opened) => Ok(opened),
        }
    }

    fn check(&self, name: &ObjectName, condition: &Condition) -> Result<()> {
        let about = self.about(name);
        match (self.find(name)?, condition) {
            (Found::Nothing, _) => about.check_condition(condition, None),
            (Found::Pages | Found::Blocks(_), Condition::Absent) => {
                // Who made it may have been killed before it was durable; what the caller is told
                // to exist must exist after a loss of power, too.
                self.disk
                    .sync_directory(parent(&self.object(name)))
                    .map_err(|error| about.io("syncing the directory", error))?;
                Err(about.already_exists())
            }
            (Found::Pages, _) => Err(about.is_pages()),
            (Found::Blocks(_), Condition::Always) => Ok(()),
            (Found::Blocks(opened), Condition::Matches(_)) => {
                let etag = etag_of(&opened).map_err(|error| about.io("reading", error))?;
                about.check_condition(condition, Some(&etag))
            }
        }
    }

    pub(super) fn stage(&self, name: &ObjectName, block: BlockId, body: &Bytes) -> Result<()> {
        let about = self.about(name);
        about.check_block(body.len())?;
        if matches!(self.find(name)?, Found::Pages) {
            return Err(about.is_pages());
        }
        let staged = self.staged(name);
        let write = || -> io::Result<()> {
            if_exists_fine(std::fs::create_dir(&staged))?;
            let temporary = self.temporary()?;
            self.disk.write(&temporary.0, 0, body)?;
            let place = staged.join(format!("{:08x}", block.0));
            std::fs::rename(&temporary.0.path, place) // need not survive anything: no step
        };
        write().map_err(|error| about.io("staging a block", error))
    }

    pub(super) fn commit(
        &self,
        name: &ObjectName,
        blocks: &[BlockId],
        condition: &Condition,
    ) -> Result<ETag> {
        let about = self.about(name);
        about.check_block_list(blocks)?;
        self.check(name, condition)?; // early, so that a repeated commit is told before it copies
        let fail = |error| about.io("reading a staged block", error);
        let mut staged = Vec::with_capacity(blocks.len().min(64));
        for block in blocks {
            let path = self.staged(name).join(format!("{:08x}", block.0));
            let found = if_found(std::fs::symlink_metadata(&path)).map_err(fail)?;
            found.ok_or_else(|| about.not_staged(*block))?;
            staged.push(path);
        }
        let etag = if let [one] = staged.as_slice() {
            let block = Opened::open(one.clone(), false).map_err(fail)?;
            let etag = etag_of(&block).map_err(fail)?;
            self.place(name, &block, condition, None)?;
            etag
        } else {
            let (joined, etag) = self
                .concatenate(&staged)
                .map_err(|error| about.io("joining staged blocks", error))?;
            self.place(name, &joined.0, condition, None)?;
            etag
        };
        let _ = std::fs::remove_dir_all(self.staged(name)); // else swept with the staging directory
        Ok(etag)
    }

    /// The parts, one after the other, and the version that they are together.
    fn concatenate(&self, parts: &[std::path::PathBuf]) -> io::Result<(Temporary, ETag)> {
        let joined = self.temporary()?;
        let mut digest = Sha256::new();
        let mut at = 0;
        let mut piece = vec![0; PIECE];
        for part in parts {
            let mut part = std::fs::File::open(part)?;
            loop {
                let count = part.read(&mut piece)?;
                if count == 0 {
                    break;
                }
                self.disk.write(&joined.0, at, &piece[..count])?;
                digest.update(&piece[..count]);
                at += count as u64;
            }
        }
        Ok((joined, ETag(hex::encode(digest.finalize()))))
    }

    pub(super) fn put(
        &self,
        name: &ObjectName,
        body: &Bytes,
        condition: &Condition,
        lease: Option<LeaseId>,
    ) -> Result<ETag> {
        self.write_whole(name, body, condition, lease)?;
        Ok(content_etag(body))
    }

    /// Without finding out its version: for a large object that is most of what writing it costs
    /// beside the kernel's part.
    pub(super) fn put_new(&self, name: &ObjectName, body: &Bytes) -> Result<()> {
        self.write_whole(name, body, &Condition::Absent, None)
    }

    fn write_whole(
        &self,
        name: &ObjectName,
        body: &Bytes,
        condition: &Condition,
        lease: Option<LeaseId>,
    ) -> Result<()> {
        let about = self.about(name);
        about.check_put(body.len())?;
        self.check(name, condition)?;
        let write = || -> io::Result<Temporary> {
            let temporary = self.temporary()?;
            self.disk.write_through(&temporary.0, 0, body)?;
            Ok(temporary)
        };
        let finished = write().map_err(|error| about.io("writing", error))?;
        self.place(name, &finished.0, condition, lease)
    }

    /// Makes a finished file the object, if the condition (still) holds.
    fn place(
        &self,
        name: &ObjectName,
        finished: &Opened,
        condition: &Condition,
        lease: Option<LeaseId>,
    ) -> Result<()> {
        let about = self.about(name);
        self.disk.sync_all(finished).map_err(|error| about.io("syncing", error))?;
        let _lock = self.exclusive(name)?;
        self.check(name, condition)?;
        self.check_change(name, lease)?;
        self.sweep_beside(name).map_err(|error| about.io("removing what a crash left", error))?;
        let absent = *condition == Condition::Absent;
        match self.publish(&finished.path, name, absent) {
            Err(error) if absent && error.kind() == ErrorKind::AlreadyExists => {
                Err(about.already_exists())
            }
            placed => placed.map_err(|error| place_error(about, "publishing", error)),
        }
    }

    /// Link or rename, then sync the directory. Under the name's lock.
    pub(super) fn publish(&self, from: &Path, name: &ObjectName, absent: bool) -> io::Result<()> {
        let target = self.object(name);
        let directory = parent(&target);
        let is_directory = std::fs::symlink_metadata(&target).is_ok_and(|found| found.is_dir());
        if is_directory {
            std::fs::remove_dir(&target)?; // empty: the objects below it are gone
        }
        let place = || match absent {
            true => self.disk.link(from, &target),
            false => self.disk.rename(from, &target),
        };
        self.durable_directory(directory)?;
        if let Err(error) = place() {
            if error.kind() != ErrorKind::NotFound {
                return Err(error);
            }
            self.memory().forget_directory(directory); // somebody removed it when it was empty
            self.durable_directory(directory)?;
            place()?;
        }
        self.disk.sync_directory(directory)
    }

    pub(super) fn read(&self, name: &ObjectName) -> Result<(Bytes, ETag)> {
        let about = self.about(name);
        let opened = self.blocks(name)?;
        let fail = |error| about.io("reading", error);
        let length = opened.length().map_err(fail)?;
        about.check_read(length, 0, length)?;
        let mut content = vec![0; length as usize];
        opened.read(0, &mut content).map_err(fail)?;
        let etag = content_etag(&content);
        Ok((content.into(), etag))
    }

    pub(super) fn read_range(&self, name: &ObjectName, offset: u64, length: u64) -> Result<Bytes> {
        let about = self.about(name);
        let opened = self.blocks(name)?;
        let fail = |error| about.io("reading", error);
        about.check_read(opened.length().map_err(fail)?, offset, length)?;
        let mut content = vec![0; length as usize];
        let read = match length >= READ_AHEAD_BYTES {
            true => self.disk.read_through(&opened, offset, &mut content),
            false => opened.read(offset, &mut content),
        };
        read.map_err(fail)?;
        Ok(content.into())
    }

    pub(super) fn properties(&self, name: &ObjectName) -> Result<Properties> {
        let opened = match self.find(name)? {
            Found::Nothing => return Err(self.about(name).not_found()),
            Found::Pages => return self.page_properties(name),
            Found::Blocks(opened) => opened,
        };
        let leased = self.blocks_ownership(name)?.leased(self.clock.wall());
        let read = || -> io::Result<Properties> {
            let metadata = opened.file.metadata()?;
            Ok(Properties {
                length: metadata.len(),
                etag: etag_of(&opened)?,
                modified: modified(&metadata),
                sequence_number: 0,
                leased,
            })
        };
        read().map_err(|error| self.about(name).io("reading", error))
    }

    /// Also gives back the blocks that this store staged for a name under which nothing is left.
    pub(super) fn delete(&self, name: &ObjectName, condition: &Condition) -> Result<()> {
        let about = self.about(name);
        let _lock = self.exclusive(name)?;
        let found = self.blocks(name);
        if matches!(found, Err(StoreError::NotFound { .. })) {
            let _ = std::fs::remove_dir_all(self.staged(name)); // else swept with the staging
        }
        let opened = found?;
        if *condition != Condition::Always {
            let etag = etag_of(&opened).map_err(|error| about.io("reading", error))?;
            about.check_condition(condition, Some(&etag))?;
        }
        self.check_change(name, None)?;
        let remove = || {
            self.disk.remove(&opened.path)?;
            self.disk.sync_directory(parent(&opened.path))
        };
        remove().map_err(|error| about.io("removing", error))?;
        let _ = std::fs::remove_dir_all(self.staged(name));
        Ok(())
    }
}

fn if_exists_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}
