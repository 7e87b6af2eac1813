//! Kind codes and bodies of changes, shared by wire frames, cache records and delta marks.
//!
//! A write's body is its payload, a zero's is empty: their disk and extent stand in the header of
//! whatever carries them. The other four kinds (*marks*) carry a body:
//!
//! ```text
//! bookmark         id 16 · kind u8 (1 crash, 2 application) · time i64 µs · name text ≤ 128
//! epoch begin      epoch u32 ≥ 1 · disks
//! catch-up begin   why u8 (1 initial replication, 2 dirty)
//! catch-up end     nothing
//!
//! disks            count u16, 1 to 64 · count × (index u16 · name text · size u64)
//! text             length u16 · UTF-8
//! ```
//!
//! Fixed fields stand first, so that a reader of a damaged body can still say whose it was.

use crate::format::bytes::{FormatError, Reader, Writer};
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, Change, DISK_BYTES_MAX, DISKS_MAX, DiskIndex,
    DiskName, DiskSpec, Epoch, EpochBegin, SECTOR_BYTES, Timestamp,
};

/// Longest name of a bookmark, bytes.
pub const BOOKMARK_NAME_BYTES_MAX: usize = 128;
/// Longest body of a mark, bytes: an epoch begin of [`DISKS_MAX`] disks with 48-byte names.
pub const MARK_BYTES_MAX: usize = 4 + 2 + DISKS_MAX * (2 + 2 + NAME_BYTES_MAX + 8);

/// Longest name of a machine, disk or process server, bytes.
pub(crate) const NAME_BYTES_MAX: usize = 48;

/// What a record is; its code stands in every format that carries records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ChangeKind {
    /// Bytes were written.
    Write = 1,
    /// The extent reads as zeros now.
    Zero = 2,
    /// A consistent point.
    Bookmark = 3,
    /// Tracking begins anew.
    EpochBegin = 4,
    /// From here the stream is not in write order.
    CatchUpBegin = 5,
    /// It is again.
    CatchUpEnd = 6,
}

impl ChangeKind {
    /// The kind of a change.
    #[must_use]
    pub fn of(change: &Change) -> Self {
        match change {
            Change::Write { .. } => Self::Write,
            Change::Zero { .. } => Self::Zero,
            Change::Bookmark(_) => Self::Bookmark,
            Change::EpochBegin(_) => Self::EpochBegin,
            Change::CatchUpBegin(_) => Self::CatchUpBegin,
            Change::CatchUpEnd => Self::CatchUpEnd,
        }
    }

    /// The kind behind a code.
    ///
    /// # Errors
    /// When no kind has it.
    pub fn from_code(code: u8) -> Result<Self, FormatError> {
        Ok(match code {
            1 => Self::Write,
            2 => Self::Zero,
            3 => Self::Bookmark,
            4 => Self::EpochBegin,
            5 => Self::CatchUpBegin,
            6 => Self::CatchUpEnd,
            other => return Err(FormatError::value("kind of change", other, "1 to 6")),
        })
    }

    /// Its code.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Whether it is one of the four kinds that [`encode_mark`] and [`decode_mark`] know.
    #[must_use]
    pub fn is_mark(self) -> bool {
        !matches!(self, Self::Write | Self::Zero)
    }
}

/// Appends the body of a mark. Writes and zeros have none here and append nothing.
pub fn encode_mark(change: &Change, to: &mut Writer) {
    match change {
        Change::Write { .. } | Change::Zero { .. } | Change::CatchUpEnd => {}
        Change::Bookmark(bookmark) => put_bookmark(bookmark, to),
        Change::EpochBegin(begin) => {
            to.u32(begin.epoch.0);
            put_disks(&begin.disks, to);
        }
        Change::CatchUpBegin(CatchUp::InitialReplication) => {
            to.u8(1);
        }
        Change::CatchUpBegin(CatchUp::Dirty) => {
            to.u8(2);
        }
    }
}

/// The mark in `body`, all of it.
///
/// # Errors
/// When the body is no mark of this kind, or bytes follow it.
pub fn decode_mark(kind: ChangeKind, body: &[u8]) -> Result<Change, FormatError> {
    let mut from = Reader::new(body);
    let change = match kind {
        ChangeKind::Write | ChangeKind::Zero => {
            return Err(FormatError::value(
                "kind of mark",
                kind.code(),
                "3 to 6: writes and zeros have no body",
            ));
        }
        ChangeKind::Bookmark => Change::Bookmark(read_bookmark(&mut from)?),
        ChangeKind::EpochBegin => {
            let epoch = Epoch(from.u32("epoch")?);
            if epoch == Epoch(0) {
                return Err(FormatError::value("epoch", epoch, "1 or more"));
            }
            let disks = read_disks(&mut from)?;
            Change::EpochBegin(EpochBegin { epoch, disks })
        }
        ChangeKind::CatchUpBegin => {
            Change::CatchUpBegin(match from.u8("reason of a catch-up")? {
                1 => CatchUp::InitialReplication,
                2 => CatchUp::Dirty,
                other => return Err(FormatError::value("reason of a catch-up", other, "1 or 2")),
            })
        }
        ChangeKind::CatchUpEnd => Change::CatchUpEnd,
    };
    from.finish("a mark")?;
    Ok(change)
}

/// Appends a bookmark; manifests name them, too.
pub fn put_bookmark(bookmark: &Bookmark, to: &mut Writer) {
    to.put(&bookmark.id.0)
        .u8(bookmark_kind_code(bookmark.kind))
        .i64(bookmark.time.0)
        .text(&bookmark.name);
}

/// Reads a bookmark.
///
/// # Errors
/// When it is cut short, of an unknown kind, off the calendar, or its name is too long or not
/// UTF-8.
pub fn read_bookmark(from: &mut Reader<'_>) -> Result<Bookmark, FormatError> {
    let id = BookmarkId(from.array("bookmark id")?);
    let kind = bookmark_kind(from.u8("bookmark kind")?)?;
    let time = Timestamp(from.i64("bookmark time")?);
    if !time.is_on_calendar() {
        let (first, last) = (Timestamp::EARLIEST, Timestamp::LATEST);
        return Err(FormatError::value("bookmark time", time, format_args!("{first} to {last}")));
    }
    let name = from.text(BOOKMARK_NAME_BYTES_MAX, "bookmark name")?.into();
    Ok(Bookmark { id, kind, time, name })
}

/// The code of a bookmark's promise.
#[must_use]
pub fn bookmark_kind_code(kind: BookmarkKind) -> u8 {
    match kind {
        BookmarkKind::CrashConsistent => 1,
        BookmarkKind::ApplicationConsistent => 2,
    }
}

/// The promise behind a code.
///
/// # Errors
/// When there is none.
pub fn bookmark_kind(code: u8) -> Result<BookmarkKind, FormatError> {
    match code {
        1 => Ok(BookmarkKind::CrashConsistent),
        2 => Ok(BookmarkKind::ApplicationConsistent),
        other => Err(FormatError::value("bookmark kind", other, "1 or 2")),
    }
}

/// Appends a machine's disks; callers keep to [`DISKS_MAX`].
pub fn put_disks(disks: &[DiskSpec], to: &mut Writer) {
    let count = u16::try_from(disks.len()).expect("callers keep to DISKS_MAX");
    to.u16(count);
    for disk in disks {
        to.u16(disk.index.0).text(disk.name.as_str()).u64(disk.size_bytes);
    }
}

/// Reads a machine's disks: at least one, ascending by index, names unique, sizes that a seed disk
/// can have.
///
/// # Errors
/// When any of that does not hold.
pub fn read_disks(from: &mut Reader<'_>) -> Result<Vec<DiskSpec>, FormatError> {
    let count = usize::from(from.u16("number of disks")?);
    if count == 0 || count > DISKS_MAX {
        let expected = format_args!("1 to {DISKS_MAX}");
        return Err(FormatError::value("number of disks", count, expected));
    }
    let mut disks: Vec<DiskSpec> = Vec::with_capacity(count);
    for _ in 0..count {
        let disk = read_disk(from)?;
        if let Some(last) = disks.last().filter(|last| last.index >= disk.index) {
            let expected = format_args!("more than {}, the one before", last.index);
            return Err(FormatError::value("disk index", disk.index, expected));
        }
        if disks.iter().any(|other| other.name == disk.name) {
            return Err(FormatError::value("disk name", disk.name, "a unique name"));
        }
        disks.push(disk);
    }
    Ok(disks)
}

fn read_disk(from: &mut Reader<'_>) -> Result<DiskSpec, FormatError> {
    let index = DiskIndex(from.u16("disk index")?);
    let name = from.text(NAME_BYTES_MAX, "disk name")?;
    let name: DiskName = name
        .parse()
        .map_err(|error| FormatError::value("disk name", format_args!("{name:?}"), error))?;
    let size_bytes = from.u64("disk size")?;
    if size_bytes == 0 || size_bytes > DISK_BYTES_MAX || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        let expected = format_args!("a multiple of {SECTOR_BYTES} up to {DISK_BYTES_MAX}");
        return Err(FormatError::value("disk size", size_bytes, expected));
    }
    Ok(DiskSpec { index, name, size_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(index: u16, name: &str, size_bytes: u64) -> DiskSpec {
        let name = name.parse().unwrap();
        DiskSpec { index: DiskIndex(index), name, size_bytes }
    }

    fn encoded(change: &Change) -> Vec<u8> {
        let mut body = Writer::new();
        encode_mark(change, &mut body);
        body.0
    }

    fn marks() -> Vec<Change> {
        let most = (0..64).map(|i| {
            let name = format!("{}{i:02}", "n".repeat(46));
            disk(i, &name, DISK_BYTES_MAX)
        });
        vec![
            Change::Bookmark(Bookmark {
                id: BookmarkId([7; 16]),
                kind: BookmarkKind::ApplicationConsistent,
                time: Timestamp(-5),
                name: "ü".repeat(64),
            }),
            Change::EpochBegin(EpochBegin { epoch: Epoch(3), disks: most.collect() }),
            Change::CatchUpBegin(CatchUp::InitialReplication),
            Change::CatchUpBegin(CatchUp::Dirty),
            Change::CatchUpEnd,
        ]
    }

    #[test]
    fn marks_come_back_and_nothing_may_follow_or_be_missing() {
        for mark in marks() {
            let kind = ChangeKind::of(&mark);
            let mut body = encoded(&mark);
            assert!(body.len() <= MARK_BYTES_MAX);
            assert_eq!(decode_mark(kind, &body), Ok(mark));
            for cut in 0..body.len() {
                assert!(decode_mark(kind, &body[..cut]).is_err());
            }
            body.push(0);
            let trailing = decode_mark(kind, &body);
            assert!(matches!(trailing, Err(FormatError::Trailing { .. })));
        }
    }

    #[test]
    fn a_bookmark_off_the_calendar_is_refused() {
        let at = |time| {
            let (id, kind) = (BookmarkId([7; 16]), BookmarkKind::CrashConsistent);
            let mark = Change::Bookmark(Bookmark { id, kind, time, name: String::new() });
            decode_mark(ChangeKind::Bookmark, &encoded(&mark))
        };
        for Timestamp(edge) in [Timestamp::EARLIEST, Timestamp::LATEST] {
            assert!(at(Timestamp(edge)).is_ok());
        }
        for Timestamp(off) in [Timestamp(i64::MIN), Timestamp(i64::MAX)] {
            let error = at(Timestamp(off)).unwrap_err().to_string();
            assert!(error.contains("bookmark time") && error.contains("9999-12-31"), "{error}");
        }
    }

    #[test]
    fn disks_that_no_machine_has_are_refused() {
        let twice = vec![disk(1, "a", 512), disk(1, "b", 512)];
        let falling = vec![disk(2, "a", 512), disk(1, "b", 512)];
        let same_name = vec![disk(1, "a", 512), disk(2, "a", 512)];
        let odd = vec![disk(0, "a", 513)];
        let empty = vec![disk(0, "a", 0)];
        let huge = vec![disk(0, "a", DISK_BYTES_MAX + 512)];
        for disks in [twice, falling, same_name, odd, empty, huge, vec![]] {
            let mut body = Writer::new();
            put_disks(&disks, &mut body);
            assert!(read_disks(&mut Reader::new(&body.0)).is_err(), "{disks:?}");
        }
    }
}
