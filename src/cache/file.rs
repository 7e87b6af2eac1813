//! What the log needs of a file and a directory, and nothing more: the real ones are `disk` and
//! `append`, the tests' ones model page cache, power cuts and failing syncs.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::segment::SegmentBytes;

/// A preallocated file that holds a segment. All of its bytes exist from the start.
pub(super) trait SegmentFile: fmt::Debug + Send + Sync {
    /// Its name, for messages.
    fn path(&self) -> &Path;
    /// Its size; never changes.
    fn bytes(&self) -> u64;
    /// Reads `target.len()` bytes, and says so when the disk cannot.
    fn read(&self, target: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes into the page cache.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Everything written before is on the disk when it returns `Ok`.
    fn sync(&self) -> io::Result<()>;
    /// Its bytes, to be read while a `Segment` is held.
    fn view(&self) -> io::Result<SegmentBytes>;
    /// The way in for the shard's thread.
    fn appender(&self) -> io::Result<Box<dyn Appender>>;
}

/// Writes and syncs one segment on the shard's runtime.
#[async_trait(?Send)]
pub(super) trait Appender {
    /// Writes all of `buffers`, one after the other, from `offset` on.
    async fn append(&mut self, buffers: Vec<Bytes>, offset: u64) -> io::Result<()>;
    /// Everything appended before is on the disk when it returns `Ok`.
    async fn sync(&mut self) -> io::Result<()>;
}

/// A directory of segments that nobody else has open.
pub(super) trait SegmentDirectory: fmt::Debug + Send + Sync {
    /// Its name, for messages.
    fn path(&self) -> &Path;
    /// All segments there are, each with its directory entry on the disk.
    fn slots(&self) -> io::Result<Vec<Slot>>;
    /// Makes a segment of zeros: space, zeros and directory entry are on the disk on return, or
    /// nothing is left.
    fn create(&self, number: u32, bytes: u64) -> io::Result<Slot>;
    /// Removes a segment.
    fn remove(&self, slot: &Slot) -> io::Result<()>;
    /// Gives a segment a name under which it is none any more; that is on the disk on return.
    fn set_aside(&self, slot: &Slot) -> io::Result<PathBuf>;
    /// What was set aside.
    fn aside(&self) -> io::Result<Vec<Aside>>;
}

/// A file that was a segment.
#[derive(Clone, Debug)]
pub(super) struct Aside {
    /// What its name says. No segment is made with it, or it could not be set aside in its turn.
    pub(super) number: u32,
    /// The file.
    pub(super) path: PathBuf,
    /// Its size.
    pub(super) bytes: u64,
}

/// One file of the directory.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// What its name says.
    pub(super) number: u32,
    /// The file.
    pub(super) file: Arc<dyn SegmentFile>,
}
