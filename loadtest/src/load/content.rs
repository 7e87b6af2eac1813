//! The bytes that writes carry: one pool, shared by all machines, never copied.
//!
//! Owns: where the bytes come from and that every one of them can be named by its place. Does not
//! own: which write carries which.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use holdfast::model::WRITE_BYTES_MAX;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::error::LoadError;

/// Files start on blocks, as on a disk.
const BLOCK: usize = 4096;
/// A longer file is cut here: one alone would say little about real content.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Files that are looked at before the choice is made.
const FILES_MAX: usize = 200_000;
/// The image is sampled in pieces of this size.
const STRIPE: u64 = 1 << 20;

/// A pool of bytes.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pool: Bytes,
}

/// A run of bytes of the pool, by its first; its length is the write's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

impl Place {
    /// The place `skip` bytes behind it.
    pub(crate) fn behind(self, skip: u64) -> Self {
        Self(self.0 + skip)
    }
}

impl Content {
    /// Contents of files below `folder`, chosen by `seed`, each from a new block.
    pub(crate) fn of_files(folder: &Path, bytes: usize, seed: u64) -> Result<Self, LoadError> {
        let mut files = files_below(folder);
        files.shuffle(&mut StdRng::seed_from_u64(seed));
        let mut pool = Vec::with_capacity(bytes);
        for path in files {
            if pool.len() >= bytes {
                break;
            }
            let Ok(file) = File::open(&path) else { continue };
            let room = ((bytes - pool.len()) as u64).min(FILE_BYTES_MAX);
            if file.take(room).read_to_end(&mut pool).is_ok() {
                pool.resize(pool.len().next_multiple_of(BLOCK).min(bytes), 0);
            }
        }
        Self::repeated(pool, bytes, folder)
    }

    /// An image, or pieces from all over it when it is larger than `bytes`.
    pub(crate) fn of_image(path: &Path, bytes: usize) -> Result<Self, LoadError> {
        let failed = || LoadError::file(path, "reading the image");
        let image = File::open(path).map_err(failed())?;
        let length = image.metadata().map_err(failed())?.len();
        let stripes = (bytes as u64 / STRIPE).min(length / STRIPE).max(1);
        let mut pool = vec![0; (stripes * STRIPE).min(length) as usize];
        for (number, piece) in (0..).zip(pool.chunks_mut(STRIPE as usize)) {
            let at = length / stripes * number / BLOCK as u64 * BLOCK as u64;
            image.read_exact_at(piece, at).map_err(failed())?;
        }
        Self::repeated(pool, 0, path)
    }

    /// Bytes that nothing can compress.
    pub(crate) fn random(bytes: usize, seed: u64) -> Self {
        let mut pool = vec![0; bytes.max(2 * WRITE_BYTES_MAX as usize)];
        StdRng::seed_from_u64(seed).fill_bytes(&mut pool);
        Self { pool: pool.into() }
    }

    /// What is there, over and over until it is long enough.
    fn repeated(mut pool: Vec<u8>, bytes: usize, from: &Path) -> Result<Self, LoadError> {
        if pool.is_empty() {
            return Err(LoadError::NoContent(from.to_owned()));
        }
        let found = pool.len();
        let wanted = bytes.max(2 * WRITE_BYTES_MAX as usize);
        while pool.len() < wanted {
            let more = (wanted - pool.len()).min(found);
            pool.extend_from_within(..more);
        }
        Ok(Self { pool: pool.into() })
    }

    /// The place that any number stands for; a whole write fits behind it.
    pub(crate) fn place(&self, number: u64) -> Place {
        let places = (self.pool.len() - WRITE_BYTES_MAX as usize) as u64 / BLOCK as u64;
        Place(number % places * BLOCK as u64)
    }

    /// A place whose first sector is not all zeros; `None` when there is next to none.
    pub(crate) fn not_zero(&self) -> Option<Place> {
        let places = (0..10_000).map(|number| self.place(number));
        places.into_iter().find(|place| self.at(*place, 512).iter().any(|byte| *byte != 0))
    }

    /// `length` bytes at a place, shared.
    pub(crate) fn shared(&self, place: Place, length: u32) -> Bytes {
        let start = place.0 as usize;
        self.pool.slice(start..start + length as usize)
    }

    /// The same, to look at.
    pub(crate) fn at(&self, place: Place, length: usize) -> &[u8] {
        &self.pool[place.0 as usize..][..length]
    }

    /// The whole pool.
    pub(crate) fn all(&self) -> &Bytes {
        &self.pool
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        entries.sort(); // the same files every time
        for path in entries {
            match path.symlink_metadata() {
                Ok(facts) if facts.is_dir() => folders.push(path),
                Ok(facts) if facts.is_file() && facts.len() > 0 => files.push(path),
                _ => {}
            }
            if files.len() >= FILES_MAX {
                return files;
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_a_place_with_a_whole_write_behind_it() {
        let content = Content::random(3 << 20, 1);
        for number in [0, 1, 255, 511, 512, u64::MAX] {
            let place = content.place(number);
            assert_eq!(content.at(place, WRITE_BYTES_MAX as usize).len(), 1 << 20);
            let shared = content.shared(place, 4096);
            assert_eq!(shared, content.at(place, 4096));
            assert_eq!(&shared[512..], content.at(place.behind(512), 4096 - 512));
        }
    }

    #[test]
    fn files_begin_on_blocks_and_the_same_seed_chooses_the_same() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), b"one").unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        std::fs::write(folder.path().join("b/c"), vec![7; 5000]).unwrap();
        let content = Content::of_files(folder.path(), 64 << 10, 3).unwrap();
        let again = Content::of_files(folder.path(), 64 << 10, 3).unwrap();
        assert_eq!(content.all(), again.all());
        let starts = content.all().chunks(BLOCK).filter(|block| block.starts_with(b"one"));
        assert!(starts.count() > 0);
        let empty = tempfile::tempdir().unwrap();
        assert!(Content::of_files(empty.path(), 4096, 3).is_err());
    }
}
