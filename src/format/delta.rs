//! Sealed objects of the cloud log. Layout: `docs/formats/delta.md`.

mod ends;
mod index;
#[cfg(test)]
mod tests;

pub use ends::INDEX_NUMBER;

use crate::model::{
    Change, DeltaId, DiskIndex, Epoch, Extent, Generation, MachineKey, Sequence, Timestamp,
};

/// Largest plaintext of one frame, bytes.
pub const FRAME_PLAIN_BYTES_MAX: u32 = 1 << 20;
/// Largest plaintext of an index, bytes.
pub const INDEX_PLAIN_BYTES_MAX: u32 = 16 << 20;
/// Most frames of one delta.
pub const FRAMES_MAX: usize = 1 << 16;
/// Most entries of one delta.
pub const ENTRIES_MAX: usize = 1 << 18;
/// Most marks of one delta.
pub const MARKS_MAX: usize = 1 << 16;
/// Bytes of a delta's header.
pub const HEADER_BYTES: usize = 168;
/// Bytes of a delta's trailer.
pub const TRAILER_BYTES: usize = 40;
/// Bytes that sealing adds to each frame and to the index: the authentication tag.
pub const TAG_BYTES: u32 = 16;

/// First bytes of a delta, in the clear; authenticated by every frame and the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaHeader {
    /// Whose.
    pub machine: MachineKey,
    /// Ownership under which it was made.
    pub generation: Generation,
    /// All its records are of this epoch.
    pub epoch: Epoch,
    /// Its own id.
    pub id: DeltaId,
    /// The delta before it in the stream; `None` for the first of a machine.
    pub previous: Option<DeltaId>,
    /// First record.
    pub first: Sequence,
    /// Last record.
    pub last: Sequence,
    /// When it was sealed; a label.
    pub created: Timestamp,
    /// Which of the machine's data keys.
    pub data_key: u32,
    /// Fresh for every sealing, so no key is ever used for two contents.
    pub salt: [u8; 32],
    /// Proves that the derived key is the one used (AES-GCM alone does not commit to its key).
    pub commitment: [u8; 32],
}

/// Where everything in a delta is; sealed like a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeltaIndex {
    /// Sealed frames in order.
    pub frames: Vec<FrameEntry>,
    /// Writes and zeros, ascending by sequence; no entry spans two frames.
    pub entries: Vec<IndexEntry>,
    /// Bookmarks, epoch begins, catch-up marks, ascending by sequence.
    pub marks: Vec<Mark>,
}

/// Last bytes of a delta, in the clear: where the index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaTrailer {
    /// The index, described like a frame.
    pub index: FrameEntry,
    /// Bytes of the whole object, this trailer included.
    pub object_bytes: u64,
}

/// One sealed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameEntry {
    /// Bytes from the start of the object.
    pub offset: u64,
    /// Bytes in the object, tag included.
    pub sealed_bytes: u32,
    /// Bytes after opening and decompressing.
    pub plain_bytes: u32,
    /// Whether zstd was used; stored otherwise.
    pub compressed: bool,
}

/// One run of bytes on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Place in the stream of the write that put it there.
    pub sequence: Sequence,
    /// Which disk.
    pub disk: DiskIndex,
    /// Where.
    pub extent: Extent,
    /// What.
    pub source: EntrySource,
}

/// Where an entry's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntrySource {
    /// They are zeros.
    Zero,
    /// `extent.length()` bytes from `offset` of the opened frame.
    Frame {
        /// Ordinal in [`DeltaIndex::frames`].
        frame: u32,
        /// Bytes from the start of its plaintext.
        offset: u32,
    },
}

/// A record that is no write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its place.
    pub sequence: Sequence,
    /// `Bookmark`, `EpochBegin`, `CatchUpBegin` or `CatchUpEnd`.
    pub change: Change,
}
