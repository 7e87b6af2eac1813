//! Bytes of the bitmap file. Layout and write ordering: `docs/agent.md`.

use crate::format::bytes::{FormatError, Reader, Writer};
use crate::model::{DiskName, Epoch, MachineKey, Sequence};

use super::super::bits::PAGE_WORDS;
use super::super::source_identity::{Changed, LASTING_BYTES_MAX, SourceIdentity};
use super::identity::Teller;

/// First bytes of a header.
const MAGIC: [u8; 8] = *b"HFBITMAP";
/// Version of the layout.
const VERSION: u16 = 3;
/// Bytes of a header; two of them stand at the start of the file, each in a sector of its own.
pub(super) const HEADER_BYTES: usize = 512;
/// Bytes of a page: one sector, so that a power cut leaves the old page or the new one.
pub(super) const PAGE_BYTES: usize = 512;
/// Distance of the two headers: a device of 4 KiB sectors cannot tear both at once.
pub(super) const SLOT_BYTES: u64 = 4096;
/// First byte of the first page.
pub(super) const PAGES_AT: u64 = 2 * SLOT_BYTES;

const _: () = assert!(PAGE_BYTES == PAGE_WORDS * 8 + 8);

/// What the file is about. The disk's identity comes first: it decides whether the rest counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Whose disk.
    pub(super) machine: MachineKey,
    /// Which.
    pub(super) disk: DiskName,
    /// Its size.
    pub(super) disk_bytes: u64,
    /// Bytes that one bit stands for.
    pub(super) chunk_bytes: u32,
    /// CRC-32 over all disks of the machine (index, name, size): another set is another epoch.
    pub(super) disks_crc: u32,
    /// Who told of its writes.
    pub(super) teller: Teller,
    /// What tells it from another disk of its size; nothing where the teller does.
    pub(super) source: SourceIdentity,
    /// The epoch it tracks.
    pub(super) epoch: Epoch,
    /// Highest published sequence that was ever told before a bit was cleared.
    pub(super) witnessed: Sequence,
    /// The agent stopped in order: everything was published, in ordered mode, and no bit is set.
    pub(super) clean: bool,
    /// When the source was changed last, as of the agent's end; `None` while it runs, after it was
    /// killed, or when it cannot be known.
    pub(super) changed: Option<Changed>,
    /// Grows by one with every header written; the larger valid one counts.
    pub(super) turn: u64,
}

impl Header {
    /// Its 512 bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.put(&MAGIC).u16(VERSION).u16(0);
        writer.put(&self.machine.0).text(self.disk.as_str());
        writer.u64(self.disk_bytes).u32(self.chunk_bytes);
        writer.u32(self.disks_crc).u8(self.teller as u8);
        writer.text(&self.source.lasting).put(&self.source.boot).u64(self.source.device_sequence);
        writer.u32(self.epoch.0).u64(self.witnessed.0).u8(u8::from(self.clean));
        let changed = self.changed.unwrap_or(Changed { seconds: 0, nanoseconds: 0 });
        writer.u8(u8::from(self.changed.is_some()));
        writer.i64(changed.seconds).u32(changed.nanoseconds);
        writer.u64(self.turn);
        let mut bytes = writer.0;
        bytes.resize(HEADER_BYTES - 4, 0);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads 512 bytes.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let magic: [u8; 8] = reader.array("bitmap magic")?;
        if magic != MAGIC {
            return Err(FormatError::value("bitmap magic", hex::encode(magic), hex::encode(MAGIC)));
        }
        let content = bytes.get(..HEADER_BYTES - 4).unwrap_or(bytes);
        let found = Reader::new(bytes.get(HEADER_BYTES - 4..).unwrap_or(&[])).u32("header crc")?;
        let computed = crc32fast::hash(content);
        if found != computed {
            let what = "bitmap header";
            return Err(FormatError::Checksum { what, found, computed });
        }
        let version = reader.u16("bitmap version")?;
        if version != VERSION {
            return Err(FormatError::value("bitmap version", version, VERSION));
        }
        reader.u16("reserved")?;
        let machine = MachineKey(reader.array("machine")?);
        let name = reader.text(48, "disk")?;
        let disk = name.parse().map_err(|_| FormatError::value("disk", name, "a disk name"))?;
        Ok(Self {
            machine,
            disk,
            disk_bytes: reader.u64("disk bytes")?,
            chunk_bytes: reader.u32("chunk bytes")?,
            disks_crc: reader.u32("disks crc")?,
            teller: {
                let code = reader.u8("teller")?;
                Teller::from_code(code)
                    .ok_or_else(|| FormatError::value("teller", code, "1 to 4"))?
            },
            source: SourceIdentity {
                lasting: reader.text(LASTING_BYTES_MAX, "source")?.to_owned(),
                boot: reader.array("boot")?,
                device_sequence: reader.u64("device sequence")?,
            },
            epoch: Epoch(reader.u32("epoch")?),
            witnessed: Sequence(reader.u64("witnessed")?),
            clean: flag(&mut reader, "clean")?,
            changed: {
                let known = flag(&mut reader, "changed")?;
                let (seconds, nanoseconds) = (reader.i64("seconds")?, reader.u32("nanoseconds")?);
                known.then_some(Changed { seconds, nanoseconds })
            },
            turn: reader.u64("turn")?,
        })
    }
}

fn flag(reader: &mut Reader<'_>, field: &'static str) -> Result<bool, FormatError> {
    match reader.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(FormatError::value(field, other, "0 or 1")),
    }
}

/// The 512 bytes of a page: CRC-32 over the rest, page number, bits (least significant first).
pub(super) fn encode_page(page: u32, words: &[u64]) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    bytes[4..8].copy_from_slice(&page.to_le_bytes());
    for (target, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
        target.copy_from_slice(&word.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The words of a page, or `None` when its bytes are not those of page `page`.
pub(super) fn decode_page(page: u32, bytes: &[u8]) -> Option<[u64; PAGE_WORDS]> {
    let mut reader = Reader::new(bytes);
    let crc = reader.u32("page crc").ok()?;
    if crc != crc32fast::hash(bytes.get(4..)?) || reader.u32("page number").ok()? != page {
        return None;
    }
    let mut words = [0; PAGE_WORDS];
    for word in &mut words {
        *word = reader.u64("bits").ok()?;
    }
    reader.finish("bitmap page").ok()?;
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_page_come_back_and_a_flipped_bit_is_found() {
        let header = Header {
            machine: MachineKey([7; 16]),
            disk: "root".parse().unwrap(),
            disk_bytes: 1 << 30,
            chunk_bytes: 65536,
            disks_crc: 0xdead_beef,
            teller: Teller::Guest,
            source: SourceIdentity {
                lasting: "s".repeat(LASTING_BYTES_MAX),
                boot: [9; 16],
                device_sequence: 77,
            },
            epoch: Epoch(3),
            witnessed: Sequence(99),
            clean: true,
            changed: Some(Changed { seconds: -1, nanoseconds: 999_999_999 }),
            turn: 12,
        };
        let bytes = header.encode();
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert_eq!(hex::encode(&bytes[..12]), "48464249544d415003000000");
        assert_eq!(Header::decode(&bytes).unwrap(), header);
        let running = Header { changed: None, ..header };
        assert_eq!(Header::decode(&running.encode()).unwrap(), running);
        let mut words = [0; PAGE_WORDS];
        words[62] = 1 << 63;
        let page = encode_page(5, &words);
        assert_eq!(decode_page(5, &page), Some(words));
        assert_eq!(decode_page(6, &page), None, "a page in the wrong place");
        assert_eq!(decode_page(0, &[0; PAGE_BYTES]), None, "never written");
        for at in 0..HEADER_BYTES * 8 {
            let (mut header, mut page) = (bytes.clone(), page);
            header[at / 8] ^= 1 << (at % 8);
            page[at / 8] ^= 1 << (at % 8);
            assert!(Header::decode(&header).is_err(), "header bit {at}");
            assert!(decode_page(5, &page).is_none(), "page bit {at}");
        }
        for cut in 0..HEADER_BYTES {
            assert!(Header::decode(&bytes[..cut]).is_err());
        }
    }
}
