//! A machine whose disks are block devices that an eBPF program watches. Takes root.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::loops::Loop;
use super::oracle::{History, SECTOR, Write};
use super::{AgentSite, Process, Site, eventually, have, pause, text};

pub const DISKS: [&str; 2] = ["a", "b"];
const TOOLS: [&str; 6] = ["losetup", "mkfs.ext4", "mount", "umount", "fstrim", "curl"];

/// A machine, with two loop devices or those of the test.
pub struct Machine {
    pub loops: Vec<Loop>,
    pub agent: AgentSite,
    /// Where its status is looked for.
    pub state: PathBuf,
    pub name: String,
    disks: Vec<String>,
    // Last: the loops' files go with it.
    pub site: Site,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let config = self.agent.config();
        let args = ["agent", "release", "--config", text(&config)];
        let _ = std::process::Command::new(super::BINARY).args(args).output();
    }
}

impl Machine {
    /// With disks `a` and `b`, loop devices of that size.
    pub fn new(ring_bytes: i64, disk_bytes: u64) -> Option<Self> {
        if !have(&TOOLS) {
            return None;
        }
        let site = Site::new();
        let of = |disk| Loop::new(&site.path(&format!("{disk}.img")), disk_bytes);
        let loops = [of(DISKS[0])?, of(DISKS[1])?];
        let devices = [0, 1].map(|at| (DISKS[at], loops[at].path.clone()));
        let mut machine = Self::on(site, &devices, ring_bytes);
        machine.loops.extend(loops);
        Some(machine)
    }

    /// With devices that are there.
    pub fn on(site: Site, devices: &[(&str, PathBuf)], ring_bytes: i64) -> Self {
        // Pins are named by machine, and tests run beside each other.
        let name = format!("m-{}", site.port);
        let directory = site.path("agent");
        let mut args = vec!["enroll".to_owned(), name.clone()];
        args.extend(["--out".to_owned(), text(&directory).to_owned()]);
        for (disk, path) in devices {
            args.extend(["--disk".to_owned(), format!("{disk}={}", path.display())]);
        }
        site.holdfast(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let agent = AgentSite { directory: directory.clone() };
        let settings = fs::read_to_string(agent.config()).unwrap();
        let settings = settings.replace("capture = \"nbd\"", "capture = \"ebpf\"");
        fs::write(agent.config(), settings).unwrap();
        agent.set("ebpf.ring_bytes", ring_bytes);
        let disks = devices.iter().map(|(disk, _)| (*disk).to_owned()).collect();
        Self { loops: Vec::new(), agent, state: directory, name, disks, site }
    }

    pub fn start(&self) -> Process {
        let config = self.agent.config();
        Process::spawn(&self.site.path("agent.log"), &["agent", "--config", text(&config)])
    }

    /// The agent behind a shell script, in a mount namespace of its own.
    pub fn start_behind(&self, script: &str) -> Process {
        let (script, config) = (format!("set -e\n{script}\nexec \"$@\""), self.agent.config());
        let args = ["-m", "sh", "-c", &script, "sh", super::BINARY, "agent", "--config"];
        let args = [&args[..], &[text(&config)]].concat();
        Process::spawn_program(&self.site.path("agent.log"), "unshare", &args)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.site.path("agent.log")).unwrap_or_default()
    }

    pub fn status(&self) -> Option<serde_json::Value> {
        AgentSite { directory: self.state.clone() }.status()
    }

    /// With payloads: where they cannot be copied it would be "extents".
    pub fn ordered(&self) -> serde_json::Value {
        self.caught_up("ordered")
    }

    /// Nothing is to be read any more, and each disk is captured that well.
    pub fn caught_up(&self, capture: &str) -> serde_json::Value {
        let (mut seen, log) = (None, || self.log());
        let wait = std::panic::AssertUnwindSafe(|| {
            eventually("the agent is ordered", 60, || {
                seen = self.status();
                let status = seen.clone()?;
                let mut disks = status["disks"].as_array()?.iter();
                let good = status["mode"] == "ordered" && status["dirty_bytes"] == 0;
                (good && disks.all(|disk| disk["capture"] == capture)).then_some(status)
            })
        });
        let waited = std::panic::catch_unwind(wait);
        waited.unwrap_or_else(|_| panic!("not {capture}: {seen:?}\n{}", log()))
    }

    /// Nothing would be read again, if the agent were killed now.
    pub fn settled(&self) {
        eventually("all bits are clear", 60, || {
            let status = self.status()?;
            (status["unsettled_bytes"] == 0).then_some(())
        });
    }

    /// A bookmark, as soon as one is possible.
    pub fn bookmark(&self, name: &str) {
        let args = ["bookmark", &self.name, "--name", name, "--wait", "recoverable"];
        eventually("a point", 60, || self.site.try_holdfast(&args).status.success().then_some(()));
    }

    /// Its disks as they were then.
    pub fn images(&self, name: &str) -> Vec<PathBuf> {
        let point = format!("name:{name}");
        let images = self.disks.iter().map(|disk| self.site.export(&self.name, disk, &point));
        images.collect()
    }

    /// A point behind everything so far, as soon as one is possible.
    pub fn point(&self, name: &str) -> Vec<Vec<u8>> {
        self.bookmark(name);
        self.images(name).iter().map(|image| fs::read(image).unwrap()).collect()
    }

    /// Every write went through the ring.
    pub fn lost_nothing(&self) {
        let log = self.log();
        assert!(!log.contains("read again when") && !log.contains("ERROR"), "{log}");
        assert!(!log.contains("ring was full") && !log.contains("rings were full"), "{log}");
    }

    /// The last point is what the devices hold.
    pub fn same(&self, name: &str) {
        for (device, image) in self.loops.iter().zip(self.point(name)) {
            let source = fs::read(&device.file).unwrap();
            let wrong = source.iter().zip(&image).position(|(one, other)| one != other);
            assert_eq!((source.len(), wrong), (image.len(), None), "{}", self.log());
        }
    }

    /// Direct writes of numbered sectors over both disks, one after the other.
    pub fn write(
        &self,
        seed: u64,
        history: &mut History,
        done: &AtomicU64,
        go_on: impl Fn(u64) -> bool,
    ) {
        let mut random = StdRng::seed_from_u64(seed);
        let devices: Vec<_> = self.loops.iter().map(Loop::direct).collect();
        let bytes = |one: &Loop| fs::metadata(&one.file).unwrap().len();
        let written = self.loops.iter().map(bytes).min().unwrap() / 8 / SECTOR;
        while go_on(history.writes.len() as u64) {
            let number = history.writes.len() as u64 + 1;
            let sectors = [1, 8, 24, 64, 300, 700][random.random_range(0..6)];
            let write = Write {
                number,
                disk: random.random_range(0..2),
                first_sector: random.random_range(0..written - sectors),
                sectors,
                zero: false,
            };
            let device = &devices[usize::from(write.disk)];
            device.write(write.first_sector * SECTOR, &write.payload()).unwrap();
            history.writes.push(write);
            done.store(number, Ordering::Release);
            pause(4); // a debug build of the server takes no more
        }
    }
}

/// Ends a load also when the test fails meanwhile.
pub struct End<'a>(pub &'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// An ext4 on a device, mounted until it is dropped.
pub struct Ext4 {
    pub path: PathBuf,
}

impl Ext4 {
    pub fn on(device: &Path, folder: PathBuf) -> Self {
        fs::create_dir_all(&folder).unwrap();
        super::run("mount", &[text(device), text(&folder)]);
        Self { path: folder }
    }

    pub fn unmount(self) {
        // A test beside this one that starts a program holds what is open here until that runs.
        eventually("it is unmounted", 30, || {
            let ended = std::process::Command::new("umount").arg(&self.path).output().unwrap();
            ended.status.success().then_some(())
        });
        std::mem::forget(self);
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.path).output();
    }
}
