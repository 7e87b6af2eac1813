//! Block devices as the kernel numbers them.
//!
//! Owns: which part of which whole device a path means, what lies below a file, and refusing what has
//! no requests to see. Does not own: reading it.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, makedev, minor};

use crate::agent::error::AgentError;

/// Deepest stack of devices that is followed.
const DEPTH_MAX: usize = 16;

/// A captured disk on its whole device, in sectors.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Part {
    pub(super) device: u32,
    /// Which of all devices that ever had this number since the boot.
    pub(super) sequence: u64,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// A device number as user space has it, as the kernel has it.
pub(super) fn kernel_number(number: u64) -> u32 {
    major(number) << 20 | minor(number)
}

fn folder(number: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(number), minor(number)))
}

fn number_in(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn device_in(folder: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(folder.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Writes that a whole device has and has not answered.
///
/// # Errors
/// In words, when the kernel does not tell.
pub(super) fn inflight_writes(device: u32) -> Result<u64, String> {
    let folder = folder(makedev(device >> 20, device & 0xf_ffff));
    let path = folder.join("inflight");
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
    let writes = text.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    writes.ok_or_else(|| format!("{} tells no number of writes: {}", path.display(), text.trim()))
}

/// The part of a whole device that `path` is.
///
/// # Errors
/// When it is no block device, or one whose writes cannot be seen.
pub(super) fn part(path: &Path) -> Result<Part, AgentError> {
    let refuse = |why: &str| AgentError::Settings(format!("{}: {why}", path.display()));
    let found = std::fs::metadata(path)
        .map_err(|source| AgentError::io(path, "look at the disk", source))?;
    if !found.file_type().is_block_device() {
        return Err(refuse(
            "capture = \"ebpf\" sees block devices; for a file use \"fuse\" or \"nbd\"",
        ));
    }
    let own = folder(found.rdev());
    let sectors = number_in(&own.join("size")).ok_or_else(|| refuse("its size is not known"))?;
    let real = std::fs::canonicalize(&own)
        .map_err(|source| AgentError::io(&own, "look at the disk", source))?;
    let parent = real.parent().filter(|_| real.join("partition").exists());
    let start = parent.and_then(|_| number_in(&real.join("start"))).unwrap_or(0);
    let whole = parent.unwrap_or(&real).to_path_buf();
    let device = device_in(&whole).ok_or_else(|| refuse("its whole device is not known"))?;
    let zoned = std::fs::read_to_string(whole.join("queue/zoned")).unwrap_or_default();
    if !matches!(zoned.trim(), "" | "none") {
        return Err(refuse(
            "a zoned device orders its writes itself, which eBPF capture does not follow; use capture = \"scan\"",
        ));
    }
    if !whole.join("mq").exists() {
        return Err(refuse(
            "this device has no requests of its own (device mapper, md, zram and their like); name the \
             devices below it (lsblk -s) as disks, or use capture = \"scan\"",
        ));
    }
    let sequence = number_in(&whole.join("diskseq"))
        .ok_or_else(|| refuse("the kernel does not say which device it is (diskseq)"))?;
    Ok(Part { device: kernel_number(device), sequence, start, end: start + sectors })
}

/// The whole devices on which a file lies, as far as they can be known.
pub(super) fn below(path: &Path) -> Vec<u32> {
    let Ok(found) = std::fs::metadata(path) else { return Vec::new() };
    let mut first = found.dev();
    if major(first) == 0 {
        // Not a device: tmpfs, or a file system with several, which names one as its source.
        let Some(source) = source_of(first) else { return Vec::new() };
        let Ok(found) = std::fs::metadata(&source) else { return Vec::new() };
        first = found.rdev();
    }
    let mut wholes = BTreeSet::new();
    let mut open = vec![(folder(first), 0)];
    while let Some((folder, depth)) = open.pop() {
        let Ok(real) = std::fs::canonicalize(&folder) else { continue };
        let slaves = std::fs::read_dir(real.join("slaves")).into_iter().flatten().flatten();
        if depth < DEPTH_MAX {
            open.extend(slaves.map(|slave| (slave.path(), depth + 1)));
        }
        let whole = match real.join("partition").exists() {
            true => real.parent().map(Path::to_path_buf),
            false => Some(real),
        };
        wholes.extend(whole.as_deref().and_then(device_in).map(kernel_number));
    }
    wholes.into_iter().collect()
}

/// What a mounted file system without a device of its own says it comes from.
fn source_of(number: u64) -> Option<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let name = format!("{}:{}", major(number), minor(number));
    let line = text.lines().find(|line| line.split(' ').nth(2) == Some(name.as_str()))?;
    let source = line.split(" - ").nth(1)?.split(' ').nth(1)?;
    source.starts_with("/dev/").then(|| source.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_a_character_device_are_no_disks_to_see() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path(), Path::new("/dev/null")] {
            let refused = part(path).unwrap_err().to_string();
            assert!(refused.contains("sees block devices"), "{refused}");
        }
        assert_eq!(kernel_number(makedev(7, 3)), 7 << 20 | 3);
    }
}
