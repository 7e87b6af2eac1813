//! The map of a snapshot: which granules of the blob its file holds.
//!
//! The blob is cut into granules of 64 KiB. A granule's bit is set, durably, after its old bytes
//! are durable in the snapshot's file and before the blob is overwritten. The map is a sparse
//! file of 512-byte map sectors; a hole says "none". A device writes a sector whole or not at
//! all, so a crash cannot tear one, and a bad checksum means damage.
//!
//! ```text
//! 0    4  "hfgr"
//! 4    4  number of this map sector, little-endian
//! 8  500  bits, least significant first: granule 4000 × number + bit
//! 508  4  CRC-32 of the 508 bytes before, little-endian
//! ```

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::disk::{Disk, Opened};

/// Bytes of a granule: the unit of preservation.
pub(super) const GRANULE: u64 = 64 << 10;
/// Granules that one map sector speaks for (250 MiB of the blob).
pub(super) const PER_SECTOR: u64 = 4000;
const SECTOR: usize = 512;
const MAGIC: &[u8; 4] = b"hfgr";
const BITS: Range<usize> = 8..508;

/// Bytes of the map file for a blob of `size` bytes.
pub(super) fn map_length(size: u64) -> u64 {
    size.div_ceil(GRANULE).div_ceil(PER_SECTOR) * SECTOR as u64
}

/// The granules that `start..end` touches.
pub(super) fn touched(start: u64, end: u64) -> Range<u64> {
    start / GRANULE..end.div_ceil(GRANULE)
}

/// What a granule covers in a blob of `size` bytes: the last one may be short.
pub(super) fn extent(granule: u64, size: u64) -> Range<u64> {
    granule * GRANULE..((granule + 1) * GRANULE).min(size)
}

/// Why a map cannot be read.
pub(super) enum MapError {
    Io(io::Error),
    Damaged(String),
}

impl From<io::Error> for MapError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// One map sector in memory.
#[derive(Clone)]
pub(super) struct MapSector([u8; SECTOR]);

impl MapSector {
    fn empty(number: u64) -> Self {
        let mut bytes = [0; SECTOR];
        bytes[..4].copy_from_slice(MAGIC);
        // At most 8 TiB / 250 MiB = 33,555 map sectors.
        bytes[4..8].copy_from_slice(&(number as u32).to_le_bytes());
        Self(bytes)
    }

    pub(super) fn has(&self, granule: u64) -> bool {
        let bit = (granule % PER_SECTOR) as usize;
        self.0[BITS][bit / 8] & (1 << (bit % 8)) != 0
    }

    fn set(&mut self, granule: u64) {
        let bit = (granule % PER_SECTOR) as usize;
        self.0[BITS][bit / 8] |= 1 << (bit % 8);
    }

    fn seal(&mut self) -> &[u8] {
        let sum = crc32fast::hash(&self.0[..508]);
        self.0[508..].copy_from_slice(&sum.to_le_bytes());
        &self.0
    }

    fn load(map: &Opened, number: u64) -> Result<Self, MapError> {
        let mut bytes = [0; SECTOR];
        map.read(number * SECTOR as u64, &mut bytes)?;
        if bytes == [0; SECTOR] {
            return Ok(Self::empty(number));
        }
        let mut good = Self(bytes);
        good.seal();
        if good.0 != bytes || good.0[..8] != Self::empty(number).0[..8] {
            let at = number * SECTOR as u64;
            let path = map.path.display();
            return Err(MapError::Damaged(format!("{path}: map sector at byte {at}")));
        }
        Ok(good)
    }
}

/// The map sectors that `granules` lie in, by number.
pub(super) fn load(
    map: &Opened,
    granules: &Range<u64>,
) -> Result<BTreeMap<u64, MapSector>, MapError> {
    (granules.start / PER_SECTOR..granules.end.div_ceil(PER_SECTOR))
        .map(|number| Ok((number, MapSector::load(map, number)?)))
        .collect()
}

/// Those of `granules` (ascending) whose bit is not set.
pub(super) fn lacking(map: &Opened, granules: &[u64]) -> Result<Vec<u64>, MapError> {
    let mut missing = Vec::new();
    for group in granules.chunk_by(|a, b| a / PER_SECTOR == b / PER_SECTOR) {
        let sector = MapSector::load(map, group[0] / PER_SECTOR)?;
        missing.extend(group.iter().filter(|granule| !sector.has(**granule)));
    }
    Ok(missing)
}

/// Sets the bits of `granules` (ascending) and makes them durable. Their bytes already are.
pub(super) fn mark(disk: &Disk, map: &Opened, granules: &[u64]) -> Result<(), MapError> {
    for group in granules.chunk_by(|a, b| a / PER_SECTOR == b / PER_SECTOR) {
        let number = group[0] / PER_SECTOR;
        let mut sector = MapSector::load(map, number)?;
        for granule in group {
            sector.set(*granule);
        }
        disk.write(map, number * SECTOR as u64, sector.seal())?;
    }
    Ok(disk.sync(map)?)
}

/// Makes what the map reads durable, whoever wrote it: a killed process may have set bits that
/// only the page cache knows, and a sync that failed once may report success the next time
/// without having written them. So everything is written again first.
pub(super) fn settle(disk: &Disk, map: &Opened) -> io::Result<()> {
    let mut piece = vec![0; 64 << 10];
    for (start, end) in map.data_ranges(0, map.length()?)? {
        let mut at = start;
        while at < end {
            let length = (end - at).min(piece.len() as u64) as usize;
            map.read(at, &mut piece[..length])?;
            disk.write(map, at, &piece[..length])?;
            at += length as u64;
        }
    }
    disk.sync(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_in_a_map_is_found_and_holes_mean_none() {
        let directory = tempfile::tempdir().unwrap();
        let map = Opened::create(directory.path().join("map")).unwrap();
        map.file.set_len(map_length(600 << 20)).unwrap();
        let disk = Disk::default();
        let all: Vec<u64> = (0..9600).collect();
        assert_eq!(lacking(&map, &all).ok().unwrap().len(), 9600);
        assert!(mark(&disk, &map, &[0, 7, 3999, 4000, 9599]).is_ok());
        assert_eq!(lacking(&map, &[0, 1, 4000, 9599]).ok().unwrap(), [1]);
        assert!(settle(&disk, &map).is_ok());
        for at in 0..SECTOR as u64 {
            let mut byte = [0];
            map.read(at, &mut byte).unwrap();
            disk.write(&map, at, &[byte[0] ^ 4]).unwrap();
            assert!(matches!(lacking(&map, &[1]), Err(MapError::Damaged(_))), "byte {at}");
            disk.write(&map, at, &byte).unwrap();
        }
        // A sector that landed in another's place is not believed either.
        let mut sector = [0; SECTOR];
        map.read(0, &mut sector).unwrap();
        disk.write(&map, SECTOR as u64, &sector).unwrap();
        assert!(matches!(lacking(&map, &[4001]), Err(MapError::Damaged(_))));
    }
}
