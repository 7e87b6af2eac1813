//! What is mounted where our disks shall be.
//!
//! Owns: the mount of an agent that was killed (taken away), anything else there (refused). Does
//! not own: our own mount.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::SOURCE;

/// Mounts of dead agents that are taken away from one directory.
const STALE_MAX: usize = 16;

/// Makes `directory` a place where disks can be presented; gives its canonical path.
pub(super) fn clear(directory: &Path) -> io::Result<PathBuf> {
    let path = canonical(directory)?;
    for _ in 0..STALE_MAX {
        let Some(source) = mounted(&path)? else { break };
        // Attributes would be answered from what the kernel remembers.
        let dead = rustix::fs::statvfs(&path).is_err_and(|error| error == Errno::NOTCONN);
        if source != SOURCE || !dead {
            let what = if source == SOURCE { "a running agent's disks" } else { &source };
            return Err(refused(&path, &format!("{what} are mounted there: name another `mount`")));
        }
        tracing::warn!(path = %path.display(), "the files of an agent that was killed are taken \
            away; loop devices on them must be set up again");
        detach(&path)?;
    }
    std::fs::create_dir_all(&path).map_err(|error| refused(&path, &error.to_string()))?;
    let mut entries = std::fs::read_dir(&path)?;
    if entries.next().is_some() {
        let why =
            "it is not empty, and what is in it would be hidden: empty it, or name another `mount`";
        return Err(refused(&path, why));
    }
    Ok(path)
}

/// Takes our mount away from `path`, if it is still there, from under whoever uses it.
pub(super) fn detach_ours(path: &Path) -> io::Result<()> {
    match mounted(path)? {
        Some(source) if source == SOURCE => detach(path),
        _ => Ok(()),
    }
}

/// The path without links, although what is mounted there may not answer.
fn canonical(directory: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(directory)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(refused(&absolute, "it is no directory of its own: name another `mount`"));
    };
    std::fs::create_dir_all(parent).map_err(|error| refused(parent, &error.to_string()))?;
    Ok(parent.canonicalize()?.join(name))
}

/// The source of what is mounted last at `path` (proc(5): mountinfo).
fn mounted(path: &Path) -> io::Result<Option<String>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let table = String::from_utf8_lossy(&table);
    let wanted = escaped(path);
    let source = |line: &str| {
        let (mount, system) = line.split_once(" - ")?;
        let at = mount.split(' ').nth(4)?;
        (at == wanted).then(|| system.split(' ').nth(1).unwrap_or_default().to_owned())
    };
    Ok(table.lines().filter_map(source).next_back())
}

/// As the mount table writes a path: four characters are octal.
fn escaped(path: &Path) -> String {
    let mut text = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => text.extend(format!("\\{byte:03o}").bytes()),
            other => text.push(*other),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn detach(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        // Another user than root asks fusermount3, whose mount it was.
        Err(Errno::PERM) => {
            let mut command = Command::new("fusermount3");
            command.args(["-u", "-z", "--"]).arg(path).stdin(Stdio::null()).stdout(Stdio::null());
            match command.stderr(Stdio::null()).status() {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(refused(path, &format!("fusermount3 -u ended with {status}"))),
                Err(error) => Err(refused(path, &format!("fusermount3: {error}"))),
            }
        }
        Err(error) => Err(refused(path, &format!("unmounting it: {error}"))),
    }
}

fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::other(format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_with_odd_names() {
        assert_eq!(escaped(Path::new("/a b\\c")), "/a\\040b\\134c");
        assert!(mounted(Path::new("/proc")).unwrap().is_some());
        assert_eq!(mounted(Path::new("/no/such/mount")).unwrap(), None);
    }

    #[test]
    fn a_mount_point_or_a_directory_with_something_in_it_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let made = directory.path().join("deep/disks");
        assert_eq!(clear(&made).unwrap(), made.canonicalize().unwrap());
        std::fs::write(made.join("root.img"), b"").unwrap();
        let why = clear(&made).unwrap_err().to_string();
        assert!(why.contains("not empty"), "{why}");
        let why = clear(Path::new("/proc")).unwrap_err().to_string();
        assert!(why.contains("mounted there"), "{why}");
        assert!(clear(Path::new("/")).is_err());
    }
}
