//! Sector-aligned places on a disk.

use std::fmt;
use std::ops::Range;

/// Bytes of a sector: the unit of alignment everywhere.
pub const SECTOR_BYTES: u64 = 512;

/// A sector-aligned, non-empty run of bytes on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    offset: u64,
    length: u32,
}

/// An extent that no disk has.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExtentError {
    /// Offset or length is no multiple of a sector.
    #[error("extent {offset}+{length} is not aligned to {SECTOR_BYTES}-byte sectors")]
    Unaligned {
        /// Bytes from the start of the disk.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// No bytes at all, or more than a record may name.
    #[error("extent {offset}+{length} is empty or longer than {max}")]
    Length {
        /// Bytes from the start of the disk.
        offset: u64,
        /// Bytes.
        length: u64,
        /// The longest that is allowed here.
        max: u32,
    },
    /// Reaches over the end of the disk.
    #[error("extent {offset}+{length} reaches over the end of the disk at {disk_bytes}")]
    OverEnd {
        /// Bytes from the start of the disk.
        offset: u64,
        /// Bytes.
        length: u64,
        /// The disk's size.
        disk_bytes: u64,
    },
}

impl Extent {
    /// An extent of at most `max` bytes.
    ///
    /// # Errors
    /// When it is empty, too long or unaligned, or when its end leaves 64 bits.
    pub fn new(offset: u64, length: u64, max: u32) -> Result<Self, ExtentError> {
        if length == 0 || length > u64::from(max) || offset.checked_add(length).is_none() {
            return Err(ExtentError::Length { offset, length, max });
        }
        if !offset.is_multiple_of(SECTOR_BYTES) || !length.is_multiple_of(SECTOR_BYTES) {
            return Err(ExtentError::Unaligned { offset, length });
        }
        Ok(Self { offset, length: length as u32 })
    }

    /// The same extent, known to lie on a disk of `disk_bytes`.
    ///
    /// # Errors
    /// When it reaches over the end.
    pub fn within(self, disk_bytes: u64) -> Result<Self, ExtentError> {
        if self.end() > disk_bytes {
            let (offset, length) = (self.offset, u64::from(self.length));
            return Err(ExtentError::OverEnd { offset, length, disk_bytes });
        }
        Ok(self)
    }

    /// Bytes from the start of the disk.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.offset
    }

    /// Bytes.
    #[must_use]
    pub fn length(self) -> u32 {
        self.length
    }

    /// First byte after it.
    #[must_use]
    pub fn end(self) -> u64 {
        self.offset + u64::from(self.length)
    }

    /// Half-open byte range.
    #[must_use]
    pub fn range(self) -> Range<u64> {
        self.offset..self.end()
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_places_that_a_disk_has() {
        assert!(matches!(Extent::new(0, 0, 4096), Err(ExtentError::Length { .. })));
        assert!(matches!(Extent::new(0, 8192, 4096), Err(ExtentError::Length { .. })));
        assert!(matches!(Extent::new(u64::MAX - 511, 512, 4096), Err(ExtentError::Length { .. })));
        assert!(matches!(Extent::new(1, 512, 4096), Err(ExtentError::Unaligned { .. })));
        assert!(matches!(Extent::new(0, 513, 4096), Err(ExtentError::Unaligned { .. })));
        let extent = Extent::new(512, 1024, 4096).unwrap();
        assert_eq!(extent.within(1536), Ok(extent));
        assert!(extent.within(1535).is_err());
    }
}
