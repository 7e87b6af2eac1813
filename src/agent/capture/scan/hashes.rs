//! The hash file of one disk: for each chunk the hash of what is published of it, or nothing.
//!
//! Owns: its bytes (`docs/capture.md`), and that "unknown" is on disk before it is relied on. Does
//! not own: when a hash may be known ([`super::watched`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::clock::{Entropy, random16};
use crate::format::bytes::{FormatError, Reader, Writer};

use super::super::super::bitmap::Identity;
use super::super::super::medium::Medium;
use super::super::super::source::FileMedium;
use super::super::super::syncs::Syncs;

const MAGIC: [u8; 8] = *b"HFHASHES";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 512;
/// First byte of the first page.
const PAGES_AT: u64 = 4096;
/// One sector, so that a power cut leaves the old page or the new one.
const PAGE_BYTES: usize = 512;
/// Hashes of a page, behind its checksum and number.
const PAGE_HASHES: usize = 31;
const HASH_BYTES: usize = 16;
/// Pages written at a time when the file is made or written again.
const PAGES_AT_ONCE: u64 = 2048;

const _: () = assert!(8 + PAGE_HASHES * HASH_BYTES <= PAGE_BYTES);

/// First 128 bits of SHA-256 over the file's own key and the chunk: whoever writes to the disk does
/// not know the key, so cannot make a change that has the same hash. Zero stands for unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hash([u8; HASH_BYTES]);

const UNKNOWN: Hash = Hash([0; HASH_BYTES]);

type Page = [Hash; PAGE_HASHES];

/// Makes the hashes of one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hasher([u8; 16]);

impl Hasher {
    /// The hash of a chunk's bytes.
    pub(super) fn of(&self, chunk: &[u8]) -> Hash {
        let digest = Sha256::new().chain_update(self.0).chain_update(chunk).finalize();
        let mut hash = [0; HASH_BYTES];
        hash.copy_from_slice(&digest[..HASH_BYTES]);
        Hash(hash)
    }
}

/// The hash file of one disk. Its callers take turns.
pub(super) struct Hashes {
    medium: Box<dyn Medium>,
    syncs: Syncs,
    chunks: u64,
    hasher: Hasher,
}

impl Hashes {
    /// Opens the file at `path`, or makes one that knows nothing; says why it is a new one.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(super) fn open(
        path: &Path,
        identity: &Identity,
        entropy: &dyn Entropy,
    ) -> io::Result<(Self, Option<String>)> {
        let why = match FileMedium::open(path) {
            Ok(medium) => match Self::load(Box::new(medium), identity)? {
                Ok(hashes) => return Ok((hashes, None)),
                Err(why) => why,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => "there is none".to_owned(),
            Err(error) => return Err(error),
        };
        create(path, identity, random16(entropy))?;
        match Self::load(Box::new(FileMedium::open(path)?), identity)? {
            Ok(hashes) => Ok((hashes, Some(why))),
            Err(why) => Err(io::Error::other(format!("just written, and yet {why}"))),
        }
    }

    /// Reads a file, writes every page of it again and syncs: what a life that was killed left in
    /// the page cache may not be on the disk. Pages that are damaged know nothing from here on.
    ///
    /// # Errors
    /// Outside when it cannot be written; inside, in words, when it says nothing about this disk.
    pub(super) fn load(
        medium: Box<dyn Medium>,
        identity: &Identity,
    ) -> io::Result<Result<Self, String>> {
        let mut header = [0; HEADER_BYTES];
        match medium.read_at(0, &mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(Err("it is too short".to_owned()));
            }
            Err(error) => return Err(error),
        }
        let key = match decode_header(&header, identity) {
            Ok(Ok(key)) => key,
            Ok(Err(why)) => return Ok(Err(why)),
            Err(error) => return Ok(Err(format!("its header is damaged: {error}"))),
        };
        let (syncs, chunks, hasher) = (Syncs::default(), identity.chunks(), Hasher(key));
        let hashes = Self { medium, syncs, chunks, hasher };
        match hashes.write_again() {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(Err("it is too short".to_owned()))
            }
            Err(error) => Err(error),
            Ok(damaged) => {
                if damaged > 0 {
                    tracing::error!(disk = %identity.disk, damaged,
                        "pages of the hash file are damaged; their chunks are sent again");
                }
                Ok(Ok(hashes))
            }
        }
    }

    fn write_again(&self) -> io::Result<u64> {
        let (pages, mut damaged) = (pages(self.chunks), 0);
        for first in (0..pages).step_by(PAGES_AT_ONCE as usize) {
            let count = PAGES_AT_ONCE.min(pages - first);
            let mut bytes = vec![0; count as usize * PAGE_BYTES];
            self.medium.read_at(page_at(first), &mut bytes)?;
            for (number, page) in (first..).zip(bytes.chunks_exact_mut(PAGE_BYTES)) {
                if decode_page(number, page).is_none() {
                    damaged += 1;
                    page.copy_from_slice(&encode_page(number, &[UNKNOWN; PAGE_HASHES]));
                }
            }
            self.medium.write_at(page_at(first), &bytes)?;
        }
        self.syncs.sync(self.medium.as_ref())?;
        Ok(damaged)
    }

    /// What makes its hashes.
    pub(super) fn hasher(&self) -> Hasher {
        self.hasher
    }

    /// What is known of a chunk.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn known(&self, chunk: u64) -> io::Result<Option<Hash>> {
        let (number, at) = place(chunk);
        let hash = self.page(number)?[at];
        Ok((hash != UNKNOWN).then_some(hash))
    }

    /// Returns when the file knows nothing of these chunks, come what may.
    ///
    /// # Errors
    /// When the file cannot be written; from then on always.
    pub(super) fn forget(&self, chunks: impl IntoIterator<Item = u64>) -> io::Result<()> {
        if self.change(chunks.into_iter().map(|chunk| (chunk, UNKNOWN)))? {
            self.syncs.sync(self.medium.as_ref())?;
        }
        Ok(())
    }

    /// Says what is published of these chunks. It may be lost in a power cut: then they are unknown.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn learn(&self, hashes: impl IntoIterator<Item = (u64, Hash)>) -> io::Result<()> {
        self.change(hashes.into_iter()).map(drop)
    }

    fn change(&self, hashes: impl Iterator<Item = (u64, Hash)>) -> io::Result<bool> {
        let mut by_page = BTreeMap::<u64, Vec<(usize, Hash)>>::new();
        for (chunk, hash) in hashes.filter(|(chunk, _)| *chunk < self.chunks) {
            let (number, at) = place(chunk);
            by_page.entry(number).or_default().push((at, hash));
        }
        let mut changed = false;
        for (number, new) in by_page {
            let before = self.page(number)?;
            let mut page = before;
            new.into_iter().for_each(|(at, hash)| page[at] = hash);
            if page != before {
                self.medium.write_at(page_at(number), &encode_page(number, &page))?;
                changed = true;
            }
        }
        Ok(changed)
    }

    fn page(&self, number: u64) -> io::Result<Page> {
        let mut bytes = [0; PAGE_BYTES];
        self.medium.read_at(page_at(number), &mut bytes)?;
        Ok(decode_page(number, &bytes).unwrap_or([UNKNOWN; PAGE_HASHES]))
    }
}

fn pages(chunks: u64) -> u64 {
    chunks.div_ceil(PAGE_HASHES as u64)
}

fn page_at(number: u64) -> u64 {
    PAGES_AT + number * PAGE_BYTES as u64
}

fn place(chunk: u64) -> (u64, usize) {
    (chunk / PAGE_HASHES as u64, (chunk % PAGE_HASHES as u64) as usize)
}

/// Whose it is stands first: it decides whether the rest counts.
fn encode_header(identity: &Identity, key: [u8; 16]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.put(&MAGIC).u16(VERSION).u16(0);
    writer.put(&identity.machine.0).text(identity.disk.as_str());
    writer.u64(identity.disk_bytes).u32(identity.chunk_bytes).put(&key);
    let mut bytes = writer.0;
    bytes.resize(HEADER_BYTES - 4, 0);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// The key; inside in words when the file is about something else.
fn decode_header(
    bytes: &[u8; HEADER_BYTES],
    identity: &Identity,
) -> Result<Result<[u8; 16], String>, FormatError> {
    let (content, crc) = bytes.split_at(HEADER_BYTES - 4);
    let (found, computed) = (Reader::new(crc).u32("header crc")?, crc32fast::hash(content));
    if found != computed {
        return Err(FormatError::Checksum { what: "hash file header", found, computed });
    }
    let mut reader = Reader::new(content);
    let magic: [u8; 8] = reader.array("magic")?;
    if magic != MAGIC {
        return Err(FormatError::value("magic", hex::encode(magic), hex::encode(MAGIC)));
    }
    let version = reader.u16("version")?;
    if version != VERSION {
        return Err(FormatError::value("version", version, VERSION));
    }
    reader.u16("reserved")?;
    let machine: [u8; 16] = reader.array("machine")?;
    let disk = reader.text(48, "disk")?;
    let (disk_bytes, chunk_bytes) = (reader.u64("disk bytes")?, reader.u32("chunk bytes")?);
    let key = reader.array("key")?;
    let ours = machine == identity.machine.0 && disk == identity.disk.as_str();
    let alike = disk_bytes == identity.disk_bytes && chunk_bytes == identity.chunk_bytes;
    Ok(if ours && alike {
        Ok(key)
    } else {
        Err(format!("it is about disk {disk} of {disk_bytes} bytes in chunks of {chunk_bytes}"))
    })
}

fn encode_page(number: u64, page: &Page) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    // Chunks of the largest disk fill fewer pages than 2³².
    bytes[4..8].copy_from_slice(&(number as u32).to_le_bytes());
    for (target, hash) in bytes[8..].chunks_exact_mut(HASH_BYTES).zip(page) {
        target.copy_from_slice(&hash.0);
    }
    let crc = crc32fast::hash(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode_page(number: u64, bytes: &[u8]) -> Option<Page> {
    let mut reader = Reader::new(bytes);
    let crc = reader.u32("page crc").ok()?;
    let is_it = crc == crc32fast::hash(bytes.get(4..)?);
    if !is_it || u64::from(reader.u32("page number").ok()?) != number {
        return None;
    }
    let mut page = [UNKNOWN; PAGE_HASHES];
    for hash in &mut page {
        *hash = Hash(reader.array("hash").ok()?);
    }
    Some(page)
}

/// The bytes of a file that knows nothing.
pub(super) fn blank(identity: &Identity, key: [u8; 16]) -> Vec<u8> {
    let mut bytes = encode_header(identity, key);
    bytes.resize(PAGES_AT as usize, 0);
    for number in 0..pages(identity.chunks()) {
        bytes.extend_from_slice(&encode_page(number, &[UNKNOWN; PAGE_HASHES]));
    }
    bytes
}

/// Writes, syncs and only then names the file. Its key is for the agent alone.
fn create(path: &Path, identity: &Identity, key: [u8; 16]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let unfinished = path.with_extension("hashes.new");
    let mut options = File::options();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(&blank(identity, key))?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}
