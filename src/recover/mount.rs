//! One disk at one point as an NBD export, ready at once: bytes are fetched when they are read.

use std::io;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::RecoverError;
use super::base::READ_BYTES;
use super::overlay::{Content, Overlay};
use super::reader::DiskReader;
use crate::nbd::{BlockStatus, Export};

/// Extents of one answer to a question about allocation.
const EXTENTS_MAX: usize = 8192;

/// A point's disk behind [`crate::nbd::Server`]. Writes, where they are allowed, go to an overlay
/// and end with the mount; the point never changes.
#[derive(Debug)]
pub struct Mounted {
    reader: DiskReader,
    runtime: Handle,
    overlay: Option<Overlay>,
}

impl Mounted {
    /// Refuses writes. `runtime` runs the store's requests; NBD's threads wait for them, so they
    /// must not be threads of that runtime.
    #[must_use]
    pub fn read_only(reader: DiskReader, runtime: Handle) -> Self {
        Self { reader, runtime, overlay: None }
    }

    /// Takes writes into a sparse file without a name in `directory`.
    ///
    /// # Errors
    /// When the file cannot be made there.
    pub fn writable(
        reader: DiskReader,
        runtime: Handle,
        directory: &Path,
    ) -> Result<Self, RecoverError> {
        let overlay = Overlay::create(directory, reader.size_bytes());
        let overlay = overlay.map_err(|source| RecoverError::File {
            path: directory.to_owned(),
            action: "making a file for what is written to the mount",
            source,
        })?;
        Ok(Self { reader, runtime, overlay: Some(overlay) })
    }

    fn read_point(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        for part in target.chunks_mut(READ_BYTES as usize) {
            let read = self.runtime.block_on(self.reader.read(at, part.len() as u64));
            part.copy_from_slice(&read.map_err(|error| io_error(&error))?);
            at += part.len() as u64;
        }
        Ok(())
    }

    fn put(&self, offset: u64, length: u64, content: Content<'_>) -> io::Result<()> {
        let Some(overlay) = &self.overlay else {
            return Err(io::ErrorKind::PermissionDenied.into());
        };
        let mut edges = Vec::new();
        for edge in overlay.edges(&(offset..offset + length)) {
            let mut bytes = vec![0; (edge.end - edge.start) as usize];
            self.read_point(edge.start, &mut bytes)?;
            edges.push((edge.start, Bytes::from(bytes)));
        }
        overlay.write(offset, content, &edges)
    }
}

impl Export for Mounted {
    fn size_bytes(&self) -> u64 {
        self.reader.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.overlay.is_none()
    }

    fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let Some(overlay) = &self.overlay else {
            return self.read_point(offset, target);
        };
        for missing in overlay.read(offset, target)? {
            let place = (missing.start - offset) as usize..(missing.end - offset) as usize;
            self.read_point(missing.start, &mut target[place])?;
        }
        Ok(())
    }

    fn write(&self, offset: u64, payload: Bytes, _fua: bool) -> io::Result<()> {
        self.put(offset, payload.len() as u64, Content::Bytes(&payload))
    }

    fn zero(&self, offset: u64, length: u64, _trim: bool, _fua: bool) -> io::Result<()> {
        self.put(offset, length, Content::Zeros(length))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(()) // the overlay is not meant to survive the mount
    }

    fn block_status(&self, offset: u64, length: u64) -> io::Result<Vec<BlockStatus>> {
        let range = offset..offset + length;
        let parts = match &self.overlay {
            Some(overlay) => overlay.parts(range),
            None => vec![(range, false)],
        };
        let ranges = self.runtime.block_on(self.reader.ranges());
        let filled = ranges.map_err(|error| io_error(&error))?;
        let mut extents = Vec::new();
        for (part, written) in parts {
            if extents.len() >= EXTENTS_MAX {
                break;
            }
            if written {
                extents.push(extent(part.end - part.start, false));
            } else {
                status_of_point(filled, part, &mut extents);
            }
        }
        Ok(extents)
    }
}

fn status_of_point(filled: &[Range<u64>], part: Range<u64>, extents: &mut Vec<BlockStatus>) {
    let mut at = part.start;
    let first = filled.partition_point(|range| range.end <= at);
    for range in &filled[first..] {
        if range.start >= part.end || extents.len() >= EXTENTS_MAX {
            break;
        }
        if range.start > at {
            extents.push(extent(range.start - at, true));
        }
        let end = range.end.min(part.end);
        extents.push(extent(end - range.start.max(at), false));
        at = end;
    }
    if at < part.end && extents.len() < EXTENTS_MAX {
        extents.push(extent(part.end - at, true));
    }
}

fn extent(length: u64, zero: bool) -> BlockStatus {
    BlockStatus { length, hole: zero, zero }
}

fn io_error(error: &RecoverError) -> io::Error {
    io::Error::other(error.line()) // reaches the client as the error's text
}
