//! Self-describing sectors and the checker: an image set is right when one number G exists such
//! that every sector of every disk is the last write numbered at most G (zero where there is none).
//! That proves at once: a prefix, no hole, no reordering, the same cut over all disks, nothing of
//! another machine.

use std::collections::BTreeSet;
use std::path::Path;

pub const SECTOR: u64 = 512;
const MAGIC: u64 = 0x484f_4c44_4641_5354;
/// The number of what a disk of noise held before the first write.
const NOISE: u64 = u64::MAX;

/// One numbered write; numbers count from 1 over all disks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub number: u64,
    pub disk: u16,
    pub first_sector: u64,
    pub sectors: u64,
    /// Written as zeros.
    pub zero: bool,
}

impl Write {
    /// The bytes of this write.
    pub fn payload(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((self.sectors * SECTOR) as usize);
        for sector in self.first_sector..self.first_sector + self.sectors {
            bytes.extend_from_slice(&describe(self.number, self.disk, sector));
        }
        bytes
    }
}

/// A sector that says who wrote it, where and as which write; half of it does not compress.
pub fn describe(number: u64, disk: u16, sector: u64) -> [u8; 512] {
    let mut bytes = [0_u8; 512];
    bytes[0..8].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..24].copy_from_slice(&sector.to_le_bytes());
    bytes[24..26].copy_from_slice(&disk.to_le_bytes());
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ sector;
    for chunk in bytes[32..288].chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes[..508]);
    bytes[508..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What a disk of noise holds before the first write.
pub fn noise(disk: u16, sectors: u64) -> Vec<u8> {
    (0..sectors).flat_map(|sector| describe(NOISE, disk, sector)).collect()
}

/// The number of the write that a sector claims; 0 for zeros.
fn number_of(bytes: &[u8], disk: u16, sector: u64) -> Result<u64, String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let number = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    if bytes != describe(number, disk, sector) {
        return Err(format!("disk {disk} sector {sector} holds no sector of this disk and place"));
    }
    Ok(number)
}

/// Everything that was written, in order.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub writes: Vec<Write>,
    /// Writes that were interrupted and issued again: until the second try they may stand on the
    /// disk in part, as any unacknowledged write may after a crash.
    pub interrupted: BTreeSet<u64>,
    /// The disks held [`noise`] before the first write, not zeros.
    pub on_noise: bool,
}

impl History {
    /// Which write each sector of each disk shows after the first `through` writes.
    fn state(&self, through: u64, sectors: &[u64]) -> Vec<Vec<u64>> {
        let before = if self.on_noise { NOISE } else { 0 };
        let mut state: Vec<Vec<u64>> = sectors.iter().map(|n| vec![before; *n as usize]).collect();
        for write in self.writes.iter().take_while(|write| write.number <= through) {
            let range = write.first_sector as usize..(write.first_sector + write.sectors) as usize;
            let shown = if write.zero { 0 } else { write.number };
            state[usize::from(write.disk)][range].fill(shown);
        }
        state
    }

    /// Checks images (one a disk, by index); gives the cut G, which must lie in `allowed`.
    pub fn check(
        &self,
        images: &[&Path],
        allowed: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, String> {
        let read = |path: &&Path| {
            std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let images: Result<Vec<_>, _> = images.iter().map(read).collect();
        self.check_bytes(&images?, allowed)
    }

    /// The same with the disks' bytes, or as many of their first as writes can have reached.
    pub fn check_bytes(
        &self,
        disks: &[Vec<u8>],
        allowed: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, String> {
        let mut found = Vec::new();
        for (disk, bytes) in disks.iter().enumerate() {
            found.push(scan(bytes, disk as u16)?);
        }
        let sectors: Vec<u64> = found.iter().map(|disk| disk.len() as u64).collect();
        let numbers = found.iter().flatten().copied().filter(|number| *number != NOISE);
        let newest = numbers.max().unwrap_or(0);
        // A trailing zero write leaves no number behind, so G is searched upwards from the newest
        // number seen, over zero writes only.
        let mut cut = newest.max(*allowed.start());
        loop {
            let wrong = self.difference(cut, &sectors, &found);
            match wrong {
                None if allowed.contains(&cut) => return Ok(cut),
                None => return Err(format!("the cut is {cut}, allowed is {allowed:?}")),
                Some(_) if cut < *allowed.end() => cut += 1,
                Some(wrong) => return Err(format!("no cut from {newest} to {allowed:?}: {wrong}")),
            }
        }
    }

    /// The first sector that does not show the state after `cut` writes.
    fn difference(&self, cut: u64, sectors: &[u64], found: &[Vec<u64>]) -> Option<String> {
        let state = self.state(cut, sectors);
        let torn = self.interrupted.contains(&cut).then(|| self.state(cut - 1, sectors));
        for (disk, (expected, found)) in state.iter().zip(found).enumerate() {
            for (sector, (e, f)) in expected.iter().zip(found).enumerate() {
                let older = torn.as_ref().is_some_and(|torn| torn[disk][sector] == *f);
                if e != f && !older {
                    return Some(format!("disk {disk} sector {sector} shows {f}, expected {e}"));
                }
            }
        }
        None
    }
}

fn scan(image: &[u8], disk: u16) -> Result<Vec<u64>, String> {
    let sectors = image.chunks(SECTOR as usize).enumerate();
    sectors.map(|(at, bytes)| number_of(bytes, disk, at as u64)).collect()
}
