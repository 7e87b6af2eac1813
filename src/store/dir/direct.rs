//! Long transfers past the page cache.
//!
//! What a store writes is read once more at most, much later or never: through the page cache each of
//! its bytes is copied into a page that the kernel must first find, and that pushes out somebody
//! else's. `O_DIRECT` moves whole blocks between the file and aligned memory instead. What is not
//! aligned, short, or on a file system without it goes through the page cache; the kernel keeps both
//! ways coherent, and a sync covers both.
//!
//! Owns: which part of a transfer may go so, and the aligned memory. Does not own: what is written,
//! when it is synced. Memory: `KEPT` × `PIECE`, and `PIECE` for each further transfer at a moment.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// Places, lengths and memory of direct transfers are multiples of this: the block of most file
/// systems, and a multiple of every device's sector.
const ALIGN: usize = 4096;
/// Bytes of one transfer, and of a buffer.
pub(super) const PIECE: usize = 1 << 20;
/// A shorter one costs more as a transfer of its own than what the page cache gathers of many.
const LEAST: usize = 64 << 10;
/// Buffers that are kept for the next transfer.
const KEPT: usize = 4;

/// Aligned memory, lent out.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// [`PIECE`] aligned bytes; what stands in them is left from their last use.
pub(super) struct Buffer {
    memory: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    pub(super) fn take(&self) -> Buffer {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = kept.unwrap_or_else(|| vec![0; PIECE + ALIGN]);
        Buffer { memory, home: self.clone() }
    }
}

impl Buffer {
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let skip = self.memory.as_ptr().align_offset(ALIGN);
        &mut self.memory[skip..skip + PIECE]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut kept = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(std::mem::take(&mut self.memory));
        }
    }
}

/// `O_DIRECT` on an open file that nobody else uses meanwhile, until this is dropped.
struct Direct<'a> {
    file: &'a File,
    before: OFlags,
}

impl<'a> Direct<'a> {
    /// `None`: the file system does not have it.
    fn on(file: &'a File) -> io::Result<Option<Self>> {
        let before = fcntl_getfl(file)?;
        match fcntl_setfl(file, before | OFlags::DIRECT) {
            Ok(()) => Ok(Some(Self { file, before })),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Drop for Direct<'_> {
    fn drop(&mut self) {
        // A flag that stayed would only make the next unaligned transfer fail, and say so.
        let _ = fcntl_setfl(self.file, self.before);
    }
}

/// Writes all of `bytes` at `offset`. How many of them went past the page cache.
pub(super) fn write(
    file: &File,
    offset: u64,
    bytes: &[u8],
    buffers: &Buffers,
) -> io::Result<usize> {
    let head = (offset.next_multiple_of(ALIGN as u64) - offset) as usize;
    let middle = bytes.len().saturating_sub(head) / ALIGN * ALIGN;
    if middle < LEAST {
        file.write_all_at(bytes, offset)?;
        return Ok(0);
    }
    let (head, rest) = bytes.split_at(head);
    let start = offset + head.len() as u64;
    let direct = write_blocks(file, start, &rest[..middle], buffers)?;
    file.write_all_at(head, offset)?;
    file.write_all_at(&rest[direct..], start + direct as u64)?;
    Ok(direct)
}

/// Whole blocks at the border of a block: how many bytes were written, from the first on. The others
/// are left when the file system wants them another way.
fn write_blocks(file: &File, offset: u64, blocks: &[u8], buffers: &Buffers) -> io::Result<usize> {
    let Some(_direct) = Direct::on(file)? else { return Ok(0) };
    let mut buffer = None;
    let mut at = 0;
    while at < blocks.len() {
        let piece = &blocks[at..blocks.len().min(at + PIECE)];
        let aligned = match piece.as_ptr().align_offset(ALIGN) {
            0 => piece,
            _ => {
                let buffer = buffer.get_or_insert_with(|| buffers.take());
                let copy = &mut buffer.bytes()[..piece.len()];
                copy.copy_from_slice(piece);
                copy
            }
        };
        match file.write_at(aligned, offset + at as u64) {
            // A part of a block would be written again, through the page cache.
            Ok(written) if written < aligned.len() => return Ok(at + written / ALIGN * ALIGN),
            Ok(written) => at += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_refusal(&error) => return Ok(at),
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

/// Whether the file system does not do this one past the page cache.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

/// Fills `target` from `offset` on; the file must hold so many bytes. `target` may be any memory.
pub(super) fn read(
    file: &File,
    offset: u64,
    target: &mut [u8],
    buffers: &Buffers,
) -> io::Result<()> {
    let filled = match target.len() < LEAST {
        true => 0,
        false => read_blocks(file, offset, target, buffers)?,
    };
    file.read_exact_at(&mut target[filled..], offset + filled as u64)
}

/// As much of `target` as whole blocks give, from its first byte on.
fn read_blocks(
    file: &File,
    offset: u64,
    target: &mut [u8],
    buffers: &Buffers,
) -> io::Result<usize> {
    let Some(_direct) = Direct::on(file)? else { return Ok(0) };
    let mut buffer = buffers.take();
    let mut filled = 0;
    while filled < target.len() {
        let at = offset + filled as u64;
        let skip = (at % ALIGN as u64) as usize;
        let wanted = (skip + target.len() - filled).next_multiple_of(ALIGN).min(PIECE);
        let found = match file.read_at(&mut buffer.bytes()[..wanted], at - skip as u64) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if is_refusal(&error) => return Ok(filled),
            Err(error) => return Err(error),
        };
        let usable = found.saturating_sub(skip).min(target.len() - filled);
        if usable == 0 {
            return Ok(filled); // the file ends here: the caller's read says so
        }
        let content = &buffer.bytes()[skip..skip + usable];
        target[filled..filled + usable].copy_from_slice(content);
        filled += usable;
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        (0..length as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
    }

    /// Every border: what is written and what lies around it, by both ways, read back by both.
    #[test]
    fn all_bytes_arrive_wherever_they_begin_and_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let open =
            || File::options().create(true).truncate(true).read(true).write(true).open(&path);
        let buffers = Buffers::default();
        let content = noise(3 * PIECE + 5 * ALIGN);
        for offset in [0, 1, 512, 4095, 4096, 4097, 12_345] {
            for length in [1, 4096, LEAST, LEAST + 8191, 2 * PIECE, 3 * PIECE + 513] {
                let file = open().unwrap();
                let size = offset + length as u64 + 700;
                file.write_all_at(&vec![7; size as usize], 0).unwrap();
                let part = &content[3..3 + length]; // not aligned in memory
                write(&file, offset, part, &buffers).unwrap();
                let whole = std::fs::read(&path).unwrap();
                let end = offset as usize + length;
                assert!(whole[..offset as usize].iter().all(|byte| *byte == 7), "{offset}");
                assert!(whole[offset as usize..end] == *part, "{offset}+{length}");
                assert!(whole[end..].iter().all(|byte| *byte == 7), "{offset}+{length}");
                let mut back = vec![0; length];
                read(&file, offset, &mut back, &buffers).unwrap();
                assert!(back == part, "{offset}+{length} read back");
                assert!(read(&file, size, &mut back, &buffers).is_err(), "there is nothing");
            }
        }
        assert!(buffers.0.lock().unwrap().len() == 1, "one transfer at a time, one buffer");
    }

    #[test]
    fn whole_blocks_go_past_the_page_cache_and_the_file_is_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create_new(directory.path().join("file")).unwrap();
        let before = fcntl_getfl(&file).unwrap();
        let buffers = Buffers::default();
        let content = noise(LEAST + 4 * ALIGN);
        let direct = write(&file, 512, &content, &buffers).unwrap();
        // Where the file system has it: not everywhere that tests run.
        if Direct::on(&file).unwrap().is_some() {
            assert_eq!(direct, LEAST + 3 * ALIGN);
        }
        assert_eq!(write(&file, 0, &content[..LEAST - 1], &buffers).unwrap(), 0);
        assert_eq!(fcntl_getfl(&file).unwrap(), before);
    }
}
