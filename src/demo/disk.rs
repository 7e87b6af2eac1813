//! The demo's disk: an ext4 image made of files of this machine, with one file in it that the live
//! writes rewrite in place, so that the file system stays whole whatever the moment.

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use super::error::DemoError;

/// Size of the image.
const DISK_BYTES: u64 = 256 << 20;
/// Size of the file that is rewritten.
const LIVE_BYTES: u64 = 24 << 20;
/// Most bytes of this machine's files that go into the image.
const FILES_BYTES: u64 = 120 << 20;
/// Where the files come from, in this order, until there are enough.
const FOLDERS: [&str; 4] = ["/usr/share/doc", "/usr/lib/python3", "/usr/share/perl", "/etc"];
const LIVE_NAME: &str = "live.dat";

/// Makes the image; returns the places of the file that may be rewritten.
pub(super) fn make(path: &Path, staging: &Path) -> Result<Vec<Range<u64>>, DemoError> {
    gather(staging)?;
    let image = File::create(path).map_err(DemoError::file(path, "making the disk"))?;
    image.set_len(DISK_BYTES).map_err(DemoError::file(path, "making the disk"))?;
    let (from, to) = (staging.as_os_str(), path.as_os_str());
    let quiet = ["-q", "-F", "-b", "4096", "-m", "0", "-d"].map(std::ffi::OsStr::new);
    tool("mkfs.ext4", quiet.into_iter().chain([from, to]))?;
    fs::remove_dir_all(staging).map_err(DemoError::file(staging, "removing it"))?;
    let request = format!("blocks /{LIVE_NAME}");
    let request = ["-R".as_ref(), request.as_ref(), to];
    let blocks = tool("debugfs", request)?;
    Ok(join(blocks.split_whitespace().filter_map(|block| block.parse().ok())))
}

/// Copies an own disk of the user: the demo never writes to it.
pub(super) fn copy(from: &Path, to: &Path) -> Result<Vec<Range<u64>>, DemoError> {
    let args = ["--sparse=always".as_ref(), from.as_os_str(), to.as_os_str()];
    tool("cp", args)?;
    let length = fs::metadata(to).map_err(DemoError::file(to, "reading its size"))?.len();
    // Its content means nothing to the demo: any part of the copy may be rewritten.
    Ok(std::iter::once(0..length.min(LIVE_BYTES) / 4096 * 4096).collect())
}

/// SHA-256 of a whole file, hexadecimal.
pub(super) fn digest(path: &Path) -> Result<String, DemoError> {
    let mut file = File::open(path).map_err(DemoError::file(path, "opening it"))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(hash.finalize())),
            Ok(count) => hash.update(&buffer[..count]),
            Err(source) => return Err(DemoError::file(path, "reading it")(source)),
        }
    }
}

/// Whether the file system of an image is whole; `None` when it cannot be asked.
pub(super) fn check(path: &Path) -> Option<bool> {
    // A crash-consistent image has a journal to replay: allowed, on the recovered copy.
    let checked = program("e2fsck").args(["-f", "-y"]).arg(path).output().ok()?;
    Some(matches!(checked.status.code(), Some(0 | 1)))
}

/// Files of this machine into one folder, and the file that is rewritten.
fn gather(staging: &Path) -> Result<(), DemoError> {
    fs::create_dir_all(staging).map_err(DemoError::file(staging, "making it"))?;
    let mut left = FILES_BYTES;
    let mut folders: Vec<_> = FOLDERS.iter().rev().map(std::path::PathBuf::from).collect();
    let mut count = 0_u32;
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        entries.sort();
        for path in entries.into_iter().rev() {
            let Ok(facts) = path.symlink_metadata() else { continue };
            if facts.is_dir() {
                folders.push(path);
            } else if facts.is_file() && facts.len() <= left && facts.len() > 0 {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let target = staging.join(format!("{count:06}-{name}"));
                if fs::copy(&path, &target).is_ok() {
                    left -= facts.len();
                    count += 1;
                }
            }
        }
        if left < FILES_BYTES / 20 {
            break;
        }
    }
    let live = staging.join(LIVE_NAME);
    let content = vec![0x5a; usize::try_from(LIVE_BYTES).unwrap_or(0)];
    fs::write(&live, content).map_err(DemoError::file(&live, "writing it"))
}

/// A program, also of those that are often not on other users' path than the super user's.
fn program(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut command = Command::new(name);
    command.env("PATH", path);
    command
}

fn tool<'a>(
    name: &'static str,
    args: impl IntoIterator<Item = &'a std::ffi::OsStr>,
) -> Result<String, DemoError> {
    let failed = |what: String| DemoError::Tool { tool: name, what };
    let output = program(name).args(args).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs of consecutive 4 KiB blocks.
fn join(blocks: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for block in blocks {
        let (start, end) = (block * 4096, (block + 1) * 4096);
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}
