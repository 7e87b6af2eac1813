//! Numbered writes and the oracle: an image is right when one number G exists such that every sector is
//! the last write numbered at most G. That proves a prefix: no hole, no reordering, nothing foreign.

/// Bytes of a sector.
pub(crate) const SECTOR: u64 = 512;

/// What was written to one disk, in order; numbers count from 1.
#[derive(Debug, Default)]
pub(crate) struct History {
    writes: Vec<(u64, u32)>,
}

impl History {
    /// The next write, of `sectors` sectors: its payload. It counts from now on, acknowledged or not.
    pub(crate) fn next(&mut self, first: u64, sectors: u32) -> Vec<u8> {
        self.writes.push((first, sectors));
        let number = self.last();
        (first..first + u64::from(sectors)).flat_map(|at| sector(number, at)).collect()
    }

    /// The number of the last write.
    pub(crate) fn last(&self) -> u64 {
        self.writes.len() as u64
    }

    /// Whether `image` is the disk after its writes through some G, blank before the first: that G.
    ///
    /// # Errors
    /// In words, at the first sector that fits none.
    pub(crate) fn check(&self, image: &[u8]) -> Result<u64, String> {
        let numbers: Vec<u64> = image.chunks(SECTOR as usize).map(number).collect();
        let through = numbers.iter().copied().max().unwrap_or(0);
        if through > self.last() {
            return Err(format!("write {through} was never made, the last is {}", self.last()));
        }
        let mut expected = vec![0; numbers.len()];
        for (number, (first, sectors)) in (1..=through).zip(&self.writes) {
            expected[*first as usize..][..*sectors as usize].fill(number);
        }
        for (at, found) in image.chunks(SECTOR as usize).enumerate() {
            let wanted = match expected[at] {
                0 => [0; SECTOR as usize],
                number => sector(number, at as u64),
            };
            if *found != wanted {
                let (found, wanted) = (numbers[at], expected[at]);
                return Err(format!(
                    "sector {at} holds write {found}, not {wanted}, at a cut after {through}"
                ));
            }
        }
        Ok(through)
    }
}

/// A sector that says by which write it was made, and where; half of it does not compress.
fn sector(number: u64, at: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..16].copy_from_slice(&at.to_le_bytes());
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at | 1;
    for word in bytes[16..272].chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// The write that a sector claims to be of; 0 for a blank one.
fn number(sector: &[u8]) -> u64 {
    sector.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_right_and_nothing_else_is() {
        let mut history = History::default();
        let mut images = vec![vec![0; 16 * SECTOR as usize]];
        for (first, sectors) in [(0, 4), (2, 4), (8, 1), (3, 2)] {
            let mut image = images.last().unwrap().clone();
            let bytes = history.next(first, sectors);
            image[(first * SECTOR) as usize..][..bytes.len()].copy_from_slice(&bytes);
            images.push(image);
        }
        for (through, image) in images.iter().enumerate() {
            assert_eq!(history.check(image), Ok(through as u64));
        }
        let mut hole = images[4].clone();
        hole[8 * SECTOR as usize..9 * SECTOR as usize].fill(0);
        assert!(history.check(&hole).unwrap_err().contains("sector 8 holds write 0, not 3"));
        let mut older = images[4].clone();
        older[5 * SECTOR as usize..6 * SECTOR as usize]
            .copy_from_slice(&images[1][5 * SECTOR as usize..6 * SECTOR as usize]);
        assert!(history.check(&older).is_err());
        let mut damaged = images[4].clone();
        damaged[200] ^= 1;
        assert!(history.check(&damaged).is_err());
    }
}
