//! A full disk, in the store and in the cache directory: back-pressure, a clear status, and once
//! there is room again everything goes on with nothing lost. And a disk of the cache that fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use support::mounts::Mounted;
use support::workload::{Target, Workload};
use support::{AgentSite, Process, Site, eventually, have, run, text};

const DISK_BYTES: u64 = 48 << 20;
const SMALL_BYTES: u64 = 1 << 20;

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

/// As `holdfast bookmark` asks for it, which reads from the store whom to ask.
fn durable_bookmark(site: &Site, name: &str) -> serde_json::Value {
    let url = format!("https://127.0.0.1:{}/v1/machines/web-1/bookmarks", site.port);
    let body = serde_json::json!({ "name": name }).to_string();
    let [ca, certificate, key] =
        ["ca.crt", "operator.crt", "operator.key"].map(|file| site.root().join(file));
    let args = ["-sS", "--fail-with-body", "--json", &body, "--cacert", text(&ca), "--cert"];
    let answer =
        run("curl", &[&args[..], &[text(&certificate), "--key", text(&key), &url]].concat());
    serde_json::from_slice(&answer.stdout).unwrap()
}

/// With the store away acknowledged writes lie in the cache alone. Then its disk fails, and the agent goes
/// for good: what the disk has on it is all there is.
#[test]
fn a_cache_disk_that_fails_ends_the_server_and_the_next_start_finds_what_was_acknowledged() {
    if !have(&["xfs_io"]) {
        return;
    }
    let Some(disk) = small_disk(200) else {
        return;
    };
    let site = Site::new();
    site.set("cache.directory", text(&disk.path.join("cache")));
    let agent_site = site.enroll("web-1", &[("root", SMALL_BYTES)]);
    agent_site.set("mode", "sync");
    let mut server = site.serve();
    let agent = agent_site.start(&["root"]);
    let socket = agent_site.socket("root");
    let target = Target { name: "root", socket, sectors: SMALL_BYTES / 512 };
    let workload = Workload::start(1, vec![target]);
    eventually("a point", 120, || {
        let args = ["bookmark", "web-1", "--name", "first", "--wait", "recoverable"];
        site.try_holdfast(&args).status.success().then_some(())
    });

    let offline = site.store.join(".offline");
    std::fs::write(&offline, "").unwrap();
    let away = workload.acknowledged();
    eventually("writes go on", 120, || (workload.acknowledged() > away + 100).then_some(()));
    let from = workload.acknowledged();
    let placed = durable_bookmark(&site, "last");
    let to = workload.issued();
    // From now on it answers nothing; what was not synced may be lost.
    run("xfs_io", &["-x", "-c", "shutdown", text(&disk.path)]);
    let ended = eventually("the server ends", 120, || server.ended());
    let said = server.log();
    assert!(!ended.success() && said.contains("error: cache log"), "{ended}: {said}");
    drop(server);
    agent.kill();
    let history = workload.finish();

    run("umount", &[text(&disk.path)]);
    let image = disk.path.with_file_name("image");
    run("mount", &["-o", "loop", text(&image), text(&disk.path)]);
    std::fs::remove_file(&offline).unwrap();
    let _server = site.serve();
    eventually("the last bookmark's point", 120, || {
        let points = site.points("web-1");
        points.iter().any(|point| point["bookmark"] == placed["bookmark"]).then_some(())
    });
    let image = site.export("web-1", "root", "name:last");
    history.check(&[image.as_path()], from..=to).unwrap();
}
