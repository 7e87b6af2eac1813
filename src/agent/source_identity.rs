//! What tells a source disk from another one of its size, and whether it was written since it was last
//! looked at.
//!
//! Owns: which of what a system says of a file or device stays the same over a boot. Does not own: what
//! follows when it is another ([`super::bitmap`], [`super::opening`]).

use std::fs::{File, Metadata, read_to_string};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rustix::fs::{fstatfs, fstatvfs, major, minor};

/// Longest [`SourceIdentity::lasting`].
pub(super) const LASTING_BYTES_MAX: usize = 192;

/// `statfs` of file systems that number their files anew at each mount (include/uapi/linux/magic.h):
/// FAT, exFAT.
const NUMBERED_ANEW: [u64; 2] = [0x4d44, 0x2011_bab0];

/// What sysfs says of a whole device that it says again after a boot; the first that is there.
const NAMES: [&str; 7] =
    ["dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial", "device/cid"];

/// What tells a disk from another one. The default: nothing does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SourceIdentity {
    /// In words, the same at every boot; empty when nothing is.
    pub(super) lasting: String,
    /// The boot in which it was seen; zero when that is not known.
    pub(super) boot: [u8; 16],
    /// Which of all devices that ever were in that boot; zero for a file, or when it is not known.
    pub(super) device_sequence: u64,
}

/// When a file was changed last, as its file system tells: by whatever write, and by a few other things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

impl SourceIdentity {
    /// Of an open file or block device.
    pub(super) fn of(file: &File) -> Self {
        let Ok(found) = file.metadata() else { return Self::default() };
        if found.file_type().is_block_device() {
            let (major, minor) = (major(found.rdev()), minor(found.rdev()));
            return Self::of_device(Path::new(&format!("/sys/dev/block/{major}:{minor}")));
        }
        Self { lasting: file_words(file, &found), ..Self::default() }
    }

    /// Of a device that a folder of sysfs describes.
    fn of_device(folder: &Path) -> Self {
        let Ok(real) = std::fs::canonicalize(folder) else { return Self::default() };
        let part = real.join("partition").exists();
        let whole = if part { real.parent().unwrap_or(&real) } else { &real };
        let words = device_words(whole).map(|words| match read(&real.join("start")) {
            Some(start) if part => format!("{words}, from sector {start}"),
            _ => words,
        });
        Self {
            lasting: words.map(bounded).unwrap_or_default(),
            boot: boot().unwrap_or_default(),
            device_sequence: number(&whole.join("diskseq")).unwrap_or_default(),
        }
    }

    /// Whether anything tells it after a boot.
    pub(super) fn is_known(&self) -> bool {
        !self.lasting.is_empty()
    }

    /// Whether this is another disk than the one `before`. A name that is there and was not, or the other
    /// way round, is another: a copy of the disk is cheaper than a copy that is wrong.
    pub(super) fn differs(&self, before: &Self) -> bool {
        if self.is_known() || before.is_known() {
            return self.lasting != before.lasting;
        }
        let numbered = self.device_sequence != 0 && before.device_sequence != 0;
        numbered && self.boot == before.boot && self.device_sequence != before.device_sequence
    }
}

impl std::fmt::Display for SourceIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.is_known(), self.device_sequence) {
            (true, _) => f.write_str(&self.lasting),
            (false, 0) => f.write_str("nothing known"),
            (false, sequence) => write!(f, "device {sequence} of a boot"),
        }
    }
}

impl Changed {
    /// Of a file. Who wants it to be the same after a loss of power has synced the file before, its times
    /// with it.
    pub(super) fn of(found: &Metadata) -> Self {
        let nanoseconds = u32::try_from(found.ctime_nsec()).unwrap_or_default();
        Self { seconds: found.ctime(), nanoseconds }
    }
}

/// A file: its number, which is given again when the file is gone; so when it was made as well; and its
/// file system, as a snapshot of a whole one has both. Not `st_dev`, which a boot may change.
fn file_words(file: &File, found: &Metadata) -> String {
    let kind = fstatfs(file).map_or(0, |system| system.f_type as u64);
    let system = fstatvfs(file).map_or(0, |system| system.f_fsid);
    let mut words = Vec::new();
    if !NUMBERED_ANEW.contains(&kind) {
        words.push(format!("inode {}", found.ino()));
    }
    let made = found.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    if let Some(made) = made {
        words.push(format!("made at {}.{:09}", made.as_secs(), made.subsec_nanos()));
    }
    if !is_device_number(system) {
        words.push(format!("on file system {system:x}"));
    }
    words.join(", ")
}

/// An identifier of a file system is made from its UUID, or (XFS, FAT) is the number of its device, which
/// fits one half of it and may be another after a boot.
fn is_device_number(system: u64) -> bool {
    system >> 32 == 0 || system & 0xffff_ffff == 0
}

/// A whole device: the file behind a loop device; what its maker or its creator named it.
fn device_words(whole: &Path) -> Option<String> {
    if let Some(path) = read(&whole.join("loop/backing_file")) {
        let file = File::open(PathBuf::from(path)).ok()?;
        let words = file_words(&file, &file.metadata().ok()?);
        let offset = read(&whole.join("loop/offset")).unwrap_or_default();
        return (!words.is_empty()).then(|| format!("loop device of {words}, from byte {offset}"));
    }
    NAMES.iter().find_map(|name| {
        let text = read(&whole.join(name))?;
        let words: Vec<&str> = text.split_whitespace().collect();
        // A maker that has no numbers gives zeros.
        let says = text.contains(|one: char| !matches!(one, '0' | '-' | ':' | '.' | ' '));
        says.then(|| format!("{name} {}", words.join(" ")))
    })
}

/// As long as a header has room for; what is cut off counts all the same.
fn bounded(words: String) -> String {
    if words.len() <= LASTING_BYTES_MAX {
        return words;
    }
    let sum = crc32fast::hash(words.as_bytes());
    let kept: String = words.chars().take(LASTING_BYTES_MAX / 4 - 4).collect(); // 4 bytes a character at most
    format!("{kept}… {sum:08x}")
}

fn read(path: &Path) -> Option<String> {
    let text = read_to_string(path).ok()?;
    let text = text.trim_end_matches('\n');
    (!text.is_empty()).then(|| text.to_owned())
}

fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// This boot.
fn boot() -> Option<[u8; 16]> {
    let id = read(Path::new("/proc/sys/kernel/random/boot_id"))?.replace('-', "");
    hex::decode(id).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(sequence: u64) -> SourceIdentity {
        SourceIdentity { lasting: String::new(), boot: [1; 16], device_sequence: sequence }
    }

    #[test]
    fn a_file_in_the_place_of_another_is_another_and_a_file_that_is_written_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        let look = || SourceIdentity::of(&File::open(&path).unwrap());
        std::fs::write(&path, [1; 512]).unwrap();
        let first = look();
        assert!(first.is_known(), "{first}");
        std::fs::write(&path, [2; 512]).unwrap();
        assert!(!look().differs(&first), "{} and {first}", look());
        let moved = directory.path().join("moved.img");
        std::fs::rename(&path, &moved).unwrap();
        std::fs::write(&path, [2; 512]).unwrap();
        assert!(look().differs(&first), "{} and {first}", look());
        std::fs::rename(&moved, &path).unwrap();
        assert!(!look().differs(&first), "the same at another time");
    }

    #[test]
    fn a_name_that_lasts_decides_and_else_the_number_within_one_boot() {
        let named = |name: &str| SourceIdentity { lasting: name.to_owned(), ..device(1) };
        let again = SourceIdentity { boot: [2; 16], device_sequence: 9, ..named("wwid a") };
        assert!(!again.differs(&named("wwid a")), "attached again, in another boot");
        assert!(named("wwid b").differs(&named("wwid a")));
        assert!(named("wwid a").differs(&device(1)) && device(1).differs(&named("wwid a")));
        assert!(device(2).differs(&device(1)) && !device(1).differs(&device(1)));
        let rebooted = SourceIdentity { boot: [2; 16], ..device(2) };
        assert!(!rebooted.differs(&device(1)), "nobody knows");
        assert!(!device(2).differs(&SourceIdentity::default()), "nobody knows");
    }

    #[test]
    fn a_device_is_known_by_what_its_maker_says_and_a_partition_by_its_begin_too() {
        let sys = tempfile::tempdir().unwrap();
        let show = |folder: &str, files: &[(&str, &str)]| {
            for (name, text) in files {
                let path = sys.path().join(folder).join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            SourceIdentity::of_device(&sys.path().join(folder))
        };
        let whole = show("sda", &[("diskseq", "7\n"), ("device/wwid", "t10.ATA   X  9 \n")]);
        assert_eq!((whole.lasting.as_str(), whole.device_sequence), ("device/wwid t10.ATA X 9", 7));
        let part = show("sda/sda2", &[("partition", "2\n"), ("start", "2048\n")]);
        assert_eq!(part.lasting, "device/wwid t10.ATA X 9, from sector 2048");
        assert_eq!(part.device_sequence, 7);
        assert_eq!(show("dm-0", &[("dm/uuid", "LVM-a\n"), ("wwid", "b")]).lasting, "dm/uuid LVM-a");
        let zeros = show("nvme0n1", &[("wwid", "0000-0000\n"), ("serial", "\n"), ("diskseq", "3")]);
        assert!(!zeros.is_known() && zeros.device_sequence == 3, "{zeros:?}");
        let (long, longer) = ("é".repeat(300), "é".repeat(301));
        let long = show("vda", &[("serial", &long)]);
        assert!(long.lasting.len() <= LASTING_BYTES_MAX, "{}", long.lasting.len());
        assert!(long.differs(&show("vda", &[("serial", &longer)])));
    }

    #[test]
    fn a_loop_device_is_the_file_behind_it() {
        let sys = tempfile::tempdir().unwrap();
        let (file, folder) = (sys.path().join("a b.img"), sys.path().join("loop3"));
        std::fs::write(&file, [0; 512]).unwrap();
        std::fs::create_dir_all(folder.join("loop")).unwrap();
        let show = |path: &Path| {
            std::fs::write(folder.join("loop/backing_file"), format!("{}\n", path.display()))
                .unwrap();
            std::fs::write(folder.join("loop/offset"), "0\n").unwrap();
            SourceIdentity::of_device(&folder)
        };
        let behind = SourceIdentity::of(&File::open(&file).unwrap()).lasting;
        assert_eq!(show(&file).lasting, format!("loop device of {behind}, from byte 0"));
        assert!(!show(&sys.path().join("gone.img")).is_known());
    }

    #[test]
    fn a_device_number_is_no_name_of_a_file_system() {
        assert!(is_device_number(0) && is_device_number(0xfd01) && is_device_number(0xfd01 << 32));
        assert!(!is_device_number(0x7d84_26fc_698e_8628));
    }
}
