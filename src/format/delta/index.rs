//! Bytes of the index, and the rules that writer and reader check alike.

use super::ends::flags;
use super::{
    DeltaHeader, DeltaIndex, ENTRIES_MAX, EntrySource, FRAME_PLAIN_BYTES_MAX, FRAMES_MAX,
    FrameEntry, HEADER_BYTES, INDEX_PLAIN_BYTES_MAX, IndexEntry, MARKS_MAX, Mark,
};
use crate::format::bytes::{FormatError, Reader, Writer};
use crate::format::change::{ChangeKind, MARK_BYTES_MAX, decode_mark, encode_mark};
use crate::model::{
    Change, DISK_BYTES_MAX, DiskIndex, Extent, Sequence, WRITE_BYTES_MAX, ZERO_BYTES_MAX,
};

const COUNTS_BYTES: usize = 12;
const FRAME_BYTES: usize = 12;
const ENTRY_BYTES: usize = 32;
const MARK_BYTES_MIN: usize = 12;

const _: () = assert!(
    COUNTS_BYTES
        + FRAMES_MAX * FRAME_BYTES
        + ENTRIES_MAX * ENTRY_BYTES
        + MARKS_MAX * MARK_BYTES_MIN
        < INDEX_PLAIN_BYTES_MAX as usize
);
const _: () = assert!(MARK_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(WRITE_BYTES_MAX <= FRAME_PLAIN_BYTES_MAX);

impl DeltaIndex {
    /// The index's plaintext.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let sizes = self.frames.len() * FRAME_BYTES + self.entries.len() * ENTRY_BYTES;
        let mut to = Writer(Vec::with_capacity(COUNTS_BYTES + sizes + self.marks.len() * 64));
        let counts = [self.frames.len(), self.entries.len(), self.marks.len()];
        for count in counts {
            to.u32(u32::try_from(count).expect("the sealer keeps to the limits of the format"));
        }
        for frame in &self.frames {
            to.u32(frame.sealed_bytes).u32(frame.plain_bytes);
            to.u32(frame.flags());
        }
        for entry in &self.entries {
            let (kind, frame, offset) = match entry.source {
                EntrySource::Zero => (ChangeKind::Zero, 0, 0),
                EntrySource::Frame { frame, offset } => (ChangeKind::Write, frame, offset),
            };
            to.u64(entry.sequence.0).u64(entry.extent.offset());
            to.u32(entry.extent.length()).u32(frame).u32(offset);
            to.u16(entry.disk.0).u16(kind.code().into());
        }
        for mark in &self.marks {
            let mut body = Writer::new();
            encode_mark(&mark.change, &mut body);
            let length = u16::try_from(body.0.len()).expect("a mark's body is below 64 KiB");
            to.u64(mark.sequence.0).u16(ChangeKind::of(&mark.change).code().into());
            to.u16(length).put(&body.0);
        }
        to.0
    }

    /// Reads an index and checks every rule, so that no reader has to.
    ///
    /// # Errors
    /// When the bytes are no index of the delta with this header.
    pub fn decode(header: &DeltaHeader, bytes: &[u8]) -> Result<Self, FormatError> {
        let mut from = Reader::new(bytes);
        let frames = count(from.u32("number of frames")?, FRAMES_MAX, "number of frames")?;
        let entries = count(from.u32("number of entries")?, ENTRIES_MAX, "number of entries")?;
        let marks = count(from.u32("number of marks")?, MARKS_MAX, "number of marks")?;
        let needed = frames * FRAME_BYTES + entries * ENTRY_BYTES + marks * MARK_BYTES_MIN;
        if needed > from.left() {
            return Err(FormatError::Short {
                field: "frames, entries and marks",
                at: from.at(),
                needed,
                left: from.left(),
            });
        }
        let mut index = Self {
            frames: Vec::with_capacity(frames),
            entries: Vec::with_capacity(entries),
            marks: Vec::with_capacity(marks),
        };
        let mut offset = HEADER_BYTES as u64;
        for _ in 0..frames {
            let frame = read_frame(&mut from, offset)?;
            offset = frame.end();
            index.frames.push(frame);
        }
        for _ in 0..entries {
            index.entries.push(read_entry(&mut from)?);
        }
        for _ in 0..marks {
            index.marks.push(read_mark(&mut from)?);
        }
        from.finish("the index")?;
        index.check(header)?;
        Ok(index)
    }

    /// Where the frames end and the index begins.
    #[must_use]
    pub fn frames_end(&self) -> u64 {
        self.frames.last().map_or(HEADER_BYTES as u64, FrameEntry::end)
    }

    /// Checks the rules between fields: order, ranges, what marks may stand where.
    ///
    /// # Errors
    /// Names the first rule that is broken.
    pub fn check(&self, header: &DeltaHeader) -> Result<(), FormatError> {
        let limits = [
            (self.frames.len(), FRAMES_MAX, "number of frames"),
            (self.entries.len(), ENTRIES_MAX, "number of entries"),
            (self.marks.len(), MARKS_MAX, "number of marks"),
        ];
        for (found, max, field) in limits {
            if found > max {
                return Err(FormatError::value(field, found, format_args!("at most {max}")));
            }
        }
        for frame in &self.frames {
            frame.check(FRAME_PLAIN_BYTES_MAX)?;
        }
        self.check_entries(header)?;
        self.check_marks(header)
    }

    fn check_entries(&self, header: &DeltaHeader) -> Result<(), FormatError> {
        let sequences = header.first..=header.last;
        let mut last: Option<&IndexEntry> = None;
        for entry in &self.entries {
            if !sequences.contains(&entry.sequence) || last.is_some_and(|last| !last.before(entry))
            {
                let found =
                    format_args!("{} on disk {} at {}", entry.sequence, entry.disk, entry.extent);
                return Err(FormatError::value("entry", found, "ascending within the delta"));
            }
            self.check_source(entry)?;
            last = Some(entry);
        }
        Ok(())
    }

    fn check_marks(&self, header: &DeltaHeader) -> Result<(), FormatError> {
        let sequences = header.first..=header.last;
        let mut last = None;
        for mark in &self.marks {
            let at = mark.sequence;
            let placed = match &mark.change {
                Change::Bookmark(_) => at == header.last,
                Change::EpochBegin(begin) => at == header.first && begin.epoch == header.epoch,
                Change::CatchUpBegin(_) | Change::CatchUpEnd => true,
                Change::Write { .. } | Change::Zero { .. } => false,
            };
            if !placed || !sequences.contains(&at) || last.is_some_and(|last| last >= at) {
                let expected = "ascending, a bookmark last, an epoch begin first and of this epoch";
                return Err(FormatError::value("place of a mark", at, expected));
            }
            last = Some(at);
        }
        Ok(())
    }

    fn check_source(&self, entry: &IndexEntry) -> Result<(), FormatError> {
        let length_max = match entry.source {
            EntrySource::Zero => ZERO_BYTES_MAX,
            EntrySource::Frame { .. } => WRITE_BYTES_MAX,
        };
        if entry.extent.length() > length_max || entry.extent.end() > DISK_BYTES_MAX {
            let expected = format_args!("at most {length_max} bytes, below {DISK_BYTES_MAX}");
            return Err(FormatError::value("extent of an entry", entry.extent, expected));
        }
        let EntrySource::Frame { frame, offset } = entry.source else {
            return Ok(());
        };
        let plain_bytes = self.frames.get(frame as usize).map(|frame| frame.plain_bytes);
        let end = offset.checked_add(entry.extent.length());
        if plain_bytes.is_none() || end.is_none() || end > plain_bytes {
            let found = format_args!("{offset}+{} of frame {frame}", entry.extent.length());
            let expected = match plain_bytes {
                Some(bytes) => format!("within its {bytes} bytes"),
                None => format!("a frame below {}", self.frames.len()),
            };
            return Err(FormatError::value("source of an entry", found, expected));
        }
        Ok(())
    }
}

impl IndexEntry {
    /// Whether `next` may follow: later in the stream, or a later part of the same record.
    fn before(&self, next: &Self) -> bool {
        self.sequence < next.sequence
            || self.sequence == next.sequence
                && (self.disk < next.disk
                    || self.disk == next.disk && self.extent.end() <= next.extent.offset())
    }
}

fn count(found: u32, max: usize, field: &'static str) -> Result<usize, FormatError> {
    match usize::try_from(found) {
        Ok(count) if count <= max => Ok(count),
        _ => Err(FormatError::value(field, found, format_args!("at most {max}"))),
    }
}

fn read_frame(from: &mut Reader<'_>, offset: u64) -> Result<FrameEntry, FormatError> {
    let sealed_bytes = from.u32("sealed bytes")?;
    let plain_bytes = from.u32("plain bytes")?;
    let compressed = flags(from.u32("flags")?)?;
    let frame = FrameEntry { offset, sealed_bytes, plain_bytes, compressed };
    frame.check(FRAME_PLAIN_BYTES_MAX)?;
    Ok(frame)
}

fn read_entry(from: &mut Reader<'_>) -> Result<IndexEntry, FormatError> {
    let sequence = Sequence(from.u64("sequence of an entry")?);
    let disk_offset = from.u64("disk offset")?;
    let length = u64::from(from.u32("length")?);
    let (frame, offset) = (from.u32("frame")?, from.u32("frame offset")?);
    let disk = DiskIndex(from.u16("disk")?);
    let kind = from.u16("kind of an entry")?;
    let source = match (kind, frame, offset) {
        (1, _, _) => EntrySource::Frame { frame, offset },
        (2, 0, 0) => EntrySource::Zero,
        _ => {
            let found = format_args!("{kind} with frame {frame}, offset {offset}");
            let expected = "1 (write), or 2 (zero) with frame 0, offset 0";
            return Err(FormatError::value("kind of an entry", found, expected));
        }
    };
    let extent = Extent::new(disk_offset, length, ZERO_BYTES_MAX)
        .map_err(|error| FormatError::value("extent of an entry", error, "a place on a disk"))?;
    Ok(IndexEntry { sequence, disk, extent, source })
}

fn read_mark(from: &mut Reader<'_>) -> Result<Mark, FormatError> {
    let sequence = Sequence(from.u64("sequence of a mark")?);
    let code = from.u16("kind of a mark")?;
    let kind = u8::try_from(code)
        .map_err(|_| FormatError::value("kind of a mark", code, "3 to 6"))
        .and_then(ChangeKind::from_code)?;
    let length = usize::from(from.u16("length of a mark")?);
    let body = from.take(length, "body of a mark")?;
    let change = decode_mark(kind, body)?;
    Ok(Mark { sequence, change })
}
