//! `Batch` → `Sealed`: the one place where a delta is made.
//!
//! Owns: the key of each delta (its salt is drawn here, it is used once and gone when the delta is
//! done), header and manifest entry. Does not own: what is kept (coalesce), bytes of frames, threads.

use std::fmt;

use bytes::Bytes;

use super::batch::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Batch};
use super::coalesce::{ZERO_PIECES_MAX, coalesce};
use super::encrypt::ObjectKey;
use super::error::SealError;
use super::frames::{FRAME_BYTES_MIN, FrameError, Frames, frame_bytes};
use super::key::DataKey;
use super::memory::Draft;
use crate::cache::Durable;
use crate::clock::Entropy;
use crate::format::delta::{
    DeltaHeader, ENTRIES_MAX, FRAMES_MAX, HEADER_BYTES, MARKS_MAX, TAG_BYTES, TRAILER_BYTES,
};
use crate::format::manifest::{BookmarkEntry, DeltaEntry};
use crate::model::{Change, DeltaId, EpochBegin, Generation, MachineId, MachineKey, Timestamp};
use crate::settings::SealSettings;
use crate::turns::Turn;

// A batch as large as it may be still makes a legal delta: full frames but the last, and at most
// two pieces a record, one more at each border between frames, two around each run of zeros.
const _: () = assert!(BATCH_BYTES_MAX / FRAME_BYTES_MIN as u64 <= FRAMES_MAX as u64);
const _: () = assert!(2 * BATCH_RECORDS_MAX + FRAMES_MAX + ZERO_PIECES_MAX <= ENTRIES_MAX);
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
    room: Option<Turn>,
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
        self.room = None;
    }

    /// Puts what pays for the object's memory into it.
    pub(super) fn paid_by(self, room: Turn) -> Self {
        Self { room: Some(room), ..self }
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
    let object = Draft::alone(bytes_max(&batch, settings));
    match make(&batch, &lineage, key, settings, keep_every_write, entropy, object) {
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
    pub(super) passed_over: u64,
    /// Bytes of memory that the object holds.
    pub(super) held: u64,
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
            room: None,
        }
    }
}

/// Makes the delta of a batch. The key is derived from a salt that is drawn here, so every call
/// has a key of its own and its nonces may count from zero: see `docs/formats/delta.md`. It is written
/// into `object`, which has room for [`bytes_max`], so that it is never moved while it grows.
pub(super) fn make(
    batch: &Batch,
    lineage: &Lineage,
    key: &DataKey,
    settings: &SealSettings,
    keep_every_write: bool,
    entropy: &dyn Entropy,
    object: Draft,
) -> Result<Made, SealError> {
    let machine = MachineKey::of(&lineage.machine);
    if machine != batch.machine() {
        let found = batch.machine();
        return Err(SealError::ForeignRecord { machine, found });
    }
    let (header, object_key) = begin(batch, lineage, key, entropy);
    let (pieces, marks) = coalesce(batch, keep_every_write);
    let bookmarks = marks.iter().filter_map(|mark| match &mark.change {
        Change::Bookmark(bookmark) => {
            Some(BookmarkEntry { sequence: mark.sequence, bookmark: bookmark.clone() })
        }
        _ => None,
    });
    let bookmarks = bookmarks.collect();
    let epoch_begin = marks.iter().find_map(|mark| match &mark.change {
        Change::EpochBegin(begin) => Some(begin.clone()),
        _ => None,
    });
    let mut frames = Frames::new(&header, object_key, settings, object);
    let added: Result<(), _> = pieces.iter().try_for_each(|piece| frames.add(piece));
    let passed_over = frames.passed_over();
    let (object, held) = added
        .map_err(FrameError::from)
        .and_then(|()| frames.finish(&header, marks))
        .map_err(|error| refused(lineage, &header, settings, error))?;
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
        keeps_every_write: keep_every_write,
        bookmarks,
    };
    Ok(Made { object, entry, epoch_begin, passed_over, held })
}

/// Draws the salt and derives the key: the only place where either happens for a delta.
fn begin(
    batch: &Batch,
    lineage: &Lineage,
    key: &DataKey,
    entropy: &dyn Entropy,
) -> (DeltaHeader, ObjectKey) {
    let mut salt = [0; 32];
    entropy.fill(&mut salt);
    let object_key = key.delta_key(&salt, batch.machine(), lineage.id);
    let header = DeltaHeader {
        machine: batch.machine(),
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
    (header, object_key)
}

fn refused(
    lineage: &Lineage,
    header: &DeltaHeader,
    settings: &SealSettings,
    error: FrameError,
) -> SealError {
    let (machine, first, last) = (lineage.machine.clone(), header.first, header.last);
    match error {
        FrameError::Compress(source) => {
            SealError::Compress { machine, first, last, level: settings.level, source }
        }
        FrameError::Rule(source) => SealError::Unwritable { machine, first, last, source },
    }
}

/// Most bytes that sealing this batch can take in memory: the object with what folding leaves
/// and nothing compressed, the plain index beside the sealed one, one frame being gathered.
pub(super) fn bytes_max(batch: &Batch, settings: &SealSettings) -> u64 {
    let frame_bytes = u64::from(frame_bytes(settings));
    let kept = batch.kept_bytes();
    let frames = kept.div_ceil(frame_bytes);
    let records = batch.items().len() as u64;
    let index = 12 + 2 * records * 32 + frames * (12 + 32) + records * 64 + 4096;
    let frame_overhead = frames * u64::from(TAG_BYTES);
    let fixed = (HEADER_BYTES + TRAILER_BYTES) as u64 + u64::from(TAG_BYTES);
    fixed + kept + frame_overhead + 2 * index + 2 * frame_bytes
}
