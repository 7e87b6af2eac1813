//! Pieces → sealed frames, one after the other, in the object that they become.
//!
//! Owns: where frames end, gathering, compress-then-seal, the nonce of each, the index and trailer.
//! Does not own: the key and the header (the sealer makes them, once for each object).

use std::cell::Cell;

use bytes::Bytes;

use super::coalesce::Piece;
use super::compress::append_compressed;
use super::encrypt::ObjectKey;
use super::memory::Draft;
use super::probe::Probe;
use crate::format::bytes::FormatError;
use crate::format::delta::{
    DeltaHeader, DeltaIndex, DeltaTrailer, EntrySource, FRAME_PLAIN_BYTES_MAX, FrameEntry,
    HEADER_BYTES, INDEX_NUMBER, IndexEntry, Mark, TAG_BYTES, TRAILER_BYTES,
};
use crate::model::{Extent, ZERO_BYTES_MAX};
use crate::settings::SealSettings;

thread_local! {
    /// Where a thread gathers frames, one object after the other; a frame's plaintext at most.
    static GATHERED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Smallest plaintext of a frame that settings may ask for.
pub(super) const FRAME_BYTES_MIN: u32 = 4 << 10;

/// Plaintext of a frame as these settings want it, as far as the format allows.
pub(super) fn frame_bytes(settings: &SealSettings) -> u32 {
    let asked = settings.frame_bytes / 512 * 512; // borders of frames are borders of sectors
    asked.clamp(FRAME_BYTES_MIN, FRAME_PLAIN_BYTES_MAX)
}

/// Why frames cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// zstd refused.
    #[error(transparent)]
    Compress(#[from] std::io::Error),
    /// The index breaks a rule.
    #[error(transparent)]
    Rule(#[from] FormatError),
}

/// Fills frames and seals them, one after the other, into the object.
pub(super) struct Frames<'a> {
    header: [u8; HEADER_BYTES],
    key: ObjectKey,
    compress: bool,
    level: i32,
    frame_bytes: usize,
    object: Draft,
    index: DeltaIndex,
    open: Vec<&'a [u8]>,
    open_bytes: usize,
    gathered: Vec<u8>,
    probe: Probe,
}

impl<'a> Frames<'a> {
    pub(super) fn new(
        header: &DeltaHeader,
        key: ObjectKey,
        settings: &SealSettings,
        mut object: Draft,
    ) -> Self {
        let header = header.encode();
        let frame_bytes = frame_bytes(settings) as usize;
        object.buffer().extend_from_slice(&header);
        Self {
            header,
            key,
            compress: settings.compress,
            level: settings.level,
            frame_bytes,
            object,
            index: DeltaIndex::default(),
            open: Vec::new(),
            open_bytes: 0,
            gathered: GATHERED.take(),
            probe: Probe::default(),
        }
    }

    /// Appends a piece, cut where frames are full.
    pub(super) fn add(&mut self, piece: &Piece<'a>) -> std::io::Result<()> {
        let Some(mut bytes) = piece.bytes else {
            self.enter(piece, piece.extent, EntrySource::Zero);
            return Ok(());
        };
        let mut at = piece.extent.offset();
        while !bytes.is_empty() {
            let (here, rest) = bytes.split_at(bytes.len().min(self.frame_bytes - self.open_bytes));
            let extent = Extent::new(at, here.len() as u64, ZERO_BYTES_MAX)
                .expect("pieces and frames begin and end at sectors");
            let source = EntrySource::Frame {
                frame: self.index.frames.len() as u32,
                offset: self.open_bytes as u32,
            };
            self.enter(piece, extent, source);
            self.open.push(here);
            self.open_bytes += here.len();
            if self.open_bytes == self.frame_bytes {
                self.seal_frame()?;
            }
            at += here.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn enter(&mut self, piece: &Piece<'a>, extent: Extent, source: EntrySource) {
        self.index.entries.push(IndexEntry {
            sequence: piece.sequence,
            disk: piece.disk,
            extent,
            source,
        });
    }

    /// Compresses and seals the open frame, if there is anything in it.
    fn seal_frame(&mut self) -> std::io::Result<()> {
        let mut gathered = std::mem::take(&mut self.gathered);
        let plain: &[u8] = match self.open.as_slice() {
            [] => return Ok(()),
            [whole] => whole, // straight from the cache's segment
            parts => {
                gathered.clear();
                parts.iter().for_each(|part| gathered.extend_from_slice(part));
                &gathered
            }
        };
        let number = self.index.frames.len() as u64;
        let compress = self.compress && !self.probe.passes_over(plain);
        let frame = self.seal_bytes(plain, number, compress)?;
        if compress {
            self.probe.tried(frame.compressed);
        }
        self.index.frames.push(frame);
        self.gathered = gathered;
        self.open.clear();
        self.open_bytes = 0;
        Ok(())
    }

    fn seal_bytes(
        &mut self,
        plain: &[u8],
        number: u64,
        compress: bool,
    ) -> std::io::Result<FrameEntry> {
        let offset = self.object.length() as u64;
        let object = self.object.buffer();
        let from = object.len();
        let compressed = compress && append_compressed(plain, self.level, object)?;
        if !compress {
            object.extend_from_slice(plain);
        }
        let frame = FrameEntry {
            offset,
            sealed_bytes: (object.len() - from) as u32 + TAG_BYTES,
            plain_bytes: plain.len() as u32,
            compressed,
        };
        let aad = frame.aad(&self.header, number);
        self.key.seal(nonce(number), &aad, object, from);
        Ok(frame)
    }

    /// Frames that were stored after a glance.
    pub(super) fn passed_over(&self) -> u64 {
        self.probe.passed_over()
    }

    /// Seals the last frame, checks the index before anybody relies on it, seals it and ends the
    /// object. The object, and how much memory it holds.
    pub(super) fn finish(
        mut self,
        header: &DeltaHeader,
        marks: Vec<Mark>,
    ) -> Result<(Bytes, u64), FrameError> {
        self.seal_frame()?;
        GATHERED.set(std::mem::take(&mut self.gathered));
        self.index.marks = marks;
        self.index.check(header)?;
        let plain = self.index.encode();
        let index = self.seal_bytes(&plain, INDEX_NUMBER, true)?;
        let trailer = DeltaTrailer { index, object_bytes: index.end() + TRAILER_BYTES as u64 };
        self.object.buffer().extend_from_slice(&trailer.encode());
        Ok(self.object.finish())
    }
}

/// The nonce of frame `number`; the index is [`INDEX_NUMBER`].
pub(super) fn nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    nonce
}
