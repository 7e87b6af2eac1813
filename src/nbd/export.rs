//! What stands behind an NBD export.

use std::io;

/// A disk that answers NBD requests. Called from several threads at once; ranges were checked
/// against `size_bytes` and are multiples of 512.
pub trait Export: Send + Sync + 'static {
    /// Bytes; does not change while served.
    fn size_bytes(&self) -> u64;
    /// Refuses writes before they reach the export.
    fn read_only(&self) -> bool;
    /// Fills `target` from `offset`.
    ///
    /// # Errors
    /// Becomes the NBD error of the reply.
    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()>;
    /// Writes; with `fua` it is durable when this returns.
    ///
    /// # Errors
    /// Becomes the NBD error of the reply.
    fn write(&self, offset: u64, payload: bytes::Bytes, fua: bool) -> io::Result<()>;
    /// Makes the range read as zeros (WRITE_ZEROES, and TRIM with `trim`).
    ///
    /// # Errors
    /// Becomes the NBD error of the reply.
    fn zero(&self, offset: u64, length: u64, trim: bool, fua: bool) -> io::Result<()>;
    /// All writes that returned before are durable when this returns.
    ///
    /// # Errors
    /// Becomes the NBD error of the reply.
    fn flush(&self) -> io::Result<()>;
    /// `base:allocation` of the range, in order, covering it from its start (may stop early).
    ///
    /// # Errors
    /// Becomes the NBD error of the reply.
    fn block_status(&self, offset: u64, length: u64) -> io::Result<Vec<BlockStatus>>;
}

/// One extent of `base:allocation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// Bytes.
    pub length: u64,
    /// Nothing is allocated there.
    pub hole: bool,
    /// It reads as zeros.
    pub zero: bool,
}
