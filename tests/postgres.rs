//! PostgreSQL on a captured disk: agent (NBD) → qemu-storage-daemon (FUSE file) → loop device →
//! ext4 → PostgreSQL under pgbench, while the process server is killed and restarted. The newest
//! point must start, pass pg_amcheck and hold every transaction that was committed before it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use support::mounts::Mounted;
use support::postgres::{Cluster, insist};
use support::{Site, eventually, free_port, have, have_fuse, pause, run, text};

const DISK_BYTES: u64 = 768 << 20;
const KILLS: u32 = 5;
const TOOLS: &[&str] = &[
    "qemu-storage-daemon",
    "losetup",
    "mkfs.ext4",
    "runuser",
    "initdb",
    "pg_ctl",
    "pgbench",
    "psql",
    "pg_amcheck",
    "curl",
    "fusermount3",
];

/// What was set up outside this process, taken down in reverse order however the test ends.
#[derive(Default)]
struct Cleanup {
    commands: Vec<Vec<String>>,
    children: Vec<Child>,
}

impl Cleanup {
    fn push(&mut self, command: &[&str]) {
        self.commands.push(command.iter().map(|part| (*part).to_owned()).collect());
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        for command in self.commands.iter().rev() {
            let _ = Command::new(&command[0]).args(&command[1..]).output();
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Puts an ext4 from `device` on `folder`.
fn mount(device: &str, folder: &Path, cleanup: &mut Cleanup) {
    std::fs::create_dir_all(folder).unwrap();
    run("mount", &[device, text(folder)]);
    cleanup.push(&["umount", "-l", text(folder)]);
}

fn loop_device(file: &Path, cleanup: &mut Cleanup) -> String {
    // Direct I/O over a FUSE export was seen to corrupt data: the page cache stays in between.
    let output = run("losetup", &["--find", "--show", "--direct-io=off", text(file)]);
    let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    cleanup.push(&["losetup", "-d", &device]);
    device
}

/// The agent's disk as a file.
fn fuse_file(site: &Site, socket: &Path, cleanup: &mut Cleanup) -> PathBuf {
    let file = site.path("disk.fuse");
    std::fs::write(&file, b"").unwrap();
    let node = format!(
        "driver=nbd,node-name=disk,server.type=unix,server.path={},export=root",
        text(socket)
    );
    let export = format!("type=fuse,id=file,node-name=disk,mountpoint={},writable=on", text(&file));
    let daemon = Command::new("qemu-storage-daemon")
        .args(["--blockdev", &node, "--export", &export])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    cleanup.children.push(daemon);
    cleanup.push(&["fusermount3", "-u", "-z", text(&file)]);
    eventually("the FUSE export", 30, || {
        std::fs::metadata(&file).ok().filter(|facts| facts.len() == DISK_BYTES).map(drop)
    });
    file
}

fn initialise(cluster: &Cluster) {
    run("chown", &["postgres:", text(&cluster.folder)]);
    let data = cluster.folder.join("data");
    insist(&["initdb", "-D", text(&data), "-A", "trust", "--data-checksums"]);
    cluster.start();
    insist(&cluster.args("pgbench", &["-i", "-s", "5", "-q", "postgres"]));
    cluster.sql("create extension amcheck; create table commits (id bigint primary key)").unwrap();
}

/// Inserts numbers one transaction at a time; `last` is the newest committed one.
fn commit_numbers(
    cluster: Arc<Cluster>,
    stop: Arc<AtomicBool>,
    last: Arc<AtomicU64>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        while !stop.load(Ordering::Acquire) {
            let next = last.load(Ordering::Acquire) + 1;
            if cluster.sql(&format!("insert into commits values ({next})")).is_some() {
                last.store(next, Ordering::Release);
            }
        }
    })
}

#[test]
fn a_recovered_database_starts_and_has_every_commit_before_its_point() {
    // Root of an ordinary container has neither loop devices nor mounts: tried, not guessed.
    if !have(TOOLS) || !have_fuse() || Mounted::new("ext4", 16).is_none() {
        return;
    }
    let site = Site::new();
    run("chmod", &["755", text(site.directory.path())]);
    site.set("cache.bytes_max", 512 << 20);
    let agent_site = site.enroll("db-1", &[("root", DISK_BYTES)]);
    let mut server = site.serve();
    let _agent = agent_site.start(&["root"]);
    let mut cleanup = Cleanup::default();
    let file = fuse_file(&site, &agent_site.socket("root"), &mut cleanup);
    let device = loop_device(&file, &mut cleanup);
    run("mkfs.ext4", &["-q", &device]);
    let source = site.path("source");
    mount(&device, &source, &mut cleanup);
    let cluster = Arc::new(Cluster { folder: source, port: free_port().to_string() });
    initialise(&cluster);

    let load = cluster.args("pgbench", &["-c", "4", "-T", "600", "-n", "postgres"]).join(" ");
    let pgbench = Command::new("runuser")
        .args(["-u", "postgres", "--", "sh", "-c", &format!("cd /; exec {load}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    cleanup.children.push(pgbench);
    let (stop, last) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let committer = commit_numbers(Arc::clone(&cluster), Arc::clone(&stop), Arc::clone(&last));
    for _ in 0..KILLS {
        pause(1500);
        server.kill();
        pause(300);
        server = site.serve();
    }
    let committed = eventually("a bookmark", 180, || {
        let before = last.load(Ordering::Acquire);
        let args = ["bookmark", "db-1", "--name", "checked", "--wait", "recoverable"];
        site.try_holdfast(&args).status.success().then_some(before)
    });
    stop.store(true, Ordering::Release);
    committer.join().unwrap();
    cleanup.children.pop().unwrap().kill().unwrap();
    cluster.stop();
    assert!(committed > 5, "only {committed} commits: the test had no load");

    check_recovered(&site, committed, &mut cleanup);
}

/// Starts the database from the newest point and looks for the commits.
fn check_recovered(site: &Site, committed: u64, cleanup: &mut Cleanup) {
    let image = site.export("db-1", "root", "name:checked");
    let device = loop_device(&image, cleanup);
    let folder = site.path("recovered");
    mount(&device, &folder, cleanup);
    let recovered = Cluster { folder, port: free_port().to_string() };
    let _ = std::fs::remove_file(recovered.folder.join("data/postmaster.pid"));
    recovered.start();
    let count = recovered.sql(&format!("select count(*) from commits where id <= {committed}"));
    assert_eq!(count, Some(committed.to_string()), "every commit before the bookmark is there");
    insist(&recovered.args("pg_amcheck", &["--all", "--heapallindexed"]));
    recovered.stop();
    println!("{committed} commits before the bookmark, all recovered");
}
