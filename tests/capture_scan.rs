//! `capture = "scan"` with real processes: a file that is written behind the agent's back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::mounts::Mounted;
use support::oracle::noise;
use support::{AgentSite, Process, Site, eventually, have, run, text};

const DISK_BYTES: u64 = 4 << 20;
const CHUNK: u64 = 64 << 10;

struct Scanned {
    site: Site,
    agent_site: AgentSite,
    _server: Process,
}

impl Scanned {
    /// A machine whose one disk is scanned every second, by these settings.
    fn new(scan: &[(&str, toml::Value)]) -> Self {
        let site = Site::new();
        fs::write(site.disk("web-1", "root"), noise(0, DISK_BYTES / 512)).unwrap();
        let agent_site = site.enroll("web-1", &[("root", DISK_BYTES)]);
        let mut settings: toml::Table =
            fs::read_to_string(agent_site.config()).unwrap().parse().unwrap();
        let disk = settings["disk"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
        disk.insert("capture".into(), "scan".into());
        let mut table = toml::Table::from_iter([("interval_s".to_owned(), toml::Value::from(1))]);
        table.extend(scan.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        disk.insert("scan".into(), table.into());
        fs::write(agent_site.config(), toml::to_string(&settings).unwrap()).unwrap();
        let server = site.serve();
        Self { site, agent_site, _server: server }
    }

    fn disk(&self) -> PathBuf {
        self.site.disk("web-1", "root")
    }

    /// Writes where the agent does not see it.
    fn write(&self, offset: u64, bytes: &[u8]) {
        write(&self.disk(), offset, bytes);
    }

    fn start(&self) -> Process {
        let _ = fs::remove_file(self.agent_site.directory.join("status.json"));
        let agent = self.agent_site.start(&[]);
        agent.ready("the agent runs", 60, || self.agent_site.status().map(drop));
        agent
    }

    fn status(&self, what: &str) -> serde_json::Value {
        eventually("a status", 20, || self.agent_site.status())[what].clone()
    }

    fn why(&self) -> String {
        self.status("disks")[0]["capture_why"].as_str().unwrap().to_owned()
    }

    fn try_bookmark(&self, name: &str) -> bool {
        let args = ["bookmark", "web-1", "--name", name, "--wait", "recoverable"];
        self.site.try_holdfast(&args).status.success()
    }

    /// A point, and what it holds.
    fn point(&self, name: &str) -> Vec<u8> {
        eventually("a point", 60, || self.try_bookmark(name).then_some(()));
        fs::read(self.site.export("web-1", "root", &format!("name:{name}"))).unwrap()
    }

    /// Points until one shows the file as it is now.
    fn shows_the_disk(&self, name: &str) {
        let disk = fs::read(self.disk()).unwrap();
        let mut number = 0;
        eventually("a point that shows the disk", 60, || {
            number += 1;
            (self.point(&format!("{name}{number}")) == disk).then_some(())
        });
    }
}

fn write(disk: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(disk).unwrap().write_all_at(bytes, offset).unwrap();
}

#[test]
fn what_changed_between_passes_is_sent_and_nothing_else() {
    if !have(&["curl"]) {
        return;
    }
    let scanned = Scanned::new(&[]);
    let agent = scanned.start();
    scanned.shows_the_disk("first");
    assert_eq!(scanned.status("caught_up_bytes"), DISK_BYTES, "each chunk was sent once");

    for offset in [0, 5 * CHUNK + 77, 17 * CHUNK - 1] {
        scanned.write(offset, b"ab");
    }
    scanned.shows_the_disk("second");
    // The last write lies on a border.
    assert_eq!(scanned.status("caught_up_bytes"), DISK_BYTES + 4 * CHUNK);
    assert!(scanned.why().contains("as of"), "{}", scanned.why());
    eventually("how old points are", 20, || {
        let disk = &scanned.status("disks")[0];
        (disk["rpo_s"].as_f64()? >= 0.0 && disk["rpo_s_max"].as_f64()? > 0.0).then_some(())
    });
    eventually("the server knows how it is captured", 20, || {
        let args = ["status", "web-1", "--json"];
        let status: serde_json::Value =
            serde_json::from_slice(&scanned.site.try_holdfast(&args).stdout).ok()?;
        let disk = &status["machines"][0]["live"]["disks"][0];
        (disk["mode"] == "bitmap" && disk["why"].as_str()?.contains("as of")).then_some(())
    });
    // Its hashes are in the file before it ends, so the next life sends what changed meanwhile.
    eventually("all is published", 60, || (scanned.status("unsettled_bytes") == 0).then_some(()));
    agent.stop();
    scanned.write(40 * CHUNK, &[0; 1000]);
    let agent = scanned.start();
    scanned.shows_the_disk("third");
    assert_eq!(scanned.status("caught_up_bytes"), CHUNK);
    agent.stop();
}

/// An ext4 on a loop device; taken down when dropped.
struct OnLoop {
    device: String,
    folder: PathBuf,
}

impl OnLoop {
    fn new(file: &Path, folder: PathBuf) -> Self {
        let output = run("losetup", &["--find", "--show", text(file)]);
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        fs::create_dir(&folder).unwrap();
        Self { device, folder }
    }

    fn mount(&self) {
        run("mount", &[&self.device, text(&self.folder)]);
    }
}

impl Drop for OnLoop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.folder).output();
        let _ = Command::new("losetup").args(["-d", &self.device]).output();
    }
}

#[test]
fn a_mounted_block_device_is_read_as_the_disk_holds_it() {
    if !have(&["losetup", "mkfs.ext4", "e2fsck", "curl"]) || Mounted::new("ext4", 16).is_none() {
        return;
    }
    let scanned = Scanned::new(&[]);
    let source = OnLoop::new(&scanned.disk(), scanned.site.path("source"));
    run("mkfs.ext4", &["-q", &source.device]);
    let config = fs::read_to_string(scanned.agent_site.config()).unwrap();
    let config = config.replace(text(&scanned.disk()), &source.device);
    fs::write(scanned.agent_site.config(), config).unwrap();
    source.mount();
    let agent = scanned.start();
    for round in 0..3_u8 {
        // Blocks that the agent has read before are written through the file system's own pages.
        fs::write(source.folder.join("file"), vec![round + 1; 300_000]).unwrap();
        run("sync", &["-f", text(&source.folder)]);
        scanned.shows_the_disk(&format!("round{round}"));
    }
    drop(source);
    scanned.shows_the_disk("unmounted");
    let image = scanned.site.export("web-1", "root", "latest");
    run("e2fsck", &["-fn", text(&image)]);
    agent.stop();
}

#[test]
fn a_disk_that_is_never_quiet_has_no_point_and_status_says_why() {
    if !have(&["curl"]) {
        return;
    }
    let scanned = Scanned::new(&[]);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, disk) = (Arc::clone(&stop), scanned.disk());
        std::thread::spawn(move || {
            let mut number = 0_u64;
            while !stop.load(Ordering::Acquire) {
                number += 1;
                write(&disk, 9 * CHUNK, &number.to_le_bytes());
                support::pause(2);
            }
        })
    };
    let agent = scanned.start();
    for _ in 0..3 {
        let seen = scanned.why();
        eventually("another pass", 60, || {
            let why = scanned.why();
            (why != seen && why.contains("needs a pass that finds none")).then_some(())
        });
        assert!(!scanned.try_bookmark("busy"), "{}", scanned.why());
        assert!(scanned.why().contains("no point is possible yet"), "{}", scanned.why());
    }
    stop.store(true, Ordering::Release);
    writer.join().unwrap();
    scanned.shows_the_disk("quiet");
    agent.stop();
}

#[test]
fn with_a_snapshot_every_pass_is_a_point_although_writes_go_on() {
    if !have(&["curl"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let command = |script: &str| {
        let line = ["/bin/sh", "-c", script].map(toml::Value::from);
        toml::Value::from(line.to_vec())
    };
    // The disk's path is known when the site is there: a link stands for it.
    let (link, snapshot) = (path("disk"), path("snapshot"));
    let make = format!(
        "cd {}; test ! -e snapshot && cp disk making && mv making snapshot && cp snapshot kept$(date +%s%N)",
        text(directory.path())
    );
    let drop = format!("rm {}", text(&snapshot));
    let scanned = Scanned::new(&[
        ("snapshot", command(&make)),
        ("release", command(&drop)),
        ("path", text(&snapshot).into()),
    ]);
    std::os::unix::fs::symlink(scanned.disk(), &link).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, disk) = (Arc::clone(&stop), scanned.disk());
        std::thread::spawn(move || {
            for number in 1_u64.. {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                write(&disk, number % 50 * CHUNK + number % 997, &number.to_le_bytes());
                support::pause(2);
            }
        })
    };
    // Left by a life that was killed: the first pass drops it.
    fs::write(&snapshot, b"old").unwrap();
    let mut agent = scanned.start();
    let mut shown = Vec::new();
    for round in 0..4 {
        let image = scanned.point(&format!("point{round}"));
        let kept = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut kept = kept.filter(|path| text(path).contains("/kept"));
        let found = kept.find(|path| fs::read(path).unwrap() == image);
        shown.push(found.unwrap_or_else(|| panic!("point {round} is no snapshot")));
        if round == 1 {
            agent.kill(); // in a pass as a rule: they follow each other within a second
            agent = scanned.start();
        }
    }
    shown.dedup();
    assert!(shown.len() > 1, "points move on");
    stop.store(true, Ordering::Release);
    writer.join().unwrap();
    scanned.shows_the_disk("last");
    agent.stop();
    assert!(!snapshot.exists(), "the last snapshot was dropped");
}

#[test]
fn an_agent_that_is_killed_in_the_middle_of_a_pass_misses_nothing() {
    if !have(&["curl"]) {
        return;
    }
    // A pass takes two seconds.
    let rate = (DISK_BYTES / 2) as i64;
    let scanned = Scanned::new(&[("read_bytes_per_second_max", rate.into())]);
    let mut agent = scanned.start();
    scanned.shows_the_disk("first");
    for round in 0..2_u8 {
        eventually("the middle of a pass", 60, || scanned.why().contains("has read").then_some(()));
        for chunk in [1, 30, 62] {
            scanned.write(chunk * CHUNK + u64::from(round), &[round + 1; 700]);
        }
        agent.kill();
        scanned.write(20 * CHUNK, &[round; 9]);
        agent = scanned.start();
    }
    scanned.shows_the_disk("last");
    agent.stop();
}
