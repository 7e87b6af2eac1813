//! Real file systems of a chosen kind and size, in loop-mounted files. Takes root, and more than
//! the root of an ordinary container.

use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) struct Mounted {
    directory: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program}: {}", said.lines().next().unwrap_or_default()))
        }
    }
}

impl Mounted {
    /// A fresh file system, or `None`, loudly, where that cannot be; in CI that is a failure.
    pub(crate) fn new(kind: &str, mib: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mounted");
        std::fs::create_dir(&path).unwrap();
        let image = directory.path().join("image");
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let size = format!("size={}m", mib / 2);
        let make = |args: &[&str]| {
            std::fs::File::create(&image)
                .and_then(|file| file.set_len(mib << 20))
                .map_err(|error| error.to_string())?;
            run(&format!("mkfs.{kind}"), &[args, &[&text(&image)]].concat())?;
            run("mount", &["-o", "loop", &text(&image), &text(&path)])
        };
        let mounted = match kind {
            "tmpfs" => run("mount", &["-t", "tmpfs", "-o", &size, "none", &text(&path)]),
            "ext4" => make(&["-q", "-m", "0"]),
            _ => make(&["-q"]),
        };
        match mounted {
            Ok(()) => Some(Self { directory, path }),
            Err(why) => {
                // The same words for every test, so that they are listed once.
                let why = why.replace(&text(&path), "a directory");
                assert!(std::env::var_os("CI").is_none(), "cannot mount {kind}: {why}");
                // Past the harness, which keeps what a passing test prints and may have begun a line.
                let line = format_args!("\nskipped: tests on {kind}: {why}\n");
                std::io::Write::write_fmt(&mut std::io::stderr(), line).ok();
                None
            }
        }
    }

    /// Leaves about `bytes` free.
    pub(crate) fn fill(&self, bytes: u64) {
        let stat = rustix::fs::statvfs(&self.path).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let file = std::fs::File::create(self.path.join("FILLER")).unwrap();
        let take = free.saturating_sub(bytes);
        if take > 0 {
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&file, flags, 0, take).unwrap();
        }
    }

    pub(crate) fn free(&self) {
        std::fs::remove_file(self.path.join("FILLER")).unwrap();
    }

    pub(crate) fn temporaries(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut todo = vec![self.path.join(".staging")];
        while let Some(directory) = todo.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => todo.push(path),
                    false if path.ends_with("owner") => {}
                    false => found.push(path),
                }
            }
        }
        found
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let path = self.path.to_str().unwrap();
        if let Err(why) = run("umount", &[path]) {
            eprintln!("{path} stays mounted in {:?}: {why}", self.directory.path());
        }
    }
}
