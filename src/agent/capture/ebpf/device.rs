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

/// What sysfs shows of a whole device.
pub(super) fn shown(device: u32) -> PathBuf {
    folder(makedev(device >> 20, device & 0xf_ffff))
}

/// Whether [`inflight_writes`] tells anything: without statistics the kernel counts no request.
pub(super) fn counts_inflight(device: u32) -> bool {
    number_in(&shown(device).join("queue/iostats")) != Some(0)
}

/// Writes that a whole device has and has not answered.
///
/// # Errors
/// In words, when the kernel does not tell.
pub(super) fn inflight_writes(device: u32) -> Result<u64, String> {
    let path = shown(device).join("inflight");
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
    described(path, &folder(found.rdev()))
}

/// The same of a device that a folder of sysfs describes.
fn described(path: &Path, own: &Path) -> Result<Part, AgentError> {
    let refuse = |why: &str| AgentError::Settings(format!("{}: {why}", path.display()));
    let sectors = number_in(&own.join("size")).ok_or_else(|| refuse("its size is not known"))?;
    let real = std::fs::canonicalize(own)
        .map_err(|source| AgentError::io(own, "look at the disk", source))?;
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

/// The whole devices on which a file lies, as far as they can be known: also those below a loop device's
/// file, as a write to that is one to them.
pub(super) fn below(path: &Path) -> Vec<u32> {
    let (mut wholes, mut files) = (BTreeSet::new(), vec![path.to_path_buf()]);
    for _ in 0..DEPTH_MAX {
        let Some(file) = files.pop() else { break };
        if let Some(number) = device_under(&file) {
            stacked(folder(number), &mut wholes, &mut files);
        }
    }
    wholes.into_iter().collect()
}

/// The device that holds a file, or that the file is.
fn device_under(path: &Path) -> Option<u64> {
    let found = std::fs::metadata(path).ok()?;
    if found.file_type().is_block_device() {
        return Some(found.rdev());
    }
    if major(found.dev()) != 0 {
        return Some(found.dev());
    }
    // Not a device: tmpfs, or a file system with several, which names one as its source.
    Some(std::fs::metadata(source_of(found.dev())?).ok()?.rdev())
}

/// The whole devices below one, itself among them, and the files that loop devices among them show.
fn stacked(first: PathBuf, wholes: &mut BTreeSet<u32>, files: &mut Vec<PathBuf>) {
    let mut open = vec![(first, 0)];
    while let Some((folder, depth)) = open.pop() {
        let Ok(real) = std::fs::canonicalize(&folder) else { continue };
        let whole = match real.join("partition").exists() {
            true => real.parent().unwrap_or(&real).to_path_buf(),
            false => real,
        };
        let slaves = std::fs::read_dir(whole.join("slaves")).into_iter().flatten().flatten();
        if depth < DEPTH_MAX {
            open.extend(slaves.map(|slave| (slave.path(), depth + 1)));
        }
        wholes.extend(device_in(&whole).map(kernel_number));
        let shown = std::fs::read_to_string(whole.join("loop/backing_file"));
        files.extend(shown.ok().map(|path| PathBuf::from(path.trim_end_matches('\n'))));
    }
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

    /// A folder of sysfs as the kernel shows a device.
    fn show(folder: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(folder.join("slaves")).unwrap();
        for (name, text) in files {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn a_partition_is_a_part_and_what_has_no_requests_is_refused() {
        let sys = tempfile::tempdir().unwrap();
        let whole =
            [("size", "9000\n"), ("dev", "8:0\n"), ("diskseq", "7\n"), ("mq/0/cpu_list", "0")];
        let sda = sys.path().join("sda");
        show(&sda, &whole);
        show(&sda.join("sda2"), &[("size", "100"), ("start", "2048"), ("partition", "2")]);
        let path = Path::new("/dev/x");
        let device = 8 << 20;
        let expected = Part { device, sequence: 7, start: 0, end: 9000 };
        assert_eq!(described(path, &sda).unwrap(), expected);
        let expected = Part { start: 2048, end: 2148, ..expected };
        assert_eq!(described(path, &sda.join("sda2")).unwrap(), expected);
        let refused = |name: &str, files: &[(&str, &str)]| {
            show(&sys.path().join(name), files);
            described(path, &sys.path().join(name)).unwrap_err().to_string()
        };
        let mapped = refused("dm-0", &[("size", "9000"), ("dev", "253:0"), ("diskseq", "8")]);
        assert!(mapped.contains("/dev/x: this device has no requests"), "{mapped}");
        assert!(mapped.contains("lsblk -s") && mapped.contains("scan"), "{mapped}");
        let zoned = refused("sdb", &[&whole[..], &[("queue/zoned", "host-managed\n")]].concat());
        assert!(zoned.contains("/dev/x: a zoned device") && zoned.contains("scan"), "{zoned}");
        let old = refused("sdc", &[whole[0], whole[1], whole[3]]);
        assert!(old.contains("diskseq"), "{old}");
    }

    #[test]
    fn a_mapped_device_lies_on_all_that_is_below_it() {
        let sys = tempfile::tempdir().unwrap();
        let at = |name: &str| sys.path().join(name);
        let dev = |text| [("dev", text), ("partition", "1")];
        show(&at("sda"), &dev("8:0")[..1]);
        show(&at("sda/sda1"), &dev("8:1"));
        show(&at("loop3"), &[("dev", "7:3"), ("loop/backing_file", "/srv/a b.img\n")]);
        show(&at("md0"), &dev("9:0")[..1]);
        show(&at("md0/md0p1"), &dev("259:0"));
        show(&at("dm-0"), &dev("253:0")[..1]);
        // dm-0 lies on a partition of md0, which lies on sda1 and loop3.
        for (upper, lower) in [("dm-0", "md0/md0p1"), ("md0", "sda/sda1"), ("md0", "loop3")] {
            let link = at(upper).join("slaves").join(lower.replace('/', "-"));
            std::os::unix::fs::symlink(at(lower), link).unwrap();
        }
        let (mut wholes, mut files) = (BTreeSet::new(), Vec::new());
        stacked(at("dm-0"), &mut wholes, &mut files);
        let expected = [253 << 20, 9 << 20, 8 << 20, 7 << 20 | 3];
        assert_eq!(wholes, expected.into());
        assert_eq!(files, [PathBuf::from("/srv/a b.img")]);
    }
}
