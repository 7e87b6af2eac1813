//! Read-only mapping of a whole segment: the only file with `unsafe` code.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// A segment's bytes in the page cache. Readable below a watermark that only rises.
#[derive(Debug)]
pub(super) struct Mapping {
    raw: MmapRaw,
    readable: AtomicUsize,
}

impl Mapping {
    /// Maps all of `file`; nothing is readable yet.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        Ok(Self { raw: MmapOptions::new().map_raw_read_only(file)?, readable: AtomicUsize::new(0) })
    }

    /// From now on the bytes before `end` can be read. The caller has them on the disk, and nobody
    /// writes there again while this mapping lives.
    pub(super) fn allow(&self, end: usize) {
        self.readable.fetch_max(end, Ordering::Release);
    }

    /// Bytes below the watermark. Asking for others is our own bug.
    pub(super) fn slice(&self, range: Range<usize>) -> &[u8] {
        let readable = self.readable.load(Ordering::Acquire).min(self.raw.len());
        assert!(
            range.start <= range.end && range.end <= readable,
            "bytes {range:?} of a segment are read, {readable} may be"
        );
        // SAFETY: The range lies inside the mapping (checked above), and its bytes are initialised
        // and valid for as long as `self`, because
        // - the file was preallocated and zero-filled before it was mapped, so every page of it has
        //   its block, and no access meets a hole that a full disk could not fill;
        // - no segment file is ever made shorter: this module's users only write inside it, and
        //   remove it (which keeps mapped pages) when nobody maps it;
        // - the directory is flock'ed by this process for as long as any of its files is open, so no
        //   second process server writes into it;
        // - no byte below the watermark changes while the mapping lives: the log appends above the
        //   watermark only, and a segment is blanked and recycled after the last holder of its
        //   mapping let go. Bytes above the watermark do change, through write(2), and are never
        //   part of a reference: `raw` is a pointer, not a slice.
        // A page that the disk cannot read back raises SIGBUS and ends the process, which counts as
        // a crash; recovery reads with pread and names the place.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr().add(range.start), range.len()) }
    }
}
