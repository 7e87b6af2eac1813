//! What every store enforces before it acts, and errors that name the store and the object.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{
    BLOCK_BYTES_MAX, BLOCKS_MAX, BlockId, Condition, ETag, ObjectName, PAGE_WRITE_BYTES_MAX,
    PageBody, PageWrite, Result, StoreError,
};
use crate::model::SECTOR_BYTES;

/// Largest page blob (Azure): 8 TiB.
pub const PAGE_BLOB_BYTES_MAX: u64 = 8 << 40;
/// Longest label of a snapshot.
pub const LABEL_BYTES_MAX: usize = 256;
/// Most bytes that one call reads: one answer is one buffer.
pub const READ_BYTES_MAX: u64 = 1 << 30;
/// Largest sequence number of a page blob (Azure).
pub(crate) const SEQUENCE_NUMBER_MAX: u64 = i64::MAX as u64;

/// Version of a content: its SHA-256. Equal content is the same version on purpose: a write that
/// is repeated after a lost answer finds the version that it made.
pub(crate) fn content_etag(content: &[u8]) -> ETag {
    let digest: [u8; 32] = Sha256::digest(content).into();
    ETag(hex::encode(digest))
}

/// No room, or another error of the operating system.
pub(crate) fn io_error(
    store: &str,
    name: String,
    action: &'static str,
    source: std::io::Error,
) -> StoreError {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let store = store.to_owned();
    let full = matches!(source.kind(), StorageFull | QuotaExceeded);
    let source = Arc::new(source);
    if full {
        return StoreError::Full { store, name, source };
    }
    StoreError::Io { store, name, action, source }
}

/// The object that a call is about: makes its errors.
#[derive(Clone, Copy)]
pub(crate) struct About<'a> {
    pub(crate) store: &'a str,
    pub(crate) name: &'a ObjectName,
}

impl<'a> About<'a> {
    pub(crate) fn new(store: &'a str, name: &'a ObjectName) -> Self {
        Self { store, name }
    }

    fn names(self) -> (String, String) {
        (self.store.to_owned(), self.name.to_string())
    }

    pub(crate) fn not_found(self) -> StoreError {
        let (store, name) = self.names();
        StoreError::NotFound { store, name }
    }

    pub(crate) fn already_exists(self) -> StoreError {
        let (store, name) = self.names();
        StoreError::AlreadyExists { store, name }
    }

    pub(crate) fn precondition(self) -> StoreError {
        let (store, name) = self.names();
        StoreError::Precondition { store, name }
    }

    pub(crate) fn fenced(self, detail: impl Into<String>) -> StoreError {
        let (store, name) = self.names();
        let detail = detail.into();
        StoreError::Fenced { store, name, detail }
    }

    pub(crate) fn refused(self, detail: impl Into<String>) -> StoreError {
        let (store, name) = self.names();
        let detail = detail.into();
        StoreError::Refused { store, name, detail }
    }

    pub(crate) fn damaged(self, detail: impl Into<String>) -> StoreError {
        let (store, name) = self.names();
        let detail = detail.into();
        StoreError::Damaged { store, name, detail }
    }

    /// No room, or an error of the operating system.
    pub(crate) fn io(self, action: &'static str, source: std::io::Error) -> StoreError {
        io_error(self.store, self.name.to_string(), action, source)
    }

    /// A page blob where a block blob is needed.
    pub(crate) fn is_pages(self) -> StoreError {
        self.refused("is a page blob; this call is for block blobs")
    }

    /// A block blob where a page blob is needed.
    pub(crate) fn is_blocks(self) -> StoreError {
        self.refused("is a block blob; this call is for page blobs")
    }

    /// Whether a write may go over `present`.
    pub(crate) fn check_condition(
        self,
        condition: &Condition,
        present: Option<&ETag>,
    ) -> Result<()> {
        match (condition, present) {
            (Condition::Always, _) | (Condition::Absent, None) => Ok(()),
            (Condition::Absent, Some(_)) => Err(self.already_exists()),
            (Condition::Matches(wanted), Some(found)) if wanted == found => Ok(()),
            (Condition::Matches(_), _) => Err(self.precondition()),
        }
    }

    /// One block's or one small object's length.
    pub(crate) fn check_block(self, length: usize) -> Result<()> {
        if length == 0 {
            return Err(self.refused("a block has no bytes"));
        }
        self.check_put(length)
    }

    pub(crate) fn check_put(self, length: usize) -> Result<()> {
        if length > BLOCK_BYTES_MAX as usize {
            return Err(self.refused(format!(
                "{length} bytes at once, at most {BLOCK_BYTES_MAX} are allowed"
            )));
        }
        Ok(())
    }

    pub(crate) fn check_block_list(self, blocks: &[BlockId]) -> Result<()> {
        if blocks.len() > BLOCKS_MAX {
            return Err(
                self.refused(format!("{} blocks, at most {BLOCKS_MAX} are allowed", blocks.len()))
            );
        }
        Ok(())
    }

    pub(crate) fn not_staged(self, block: BlockId) -> StoreError {
        self.refused(format!("block {} is committed but not staged", block.0))
    }

    /// A range inside an object of `length` bytes.
    pub(crate) fn check_read(self, length: u64, offset: u64, wanted: u64) -> Result<()> {
        if wanted > READ_BYTES_MAX {
            return Err(self.refused(format!(
                "a read of {wanted} bytes, at most {READ_BYTES_MAX} are allowed"
            )));
        }
        self.check_range(length, offset, wanted)
    }

    pub(crate) fn check_range(self, length: u64, offset: u64, wanted: u64) -> Result<()> {
        if offset.checked_add(wanted).is_some_and(|end| end <= length) {
            return Ok(());
        }
        let (store, name) = self.names();
        Err(StoreError::OutOfRange { store, name, length, offset, wanted })
    }

    pub(crate) fn check_page_blob_size(self, size: u64) -> Result<()> {
        if size == 0 || size > PAGE_BLOB_BYTES_MAX || !size.is_multiple_of(SECTOR_BYTES) {
            return Err(self.refused(format!(
                "a page blob of {size} bytes; it must be a multiple of {SECTOR_BYTES}, at most {PAGE_BLOB_BYTES_MAX}"
            )));
        }
        Ok(())
    }

    pub(crate) fn check_label(self, label: &str) -> Result<()> {
        if label.len() > LABEL_BYTES_MAX {
            return Err(self.refused(format!(
                "a label of {} bytes, at most {LABEL_BYTES_MAX} are allowed",
                label.len()
            )));
        }
        Ok(())
    }

    pub(crate) fn check_sequence_number(self, number: u64) -> Result<()> {
        if number > SEQUENCE_NUMBER_MAX {
            return Err(self.refused(format!(
                "sequence number {number}, at most {SEQUENCE_NUMBER_MAX} is allowed"
            )));
        }
        Ok(())
    }

    /// Azure's rules for page writes, on every store, so that none accepts what another refuses.
    pub(crate) fn check_page_writes(self, size: u64, writes: &[PageWrite]) -> Result<()> {
        let mut ranges = Vec::with_capacity(writes.len());
        for write in writes {
            let (offset, length) = (write.offset, write.body.length());
            let why = match &write.body {
                _ if length == 0 => "is empty",
                _ if !offset.is_multiple_of(SECTOR_BYTES) => "begins inside a sector",
                _ if !length.is_multiple_of(SECTOR_BYTES) => "ends inside a sector",
                _ if offset.checked_add(length).is_none_or(|end| end > size) => {
                    "reaches over the end"
                }
                PageBody::Data(bytes) if bytes.len() > PAGE_WRITE_BYTES_MAX as usize => {
                    "is longer than 4 MiB"
                }
                PageBody::Data(_) | PageBody::Clear(_) => {
                    ranges.push(offset..offset + length);
                    continue;
                }
            };
            return Err(self.refused(format!("page write {offset}+{length} {why} (size {size})")));
        }
        ranges.sort_unstable_by_key(|range| range.start);
        match ranges.windows(2).find(|pair| pair[0].end > pair[1].start) {
            None => Ok(()),
            Some(pair) => Err(self.refused(format!(
                "page writes {:?} and {:?} of one call overlap",
                pair[0], pair[1]
            ))),
        }
    }
}

impl PageBody {
    /// Bytes that it covers.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Clear(length) => *length,
        }
    }
}

/// Appends a range to a sorted list, joining it with the last one when they touch.
pub(crate) fn push_range(ranges: &mut Vec<super::PageRange>, start: u64, end: u64) {
    match ranges.last_mut() {
        Some(last) if last.end >= start => last.end = last.end.max(end),
        _ if start < end => ranges.push(super::PageRange { start, end }),
        _ => {}
    }
}
