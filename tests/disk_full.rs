//! A full disk, in the store and in the cache directory: back-pressure, a clear status, and once
//! there is room again everything goes on with nothing lost.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use support::mounts::Mounted;
use support::workload::{Target, Workload};
use support::{AgentSite, Process, Site, eventually, have, text};

const DISK_BYTES: u64 = 48 << 20;

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

/// A small file system, where one can be mounted.
fn small_disk(mib: u64) -> Option<Mounted> {
    if !have(&["curl"]) {
        return None;
    }
    Mounted::new("ext4", mib)
}

#[test]
fn a_full_store_holds_everything_back_and_loses_nothing() {
    let Some(disk) = small_disk(700) else {
        return;
    };
    let site = Site::with_store(Some(disk.path.join("store")));
    disk.fill(40 << 20);
    let running = start(site);
    running.status_says("no space left", 180);
    running.workload_goes_on(500);
    disk.free();
    running.recovers();
}

#[test]
fn a_full_cache_directory_withholds_credit_and_loses_nothing() {
    let Some(disk) = small_disk(200) else {
        return;
    };
    let site = Site::new();
    site.set("cache.directory", text(&disk.path.join("cache")));
    disk.fill(10 << 20); // two segments of 4 MiB fit, the next does not
    let running = start(site);
    running.status_says("cache full", 180);
    running.workload_goes_on(500);
    disk.free();
    running.recovers();
}
