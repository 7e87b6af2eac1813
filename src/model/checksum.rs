//! CRC-32 of some bytes, so that no byte has to be read twice.
//!
//! A payload is summed once, when it comes in. Wire frames and cache records have checksums over
//! their header and that payload: both are computed from the header's bytes and this sum, so a
//! payload that changed in memory in between does not get a checksum that fits it.

use crc32fast::Hasher;

/// CRC-32 (IEEE) of a run of bytes, and their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum {
    crc: u32,
    bytes: u64,
}

impl Checksum {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::default().and(bytes)
    }

    /// Of the bytes so far and these behind them.
    #[must_use]
    pub fn and(self, bytes: &[u8]) -> Self {
        let mut crc = Hasher::new_with_initial(self.crc);
        crc.update(bytes);
        Self { crc: crc.finalize(), bytes: self.bytes + bytes.len() as u64 }
    }

    /// The CRC of `head` and the bytes behind it, which are not read again.
    #[must_use]
    pub fn behind(self, head: &[u8]) -> u32 {
        let mut crc = Hasher::new();
        crc.update(head);
        crc.combine(&Hasher::new_with_initial_len(self.crc, self.bytes));
        crc.finalize()
    }

    /// How many bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_sum_to_the_whole() {
        let bytes: Vec<u8> = (0..5000_u32).map(|n| (n * 7 % 251) as u8).collect();
        for (head, middle) in [(0, 0), (0, 5000), (40, 41), (96, 4192), (5000, 5000)] {
            let sum = Checksum::of(&bytes[head..middle]).and(&bytes[middle..]);
            assert_eq!(sum.bytes(), 5000 - head as u64);
            assert_eq!(sum.behind(&bytes[..head]), crc32fast::hash(&bytes), "{head} {middle}");
        }
    }
}
