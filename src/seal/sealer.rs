//! `Batch` → `Sealed`: the one place where a delta is made.
//!
//! Owns: filling frames, the order of compressing and sealing, the key of each delta (drawn here,
//! used here, gone when the delta is done). Does not own: what is kept (coalesce), which thread.

use std::fmt;

use bytes::Bytes;

use super::batch::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Batch};
use super::coalesce::{Piece, coalesce};
use super::compress::append_compressed;
use super::encrypt::ObjectKey;
use super::error::SealError;
use super::key::DataKey;
use crate::budget::Permit;
use crate::cache::Durable;
use crate::clock::Entropy;
use crate::format::delta::{
    DeltaHeader, DeltaIndex, DeltaTrailer, ENTRIES_MAX, EntrySource, FRAME_PLAIN_BYTES_MAX,
    FRAMES_MAX, FrameEntry, HEADER_BYTES, INDEX_NUMBER, IndexEntry, MARKS_MAX, TAG_BYTES,
    TRAILER_BYTES,
};
use crate::format::manifest::{BookmarkEntry, DeltaEntry};
use crate::model::{
    Change, DeltaId, EpochBegin, Extent, Generation, MachineId, MachineKey, Timestamp,
    ZERO_BYTES_MAX,
};
use crate::settings::SealSettings;

/// Smallest plaintext of a frame that settings may ask for.
const FRAME_BYTES_MIN: u32 = 4 << 10;

// A batch as large as it may be still makes a legal delta: full frames but the last, and at most
// two pieces a record and one more at each border between frames.
const _: () = assert!(BATCH_BYTES_MAX / FRAME_BYTES_MIN as u64 <= FRAMES_MAX as u64);
const _: () = assert!(2 * BATCH_RECORDS_MAX + FRAMES_MAX <= ENTRIES_MAX);
const _: () = assert!(BATCH_RECORDS_MAX <= MARKS_MAX);

/// Where a delta stands in its machine's cloud log.
#[derive(Clone, Debug)]
pub struct Lineage {
    /// Whose.
    pub machine: MachineId,
    /// Ownership under which it is made.
    pub generation: Generation,
    /// Its own id.
    pub id: DeltaId,
    /// The delta before it; `None` for the first of a machine.
    pub previous: Option<DeltaId>,
    /// Label.
    pub created: Timestamp,
}

/// A delta that can be uploaded, and the records in it: they stay in the cache log until it is
/// published, so whoever drops this before gives them up.
#[derive(Debug)]
pub struct Sealed {
    object: Bytes,
    entry: DeltaEntry,
    previous: Option<DeltaId>,
    epoch_begin: Option<EpochBegin>,
    batch: Batch,
    permit: Permit,
}

/// A batch that could not be sealed, given back: nothing of it is lost.
#[derive(Debug)]
pub struct Unsealed {
    /// The batch as it was.
    pub batch: Batch,
    /// Why.
    pub source: SealError,
}

impl Sealed {
    /// The whole object.
    #[must_use]
    pub fn object(&self) -> &Bytes {
        &self.object
    }

    /// What the manifest will say of it.
    #[must_use]
    pub fn entry(&self) -> &DeltaEntry {
        &self.entry
    }

    /// The delta it chains to.
    #[must_use]
    pub fn previous(&self) -> Option<DeltaId> {
        self.previous
    }

    /// Whether a catch-up runs after its last record.
    #[must_use]
    pub fn ends_catching_up(&self) -> bool {
        self.batch.ends_catching_up()
    }

    /// The epoch that begins with it.
    #[must_use]
    pub fn epoch_begin(&self) -> Option<&EpochBegin> {
        self.epoch_begin.as_ref()
    }

    /// The records in it, held until this is dropped.
    #[must_use]
    pub fn items(&self) -> &[Durable] {
        self.batch.items()
    }

    /// The batch it was made of.
    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Gives the object's memory back once it is in the store; the records stay held.
    pub fn forget_object(&mut self) {
        self.object = Bytes::new();
        self.permit = Permit::none();
    }

    /// Puts what pays for the object's memory into it.
    pub(super) fn paid_by(self, permit: Permit) -> Self {
        Self { permit, ..self }
    }
}

impl fmt::Display for Unsealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl std::error::Error for Unsealed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.source()
    }
}

impl From<Box<Unsealed>> for SealError {
    fn from(unsealed: Box<Unsealed>) -> Self {
        unsealed.source
    }
}

/// Seals a batch on this thread.
///
/// # Errors
/// When the batch is another machine's or breaks a rule of the format; it is given back.
pub fn seal(
    batch: Batch,
    lineage: Lineage,
    key: &DataKey,
    settings: &SealSettings,
    keep_every_write: bool,
    entropy: &dyn Entropy,
) -> Result<Sealed, Box<Unsealed>> {
    match make(&batch, &lineage, key, settings, keep_every_write, entropy) {
        Ok(made) => Ok(made.of(batch, &lineage)),
        Err(source) => Err(Box::new(Unsealed { batch, source })),
    }
}

/// What sealing makes of a batch that somebody else holds.
#[derive(Debug)]
pub(super) struct Made {
    object: Bytes,
    entry: DeltaEntry,
    epoch_begin: Option<EpochBegin>,
}

impl Made {
    /// The product, together with the batch that it was made of.
    pub(super) fn of(self, batch: Batch, lineage: &Lineage) -> Sealed {
        Sealed {
            object: self.object,
            entry: self.entry,
            previous: lineage.previous,
            epoch_begin: self.epoch_begin,
            batch,
            permit: Permit::none(),
        }
    }
}

/// Makes the delta of a batch. The key is derived from a salt that is drawn here, so every call
/// has a key of its own and its nonces may count from zero: see `docs/formats/delta.md`.
pub(super) fn make(
    batch: &Batch,
    lineage: &Lineage,
    key: &DataKey,
    settings: &SealSettings,
    keep_every_write: bool,
    entropy: &dyn Entropy,
) -> Result<Made, SealError> {
    let machine = MachineKey::of(&lineage.machine);
    if machine != batch.machine() {
        let found = batch.machine();
        return Err(SealError::ForeignRecord { machine, found });
    }
    let mut salt = [0; 32];
    entropy.fill(&mut salt);
    let object_key = key.delta_key(&salt, machine, lineage.id);
    let header = DeltaHeader {
        machine,
        generation: lineage.generation,
        epoch: batch.epoch(),
        id: lineage.id,
        previous: lineage.previous,
        first: batch.first(),
        last: batch.last(),
        created: lineage.created,
        data_key: key.id(),
        salt,
        commitment: object_key.commitment(),
    };
    let (pieces, marks) = coalesce(batch, keep_every_write);
    let bookmarks = marks.iter().filter_map(|mark| match &mark.change {
        Change::Bookmark(bookmark) => Some(BookmarkEntry {
            sequence: mark.sequence,
            bookmark: bookmark.clone(),
        }),
        _ => None,
    });
    let bookmarks = bookmarks.collect();
    let epoch_begin = marks.iter().find_map(|mark| match &mark.change {
        Change::EpochBegin(begin) => Some(begin.clone()),
        _ => None,
    });
    let failed = |source| SealError::Compress {
        machine: lineage.machine.clone(),
        first: header.first,
        last: header.last,
        level: settings.level,
        source,
    };
    let mut frames = Frames::new(&header, object_key, settings, &pieces);
    for piece in &pieces {
        frames.add(piece).map_err(failed)?;
    }
    frames.seal_frame().map_err(failed)?;
    frames.index.marks = marks;
    frames.index.check(&header).map_err(|source| {
        let (machine, first, last) = (lineage.machine.clone(), header.first, header.last);
        SealError::Unwritable {
            machine,
            first,
            last,
            source,
        }
    })?;
    let object = Bytes::from(frames.finish().map_err(failed)?);
    let entry = DeltaEntry {
        id: header.id,
        generation: header.generation,
        epoch: header.epoch,
        first: header.first,
        last: header.last,
        object_bytes: object.len() as u64,
        source_bytes: batch.payload_bytes(),
        created: header.created,
        catch_up: batch.catch_up(),
        bookmarks,
    };
    Ok(Made {
        object,
        entry,
        epoch_begin,
    })
}

/// Most bytes that sealing this batch can take in memory: the object with nothing folded and
/// nothing compressed, the plain index beside the sealed one, one frame being gathered.
pub(super) fn bytes_max(batch: &Batch, settings: &SealSettings) -> u64 {
    let frame_bytes = u64::from(frame_bytes(settings));
    let frames = batch.payload_bytes().div_ceil(frame_bytes);
    let records = batch.items().len() as u64;
    let index = 12 + 2 * records * 32 + frames * (12 + 32) + records * 64 + 4096;
    let frame_overhead = frames * u64::from(TAG_BYTES);
    let fixed = (HEADER_BYTES + TRAILER_BYTES) as u64 + u64::from(TAG_BYTES);
    fixed + batch.payload_bytes() + frame_overhead + 2 * index + 2 * frame_bytes
}

fn frame_bytes(settings: &SealSettings) -> u32 {
    let asked = settings.frame_bytes / 512 * 512; // borders of frames are borders of sectors
    asked.clamp(FRAME_BYTES_MIN, FRAME_PLAIN_BYTES_MAX)
}

/// Fills frames and seals them, one after the other, into the object.
struct Frames<'a> {
    header: [u8; HEADER_BYTES],
    key: ObjectKey,
    level: i32,
    frame_bytes: usize,
    object: Vec<u8>,
    index: DeltaIndex,
    open: Vec<&'a [u8]>,
    open_bytes: usize,
    gathered: Vec<u8>,
}

impl<'a> Frames<'a> {
    fn new(
        header: &DeltaHeader,
        key: ObjectKey,
        settings: &SealSettings,
        pieces: &[Piece<'a>],
    ) -> Self {
        let header = header.encode();
        let frame_bytes = frame_bytes(settings) as usize;
        let plain: usize = pieces
            .iter()
            .filter_map(|piece| piece.bytes)
            .map(<[u8]>::len)
            .sum();
        // Room for everything stored, so that the object is never moved while it grows. Pages
        // that are not reached cost nothing, and the rest is given back at the end.
        let mut object = Vec::with_capacity(plain + plain / 64 + 2 * frame_bytes + HEADER_BYTES);
        object.extend_from_slice(&header);
        Self {
            header,
            key,
            level: settings.level,
            frame_bytes,
            object,
            index: DeltaIndex::default(),
            open: Vec::new(),
            open_bytes: 0,
            gathered: Vec::new(),
        }
    }

    /// Appends a piece, cut where frames are full.
    fn add(&mut self, piece: &Piece<'a>) -> std::io::Result<()> {
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
                parts
                    .iter()
                    .for_each(|part| gathered.extend_from_slice(part));
                &gathered
            }
        };
        let number = self.index.frames.len() as u64;
        let frame = self.seal_bytes(plain, number)?;
        self.index.frames.push(frame);
        self.gathered = gathered;
        self.open.clear();
        self.open_bytes = 0;
        Ok(())
    }

    fn seal_bytes(&mut self, plain: &[u8], number: u64) -> std::io::Result<FrameEntry> {
        let from = self.object.len();
        let compressed = append_compressed(plain, self.level, &mut self.object)?;
        let frame = FrameEntry {
            offset: from as u64,
            sealed_bytes: (self.object.len() - from) as u32 + TAG_BYTES,
            plain_bytes: plain.len() as u32,
            compressed,
        };
        let aad = frame.aad(&self.header, number);
        self.key.seal(nonce(number), &aad, &mut self.object, from);
        Ok(frame)
    }

    /// Seals the index and ends the object.
    fn finish(mut self) -> std::io::Result<Vec<u8>> {
        let plain = self.index.encode();
        let index = self.seal_bytes(&plain, INDEX_NUMBER)?;
        let trailer = DeltaTrailer {
            index,
            object_bytes: index.end() + TRAILER_BYTES as u64,
        };
        self.object.extend_from_slice(&trailer.encode());
        self.object.shrink_to_fit();
        Ok(self.object)
    }
}

/// The nonce of frame `number`; the index is [`INDEX_NUMBER`].
pub(super) fn nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    nonce
}
