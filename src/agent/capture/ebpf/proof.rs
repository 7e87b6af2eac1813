//! Proves at start that what the program copies is what was written: by known bytes, written to a loop
//! device of our own.
//!
//! Owns: where the kernel maps memory, found without its symbols, and the proof. Does not own: what
//! happens when it fails.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::OFlags;

use crate::clock::Entropy;

use super::device;
use super::kernel::{Kernel, Probed, Rings, Watched};
use super::record::{Record, parse};

/// Size of the device.
const DEVICE_BYTES: u64 = 1 << 20;
/// Chunks that its writes may touch, behind those of the disks.
pub(super) const CHUNKS: u64 = DEVICE_BYTES / 4096;
/// Its number in records: no disk has it.
const DISK: u16 = u16::MAX;
/// Pieces of every class come up.
const WRITES: [(u64, usize); 2] = [(128 << 10, 100 << 10), (512, 512)];
const GIB: u64 = 1 << 30;
const ALIGN: usize = 4096;

/// A loop device that goes with its value.
struct Loop {
    path: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    fn new(directory: &Path) -> Result<Self, String> {
        let named = |error: io::Error| format!("{}: {error}", directory.display());
        let file = tempfile::NamedTempFile::new_in(directory).map_err(named)?;
        file.as_file().set_len(DEVICE_BYTES).map_err(named)?;
        let mut command = Command::new("losetup");
        let made = command.args(["--find", "--show"]).arg(file.path()).output();
        let made =
            made.map_err(|error| format!("losetup (package mount) could not be run: {error}"))?;
        let text = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        if !made.status.success() || text.is_empty() {
            return Err(format!("losetup: {}", String::from_utf8_lossy(&made.stderr).trim()));
        }
        Ok(Self { path: text.into(), _file: file })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let freed = Command::new("losetup").arg("-d").arg(&self.path).output();
        if !freed.is_ok_and(|done| done.status.success()) {
            tracing::warn!(path = %self.path.display(), "the loop device of the self-test stays; free it with losetup -d");
        }
    }
}

/// Bytes at an address that a direct write accepts.
struct Aligned(Vec<u8>, usize);

impl Aligned {
    fn random(entropy: &dyn Entropy, length: usize) -> Self {
        let mut bytes = vec![0; length + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN).min(ALIGN);
        entropy.fill(&mut bytes[start..start + length]);
        Self(bytes, start)
    }

    fn bytes(&self) -> &[u8] {
        &self.0[self.1..self.0.len() - (ALIGN - self.1)]
    }
}

/// The program copies payloads from here on; nothing else is watched yet.
///
/// # Errors
/// In words, why payloads cannot be trusted.
pub(super) fn prove(
    kernel: &Kernel,
    rings: &mut Rings,
    directory: &Path,
    first_chunk: u64,
    entropy: &dyn Entropy,
) -> Result<(), String> {
    let device = Loop::new(directory)?;
    let failed = |error: io::Error| format!("{}: {error}", device.path.display());
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(OFlags::DIRECT.bits() as i32);
    let file = options.open(&device.path).map_err(failed)?;
    let number = device::kernel_number(file.metadata().map_err(failed)?.rdev());
    let end = DEVICE_BYTES / 512;
    kernel.watch(&[Watched { device: number, start: 0, end, first_chunk, disk: DISK }])?;
    let proven = locate(kernel, &file, number, entropy)
        .and_then(|()| compare(kernel, rings, &file, entropy));
    if proven.is_err() {
        kernel.copy(false)?;
    }
    kernel.unwatch(number)?;
    while rings.events.next().is_some() {}
    while rings.extents.next().is_some() {}
    proven
}

/// Finds where the kernel maps all memory and where it describes it. Both places are multiples of 1 GiB
/// (arch/x86/mm/kaslr.c), so few are possible, and the right pair shows our own bytes.
fn locate(kernel: &Kernel, file: &File, number: u32, entropy: &dyn Entropy) -> Result<(), String> {
    let known = Aligned::random(entropy, ALIGN);
    kernel.probe(number)?;
    let written = file.write_all_at(known.bytes(), 4096);
    kernel.probe(0)?;
    written.map_err(|error| format!("a direct write to the test device: {error}"))?;
    let probed = kernel.probed()?;
    let Probed { page, request, page_struct_bytes, .. } = probed;
    if page == 0 || !page_struct_bytes.is_power_of_two() {
        return Err("a known direct write was not seen".to_owned());
    }
    let mut want = [0; 4];
    for (word, bytes) in want.iter_mut().zip(known.bytes().chunks(8)) {
        *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    let gib = 2 * memory_gib() + 64;
    for step in 0..=(gib * page_struct_bytes).div_ceil(4096) {
        let structs_at = (page & !(GIB - 1)) - step * GIB;
        let highest = request & !(GIB - 1);
        if let Some(pages_at) = kernel.find(&probed, structs_at, highest, gib, want)? {
            return kernel.with_data(pages_at, structs_at);
        }
    }
    Err("a known direct write was seen, but its bytes were not found in memory".to_owned())
}

fn memory_gib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    (kib.unwrap_or(0) >> 20) + 1
}

/// Writes known bytes and compares what the ring holds.
fn compare(
    kernel: &Kernel,
    rings: &mut Rings,
    file: &File,
    entropy: &dyn Entropy,
) -> Result<(), String> {
    while rings.events.next().is_some() {}
    let known = WRITES.map(|(offset, length)| (offset, Aligned::random(entropy, length)));
    for (offset, bytes) in &known {
        let written = file.write_all_at(bytes.bytes(), *offset);
        written.map_err(|error| format!("a direct write to the test device: {error}"))?;
    }
    let mut image = vec![0; DEVICE_BYTES as usize];
    while let Some(item) = rings.events.next() {
        match parse(&item) {
            Some(Record::Piece(piece)) if piece.disk == DISK => {
                let at = (piece.range.start + piece.at) as usize;
                let place = image.get_mut(at..at + piece.bytes.len());
                place
                    .ok_or("a record names a place outside of its disk")?
                    .copy_from_slice(piece.bytes);
            }
            other => return Err(format!("a known direct write was seen as {other:?}")),
        }
    }
    let right = known.iter().all(|(offset, bytes)| {
        let bytes = bytes.bytes();
        image[*offset as usize..][..bytes.len()] == *bytes
    });
    match right {
        true => Ok(()),
        false => {
            Err(format!("a known direct write did not arrive as it was ({:?})", kernel.counts()))
        }
    }
}
