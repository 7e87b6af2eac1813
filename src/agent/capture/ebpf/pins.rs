//! What outlives the agent: the pinned program and its bits, and the note that says whose they are.
//!
//! Owns: which bits of an earlier life may be believed. Does not own: loading and pinning themselves
//! ([`super::kernel`]).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::agent::error::AgentError;
use crate::agent::opening;
use crate::settings::AgentSettings;

use super::device::Part;

/// Where BPF objects are pinned.
const ROOT: &str = "/sys/fs/bpf";
/// `statfs` of it (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Written beside the bitmaps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// `/proc/sys/kernel/random/boot_id`: pins and what they know end with the boot.
    pub(super) boot: String,
    /// Folder below the machine's.
    pub(super) folder: u64,
    pub(super) chunk_bytes: u32,
    /// Of all disks by name: whatever else they are, their bits mean other places.
    pub(super) disks: Vec<(String, Part)>,
}

/// Whether bits are all there are: the kernel has left the program out `missed` times, and its life had the
/// disks read again for `handled` of them.
///
/// # Errors
/// In words, that something was written and no bit says where.
pub(super) fn whole(missed: u64, handled: u64) -> Result<(), String> {
    if missed == handled {
        return Ok(());
    }
    Err(format!(
        "the kernel left the program out ({missed} times in all, {handled} known to the last life): what was \
         written then is not known"
    ))
}

/// The folders of one machine.
#[derive(Debug)]
pub(super) struct Pins {
    folder: PathBuf,
    note: PathBuf,
}

impl Pins {
    pub(super) fn new(machine: &str, state_directory: &Path) -> Self {
        Self {
            folder: Path::new(ROOT).join("holdfast").join(machine),
            note: state_directory.join("ebpf.json"),
        }
    }

    /// This boot.
    pub(super) fn boot() -> String {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_owned()
    }

    /// What the last life noted, and where it pinned.
    ///
    /// # Errors
    /// In words, why nothing of it can be believed.
    pub(super) fn earlier(&self, now: &Note) -> Result<PathBuf, String> {
        let text = fs::read_to_string(&self.note)
            .map_err(|_| "no earlier eBPF capture of this machine is noted".to_owned())?;
        let note: Note = serde_json::from_str(&text)
            .map_err(|error| format!("{}: {error}", self.note.display()))?;
        if note.boot != now.boot {
            return Err(
                "the machine was booted since: what was written before this agent ran is not known"
                    .to_owned(),
            );
        }
        if note.disks != now.disks || note.chunk_bytes != now.chunk_bytes {
            return Err("the disks or the chunk size are others than in the last life".to_owned());
        }
        let folder = self.at(note.folder);
        match folder.join("issue").exists() {
            true => Ok(folder),
            false => {
                Err("the pinned program is gone: what was written meanwhile is not known"
                    .to_owned())
            }
        }
    }

    pub(super) fn at(&self, folder: u64) -> PathBuf {
        self.folder.join(folder.to_string())
    }

    /// Whether an earlier program of this machine is in the kernel, with its ring.
    pub(super) fn hold_a_ring(&self) -> bool {
        fs::read_dir(&self.folder).is_ok_and(|mut folders| folders.next().is_some())
    }

    /// Makes a folder for this life.
    pub(super) fn make(&self) -> Result<(u64, PathBuf), String> {
        mounted()?;
        let free = (0..).find(|number| !self.at(*number).exists()).unwrap_or_default();
        let path = self.at(free);
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok((free, path))
    }

    /// From here on the next life believes this one's pins; those of others go.
    pub(super) fn keep(&self, note: &Note) -> Result<(), String> {
        let named = |error: std::io::Error| format!("{}: {error}", self.note.display());
        let directory = self.note.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory).map_err(named)?;
        let text = serde_json::to_string(note).map_err(|error| error.to_string())?;
        file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_data()).map_err(named)?;
        file.persist(&self.note).map_err(|error| named(error.error))?;
        self.release(Some(note.folder));
        Ok(())
    }

    /// Nothing of an earlier life is believed any more.
    pub(super) fn forget(&self) {
        let _gone = fs::remove_file(&self.note);
        self.release(None);
    }

    /// Detaches what is pinned, but for one folder. Returns how many folders went.
    fn release(&self, but: Option<u64>) -> usize {
        let kept = but.map(|number| self.at(number));
        let folders = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let others = folders.map(|entry| entry.path()).filter(|path| Some(path) != kept.as_ref());
        let gone = others.filter(|path| fs::remove_dir_all(path).is_ok()).count();
        if but.is_none() {
            let _empty = fs::remove_dir(&self.folder);
        }
        gone
    }
}

/// Takes what a stopped agent left in the kernel out of it; `true` when there was something.
///
/// # Errors
/// While the agent runs, and when this user may not take it out.
pub fn release(settings: &AgentSettings) -> Result<bool, AgentError> {
    let _alone = opening::lock_left(&settings.state_directory)?;
    let pins = Pins::new(settings.machine.as_str(), &settings.state_directory);
    let _gone = fs::remove_file(&pins.note);
    let released = pins.release(None) > 0;
    match fs::read_dir(&pins.folder).map(|mut left| left.next()) {
        Ok(Some(_)) => {
            let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            let action = "take the program out of the kernel: run this as the user that the agent ran as, or root";
            Err(AgentError::io(&pins.folder, action, source))
        }
        _ => Ok(released),
    }
}

/// A BPF file system is where it should be.
fn mounted() -> Result<(), String> {
    let found = rustix::fs::statfs(ROOT).map_err(|error| format!("{ROOT}: {error}"))?;
    if found.f_type as u64 == BPF_FS_MAGIC {
        return Ok(());
    }
    let mut command = std::process::Command::new("mount");
    let done = command.args(["-t", "bpf", "bpf", ROOT]).output();
    match done {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(format!(
            "{ROOT} is no BPF file system: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        )),
        Err(error) => {
            Err(format!("{ROOT} is no BPF file system, and mount could not be run: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_whole_when_each_run_that_is_missing_was_known() {
        assert!(whole(0, 0).is_ok() && whole(7, 7).is_ok());
        assert!(whole(8, 7).unwrap_err().contains("8 times in all, 7 known"));
        assert!(whole(7, 8).is_err(), "not the count of this program");
    }

    #[test]
    fn only_the_same_boot_and_the_same_disks_are_believed() {
        let state = tempfile::tempdir().unwrap();
        let mut pins = Pins::new("m", state.path());
        pins.folder = state.path().join("bpf");
        let part = Part { device: 1, sequence: 5, start: 0, end: 8 };
        let note = Note {
            boot: "one".to_owned(),
            folder: 3,
            chunk_bytes: 65536,
            disks: vec![("root".to_owned(), part.clone())],
        };
        assert!(pins.earlier(&note).unwrap_err().contains("no earlier"));
        pins.keep(&note).unwrap();
        assert!(pins.earlier(&note).unwrap_err().contains("gone"));
        for folder in ["3", "4"] {
            fs::create_dir_all(pins.folder.join(folder)).unwrap();
            fs::write(pins.folder.join(folder).join("issue"), "").unwrap();
        }
        assert_eq!(pins.earlier(&note).unwrap(), pins.at(3));
        let booted = Note { boot: "two".to_owned(), ..note.clone() };
        assert!(pins.earlier(&booted).unwrap_err().contains("booted"));
        let moved = vec![("root".to_owned(), Part { start: 4, ..part })];
        assert!(
            pins.earlier(&Note { disks: moved, ..note.clone() }).unwrap_err().contains("others")
        );
        let another = vec![("root".to_owned(), Part { sequence: 6, ..note.disks[0].1.clone() })];
        let replaced = Note { disks: another, ..note.clone() };
        assert!(pins.earlier(&replaced).is_err(), "another device under the same number");
        assert!(pins.earlier(&Note { chunk_bytes: 4096, ..note.clone() }).is_err());
        pins.keep(&note).unwrap();
        assert!(pins.at(3).exists() && !pins.at(4).exists(), "pins of others are removed");
        assert!(pins.hold_a_ring());
        pins.forget();
        assert!(!pins.hold_a_ring());
        assert!(!pins.folder.exists() && pins.earlier(&note).is_err());
    }
}
