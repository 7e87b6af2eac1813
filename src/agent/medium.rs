//! Bytes at rest that the agent reads, writes and syncs: a source disk, a bitmap file.
//!
//! Owns: the line below which a power cut may lose things. Does not own: any order of calls.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::source_identity::{Changed, SourceIdentity};

/// A file of fixed size. What was written is safe from a power cut only after a later [`Self::sync`]
/// succeeded; until then any subset of its sectors may survive.
pub(super) trait Medium: Send + Sync + 'static {
    /// Fills `target`; reading over the end is an error.
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// The range reads as zeros afterwards; with `release` its room may be given back.
    fn zero_at(&self, offset: u64, length: u64, release: bool) -> io::Result<()>;
    /// fdatasync. After an error nothing written since the sync before may be believed.
    fn sync(&self) -> io::Result<()>;
    /// Where the first byte at or after `offset` stands that may be other than a never-written
    /// zero; `end` when there is none before it.
    fn next_data(&self, offset: u64, end: u64) -> io::Result<u64>;
    /// First byte at or after `offset` that lies in a hole; `end` when there is none before it.
    fn next_hole(&self, offset: u64, end: u64) -> io::Result<u64>;
    /// What tells it from another one in its place. Nothing, where whoever tells of its writes would notice.
    fn identity(&self) -> SourceIdentity {
        SourceIdentity::default()
    }
    /// Syncs all of it, its times too, and says when it was changed last; `None` when it cannot be known.
    ///
    /// # Errors
    /// As of [`Self::sync`].
    fn changed(&self) -> io::Result<Option<Changed>> {
        Ok(None)
    }
    /// Whoever sees the writes of others lets reads through from here on. Most media have no others.
    fn guard(&self, gate: Arc<dyn Gate>) {
        drop(gate);
    }
    /// Connects to where it reads from, if it is not a disk of this machine: unless it is connected, or
    /// `anew` in any case. It never does so by itself.
    ///
    /// # Errors
    /// When nobody answers there.
    fn connect(&self, _anew: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Stands around each read of a medium that others write.
pub(super) trait Gate: Send + Sync + 'static {
    /// Blocks until every write of the range that is in flight is complete.
    ///
    /// # Errors
    /// In words, when that cannot be known.
    fn before(&self, range: &Range<u64>) -> Result<(), String>;
    /// Blocks until every write that was issued so far is told to the stream.
    ///
    /// # Errors
    /// As before.
    fn after(&self) -> Result<(), String>;
}
