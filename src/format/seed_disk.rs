//! Fixed VHD: the disk's bytes, then a 512-byte footer. Layout: `docs/formats/seed-disk.md`.
//!
//! The layout is Microsoft's ("Virtual Hard Disk Image Format Specification", 2006), so its
//! numbers are big-endian. What it leaves open is fixed here, so that the same disk always gives
//! the same footer: applying it again changes nothing.

use sha2::{Digest, Sha256};

use super::bytes::{FormatError, Reader, Writer};
use crate::model::{DISK_BYTES_MAX, DiskName, Epoch, MachineId, SECTOR_BYTES};

/// Bytes of the footer.
pub const FOOTER_BYTES: usize = 512;
/// Azure takes a VHD as a managed disk only when its disk is a multiple of this.
pub const SIZE_UNIT_BYTES: u64 = 1 << 20;

const COOKIE: &[u8; 8] = b"conectix";
/// Reserved bit that is always set; no other feature.
const FEATURES: u32 = 2;
const FORMAT_VERSION: u32 = 0x0001_0000;
/// Fixed disks have no further structure.
const NO_OFFSET: u64 = u64::MAX;
/// Seconds since 2000-01-01. Nothing reads it; a real time would make two footers of one disk
/// differ.
const TIME: u32 = 0;
/// "win ": readers that know several writers (QEMU) take the size from `current size` for this
/// one, and compute it from the geometry, which cannot express every size, for unknown ones.
const CREATOR: &[u8; 4] = b"win ";
const CREATOR_VERSION: u32 = 0x000a_0000;
const CREATOR_SYSTEM: &[u8; 4] = b"Wi2k";
const FIXED: u32 = 2;
const CHECKSUM_AT: usize = 64;

/// The disk inside a seed disk: `disk_bytes` rounded up to 1 MiB; the rest is zeros.
#[must_use]
pub fn virtual_bytes(disk_bytes: u64) -> u64 {
    disk_bytes.div_ceil(SIZE_UNIT_BYTES).saturating_mul(SIZE_UNIT_BYTES)
}

/// Bytes of the page blob that is the seed disk: disk and footer.
#[must_use]
pub fn size_on_store(disk_bytes: u64) -> u64 {
    virtual_bytes(disk_bytes).saturating_add(FOOTER_BYTES as u64)
}

const _: () = assert!(DISK_BYTES_MAX.is_multiple_of(SIZE_UNIT_BYTES));
const _: () = assert!(DISK_BYTES_MAX + FOOTER_BYTES as u64 <= 8 << 40); // a page blob's limit

/// The id in the footer of one machine's disk in one epoch: the first 16 bytes of SHA-256.
#[must_use]
pub fn unique_id(machine: &MachineId, disk: &DiskName, epoch: Epoch) -> [u8; 16] {
    // Names have no '/', so no two triples give the same text.
    let text = format!("holdfast seed disk 1/{machine}/{disk}/{epoch}");
    let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    id
}

/// What a footer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    disk_bytes: u64,
    id: [u8; 16],
}

impl Footer {
    /// The footer of a disk of `disk_bytes` (for a seed disk: [`virtual_bytes`]).
    ///
    /// # Errors
    /// When it is not a multiple of a sector, zero, or more than a page blob holds.
    pub fn new(disk_bytes: u64, id: [u8; 16]) -> Result<Self, FormatError> {
        let whole = disk_bytes.is_multiple_of(SECTOR_BYTES);
        if disk_bytes == 0 || disk_bytes > DISK_BYTES_MAX || !whole {
            let expected = format_args!("a multiple of {SECTOR_BYTES} up to {DISK_BYTES_MAX}");
            return Err(FormatError::value("current size", disk_bytes, expected));
        }
        Ok(Self { disk_bytes, id })
    }

    /// Bytes of the disk before the footer.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// The disk's unique id.
    #[must_use]
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// Its 512 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut writer = Writer::new();
        writer
            .put(COOKIE)
            .put(&FEATURES.to_be_bytes())
            .put(&FORMAT_VERSION.to_be_bytes())
            .put(&NO_OFFSET.to_be_bytes())
            .put(&TIME.to_be_bytes())
            .put(CREATOR)
            .put(&CREATOR_VERSION.to_be_bytes())
            .put(CREATOR_SYSTEM)
            .put(&self.disk_bytes.to_be_bytes()) // original size
            .put(&self.disk_bytes.to_be_bytes()) // current size
            .put(&geometry(self.disk_bytes))
            .put(&FIXED.to_be_bytes())
            .put(&[0; 4]) // checksum, below
            .put(&self.id);
        let mut bytes = [0; FOOTER_BYTES];
        bytes[..writer.0.len()].copy_from_slice(&writer.0);
        let sum = checksum(&bytes).to_be_bytes();
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum);
        bytes
    }

    /// Reads a footer. Only what [`Footer::encode`] writes is accepted: anything else at the end
    /// of a seed disk was not put there by Holdfast.
    ///
    /// # Errors
    /// Naming the first field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let footer: [u8; FOOTER_BYTES] = reader.array("footer")?;
        reader.finish("footer")?;
        let mut reader = Reader::new(&footer);
        exactly(&mut reader, "cookie", COOKIE)?;
        let mut reader_of_sum = Reader::new(&footer[CHECKSUM_AT..]);
        let found = u32::from_be_bytes(reader_of_sum.array("checksum")?);
        let computed = checksum(&footer);
        if found != computed {
            let what = "footer";
            return Err(FormatError::Checksum { what, found, computed });
        }
        exactly(&mut reader, "features", &FEATURES.to_be_bytes())?;
        exactly(&mut reader, "version", &FORMAT_VERSION.to_be_bytes())?;
        exactly(&mut reader, "data offset", &NO_OFFSET.to_be_bytes())?;
        exactly(&mut reader, "time", &TIME.to_be_bytes())?;
        exactly(&mut reader, "creator", CREATOR)?;
        exactly(&mut reader, "creator version", &CREATOR_VERSION.to_be_bytes())?;
        exactly(&mut reader, "creator system", CREATOR_SYSTEM)?;
        let original: [u8; 8] = reader.array("original size")?;
        exactly(&mut reader, "current size", &original)?;
        let disk_bytes = u64::from_be_bytes(original);
        exactly(&mut reader, "geometry", &geometry(disk_bytes))?;
        exactly(&mut reader, "disk type", &FIXED.to_be_bytes())?;
        reader.take(4, "checksum")?;
        let id = reader.array("unique id")?;
        exactly(&mut reader, "saved state and reserved", &[0; 428])?;
        reader.finish("footer")?;
        Self::new(disk_bytes, id)
    }
}

fn exactly(
    reader: &mut Reader<'_>,
    field: &'static str,
    expected: &[u8],
) -> Result<(), FormatError> {
    let found = reader.take(expected.len(), field)?;
    if found == expected {
        return Ok(());
    }
    let hex = hex::encode;
    Err(FormatError::value(field, hex(found), hex(expected)))
}

/// One's complement of the sum of all bytes, the checksum's own left out.
fn checksum(footer: &[u8; FOOTER_BYTES]) -> u32 {
    let without = footer[..CHECKSUM_AT].iter().chain(&footer[CHECKSUM_AT + 4..]);
    !without.map(|byte| u32::from(*byte)).sum::<u32>()
}

/// Cylinders, heads and sectors per track, as the specification's appendix computes them.
fn geometry(disk_bytes: u64) -> [u8; 4] {
    let sectors = (disk_bytes / SECTOR_BYTES).min(65_535 * 16 * 255);
    let by_track = |track: u64| (track, sectors / track);
    let (track, heads, tracks) = if sectors >= 65_535 * 16 * 63 {
        let (track, tracks) = by_track(255);
        (track, 16, tracks)
    } else {
        let (track, tracks) = by_track(17);
        let heads = tracks.div_ceil(1024).max(4);
        if tracks < heads * 1024 && heads <= 16 {
            (track, heads, tracks)
        } else {
            let (track, tracks) = by_track(31);
            if tracks < 16 * 1024 {
                (track, 16, tracks)
            } else {
                let (track, tracks) = by_track(63);
                (track, 16, tracks)
            }
        }
    };
    let cylinders = u16::try_from(tracks / heads).unwrap_or(u16::MAX);
    let [high, low] = cylinders.to_be_bytes();
    [high, low, heads as u8, track as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made once by an independent encoder, never edited.
    const GOLDEN: [(&[u8], u64); 4] = [
        (include_bytes!("../../tests/golden/seed_disk/v1-20mib.footer"), 20 << 20),
        (include_bytes!("../../tests/golden/seed_disk/v1-odd-sectors.footer"), 1_000_000_007 * 512),
        (include_bytes!("../../tests/golden/seed_disk/v1-400mib.footer"), 400 << 20),
        (include_bytes!("../../tests/golden/seed_disk/v1-largest.footer"), DISK_BYTES_MAX),
    ];

    #[test]
    fn golden_footers_read_and_write_the_same_for_ever() {
        for (bytes, disk_bytes) in GOLDEN {
            let id: [u8; 16] = std::array::from_fn(|at| at as u8 * 17);
            let footer = Footer::new(disk_bytes, id).unwrap();
            assert_eq!(Footer::decode(bytes), Ok(footer));
            assert_eq!(footer.encode(), bytes);
        }
    }

    #[test]
    fn every_corruption_of_one_byte_is_found() {
        let (bytes, _) = GOLDEN[0];
        for at in 0..FOOTER_BYTES {
            for change in 1..=255 {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= change;
                let error = Footer::decode(&damaged).unwrap_err();
                let expected = match at {
                    0..8 => matches!(error, FormatError::Value { field: "cookie", .. }),
                    _ => matches!(error, FormatError::Checksum { what: "footer", .. }),
                };
                assert!(expected, "byte {at}: {error}");
            }
            let short = Footer::decode(&bytes[..at]);
            assert!(matches!(short, Err(FormatError::Short { .. })));
        }
        let long = [bytes, &[0]].concat();
        let long = Footer::decode(&long);
        assert!(matches!(long, Err(FormatError::Trailing { left: 1, .. })));
    }

    #[test]
    fn a_foreign_footer_is_named_by_its_first_field() {
        for (at, field) in [(11, "features"), (24, "time"), (31, "creator"), (58, "geometry")] {
            let (bytes, _) = GOLDEN[0];
            let mut foreign: [u8; FOOTER_BYTES] = bytes.try_into().unwrap();
            foreign[at] ^= 1;
            let sum = checksum(&foreign).to_be_bytes();
            foreign[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum);
            match Footer::decode(&foreign).unwrap_err() {
                FormatError::Value { field: found, .. } => {
                    assert!(found.starts_with(field), "{found} for {field}");
                }
                other => panic!("{other}"),
            }
        }
        assert!(Footer::new(0, [0; 16]).is_err());
        assert!(Footer::new(513, [0; 16]).is_err());
        assert!(Footer::new(DISK_BYTES_MAX + 512, [0; 16]).is_err());
    }

    #[test]
    fn sizes_round_up_to_a_mebibyte() {
        assert_eq!(size_on_store(512), (1 << 20) + 512);
        assert_eq!(size_on_store(1 << 20), (1 << 20) + 512);
        assert_eq!(size_on_store((1 << 20) + 512), (2 << 20) + 512);
        assert_eq!(size_on_store(u64::MAX), u64::MAX);
    }
}
