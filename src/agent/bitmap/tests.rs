//! What a file may be, and what is believed of it.

use super::*;
use crate::agent::medium::Medium;
use crate::agent::source_identity::{Changed, SourceIdentity};
use crate::model::{Epoch, MachineKey, Sequence};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};

fn source(words: &str) -> SourceIdentity {
    SourceIdentity { lasting: words.to_owned(), ..SourceIdentity::default() }
}

fn identity() -> Identity {
    Identity {
        machine: MachineKey([1; 16]),
        disk: "root".parse().unwrap(),
        disk_bytes: 600 << 20,
        chunk_bytes: 65536,
        disks_crc: 7,
        teller: Teller::Agent,
        source: source("inode 1"),
    }
}

fn reopen(path: &std::path::Path, identity: &Identity) -> (Bitmap, Found) {
    open(path, identity, &Arc::default()).unwrap()
}

fn kept(found: &Found) -> (u32, bool) {
    match found {
        Found::Kept { damaged_pages, damaged_header } => (*damaged_pages, *damaged_header),
        Found::Nothing(why) => panic!("{why}"),
    }
}

#[test]
fn bits_outlive_the_process_and_cleared_ones_stay_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.bitmap");
    let (bitmap, found) = reopen(&path, &identity());
    assert!(matches!(found, Found::Nothing(_)));
    assert_eq!(bitmap.dirty_bytes(), 600 << 20, "all bits of a new bitmap are set");
    bitmap.begin_epoch(Epoch(1), Sequence(5)).unwrap();
    bitmap.repaired(0..600 << 20);
    bitmap.begin_clearing(|| std::iter::once(65536..65537).collect());
    assert_eq!(bitmap.finish_clearing(Sequence(9)).unwrap(), (600 << 20) - 65536);
    bitmap.intend(300 << 20..(300 << 20) + 512).unwrap();
    drop(bitmap);
    let (bitmap, found) = reopen(&path, &identity());
    assert_eq!(kept(&found), (0, false));
    assert_eq!(bitmap.history(), (Epoch(1), Sequence(9), false));
    assert_eq!(bitmap.next_dirty(0, u64::MAX), Some(65536..131_072));
    assert_eq!(bitmap.next_dirty(131_072, u64::MAX), Some(300 << 20..(300 << 20) + 65536));
    assert_eq!(bitmap.set_bytes(), 131_072);
}

#[test]
fn a_damaged_page_sets_all_its_bits_and_a_damaged_header_falls_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.bitmap");
    let (bitmap, _) = reopen(&path, &identity());
    bitmap.begin_epoch(Epoch(1), Sequence::ZERO).unwrap();
    bitmap.repaired(0..600 << 20);
    bitmap.begin_clearing(Vec::new);
    bitmap.finish_clearing(Sequence::ZERO).unwrap();
    assert_eq!(bitmap.set_bytes(), 0);
    bitmap.mark_stopped(true, Sequence(3), None).unwrap();
    drop(bitmap);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff], layout::PAGES_AT + 512 + 100).unwrap();
    let (bitmap, found) = reopen(&path, &identity());
    assert_eq!(kept(&found), (1, false));
    let page = super::super::bits::PAGE_CHUNKS * 65536;
    assert_eq!(bitmap.next_dirty(0, u64::MAX), Some(page..2 * page));
    assert!(bitmap.history().2, "the header is whole");
    let newest = bitmap.header().turn % 2;
    drop(bitmap);
    file.write_all_at(&[0xff], newest * layout::SLOT_BYTES + 20).unwrap();
    let (bitmap, found) = reopen(&path, &identity());
    assert!(kept(&found).1);
    assert!(!bitmap.history().2, "with a header lost no stop counts as clean");
    drop(bitmap);
    file.write_all_at(&[0xff], (1 - newest) * layout::SLOT_BYTES + 20).unwrap();
    assert!(matches!(reopen(&path, &identity()).1, Found::Nothing(_)));
}

#[test]
fn another_disk_size_set_of_disks_capture_or_source_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.bitmap");
    for change in [
        |identity: &mut Identity| identity.disk_bytes += 512,
        |identity: &mut Identity| identity.machine = MachineKey([2; 16]),
        |identity: &mut Identity| identity.disks_crc += 1,
        |identity: &mut Identity| identity.chunk_bytes *= 2,
        |identity: &mut Identity| identity.disk = "data".parse().unwrap(),
        |identity: &mut Identity| identity.teller = Teller::Scan,
        |identity: &mut Identity| identity.source = source("inode 2"),
    ] {
        std::fs::write(&path, blank(&identity())).unwrap();
        assert!(matches!(reopen(&path, &identity()).1, Found::Kept { .. }));
        let mut other = identity();
        change(&mut other);
        let (bitmap, found) = reopen(&path, &other);
        assert!(matches!(found, Found::Nothing(_)));
        assert_eq!(bitmap.dirty_bytes(), other.disk_bytes);
    }
    std::fs::write(&path, [0; 100]).unwrap();
    assert!(matches!(reopen(&path, &identity()).1, Found::Nothing(_)));
}

#[test]
fn when_the_source_was_changed_is_known_from_an_end_to_the_next_begin() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.bitmap");
    let (bitmap, _) = reopen(&path, &identity());
    let changed = Some(Changed { seconds: 5, nanoseconds: 7 });
    bitmap.mark_stopped(true, Sequence(3), changed).unwrap();
    drop(bitmap);
    let (bitmap, _) = reopen(&path, &identity());
    assert_eq!(bitmap.changed(), changed);
    assert!(!bitmap.history().2, "all bits are set: not clean, and noted all the same");
    bitmap.mark_running().unwrap();
    drop(bitmap);
    assert_eq!(reopen(&path, &identity()).0.changed(), None);
}

type Meddle = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A file whose sync runs something in the middle of the commit, once, and ends as that does.
struct Meddled {
    inner: crate::agent::source::FileMedium,
    meddle: Mutex<Option<Meddle>>,
    writes: Arc<std::sync::atomic::AtomicU64>,
}

impl Medium for Arc<Meddled> {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, target)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.writes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.inner.write_at(offset, bytes)
    }
    fn zero_at(&self, offset: u64, length: u64, release: bool) -> io::Result<()> {
        self.inner.zero_at(offset, length, release)
    }
    fn sync(&self) -> io::Result<()> {
        if let Some(meddle) = self.meddle.lock().unwrap().take() {
            meddle()?;
        }
        self.inner.sync()
    }
    fn next_data(&self, offset: u64, end: u64) -> io::Result<u64> {
        self.inner.next_data(offset, end)
    }
    fn next_hole(&self, offset: u64, end: u64) -> io::Result<u64> {
        self.inner.next_hole(offset, end)
    }
}

impl Meddled {
    fn of(path: &std::path::Path) -> Arc<Self> {
        Arc::new(Self {
            inner: crate::agent::source::FileMedium::open(path).unwrap(),
            meddle: Mutex::new(None),
            writes: Arc::default(),
        })
    }

    fn load(self: &Arc<Self>) -> Bitmap {
        load(Box::new(Arc::clone(self)), &identity()).unwrap().0.unwrap()
    }

    fn fail_once(&self) {
        let fail = || Err(io::Error::other("write-back failed"));
        *self.meddle.lock().unwrap() = Some(Box::new(fail));
    }
}

/// A bitmap file without a set bit, after a stop that was not orderly.
fn cleared() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), blank(&identity())).unwrap();
    let (bitmap, _) = reopen(file.path(), &identity());
    bitmap.repaired(0..600 << 20);
    bitmap.begin_clearing(Vec::new);
    bitmap.finish_clearing(Sequence::ZERO).unwrap();
    file
}

#[test]
fn bits_that_only_the_page_cache_may_hold_are_synced_before_a_write_rests_on_them() {
    let file = cleared();
    let medium = Meddled::of(file.path());
    let bitmap = medium.load();
    medium.fail_once();
    assert!(bitmap.intend(0..512).is_err());
    drop(bitmap);
    // The restart that the error asks for: the bit can be read, and is not on the disk.
    let medium = Meddled::of(file.path());
    let bitmap = medium.load();
    assert_eq!(bitmap.set_bytes(), 65536);
    let synced = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = Arc::clone(&synced);
    *medium.meddle.lock().unwrap() = Some(Box::new(move || {
        seen.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }));
    bitmap.intend(0..512).unwrap();
    assert!(synced.load(std::sync::atomic::Ordering::Relaxed), "the source may be written now");
}

#[test]
fn whoever_meets_the_failed_sync_nothing_of_the_file_is_believed_afterwards() {
    let file = cleared();
    let medium = Meddled::of(file.path());
    let bitmap = medium.load();
    medium.fail_once();
    assert!(bitmap.mark_stopped(false, Sequence(9), None).is_err(), "the header's sync met it");
    assert!(bitmap.intend(0..512).is_err(), "it may have been for this page");
}

#[test]
fn a_bit_cleared_while_it_was_being_committed_is_committed_again() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), blank(&identity())).unwrap();
    let medium = Meddled::of(file.path());
    let writes = Arc::clone(&medium.writes);
    let bitmap = Arc::new(medium.load());
    bitmap.repaired(0..600 << 20);
    bitmap.begin_clearing(Vec::new);
    bitmap.finish_clearing(Sequence::ZERO).unwrap();
    bitmap.begin_clearing(Vec::new);
    // Another thread clears between the copy of the page and its sync.
    let other = Arc::clone(&bitmap);
    *medium.meddle.lock().unwrap() = Some(Box::new(move || {
        let mut state = other.lock();
        state.young.clear();
        assert_eq!(state.clear_old(), 1);
        Ok(())
    }));
    bitmap.intend(0..512).unwrap();
    let before = writes.load(std::sync::atomic::Ordering::Relaxed);
    bitmap.intend(0..512).unwrap();
    let after = writes.load(std::sync::atomic::Ordering::Relaxed);
    assert!(after > before, "the next intent must not believe the bit that is on disk by chance");
}

#[test]
fn many_writers_share_commits_and_none_goes_ahead_of_its_bit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.bitmap");
    std::fs::write(&path, blank(&identity())).unwrap();
    let (bitmap, _) = reopen(&path, &identity());
    bitmap.repaired(0..600 << 20);
    bitmap.begin_clearing(Vec::new);
    bitmap.finish_clearing(Sequence::ZERO).unwrap();
    assert_eq!(bitmap.set_bytes(), 0);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (bitmap, path) = (&bitmap, &path);
            scope.spawn(move || {
                for n in 0..50u64 {
                    let chunk = n * 180 + thread;
                    bitmap.intend(chunk * 65536..chunk * 65536 + 512).unwrap();
                    let file = std::fs::File::open(path).unwrap();
                    let (page, bit) = (chunk / 4032, chunk % 4032);
                    let mut byte = [0];
                    let at = layout::PAGES_AT + page * 512 + 8 + bit / 8;
                    file.read_exact_at(&mut byte, at).unwrap();
                    assert!(byte[0] & (1 << (bit % 8)) != 0);
                }
            });
        }
    });
    assert_eq!(bitmap.set_bytes(), 200 * 65536);
}
