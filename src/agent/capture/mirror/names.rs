//! What the agent's things are called inside a QEMU, and where their sockets and files are.
//!
//! Owns: that two disks never share a name. Does not own: when anything is made.

use std::path::{Path, PathBuf};

use crate::model::{DiskName, MachineId};

/// The names of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// The mirror job.
    pub(super) job: String,
    /// The node that is the agent.
    pub(super) target: String,
    /// The node that the job puts above the source.
    pub(super) filter: String,
    /// The export through which the source is read.
    pub(super) reads: String,
    /// The export through which a dirty bitmap is read.
    pub(super) bits: String,
    /// A bitmap that records nothing: where it is, those beside it do not hold all that was missed.
    pub(super) unread: String,
    /// Before the number of a dirty bitmap.
    bitmap: String,
    /// Where the agent takes the guest's writes.
    pub(super) target_socket: PathBuf,
}

impl Names {
    /// QEMU takes names of nodes up to 31 bytes, ours may be longer: a sum stands for both.
    pub(super) fn of(machine: &MachineId, disk: &DiskName, directory: &Path) -> Self {
        let whole = format!("{machine}/{disk}");
        let short = format!("holdfast-{:08x}", crc32fast::hash(whole.as_bytes()));
        Self {
            target: format!("{short}-target"),
            filter: format!("{short}-filter"),
            reads: format!("{short}-reads"),
            bits: format!("{short}-bits"),
            unread: format!("holdfast-{machine}-{disk}.unread"),
            bitmap: format!("holdfast-{machine}-{disk}."),
            target_socket: directory.join(format!("{disk}.mirror.sock")),
            job: short,
        }
    }

    /// A dirty bitmap of this disk.
    pub(super) fn is_bitmap(&self, name: &str) -> bool {
        let number = name.strip_prefix(&self.bitmap);
        name == self.unread || number.is_some_and(|number| number.parse::<u32>().is_ok())
    }

    /// A name for the next one beside those there are.
    pub(super) fn next_bitmap(&self, present: &[String]) -> String {
        let numbered = |number: u32| format!("{}{number}", self.bitmap);
        let free = (0..).map(numbered).find(|name| !present.contains(name));
        free.expect("a list has fewer names than there are numbers")
    }
}

/// Where QEMU serves its disks to the agent; one for each QEMU of a machine.
pub(super) fn reads_socket(directory: &Path, monitor: &Path) -> PathBuf {
    let sum = crc32fast::hash(monitor.as_os_str().as_encoded_bytes());
    directory.join(format!("qemu-{sum:08x}.sock"))
}

/// What the disk's size was when QEMU was asked last.
pub(super) fn size_file(directory: &Path, disk: &DiskName) -> PathBuf {
    directory.join(format!("{disk}.size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_qemu_and_bitmaps_are_told_from_others() {
        let machine = "a-machine-with-a-name-longer-than-nodes-may".parse().unwrap();
        let names = |disk: &str| Names::of(&machine, &disk.parse().unwrap(), Path::new("/s"));
        let (root, data) = (names("root"), names("data"));
        assert_ne!(root.job, data.job);
        assert!(root.target.len().max(root.filter.len()) <= 31, "{}", root.target);
        let first = root.next_bitmap(&[]);
        let second = root.next_bitmap(&[first.clone(), data.next_bitmap(&[])]);
        assert_ne!(first, second);
        assert!(root.is_bitmap(&first) && root.is_bitmap(&second) && !data.is_bitmap(&first));
        assert!(root.is_bitmap(&root.unread) && !data.is_bitmap(&root.unread));
        assert!(!root.is_bitmap("bitmap0") && !root.is_bitmap(&format!("{first}x")));
    }
}
