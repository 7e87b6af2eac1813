//! Proves at start that the program sees a write, and that what it copies is what was written: by known
//! bytes, written to a loop device of our own.
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
/// Where the write stands that shows whether anything is seen.
const KNOWN_AT: u64 = 4096;
const GIB: u64 = 1 << 30;
const ALIGN: usize = 4096;

/// A loop device that goes with its value.
pub(super) struct Loop {
    pub(super) path: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    pub(super) fn new(directory: &Path) -> Result<Self, String> {
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
pub(super) struct Aligned(Vec<u8>, usize);

impl Aligned {
    pub(super) fn random(entropy: &dyn Entropy, length: usize) -> Self {
        let mut bytes = vec![0; length + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN).min(ALIGN);
        entropy.fill(&mut bytes[start..start + length]);
        Self(bytes, start)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0[self.1..self.0.len() - (ALIGN - self.1)]
    }
}

/// How much of the known writes was seen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Proven {
    /// Where and what: the program copies payloads from here on.
    Data,
    /// Where, and why not what.
    Places(String),
}

/// Nothing else is watched yet. Of payloads nothing is asked where `places_only` says why they cannot be
/// had.
///
/// # Errors
/// In words, when it is not even known that a write is seen: then nothing can be captured.
pub(super) fn prove(
    kernel: &Kernel,
    rings: &mut Rings,
    directory: &Path,
    first_chunk: u64,
    entropy: &dyn Entropy,
    places_only: Option<String>,
) -> Result<Proven, String> {
    let unproven = |why: String| format!("no write could be made to prove that it is seen: {why}");
    let device = Loop::new(directory).map_err(unproven)?;
    let failed = |error: io::Error| unproven(format!("{}: {error}", device.path.display()));
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(OFlags::DIRECT.bits() as i32);
    let file = options.open(&device.path).map_err(failed)?;
    let number = device::kernel_number(file.metadata().map_err(failed)?.rdev());
    let end = DEVICE_BYTES / 512;
    kernel.watch(&[Watched { device: number, start: 0, end, first_chunk, disk: DISK }])?;
    let known = Aligned::random(entropy, ALIGN);
    let seen = see(kernel, rings, &file, number, &known);
    let proven = seen.map(|()| match places_only {
        Some(why) => Proven::Places(why),
        None => {
            match locate(kernel, &known).and_then(|()| compare(kernel, rings, &file, entropy)) {
                Ok(()) => Proven::Data,
                Err(why) => Proven::Places(why),
            }
        }
    });
    if proven != Ok(Proven::Data) {
        kernel.copy(false)?;
    }
    kernel.unwatch(number)?;
    while rings.events.next().is_some() {}
    while rings.extents.next().is_some() {}
    proven
}

/// A write is seen where it is made. The program reads the kernel's memory for that already, and what it
/// cannot read it takes for zeros: then it sees nothing, and says nothing.
fn see(
    kernel: &Kernel,
    rings: &mut Rings,
    file: &File,
    number: u32,
    known: &Aligned,
) -> Result<(), String> {
    kernel.probe(number)?;
    // Seen when it is given to the device, so also where the device fails it.
    let written = file.write_all_at(known.bytes(), KNOWN_AT);
    kernel.probe(0)?;
    let range = KNOWN_AT..KNOWN_AT + known.bytes().len() as u64;
    let mut seen = false;
    while let Some(item) = rings.events.next() {
        let record = parse(&item);
        seen |= matches!(record, Some(Record::Unknown(_, DISK, found)) if found == range);
    }
    match (seen, written) {
        (true, _) => Ok(()),
        (false, Ok(())) => {
            Err("the program runs, but a known write was not seen: it does not find in \
             this kernel what a request is"
                .to_owned())
        }
        (false, Err(error)) => Err(format!("a known write was not seen; it failed: {error}")),
    }
}

/// Finds where the kernel maps all memory and where it describes it, by the write that was seen. Both
/// places are multiples of 1 GiB (arch/x86/mm/kaslr.c), so few are possible, and the right pair shows our
/// own bytes.
fn locate(kernel: &Kernel, known: &Aligned) -> Result<(), String> {
    let probed = kernel.probed()?;
    let Probed { page, request, page_struct_bytes, .. } = probed;
    if page == 0 || !page_struct_bytes.is_power_of_two() {
        return Err("a known direct write was seen, but not its page".to_owned());
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
