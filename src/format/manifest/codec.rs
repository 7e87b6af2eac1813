//! Bytes of manifests and pages, version 1.

use super::{BookmarkEntry, DeltaEntry, EpochEntry, Manifest, ManifestPage, PageEntry};
use crate::format::bytes::{FormatError, Reader, Writer};
use crate::format::change::{put_bookmark, put_disks, read_bookmark, read_disks};
use crate::model::{DeltaId, Epoch, Generation, MachineId, Sequence, ServerId, Timestamp};

const MANIFEST_MAGIC: &[u8; 8] = b"HFMANIF\0";
const PAGE_MAGIC: &[u8; 8] = b"HFMPAGE\0";

/// Layouts that were ever written; each variant is a line of the changelog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Version {
    /// The first.
    V1 = 1,
}

const CATCHING_UP: u16 = 1;
const HAS_LAST_DELTA: u16 = 2;
const ENTRY_CATCH_UP: u8 = 1;
const ENTRY_EVERY_WRITE: u8 = 2;

const NAME_BYTES_MAX: usize = 48;

// Fewest bytes of each repeated thing: a count is believed only if that many can still follow.
const EPOCH_BYTES_MIN: usize = 4 + 8 + 2;
const PAGE_BYTES: usize = 16 + 8 + 8 + 32;
const ENTRY_BYTES_MIN: usize = 16 + 8 + 4 + 1 + 8 + 8 + 8 + 8 + 8 + 4;
const BOOKMARK_BYTES_MIN: usize = 8 + 16 + 1 + 8 + 2;

impl Manifest {
    /// Its bytes in the clear.
    ///
    /// # Errors
    /// When it breaks a rule of the format: nothing wrong is ever written.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut w = Writer::new();
        let mut flags = 0;
        if self.catching_up {
            flags |= CATCHING_UP;
        }
        if self.last_delta.is_some() {
            flags |= HAS_LAST_DELTA;
        }
        w.put(MANIFEST_MAGIC).u16(Version::V1 as u16).u16(flags);
        w.text(self.machine.as_str()).text(self.owner.as_str());
        w.u64(self.generation.0).u64(self.owned_since.0).u64(self.version);
        w.u64(self.truncated.0).u64(self.published.0);
        if let Some(id) = self.last_delta {
            w.put(&id.0);
        }
        count(&mut w, self.epochs.len());
        count(&mut w, self.pages.len());
        count(&mut w, self.entries.len());
        for epoch in &self.epochs {
            put_epoch(&mut w, epoch);
        }
        for page in &self.pages {
            w.put(&page.id.0).u64(page.first.0).u64(page.last.0);
            w.put(&page.sha256);
        }
        for entry in &self.entries {
            put_entry(&mut w, entry);
        }
        Ok(w.0)
    }

    /// The manifest that `bytes` are.
    ///
    /// # Errors
    /// When they are none, or one that breaks a rule of the format.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        magic(&mut r, MANIFEST_MAGIC, "manifest.magic")?;
        version(&mut r, "manifest.version")?;
        let flags = r.u16("manifest.flags")?;
        if flags & !(CATCHING_UP | HAS_LAST_DELTA) != 0 {
            return Err(FormatError::value("manifest.flags", flags, "known bits only"));
        }
        let machine = name::<MachineId>(&mut r, "manifest.machine")?;
        let owner = name::<ServerId>(&mut r, "manifest.owner")?;
        let generation = Generation(r.u64("manifest.generation")?);
        let owned_since = Generation(r.u64("manifest.owned_since")?);
        let version = r.u64("manifest.version")?;
        let truncated = Sequence(r.u64("manifest.truncated")?);
        let published = Sequence(r.u64("manifest.published")?);
        let last_delta = match flags & HAS_LAST_DELTA {
            0 => None,
            _ => Some(DeltaId(r.array("manifest.last_delta")?)),
        };
        let epochs = r.u32("manifest.epoch_count")?;
        let pages = r.u32("manifest.page_count")?;
        let entries = r.u32("manifest.entry_count")?;
        let manifest = Self {
            machine,
            generation,
            owner,
            owned_since,
            version,
            truncated,
            published,
            last_delta,
            catching_up: flags & CATCHING_UP != 0,
            epochs: many(&mut r, epochs, EPOCH_BYTES_MIN, "manifest.epoch_count", epoch)?,
            pages: many(&mut r, pages, PAGE_BYTES, "manifest.page_count", page)?,
            entries: many(&mut r, entries, ENTRY_BYTES_MIN, "manifest.entry_count", entry)?,
        };
        r.finish("the manifest")?;
        manifest.check()?;
        Ok(manifest)
    }
}

impl ManifestPage {
    /// Its bytes in the clear.
    ///
    /// # Errors
    /// When it breaks a rule of the format.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut w = Writer::new();
        w.put(PAGE_MAGIC).u16(Version::V1 as u16).u16(0);
        w.text(self.machine.as_str());
        count(&mut w, self.entries.len());
        for entry in &self.entries {
            put_entry(&mut w, entry);
        }
        Ok(w.0)
    }

    /// The page that `bytes` are.
    ///
    /// # Errors
    /// When they are none, or one that breaks a rule of the format.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        magic(&mut r, PAGE_MAGIC, "page.magic")?;
        version(&mut r, "page.version")?;
        match r.u16("page.flags")? {
            0 => {}
            other => return Err(FormatError::value("page.flags", other, 0)),
        }
        let machine = name::<MachineId>(&mut r, "page.machine")?;
        let entries = r.u32("page.entry_count")?;
        let page = Self {
            machine,
            entries: many(&mut r, entries, ENTRY_BYTES_MIN, "page.entry_count", entry)?,
        };
        r.finish("the manifest page")?;
        page.check()?;
        Ok(page)
    }
}

fn count(w: &mut Writer, count: usize) {
    w.u32(u32::try_from(count).expect("the check bounds every list"));
}

fn put_epoch(w: &mut Writer, epoch: &EpochEntry) {
    w.u32(epoch.epoch.0).u64(epoch.first.0);
    put_disks(&epoch.disks, w);
}

fn put_entry(w: &mut Writer, entry: &DeltaEntry) {
    w.put(&entry.id.0).u64(entry.generation.0).u32(entry.epoch.0);
    let mut flags = 0;
    if entry.catch_up {
        flags |= ENTRY_CATCH_UP;
    }
    if entry.keeps_every_write {
        flags |= ENTRY_EVERY_WRITE;
    }
    w.u8(flags);
    w.u64(entry.first.0).u64(entry.last.0);
    w.u64(entry.object_bytes).u64(entry.source_bytes);
    w.i64(entry.created.0);
    count(w, entry.bookmarks.len());
    for BookmarkEntry { sequence, bookmark } in &entry.bookmarks {
        w.u64(sequence.0);
        put_bookmark(bookmark, w);
    }
}

fn magic(r: &mut Reader<'_>, expected: &[u8; 8], field: &'static str) -> Result<(), FormatError> {
    let found: [u8; 8] = r.array(field)?;
    if found == *expected {
        return Ok(());
    }
    Err(FormatError::value(field, hex::encode(found), hex::encode(expected)))
}

fn version(r: &mut Reader<'_>, field: &'static str) -> Result<Version, FormatError> {
    match r.u16(field)? {
        1 => Ok(Version::V1),
        other => Err(FormatError::value(field, other, 1)),
    }
}

fn name<T: std::str::FromStr<Err: std::fmt::Display>>(
    r: &mut Reader<'_>,
    field: &'static str,
) -> Result<T, FormatError> {
    let text = r.text(NAME_BYTES_MAX, field)?;
    text.parse().map_err(|why| FormatError::value(field, format_args!("{text:?}"), why))
}

/// `count` things of at least `bytes_min` each; refused before anything is allocated when the
/// bytes that are left cannot hold them.
fn many<T>(
    r: &mut Reader<'_>,
    count: u32,
    bytes_min: usize,
    field: &'static str,
    one: fn(&mut Reader<'_>) -> Result<T, FormatError>,
) -> Result<Vec<T>, FormatError> {
    let most = r.left() / bytes_min;
    if count as usize > most {
        return Err(FormatError::value(
            field,
            count,
            format_args!("at most {most}: {} bytes are left", r.left()),
        ));
    }
    (0..count).map(|_| one(r)).collect()
}

fn epoch(r: &mut Reader<'_>) -> Result<EpochEntry, FormatError> {
    let epoch = Epoch(r.u32("epoch.number")?);
    let first = Sequence(r.u64("epoch.first")?);
    let disks = read_disks(r)?;
    Ok(EpochEntry { epoch, first, disks })
}

fn page(r: &mut Reader<'_>) -> Result<PageEntry, FormatError> {
    Ok(PageEntry {
        id: DeltaId(r.array("page.id")?),
        first: Sequence(r.u64("page.first")?),
        last: Sequence(r.u64("page.last")?),
        sha256: r.array("page.sha256")?,
    })
}

fn entry(r: &mut Reader<'_>) -> Result<DeltaEntry, FormatError> {
    let id = DeltaId(r.array("entry.id")?);
    let generation = Generation(r.u64("entry.generation")?);
    let epoch = Epoch(r.u32("entry.epoch")?);
    let flags = r.u8("entry.flags")?;
    if flags & !(ENTRY_CATCH_UP | ENTRY_EVERY_WRITE) != 0 {
        return Err(FormatError::value("entry.flags", flags, "known bits only"));
    }
    let first = Sequence(r.u64("entry.first")?);
    let last = Sequence(r.u64("entry.last")?);
    let object_bytes = r.u64("entry.object_bytes")?;
    let source_bytes = r.u64("entry.source_bytes")?;
    let created = Timestamp(r.i64("entry.created")?);
    let bookmarks = r.u32("entry.bookmark_count")?;
    Ok(DeltaEntry {
        id,
        generation,
        epoch,
        first,
        last,
        object_bytes,
        source_bytes,
        created,
        catch_up: flags & ENTRY_CATCH_UP != 0,
        keeps_every_write: flags & ENTRY_EVERY_WRITE != 0,
        bookmarks: many(r, bookmarks, BOOKMARK_BYTES_MIN, "entry.bookmark_count", bookmark)?,
    })
}

fn bookmark(r: &mut Reader<'_>) -> Result<BookmarkEntry, FormatError> {
    let sequence = Sequence(r.u64("bookmark.sequence")?);
    let bookmark = read_bookmark(r)?;
    Ok(BookmarkEntry { sequence, bookmark })
}
