//! A directory whose page cache and disk are told apart, so that a power cut can be modelled.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::cache::file::{Appender, Aside, SegmentDirectory, SegmentFile, Slot};
use crate::cache::segment::SegmentBytes;
use crate::format::segment::SegmentHeader;

const SECTOR: usize = 512;

/// Files, and what happens to them when the power goes.
#[derive(Debug)]
pub(in crate::cache) struct Computer {
    files: BTreeMap<u32, Content>,
    /// Files that are segments no more.
    aside: BTreeMap<u32, Content>,
    random: StdRng,
    /// Operations until the power goes.
    pub(in crate::cache) fuse: Option<u64>,
    pub(in crate::cache) powered: bool,
    /// The next sync fails, and its pages are marked clean all the same.
    pub(in crate::cache) fail_sync: bool,
    /// So many reads fail from now on.
    pub(in crate::cache) fail_reads: u32,
    /// Syncs that say yes and do nothing: a planted bug.
    pub(in crate::cache) lying_sync: bool,
}

#[derive(Debug)]
struct Content {
    disk: Vec<u8>,
    cache: Vec<u8>,
    /// Written and not synced: any sector of it may be on the disk.
    pending: Vec<(usize, Vec<u8>)>,
}

impl Computer {
    pub(in crate::cache) fn shared(seed: u64) -> Shared {
        Shared(Arc::new(Mutex::new(Self {
            files: BTreeMap::new(),
            aside: BTreeMap::new(),
            random: StdRng::seed_from_u64(seed),
            fuse: None,
            powered: true,
            fail_sync: false,
            fail_reads: 0,
            lying_sync: false,
        })))
    }

    /// Whether this operation still has its whole effect. `Ok(false)`: the power goes in it.
    fn operate(&mut self) -> io::Result<bool> {
        if !self.powered {
            return Err(io::Error::other("no power"));
        }
        if let Some(left) = &mut self.fuse {
            if *left == 0 {
                (self.fuse, self.powered) = (None, false);
                return Ok(false);
            }
            *left -= 1;
        }
        Ok(true)
    }

    fn gone<T>() -> io::Result<T> {
        Err(io::Error::other("the power went"))
    }

    /// Each sector keeps one of the versions that it had since the last sync.
    pub(in crate::cache) fn power_cut(&mut self) {
        for content in self.files.values_mut() {
            let sectors = content.pending.iter().flat_map(|(at, bytes)| {
                let end = at + bytes.len();
                at / SECTOR..end.div_ceil(SECTOR)
            });
            for sector in sectors.collect::<std::collections::BTreeSet<_>>() {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                let mut versions = vec![content.disk[range.clone()].to_vec()];
                for (at, bytes) in &content.pending {
                    let start = (*at).max(range.start);
                    let end = (at + bytes.len()).min(range.end);
                    if start < end {
                        let mut version = versions.last().unwrap().clone();
                        version[start - range.start..end - range.start]
                            .copy_from_slice(&bytes[start - at..end - at]);
                        versions.push(version);
                    }
                }
                let survivor = self.random.random_range(0..versions.len());
                content.disk[range].copy_from_slice(&versions[survivor]);
            }
            content.pending.clear();
            content.cache.clone_from(&content.disk);
        }
        (self.powered, self.fuse) = (true, None);
    }

    /// A bit of the log's segment at this place flips.
    pub(in crate::cache) fn rot(&mut self, ordinal: u64, at: usize) {
        let header = |content: &&mut Content| {
            let sector: [u8; SECTOR] = content.disk[..SECTOR].try_into().unwrap();
            SegmentHeader::decode(&sector).unwrap().is_some_and(|found| found.ordinal == ordinal)
        };
        let content = self.files.values_mut().find(header).unwrap();
        content.disk[at] ^= 1;
        content.cache[at] ^= 1;
    }

    /// Flips one bit somewhere, in page cache and on disk.
    pub(in crate::cache) fn flip(&mut self) {
        let files = self.files.iter().filter(|(_, content)| !content.disk.is_empty());
        let candidates: Vec<u32> = files.map(|(&number, _)| number).collect();
        if candidates.is_empty() {
            return;
        }
        let file = candidates[self.random.random_range(0..candidates.len())];
        let content = self.files.get_mut(&file).unwrap();
        let at = self.random.random_range(0..content.disk.len());
        let bit = 1 << self.random.random_range(0..8);
        content.disk[at] ^= bit;
        content.cache[at] ^= bit;
        content.pending.clear(); // a flip in what is not synced yet is a torn write
    }
}

/// One computer, seen by its processes.
#[derive(Clone, Debug)]
pub(in crate::cache) struct Shared(Arc<Mutex<Computer>>);

impl Shared {
    pub(in crate::cache) fn lock(&self) -> MutexGuard<'_, Computer> {
        self.0.lock().unwrap()
    }

    fn slot(&self, number: u32, bytes: usize) -> Slot {
        let file = ModelFile {
            computer: self.clone(),
            path: PathBuf::from(format!("/model/{number:08}.segment")),
            number,
            bytes: bytes as u64,
        };
        Slot { number, file: Arc::new(file) }
    }
}

impl SegmentDirectory for Shared {
    fn path(&self) -> &Path {
        Path::new("/model")
    }

    fn slots(&self) -> io::Result<Vec<Slot>> {
        let computer = self.lock();
        let files = computer.files.iter();
        Ok(files.map(|(&number, content)| self.slot(number, content.disk.len())).collect())
    }

    fn create(&self, number: u32, bytes: u64) -> io::Result<Slot> {
        let mut computer = self.lock();
        let whole = computer.operate()?;
        let bytes = if whole {
            bytes as usize
        } else {
            bytes as usize / SECTOR * computer.random.random_range(0..=1) // short, or complete
        };
        if whole || computer.random.random_range(0..2) == 0 {
            let content =
                Content { disk: vec![0; bytes], cache: vec![0; bytes], pending: Vec::new() };
            assert!(computer.files.insert(number, content).is_none());
        }
        if !whole {
            return Computer::gone();
        }
        drop(computer);
        Ok(self.slot(number, bytes))
    }

    fn remove(&self, slot: &Slot) -> io::Result<()> {
        let mut computer = self.lock();
        let whole = computer.operate()?;
        if whole || computer.random.random_range(0..2) == 0 {
            computer.files.remove(&slot.number);
        }
        if whole { Ok(()) } else { Computer::gone() }
    }

    fn set_aside(&self, slot: &Slot) -> io::Result<PathBuf> {
        let mut computer = self.lock();
        let whole = computer.operate()?;
        if whole || computer.random.random_range(0..2) == 0 {
            let content = computer.files.remove(&slot.number).unwrap();
            assert!(computer.aside.insert(slot.number, content).is_none());
        }
        if whole { Ok(aside(slot.number)) } else { Computer::gone() }
    }

    fn aside(&self) -> io::Result<Vec<Aside>> {
        let computer = self.lock();
        let files = computer.aside.iter().map(|(&number, content)| Aside {
            number,
            path: aside(number),
            bytes: content.disk.len() as u64,
        });
        Ok(files.collect())
    }
}

fn aside(number: u32) -> PathBuf {
    PathBuf::from(format!("/model/{number:08}.damaged"))
}

#[derive(Debug)]
struct ModelFile {
    computer: Shared,
    path: PathBuf,
    number: u32,
    bytes: u64,
}

impl SegmentFile for ModelFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, target: &mut [u8], offset: u64) -> io::Result<()> {
        let mut computer = self.computer.lock();
        if computer.fail_reads > 0 {
            computer.fail_reads -= 1;
            return Err(io::Error::from_raw_os_error(5));
        }
        let at = offset as usize;
        target.copy_from_slice(&computer.files[&self.number].cache[at..at + target.len()]);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut computer = self.computer.lock();
        let whole = computer.operate()?;
        let content = computer.files.get_mut(&self.number).unwrap();
        let at = offset as usize;
        content.cache[at..at + bytes.len()].copy_from_slice(bytes);
        content.pending.push((at, bytes.to_vec()));
        if whole { Ok(()) } else { Computer::gone() }
    }

    fn sync(&self) -> io::Result<()> {
        let mut computer = self.computer.lock();
        if !computer.operate()? {
            return Computer::gone();
        }
        let (fails, lies) = (computer.fail_sync, computer.lying_sync);
        let content = computer.files.get_mut(&self.number).unwrap();
        if fails {
            content.pending.clear(); // marked clean, and never on the disk
            computer.fail_sync = false;
            return Err(io::Error::from_raw_os_error(5));
        }
        if !lies {
            for (at, bytes) in content.pending.drain(..) {
                content.disk[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        Ok(())
    }

    fn view(&self) -> io::Result<SegmentBytes> {
        let computer = self.computer.lock();
        let content = &computer.files[&self.number];
        Ok(SegmentBytes::Memory(content.cache.clone()))
    }

    fn appender(&self) -> io::Result<Box<dyn Appender>> {
        Ok(Box::new(ModelAppender(self.computer.slot(self.number, self.bytes as usize))))
    }
}

struct ModelAppender(Slot);

#[async_trait(?Send)]
impl Appender for ModelAppender {
    async fn append(&mut self, buffers: Vec<Bytes>, offset: u64) -> io::Result<()> {
        assert!(buffers.len() <= crate::cache::log::APPEND_BUFFERS_MAX);
        self.0.file.write(&buffers.concat(), offset)
    }

    async fn sync(&mut self) -> io::Result<()> {
        self.0.file.sync()
    }
}
