//! Rules that hold within one manifest or page, whoever wrote it.

use std::collections::HashSet;

use super::{DeltaEntry, EpochEntry, Manifest, ManifestPage};
use crate::format::bytes::FormatError;
use crate::format::change::BOOKMARK_NAME_BYTES_MAX;
use crate::model::{
    DISK_BYTES_MAX, DISKS_MAX, Epoch, Generation, SECTOR_BYTES, Sequence, Timestamp,
};

/// Most things in any list: far above what a machine ever has, far below what a count can claim.
const LIST_MAX: usize = 1 << 20;

type Checked = Result<(), FormatError>;

fn rule(
    holds: bool,
    field: &'static str,
    found: impl std::fmt::Display,
    expected: impl std::fmt::Display,
) -> Checked {
    if holds { Ok(()) } else { Err(FormatError::value(field, found, expected)) }
}

impl Manifest {
    /// Whether every rule of the format holds.
    ///
    /// # Errors
    /// The first one that does not.
    pub fn check(&self) -> Checked {
        let (g, v) = (self.generation.0, self.version);
        rule(g >= 1, "manifest.generation", g, "at least 1")?;
        let since = self.owned_since.0;
        rule((1..=g).contains(&since), "manifest.owned_since", since, format_args!("1 to {g}"))?;
        rule(v >= g, "manifest.version", v, format_args!("at least {g}"))?;
        list("manifest.epoch_count", self.epochs.len())?;
        list("manifest.page_count", self.pages.len())?;
        rule(
            self.truncated <= self.published,
            "manifest.truncated",
            self.truncated,
            format_args!("at most {}", self.published),
        )?;
        rule(
            self.last_delta.is_some() == (self.published > Sequence::ZERO),
            "manifest.last_delta",
            self.last_delta.map_or("absent", |_| "present"),
            "present exactly when something is published",
        )?;
        let named = self.check_pages()?;
        let end = check_entries(&self.entries, named, self.generation)?;
        rule(
            end == self.published,
            "manifest.published",
            self.published,
            format_args!("{end}, the last named record"),
        )?;
        if let Some(newest) = self.entries.last() {
            rule(
                self.last_delta == Some(newest.id),
                "manifest.last_delta",
                format_args!("{:?}", self.last_delta),
                newest.id,
            )?;
            rule(
                newest.catch_up || !self.catching_up,
                "manifest.flags",
                "catching up",
                "a newest delta with catch-up",
            )?;
        }
        self.check_epochs()
    }

    /// Pages follow the truncated part and each other without a gap; gives their end.
    fn check_pages(&self) -> Result<Sequence, FormatError> {
        let mut end = self.truncated;
        let mut ids = HashSet::new();
        for page in &self.pages {
            gapless("page.first", end, page.first)?;
            run("page.last", page.first, page.last)?;
            rule(ids.insert(page.id), "page.id", page.id, "unique")?;
            end = page.last;
        }
        Ok(end)
    }

    /// Epochs ascend, lie within what is published, and every entry lies in the one it names.
    fn check_epochs(&self) -> Checked {
        let (mut number, mut first) = (Epoch(0), Sequence::ZERO);
        for epoch in &self.epochs {
            rule(
                epoch.epoch > number,
                "epoch.number",
                epoch.epoch,
                format_args!("above {number}"),
            )?;
            rule(
                epoch.first > first && epoch.first <= self.published,
                "epoch.first",
                epoch.first,
                format_args!("above {first}, at most {}", self.published),
            )?;
            check_disks(epoch)?;
            (number, first) = (epoch.epoch, epoch.first);
        }
        for entry in &self.entries {
            let next = self.epochs.partition_point(|e| e.first <= entry.first);
            let holder = next.checked_sub(1).map(|at| &self.epochs[at]);
            let end = self.epochs.get(next).map_or(u64::MAX, |e| e.first.0);
            let inside = holder.is_some_and(|e| e.epoch == entry.epoch) && entry.last.0 < end;
            rule(
                inside,
                "entry.epoch",
                format_args!("{} for {}..={}", entry.epoch, entry.first, entry.last),
                "the listed epoch that holds all its records",
            )?;
        }
        Ok(())
    }
}

impl ManifestPage {
    /// Whether every rule of the format holds.
    ///
    /// # Errors
    /// The first one that does not.
    pub fn check(&self) -> Checked {
        let Some(first) = self.entries.first() else {
            return rule(false, "page.entry_count", 0, "at least 1");
        };
        let before = Sequence(first.first.0.saturating_sub(1));
        check_entries(&self.entries, before, Generation(u64::MAX)).map(|_| ())
    }
}

fn list(field: &'static str, length: usize) -> Checked {
    let expected = format_args!("at most {LIST_MAX}");
    rule(length <= LIST_MAX, field, length, expected)
}

fn gapless(field: &'static str, before: Sequence, first: Sequence) -> Checked {
    let expected = before.next();
    rule(first == expected && first > before, field, first, expected)
}

fn run(field: &'static str, first: Sequence, last: Sequence) -> Checked {
    rule(last >= first, field, last, format_args!("at least {first}"))
}

/// Entries follow `before` and each other without a gap; gives their end.
fn check_entries(
    entries: &[DeltaEntry],
    before: Sequence,
    newest: Generation,
) -> Result<Sequence, FormatError> {
    list("entry_count", entries.len())?;
    let (mut end, mut generation, mut epoch) = (before, Generation(1), Epoch(1));
    let mut ids = HashSet::with_capacity(entries.len());
    for entry in entries {
        gapless("entry.first", end, entry.first)?;
        run("entry.last", entry.first, entry.last)?;
        rule(
            entry.generation >= generation && entry.generation <= newest,
            "entry.generation",
            entry.generation,
            format_args!("from {generation} to {newest}"),
        )?;
        rule(entry.epoch >= epoch, "entry.epoch", entry.epoch, format_args!("at least {epoch}"))?;
        rule(ids.insert(entry.id), "entry.id", entry.id, "unique")?;
        check_bookmarks(entry)?;
        (end, generation, epoch) = (entry.last, entry.generation, entry.epoch);
    }
    Ok(end)
}

fn check_bookmarks(entry: &DeltaEntry) -> Checked {
    list("entry.bookmark_count", entry.bookmarks.len())?;
    let mut above = entry.first.0.saturating_sub(1);
    for at in &entry.bookmarks {
        let sequence = at.sequence.0;
        rule(
            sequence > above && sequence <= entry.last.0,
            "bookmark.sequence",
            sequence,
            format_args!("above {above}, at most {}", entry.last),
        )?;
        let length = at.bookmark.name.len();
        let expected = format_args!("at most {BOOKMARK_NAME_BYTES_MAX} bytes");
        rule(length <= BOOKMARK_NAME_BYTES_MAX, "bookmark.name", length, expected)?;
        let time = at.bookmark.time;
        let expected = format_args!("{} to {}", Timestamp::EARLIEST, Timestamp::LATEST);
        rule(time.is_on_calendar(), "bookmark.time", time, expected)?;
        above = sequence;
    }
    Ok(())
}

fn check_disks(epoch: &EpochEntry) -> Checked {
    let count = epoch.disks.len();
    let expected = format_args!("1 to {DISKS_MAX}");
    rule((1..=DISKS_MAX).contains(&count), "epoch.disk_count", count, expected)?;
    let mut names = HashSet::new();
    let mut above = None;
    for disk in &epoch.disks {
        rule(above < Some(disk.index), "disk.index", disk.index, "ascending")?;
        rule(names.insert(&disk.name), "disk.name", &disk.name, "unique")?;
        let size = disk.size_bytes;
        rule(
            size > 0 && size <= DISK_BYTES_MAX && size.is_multiple_of(SECTOR_BYTES),
            "disk.size_bytes",
            size,
            format_args!("a multiple of {SECTOR_BYTES}, 1 sector to {DISK_BYTES_MAX}"),
        )?;
        above = Some(disk.index);
    }
    Ok(())
}
