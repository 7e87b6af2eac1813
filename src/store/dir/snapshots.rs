//! Snapshots of page blobs: made as clones where the file system shares bytes, else kept by
//! copy-before-write.
//!
//! A granule of snapshot *i* stands in the first of *i*, *i + 1*, … that holds it, else in the
//! blob. Removing snapshot *i* hands what *i − 1* lacks down to it first. Every step leaves every
//! snapshot exact; a repeated step changes nothing.

use std::ops::Range;

use bytes::Bytes;
use rustix::io::Errno;

use super::disk::{Opened, if_found, parent};
use super::granules::{self, GRANULE, MapError, PER_SECTOR};
use super::pages::Blob;
use super::root::Root;
use super::state::{Kept, Snapshot};
use super::{ObjectName, PageGuard, PageRange, Result, SnapshotId, SnapshotInfo};
use crate::store::rules::push_range;

/// Granules handed down under one lock: 16 MiB, so that removal never holds up writes for long.
const HAND_DOWN_GRANULES: usize = 256;

/// A run of bytes and the file that holds them.
struct Piece<'a> {
    range: Range<u64>,
    file: &'a Opened,
}

impl Root {
    pub(super) fn snapshot(
        &self,
        name: &ObjectName,
        label: &str,
        guard: &PageGuard,
    ) -> Result<SnapshotId> {
        let about = self.about(name);
        about.check_label(label)?;
        let (_lock, mut blob) = self.guarded(name, guard)?;
        // What the snapshot will find in the blob must be there after a loss of power, too.
        blob.sync_base(guard.lease)?;
        let kept = blob
            .keep_content(&blob.state.next_id())
            .map_err(|error| about.io("creating a snapshot", error))?;
        let id = blob.state.add_snapshot(label, kept);
        self.set_state(name, &blob.state)?;
        Ok(id)
    }

    pub(super) fn list_snapshots(&self, name: &ObjectName) -> Result<Vec<SnapshotInfo>> {
        let snapshots = self.blob(name, false)?.state.snapshots.into_iter();
        Ok(snapshots.map(|Snapshot { id, label, .. }| SnapshotInfo { id, label }).collect())
    }

    pub(super) fn read_snapshot(
        &self,
        name: &ObjectName,
        snapshot: &SnapshotId,
        offset: u64,
        length: u64,
    ) -> Result<Bytes> {
        let about = self.about(name);
        let _lock = self.shared(name)?;
        let blob = self.blob(name, false)?;
        about.check_read(blob.state.size, offset, length)?;
        let chain = Chain::open(&blob, blob.find(snapshot)?)?;
        let mut content = vec![0; length as usize];
        for window in windows(offset, offset + length) {
            for piece in chain.pieces(&blob, &window)? {
                let start = (piece.range.start - offset) as usize;
                let target = &mut content[start..(piece.range.end - offset) as usize];
                piece
                    .file
                    .read(piece.range.start, target)
                    .map_err(|error| about.io("reading a snapshot", error))?;
            }
        }
        Ok(content.into())
    }

    pub(super) fn page_ranges(
        &self,
        name: &ObjectName,
        snapshot: Option<&SnapshotId>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<PageRange>> {
        let about = self.about(name);
        let _lock = self.shared(name)?;
        let blob = self.blob(name, false)?;
        about.check_range(blob.state.size, offset, length)?;
        let fail = |error| about.io("looking for holes", error);
        let end = offset + length;
        let mut ranges = Vec::new();
        let Some(snapshot) = snapshot else {
            for (start, end) in blob.base.data_ranges(offset, end).map_err(fail)? {
                push_range(&mut ranges, start, end);
            }
            return Ok(ranges);
        };
        let chain = Chain::open(&blob, blob.find(snapshot)?)?;
        for window in windows(offset, end) {
            for Piece { range, file } in chain.pieces(&blob, &window)? {
                for (start, end) in file.data_ranges(range.start, range.end).map_err(fail)? {
                    push_range(&mut ranges, start, end);
                }
            }
        }
        Ok(ranges)
    }

    pub(super) fn delete_snapshot(&self, name: &ObjectName, snapshot: &SnapshotId) -> Result<()> {
        loop {
            // The lock is given back between steps: writers get their turn.
            let _lock = self.exclusive(name)?;
            let blob = self.blob(name, false)?;
            let at = blob.find(snapshot)?;
            if !blob.hand_down(at)? {
                return blob.forget_snapshot(at);
            }
        }
    }
}

impl Blob<'_> {
    fn find(&self, snapshot: &SnapshotId) -> Result<usize> {
        let place = self.state.snapshots.iter().position(|one| one.id == *snapshot);
        place.ok_or_else(|| self.about().not_found())
    }

    /// A snapshot's file of bytes.
    pub(super) fn content(&self, snapshot: &Snapshot, write: bool) -> Result<Opened> {
        self.open_beside(snapshot, "pages", write, self.state.size)
    }

    /// A snapshot's map.
    pub(super) fn map(&self, snapshot: &Snapshot, write: bool) -> Result<Opened> {
        let length = granules::map_length(self.state.size);
        self.open_beside(snapshot, "map", write, length)
    }

    fn open_beside(
        &self,
        snapshot: &Snapshot,
        kind: &str,
        write: bool,
        length: u64,
    ) -> Result<Opened> {
        let about = self.about();
        let path = self.root.beside(self.name).join(format!("{}.{kind}", snapshot.id.0));
        let opened = if_found(Opened::open(path.clone(), write))
            .map_err(|error| about.io("opening a snapshot", error))?
            .ok_or_else(|| about.damaged(format!("{} is missing", path.display())))?;
        self.check_length(&opened, length)?;
        Ok(opened)
    }

    /// The files of a new snapshot, durable before the state names them.
    fn keep_content(&self, id: &SnapshotId) -> std::io::Result<Kept> {
        let beside = self.root.beside(self.name);
        let disk = &self.root.disk;
        let create = |kind: &str| {
            let path = beside.join(format!("{}.{kind}", id.0));
            if_found(disk.remove(&path))?; // of an attempt that did not get as far as the state
            Opened::create(path)
        };
        let content = create("pages")?;
        let kept = match rustix::fs::ioctl_ficlone(&content.file, &self.base.file) {
            Ok(()) => Kept::Clone,
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS) => {
                Kept::Granules
            }
            Err(errno) => return Err(errno.into()),
        };
        content.file.set_len(self.state.size)?;
        disk.sync_all(&content)?;
        if kept == Kept::Granules {
            let map = create("map")?;
            map.file.set_len(granules::map_length(self.state.size))?;
            disk.sync_all(&map)?;
        }
        disk.sync_directory(&beside)?;
        Ok(kept)
    }

    /// Gives the older neighbour of snapshot `at` some granules that it would miss. False when
    /// there are none left.
    fn hand_down(&self, at: usize) -> Result<bool> {
        let disk = &self.root.disk;
        let about = self.about();
        let Some(older) = at.checked_sub(1).map(|at| &self.state.snapshots[at]) else {
            return Ok(false);
        };
        if older.kept == Kept::Clone {
            return Ok(false);
        }
        let map = self.map(older, true)?;
        let wanted = self.wanted(at, &map)?;
        if wanted.is_empty() {
            // Also what an interrupted removal marked must be durable before its source goes.
            granules::settle(disk, &map).map_err(|e| about.io("syncing a map", e))?;
            return Ok(false);
        }
        let from = self.content(&self.state.snapshots[at], false)?;
        let to = self.content(older, true)?;
        self.copy_granules(&from, &to, &wanted)?;
        granules::mark(disk, &map, &wanted).map_err(|e| self.map_error(e))?;
        Ok(true)
    }

    /// Granules that snapshot `at` holds and the map `older` lacks, the first few.
    fn wanted(&self, at: usize, older: &Opened) -> Result<Vec<u64>> {
        let snapshot = &self.state.snapshots[at];
        let map = match snapshot.kept {
            Kept::Clone => None,
            Kept::Granules => Some(self.map(snapshot, false)?),
        };
        let fail = |error| self.map_error(error);
        let mut wanted = Vec::new();
        for window in windows(0, self.state.size) {
            let granules = granules::touched(window.start, window.end);
            let all: Vec<u64> = match &map {
                None => granules.collect(),
                Some(map) => {
                    let held = granules::load(map, &granules).map_err(fail)?;
                    let held = |granule: &u64| held[&(granule / PER_SECTOR)].has(*granule);
                    granules.filter(held).collect()
                }
            };
            wanted.extend(granules::lacking(older, &all).map_err(fail)?);
            if wanted.len() >= HAND_DOWN_GRANULES {
                wanted.truncate(HAND_DOWN_GRANULES);
                break;
            }
        }
        Ok(wanted)
    }

    fn forget_snapshot(mut self, at: usize) -> Result<()> {
        let gone = self.state.snapshots.remove(at);
        self.root.set_state(self.name, &self.state)?;
        self.root.memory().forget(self.name);
        let beside = self.root.beside(self.name);
        for kind in ["pages", "map"] {
            let path = beside.join(format!("{}.{kind}", gone.id.0));
            if_found(self.root.disk.remove(&path))
                .map_err(|error| self.about().io("removing a snapshot", error))?;
        }
        self.root
            .disk
            .sync_directory(&beside)
            .map_err(|error| self.about().io("removing a snapshot", error))
    }

    /// Removes files of snapshots that the state does not name. Under the name's lock.
    pub(super) fn sweep_snapshots(&self) -> std::io::Result<()> {
        let beside = self.root.beside(self.name);
        for entry in if_found(std::fs::read_dir(&beside))?.into_iter().flatten() {
            let path = entry?.path();
            let stem = path.file_stem().and_then(std::ffi::OsStr::to_str);
            let ours = path.extension().is_some_and(|e| e == "pages" || e == "map");
            let named = self.state.snapshots.iter().any(|one| Some(&*one.id.0) == stem);
            if ours && !named && path.is_file() {
                self.root.disk.remove(&path)?;
                self.root.disk.sync_directory(parent(&path))?;
            }
        }
        Ok(())
    }
}

/// The files in which a snapshot's bytes may stand, in the order in which they are looked for.
struct Chain {
    kept: Vec<(Option<Opened>, Opened)>,
}

impl Chain {
    fn open(blob: &Blob<'_>, at: usize) -> Result<Self> {
        let mut kept = Vec::new();
        for snapshot in &blob.state.snapshots[at..] {
            let content = blob.content(snapshot, false)?;
            if snapshot.kept == Kept::Clone {
                kept.push((None, content));
                break; // it holds everything
            }
            kept.push((Some(blob.map(snapshot, false)?), content));
        }
        Ok(Self { kept })
    }

    /// Where the bytes of a window (within one map sector) stand, in order.
    fn pieces<'a>(&'a self, blob: &'a Blob<'_>, window: &Range<u64>) -> Result<Vec<Piece<'a>>> {
        let granules = granules::touched(window.start, window.end);
        let mut files: Vec<Option<&Opened>> = vec![None; (granules.end - granules.start) as usize];
        for (map, content) in &self.kept {
            let held = match map {
                None => None,
                Some(map) => {
                    let load = granules::load(map, &granules);
                    Some(load.map_err(|e: MapError| blob.map_error(e))?)
                }
            };
            for (file, granule) in files.iter_mut().zip(granules.clone()) {
                let holds =
                    held.as_ref().is_none_or(|held| held[&(granule / PER_SECTOR)].has(granule));
                if file.is_none() && holds {
                    *file = Some(content);
                }
            }
        }
        let mut pieces: Vec<Piece<'a>> = Vec::new();
        for (file, granule) in files.into_iter().zip(granules) {
            let file = file.unwrap_or(&blob.base);
            let extent = granules::extent(granule, blob.state.size);
            let range = extent.start.max(window.start)..extent.end.min(window.end);
            match pieces.last_mut() {
                Some(last) if std::ptr::eq(last.file, file) => last.range.end = range.end,
                _ => pieces.push(Piece { range, file }),
            }
        }
        Ok(pieces)
    }
}

/// Cuts a range at the borders of map sectors, so that work on it stays small.
fn windows(start: u64, end: u64) -> impl Iterator<Item = Range<u64>> {
    const WINDOW: u64 = PER_SECTOR * GRANULE;
    let numbers = match start < end {
        true => start / WINDOW..end.div_ceil(WINDOW),
        false => 0..0,
    };
    numbers.map(move |number| start.max(number * WINDOW)..end.min((number + 1) * WINDOW))
}
