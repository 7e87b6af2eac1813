//! A full disk, in the store and in the cache directory: back-pressure, a clear status, and once
//! there is room again everything goes on with nothing lost.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::workload::{Target, Workload};
use support::{AgentSite, Process, Site, eventually, have, run, skipped, text};

const DISK_BYTES: u64 = 48 << 20;

/// A small file system, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path, mib: u64) -> Self {
        fs::create_dir_all(folder).unwrap();
        let image = folder.with_extension("ext4");
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", text(&image)]);
        run("mount", &["-o", "loop", text(&image), text(folder)]);
        Self(folder.to_owned())
    }

    /// Fills what is free but `leave` MiB; remove the file to make room again.
    fn ballast(&self, leave: u64) -> PathBuf {
        let facts = rustix::fs::statvfs(&self.0).unwrap();
        let free = (facts.f_bavail * facts.f_frsize) >> 20;
        let file = self.0.join("ballast");
        run("fallocate", &["-l", &format!("{}MiB", free.saturating_sub(leave)), text(&file)]);
        file
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["-l", text(&self.0)]).output();
    }
}

fn ready() -> bool {
    if !have(&["curl", "mkfs.ext4", "mount", "fallocate"]) {
        return false;
    }
    if !rustix::process::getuid().is_root() {
        skipped("mounting a small file system needs root");
        return false;
    }
    true
}

struct Running {
    site: Site,
    agent_site: AgentSite,
    _server: Process,
    _agent: Process,
    workload: Workload,
}

fn start(site: Site) -> Running {
    let agent_site = site.enroll("web-1", &[("root", DISK_BYTES)]);
    agent_site.set("buffer_bytes_max", 4 << 20);
    let server = site.serve();
    let agent = agent_site.start(&["root"]);
    let target =
        Target { name: "root", socket: agent_site.socket("root"), sectors: DISK_BYTES / 512 };
    let workload = Workload::start(1, vec![target]);
    Running { site, agent_site, _server: server, _agent: agent, workload }
}

impl Running {
    /// The text of `holdfast status`, when it says `words`.
    fn status_says(&self, words: &str, seconds: u64) {
        eventually(&format!("status says {words:?}"), seconds, || {
            let text = self.site.holdfast(&["status", "web-1"]);
            text.to_lowercase().contains(words).then_some(())
        });
    }

    /// The workload is never stalled: it goes on by at least `writes` more.
    fn workload_goes_on(&self, writes: u64) {
        let now = self.workload.acknowledged();
        eventually("the workload goes on", 60, || {
            (self.workload.acknowledged() >= now + writes).then_some(())
        });
    }

    /// A bookmark can be made, recovered to, and is a right cut.
    fn recovers(self) {
        let mut from = 0;
        eventually("a bookmark", 240, || {
            from = self.workload.acknowledged();
            let args = ["bookmark", "web-1", "--name", "after", "--wait", "recoverable"];
            self.site.try_holdfast(&args).status.success().then_some(())
        });
        let to = self.workload.issued();
        let history = self.workload.finish();
        let image = self.site.export("web-1", "root", "name:after");
        history.check(&[image.as_path()], from..=to).unwrap();
        drop(self.agent_site);
    }
}

#[test]
fn a_full_store_holds_everything_back_and_loses_nothing() {
    if !ready() {
        return;
    }
    let site = Site::new();
    let disk = SmallDisk::mount(&site.path("small"), 700);
    move_store(&site, &disk.0);
    let ballast = disk.ballast(40);
    let running = start(site);
    running.status_says("no space left", 180);
    running.workload_goes_on(500);
    fs::remove_file(ballast).unwrap();
    running.recovers();
}

#[test]
fn a_full_cache_directory_withholds_credit_and_loses_nothing() {
    if !ready() {
        return;
    }
    let site = Site::new();
    let disk = SmallDisk::mount(&site.path("small"), 200);
    site.set("cache.directory", text(&disk.0.join("cache")));
    let ballast = disk.ballast(10); // two segments of 4 MiB fit, the next does not
    let running = start(site);
    running.status_says("cache full", 180);
    running.workload_goes_on(500);
    fs::remove_file(ballast).unwrap();
    running.recovers();
}

/// Moves the site's store onto another file system.
fn move_store(site: &Site, folder: &Path) {
    let target = folder.join("store");
    run("cp", &["-a", text(&site.path("store")), text(&target)]);
    site.set("store", format!("dir:{}", target.display()));
}
