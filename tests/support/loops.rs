//! Loop devices for tests. Takes root.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits() as i32;
const ALIGN: usize = 4096;

/// A loop device that goes with its value.
pub struct Loop {
    pub path: PathBuf,
    pub file: PathBuf,
}

impl Loop {
    /// On a file of some size; `None`, loudly, where that cannot be. In CI that is a failure.
    pub fn new(file: &Path, bytes: u64) -> Option<Self> {
        File::create(file).unwrap().set_len(bytes).unwrap();
        Self::over(file, &[])
    }

    /// On a file that is there, with options of losetup.
    pub fn over(file: &Path, options: &[&str]) -> Option<Self> {
        let mut command = Command::new("losetup");
        let made = command.args(["--find", "--show"]).args(options).arg(file).output();
        match made {
            Ok(made) if made.status.success() => {
                let path = String::from_utf8(made.stdout).unwrap().trim().into();
                Some(Self { path, file: file.to_owned() })
            }
            other => {
                assert!(std::env::var_os("CI").is_none(), "no loop device: {other:?}");
                super::skipped("no loop device can be set up (root and /dev/loop-control)");
                None
            }
        }
    }

    /// For writes that go to the device at once.
    pub fn direct(&self) -> Direct {
        let mut options = OpenOptions::new();
        Direct(options.write(true).custom_flags(DIRECT).open(&self.path).unwrap())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).output();
    }
}

pub struct Direct(File);

impl Direct {
    pub fn write(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut room = vec![0; bytes.len() + ALIGN];
        let start = room.as_ptr().align_offset(ALIGN);
        room[start..start + bytes.len()].copy_from_slice(bytes);
        self.0.write_all_at(&room[start..start + bytes.len()], offset)
    }
}
