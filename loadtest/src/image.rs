//! Disks to replicate: an ext4 image made of this machine's files, or an image of the user.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::LoadError;
use crate::process::output;

/// Part of the image that is file content: the rest is the file system's own and room.
const CONTENT_PART: f64 = 0.84;
/// A larger file is left out: one alone would say little about real content.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// The image has an inode for each of these.
const INODE_BYTES: u64 = 8192;
/// Files of one folder of the image.
const FOLDER_FILES: u64 = 1000;

/// Makes an image of `size_bytes` at `image` from the files below `from`.
pub(crate) fn make(
    image: &Path,
    staging: &Path,
    from: &Path,
    size_bytes: u64,
) -> Result<(), LoadError> {
    gather(
        staging,
        from,
        (size_bytes as f64 * CONTENT_PART) as u64,
        size_bytes / INODE_BYTES / 10 * 9,
    )?;
    let file = File::create(image).map_err(LoadError::file(image, "creating it"))?;
    file.set_len(size_bytes).map_err(LoadError::file(image, "giving it its size"))?;
    let quiet = ["-q", "-F", "-b", "4096", "-i", "8192", "-m", "0", "-d"].map(std::ffi::OsStr::new);
    let args: Vec<_> = quiet.into_iter().chain([staging.as_os_str(), image.as_os_str()]).collect();
    output(Path::new("mkfs.ext4"), &args)?;
    fs::remove_dir_all(staging).map_err(LoadError::file(staging, "removing it"))
}

/// A copy of an image: the run writes to it.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), LoadError> {
    let args =
        ["--sparse=always".as_ref(), "--reflink=auto".as_ref(), from.as_os_str(), to.as_os_str()];
    output(Path::new("cp"), &args).map(drop)
}

/// Bytes of an image; not every length is a disk.
pub(crate) fn size_bytes(path: &Path) -> Result<u64, LoadError> {
    let size = fs::metadata(path).map_err(LoadError::file(path, "reading its size"))?.len();
    if size < 64 << 20 || !size.is_multiple_of(512) {
        return Err(LoadError::Image { path: path.to_owned(), size_bytes: size });
    }
    Ok(size)
}

/// SHA-256 of a whole file, hexadecimal.
pub(crate) fn digest(path: &Path) -> Result<String, LoadError> {
    let mut file = File::open(path).map_err(LoadError::file(path, "opening it"))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(LoadError::file(path, "reading it"))? {
            0 => return Ok(hex::encode(hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Bytes on the disk below a folder, as `du` counts.
pub(crate) fn used_bytes(folder: &Path) -> u64 {
    let args = ["-s".as_ref(), "-B1".as_ref(), folder.as_os_str()];
    let used = output(Path::new("du"), &args).unwrap_or_default();
    used.split_ascii_whitespace().next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// Copies files from below `from` until they fill `left` bytes.
fn gather(staging: &Path, from: &Path, mut left: u64, files_max: u64) -> Result<(), LoadError> {
    let mut folders: Vec<PathBuf> = vec![from.to_owned()];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        entries.sort(); // the same files every time
        for path in entries {
            let Ok(facts) = path.symlink_metadata() else { continue };
            if facts.is_dir() {
                folders.push(path);
                continue;
            }
            let blocks = facts.len().next_multiple_of(4096);
            let fits = (1..=left.min(FILE_BYTES_MAX)).contains(&blocks) && facts.is_file();
            if !fits || count >= files_max {
                continue;
            }
            let target = staging.join(format!("{:04}", count / FOLDER_FILES));
            fs::create_dir_all(&target).map_err(LoadError::file(&target, "making it"))?;
            if fs::copy(&path, target.join(format!("{count:06}"))).is_ok() {
                left -= blocks;
                count += 1;
            }
        }
    }
    if count == 0 {
        let what = "has no files that can be read; name another folder with --files".to_owned();
        return Err(LoadError::Tool { tool: from.display().to_string(), what });
    }
    Ok(())
}
