//! `capture = "fuse"` with real processes: the agent's disk as a file. A loop device with ext4 on it,
//! and numbered writes straight into the file, while agent and process server are killed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::fs::{FallocateFlags, fallocate};
use support::ext4::{clean_without_journal, needs_recovery};
use support::mounts::Mounted;
use support::oracle::{History, Write};
use support::{AgentSite, Process, Site, eventually, have, have_fuse, pause, run, text};

const DISK_BYTES: u64 = 48 << 20;

/// The agent of a machine whose disks are files in `mount`.
struct Presented {
    agent_site: AgentSite,
    mount: PathBuf,
}

impl Presented {
    fn new(site: &Site, machine: &str, disks: &[(&str, u64)]) -> Self {
        let agent_site = site.enroll(machine, disks);
        let mount = site.path("disks");
        let mut settings: toml::Table =
            fs::read_to_string(agent_site.config()).unwrap().parse().unwrap();
        for disk in settings["disk"].as_array_mut().unwrap() {
            let disk = disk.as_table_mut().unwrap();
            disk.insert("capture".into(), "fuse".into());
            disk.insert("mount".into(), text(&mount).into());
        }
        fs::write(agent_site.config(), toml::to_string(&settings).unwrap()).unwrap();
        Self { agent_site, mount }
    }

    fn file(&self, disk: &str) -> PathBuf {
        self.mount.join(format!("{disk}.img"))
    }

    fn start(&self, disk: &str) -> Process {
        let agent = self.agent_site.start(&[]);
        let file = self.file(disk);
        // Not by its attributes: the kernel remembers those of an agent that was killed.
        agent.ready("the disk is a file", 60, || File::open(&file).ok().map(drop));
        agent
    }
}

impl Drop for Presented {
    fn drop(&mut self) {
        // Left behind by a killed agent.
        let _ = Command::new("umount").args(["-l", text(&self.mount)]).output();
    }
}

/// An ext4 on a loop device on a file; taken down when dropped.
struct OnLoop {
    device: String,
    folder: PathBuf,
}

impl OnLoop {
    fn new(file: &Path, folder: PathBuf, make: bool, direct: bool) -> Self {
        let direct = if direct { "--direct-io=on" } else { "--direct-io=off" };
        let output = run("losetup", &["--find", "--show", direct, text(file)]);
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        fs::create_dir_all(&folder).unwrap();
        let on_loop = Self { device, folder };
        if make {
            run("mkfs.ext4", &["-q", &on_loop.device]);
        }
        run("mount", &[&on_loop.device, text(&on_loop.folder)]);
        on_loop
    }
}

impl Drop for OnLoop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.folder).output();
        let _ = Command::new("umount").args(["-l", text(&self.folder)]).output();
        let _ = Command::new("losetup").args(["-d", &self.device]).output();
    }
}

fn bookmark(site: &Site, machine: &str, name: &str) {
    eventually("a bookmark", 120, || {
        let args = ["bookmark", machine, "--name", name, "--wait", "recoverable"];
        site.try_holdfast(&args).status.success().then_some(())
    });
}

#[test]
fn a_file_system_on_a_loop_device_survives_an_agent_that_is_killed() {
    let tools = ["losetup", "mkfs.ext4", "fstrim", "e2fsck", "curl", "cmp"];
    // Root of an ordinary container has neither loop devices nor mounts: tried, not guessed.
    if !have(&tools) || !have_fuse() || Mounted::new("ext4", 16).is_none() {
        return;
    }
    let site = Site::new();
    let presented = Presented::new(&site, "web-1", &[("root", DISK_BYTES)]);
    let _server = site.serve();
    let agent = presented.start("root");
    let file = presented.file("root");

    // The size is fixed, and a second agent is refused before it touches anything.
    assert!(File::options().write(true).open(&file).unwrap().set_len(512).is_err());
    assert!(File::create(&file).is_err(), "truncated on opening");
    assert!(File::create(presented.mount.join("other")).is_err());
    assert_eq!(fs::metadata(&file).unwrap().len(), DISK_BYTES);
    let config = presented.agent_site.config();
    let second = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["agent", "--config", text(&config)])
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && why.contains("running agent"), "{why}");

    let source = OnLoop::new(&file, site.path("source"), true, false);
    for number in 0..40 {
        let bytes = vec![number as u8 | 1; 100_000 + number * 333];
        fs::write(source.folder.join(format!("file{number}")), bytes).unwrap();
    }
    for number in 0..20 {
        fs::remove_file(source.folder.join(format!("file{number}"))).unwrap();
    }
    run("sync", &["-f", text(&source.folder)]);
    let before = fs::metadata(site.disk("web-1", "root")).unwrap();
    run("fstrim", &[text(&source.folder)]);
    let after = fs::metadata(site.disk("web-1", "root")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert!(after.blocks() < before.blocks(), "fstrim reached the source disk");
    bookmark(&site, "web-1", "trimmed");
    let image = site.export("web-1", "root", "name:trimmed");
    let recovered = OnLoop::new(&image, site.path("recovered"), false, false);
    for number in 20..40 {
        let bytes = fs::read(recovered.folder.join(format!("file{number}"))).unwrap();
        assert_eq!(bytes, vec![number as u8 | 1; 100_000 + number * 333], "file{number}");
    }
    drop(recovered);

    // Killed under a mounted file system; the file is there again after a start.
    fs::write(source.folder.join("unsynced"), vec![9; 3 << 20]).unwrap();
    agent.kill();
    let gone = fs::read_dir(&presented.mount).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()));
    drop(source);
    let agent = presented.start("root");
    let source = OnLoop::new(&file, site.path("source"), false, true);
    fs::write(source.folder.join("second-life"), vec![5; 2 << 20]).unwrap();
    drop(source);
    bookmark(&site, "web-1", "second");
    let image = site.export("web-1", "root", "name:second");
    run("cmp", &[text(&image), text(&site.disk("web-1", "root"))]);
    run("e2fsck", &["-fn", text(&image)]);
    let recovered = OnLoop::new(&image, site.path("again"), false, false);
    assert_eq!(fs::read(recovered.folder.join("second-life")).unwrap(), vec![5; 2 << 20]);
    drop(recovered);
    agent.stop();
    assert!(fs::read_dir(&presented.mount).unwrap().next().is_none(), "nothing stays mounted");
}

/// Numbered writes into the file, each answered before the next, going on over restarts.
struct Writes {
    stop: Arc<AtomicBool>,
    history: Arc<Mutex<History>>,
    answered: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Writes {
    fn start(file: PathBuf, sectors: u64) -> Self {
        let (stop, history) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let answered = Arc::new(AtomicU64::new(0));
        let (stopped, written) = (Arc::clone(&stop), Arc::clone(&history));
        let acknowledged = Arc::clone(&answered);
        let thread = std::thread::spawn(move || {
            let mut random = StdRng::seed_from_u64(5);
            let mut open = None;
            for number in 1.. {
                // Whole pages: of others the kernel may make several requests.
                let count = 8 * random.random_range(1..=8);
                let first_sector = 8 * random.random_range(0..=(sectors - count) / 8);
                let zero = random.random_range(0..10) == 0;
                let write = Write { number, disk: 0, first_sector, sectors: count, zero };
                let history: &Mutex<History> = &written;
                history.lock().unwrap().writes.push(write);
                while !issue(&mut open, &file, &write) {
                    history.lock().unwrap().interrupted.insert(number);
                    open = None;
                    if stopped.load(Ordering::Acquire) {
                        return;
                    }
                    pause(5);
                }
                acknowledged.store(number, Ordering::Release);
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                pause(1);
            }
        });
        Self { stop, history, answered, thread }
    }

    fn issued(&self) -> u64 {
        self.history.lock().unwrap().writes.last().map_or(0, |write| write.number)
    }

    fn finish(self) -> History {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap();
        Arc::into_inner(self.history).expect("its thread has ended").into_inner().unwrap()
    }
}

fn issue(open: &mut Option<File>, file: &Path, write: &Write) -> bool {
    if open.is_none() {
        *open = File::options().read(true).write(true).open(file).ok();
    }
    let Some(file) = open else { return false };
    let (offset, length) = (write.first_sector * 512, write.sectors * 512);
    if write.zero {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        return fallocate(&*file, flags, offset, length).is_ok();
    }
    // Part of it once more, from inside a sector to inside another: nothing changes by it.
    let bytes = write.payload();
    let part = 100..bytes.len() - 100;
    let written = file.write_all_at(&bytes, offset).is_ok()
        && file.write_all_at(&bytes[part.clone()], offset + part.start as u64).is_ok();
    written && (!write.number.is_multiple_of(16) || file.sync_data().is_ok())
}

#[test]
fn points_of_a_disk_written_as_a_file_are_prefixes_over_kills() {
    if !have(&["curl", "fusermount3"]) || !have_fuse() || Mounted::new("tmpfs", 16).is_none() {
        return;
    }
    let site = Site::new();
    let presented = Presented::new(&site, "web-1", &[("root", 4 << 20)]);
    let mut server = site.serve();
    let mut agent = presented.start("root");
    let writes = Writes::start(presented.file("root"), (4 << 20) / 512);
    let mut points = Vec::new();
    for round in 0..6 {
        pause(100);
        match round % 3 {
            1 => {
                agent.kill();
                agent = presented.start("root");
            }
            2 => {
                server.kill();
                server = site.serve();
            }
            _ => {}
        }
        let name = format!("b{round}");
        let asked = eventually("a bookmark", 120, || {
            let from = writes.answered.load(Ordering::Acquire);
            let args = ["bookmark", "web-1", "--name", &name, "--wait", "recoverable"];
            let output = site.try_holdfast(&args);
            output.status.success().then(|| from..=writes.issued())
        });
        points.push((name, asked));
    }
    let history = writes.finish();
    for (name, allowed) in points {
        let image = site.export("web-1", "root", &format!("name:{name}"));
        let cut = history.check(&[&image], allowed.clone());
        let cut = cut.unwrap_or_else(|why| panic!("{name}: {why}"));
        println!("{name}: {cut} of {allowed:?}");
    }
    assert!(history.writes.len() > 100, "only {} writes", history.writes.len());
    agent.stop();
}

#[test]
fn a_file_system_frozen_on_the_host_needs_no_journal() {
    let tools = ["losetup", "mkfs.ext4", "fsfreeze", "dumpe2fs", "e2fsck", "curl"];
    if !have(&tools) || !have_fuse() || Mounted::new("ext4", 16).is_none() {
        return;
    }
    let site = Site::new();
    let presented = Presented::new(&site, "web-1", &[("root", DISK_BYTES)]);
    let folder = site.path("source");
    let freeze = |what: &str| ["fsfreeze", what, text(&folder)].map(toml::Value::from).to_vec();
    presented.agent_site.set("application.freeze", freeze("--freeze"));
    presented.agent_site.set("application.thaw", freeze("--unfreeze"));
    let _server = site.serve();
    let agent = presented.start("root");
    let source = OnLoop::new(&presented.file("root"), folder.clone(), true, false);
    let (done, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let (least, most) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let number = written.load(Ordering::Acquire) + 1;
                let file = File::create(source.folder.join(format!("f{number}"))).unwrap();
                file.write_all_at(format!("{number}").as_bytes(), 0).unwrap();
                file.sync_all().unwrap();
                written.store(number, Ordering::Release);
                pause(2);
            }
        });
        eventually("a load", 60, || (written.load(Ordering::Acquire) > 3).then_some(()));
        bookmark(&site, "web-1", "crash");
        let before = written.load(Ordering::Acquire);
        let args = ["bookmark", "web-1", "--name", "frozen", "--app", "--wait", "recoverable"];
        eventually("frozen", 60, || site.try_holdfast(&args).status.success().then_some(()));
        let after = written.load(Ordering::Acquire);
        eventually("thawed", 60, || (written.load(Ordering::Acquire) > after).then_some(()));
        done.store(true, Ordering::Release);
        load.join().unwrap();
        (before, after + 1)
    });
    let crash = site.export("web-1", "root", "name:crash");
    let frozen = site.export("web-1", "root", "name:frozen");
    assert!(needs_recovery(&crash), "the load leaves nothing in the journal: this shows nothing");
    assert!(!needs_recovery(&frozen));
    clean_without_journal(&frozen);
    let recovered = OnLoop::new(&frozen, site.path("recovered"), false, false);
    let held = (1..=most).take_while(|n| recovered.folder.join(format!("f{n}")).exists()).count();
    assert!((least..=most).contains(&(held as u64)), "{held}, not {least} to {most}");
    drop((recovered, source));
    agent.stop();
}
