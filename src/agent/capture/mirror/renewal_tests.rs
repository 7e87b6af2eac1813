//! The dirty bitmap is renewed while the guest writes: what has not reached the agent is always in one.
//! With a real QEMU (its storage daemon).

mod loss_tests;
mod waiting_tests;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::attach::{Attached, Link, Place};
use super::guest::{Guest, Mirrored};
use super::names::Names;
use super::qmp::Qmp;
use super::reach::{self, Reach};
use crate::agent::capture::Observer;
use crate::agent::disk::Captured;
use crate::agent::stream_tests::{CHUNK, DISK_BYTES, Machine, ordered};
use crate::clock::{Clock, System};
use crate::nbd::{self, BlockStatus, Client, Export, Peer};

const DEVICE: &str = "vda";
const OTHER_DEVICE: &str = "vdb";
/// How long anything is waited for.
const LATE: Duration = Duration::from_secs(20);

/// Lets QEMU's other threads go on; no test's outcome rests on how long.
#[allow(clippy::disallowed_methods, reason = "polling another process")]
pub(super) fn moment() {
    std::thread::sleep(Duration::from_millis(10));
}

pub(super) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begun = System.monotonic();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(System.monotonic() - begun < LATE, "{what}: too late");
        moment();
    }
}

/// A QEMU with two disks; most tests have the first.
pub(super) struct Daemon {
    child: Child,
    /// A monitor beside the agent's.
    pub(super) other: Qmp,
    directory: tempfile::TempDir,
    pub(super) place: Place,
}

impl Daemon {
    pub(super) fn new(machine: &Machine) -> Option<Self> {
        let program = "qemu-storage-daemon";
        let version = Command::new(program).arg("--version").output().map(|output| output.stdout);
        let version = String::from_utf8(version.unwrap_or_default()).unwrap();
        let number =
            version.split_whitespace().find_map(|word| word.split('.').next()?.parse().ok());
        if number.unwrap_or(0) < 9 {
            let said = format_args!("\nskipped: {program} 9 or later is not installed\n");
            io::stderr().write_fmt(said).ok();
            assert!(std::env::var_os("CI").is_none(), "CI never skips: {program} is needed");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        for image in ["image", OTHER_DEVICE] {
            std::fs::File::create(at(image)).unwrap().set_len(DISK_BYTES).unwrap();
        }
        let monitor = |id| format!("socket,id={id},path={},server=on,wait=off", at(id));
        let child = Command::new(program)
            .args(["--blockdev", &format!("file,node-name=file,filename={}", at("image"))])
            .args(["--blockdev", &format!("raw,node-name={DEVICE},file=file")])
            .args(["--blockdev", &format!("file,node-name=file-b,filename={}", at(OTHER_DEVICE))])
            .args(["--blockdev", &format!("raw,node-name={OTHER_DEVICE},file=file-b")])
            .args(["--chardev", &monitor("ours"), "--monitor", "chardev=ours"])
            .args(["--chardev", &monitor("other"), "--monitor", "chardev=other"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let socket = directory.path().join("other");
        let other =
            eventually("QEMU's monitor", || Qmp::connect(&Peer::Socket(socket.clone())).ok());
        let place = place_of(directory.path(), machine, 0);
        Some(Self { child, other, directory, place })
    }

    /// A disk of the machine, on the QEMU's disk of that number.
    pub(super) fn place_of(&self, machine: &Machine, number: usize) -> Place {
        place_of(self.directory.path(), machine, number)
    }

    pub(super) fn monitor(&self) -> PathBuf {
        self.directory.path().join("ours")
    }

    pub(super) fn reach(&self) -> Reach {
        Reach::here(&self.monitor(), self.directory.path())
    }

    pub(super) fn serve(&self, target: &Arc<Gate>) -> nbd::Server {
        let names = &self.place.names;
        let name = self.place.disk.name.as_str();
        nbd::Server::bind_for_one(&names.target_socket, name, Arc::clone(target) as _).unwrap()
    }

    /// The guest's own connection to its disk, above the mirror.
    pub(super) fn guest(&mut self, reach: &Reach) -> Client {
        let export = json!({ "type": "nbd", "id": "guest", "name": "guest", "writable": true,
            "node-name": self.place.names.filter });
        self.other.execute("block-export-add", export).unwrap();
        Client::connect_to(&reach.reads, "guest").unwrap()
    }

    /// Our bitmaps: name, and how much is dirty.
    pub(super) fn bitmaps(&mut self) -> Vec<(String, u64)> {
        let nodes = self.other.execute("query-named-block-nodes", json!({ "flat": true })).unwrap();
        let all = nodes.as_array().unwrap().iter();
        let of_node = all.flat_map(|node| node["dirty-bitmaps"].as_array().into_iter().flatten());
        let ours = |bitmap: &Value| {
            let name = bitmap["name"].as_str().filter(|name| self.place.names.is_bitmap(name))?;
            Some((name.to_owned(), bitmap["count"].as_u64().unwrap()))
        };
        of_node.filter_map(ours).collect()
    }
}

fn place_of(directory: &Path, machine: &Machine, number: usize) -> Place {
    let disk = Arc::clone(&machine.stream.disks[number]);
    let names = Names::of(&"vm-1".parse().unwrap(), &disk.name, directory);
    let target = reach::here(&names);
    Place { disk, device: [DEVICE, OTHER_DEVICE][number].to_owned(), names, target }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The agent's end of a mirror, of which one write can be kept waiting. It is refused then, unless
/// there is somebody behind.
#[derive(Default)]
pub(super) struct Gate {
    closed: Mutex<Option<(Sender<()>, Receiver<()>)>>,
    behind: Option<Captured>,
}

impl Gate {
    fn before(behind: Captured) -> Self {
        Self { closed: Mutex::default(), behind: Some(behind) }
    }

    /// The next write says that it is there, and waits until it is told to go.
    fn close(&self) -> (Receiver<()>, Sender<()>) {
        let (come, came) = channel();
        let (go, gone) = channel();
        *self.closed.lock().unwrap() = Some((come, gone));
        (came, go)
    }
}

impl Export for Gate {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, _offset: u64, _target: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other("a mirror reads nothing"))
    }
    fn write(&self, offset: u64, payload: Bytes, fua: bool) -> io::Result<()> {
        let closed = self.closed.lock().unwrap().take();
        let waited = closed.is_some();
        if let Some((come, gone)) = closed {
            come.send(()).unwrap();
            gone.recv_timeout(LATE).unwrap();
        }
        match &self.behind {
            Some(behind) => behind.write(offset, payload, fua),
            None if waited => Err(io::Error::other("refused")),
            None => Ok(()),
        }
    }
    fn zero(&self, _offset: u64, _length: u64, _trim: bool, _fua: bool) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn block_status(&self, _offset: u64, length: u64) -> io::Result<Vec<BlockStatus>> {
        Ok(vec![BlockStatus { length, hole: false, zero: false }])
    }
}

pub(super) fn pause() -> bool {
    moment();
    true
}

#[test]
fn a_write_that_never_reached_the_agent_is_in_the_old_bitmap_until_the_new_one_is_safe() {
    let machine = ordered(8 << 20);
    let Some(mut daemon) = Daemon::new(&machine) else { return };
    let gate = Arc::new(Gate::default());
    let _server = daemon.serve(&gate);
    let reach = daemon.reach();
    let mut qmp = Qmp::connect(&reach.monitor).unwrap();
    let mut link = Link { qmp: &mut qmp, reach: &reach, stream: &machine.stream };
    let mut attached: Attached = link.attach(&daemon.place, &mut pause).unwrap();
    machine.repair();
    assert_eq!(machine.dirty(), 0);
    // It is on the guest's disk, and on its way to the agent.
    let mut guest = daemon.guest(&daemon.reach());
    let (came, go) = gate.close();
    let writer = std::thread::spawn(move || guest.write(5 * CHUNK, &[7; 512], false));
    came.recv_timeout(LATE).unwrap();
    let renewed = std::thread::scope(|scope| {
        let (done, ended) = channel();
        let (place, link, attached) = (&daemon.place, &mut link, &mut attached);
        scope.spawn(move || done.send(link.rotate(place, attached)).unwrap());
        // Who does not wait for that write is done long before.
        let early = ended.recv_timeout(Duration::from_millis(500));
        go.send(()).unwrap();
        early.or_else(|_| ended.recv_timeout(LATE)).unwrap()
    });
    assert!(renewed.is_err(), "the mirror is gone, so nothing was renewed");
    assert!(writer.join().unwrap().is_ok(), "QEMU tells the guest that all is well");
    link.attach(&daemon.place, &mut pause).unwrap();
    let bitmap = &machine.stream.disks[0].bitmap;
    assert_eq!(bitmap.next_dirty(0, DISK_BYTES), Some(5 * CHUNK..6 * CHUNK));
    assert_eq!(machine.dirty(), CHUNK, "and nothing else is read again");
}

#[test]
fn as_time_goes_by_the_bitmap_forgets_what_reached_the_agent() {
    let machine = ordered(8 << 20);
    let Some(mut daemon) = Daemon::new(&machine) else { return };
    let server = daemon.serve(&Arc::new(Gate::default()));
    let place = Place {
        disk: Arc::clone(&daemon.place.disk),
        device: DEVICE.to_owned(),
        names: daemon.place.names.clone(),
        target: daemon.place.target.clone(),
    };
    let disks = vec![Mirrored { place, server }];
    let watched = Guest::watch(daemon.reach(), &machine.stream, &System::clock(), disks);
    let watched = watched.unwrap();
    eventually("every write is mirrored", || watched.settle().ok());
    let mut guest = daemon.guest(&daemon.reach());
    for turn in 0..3 {
        for chunk in 0..10 {
            guest.write(chunk * CHUNK, &[turn + 1; 4096], false).unwrap();
        }
        eventually("one bitmap, and nothing in it", || {
            let bitmaps = daemon.bitmaps();
            (bitmaps.len() == 1 && bitmaps[0].1 == 0).then_some(())
        });
        assert_eq!(watched.confirm(), Ok(()), "in order all the time");
    }
    watched.stop();
}
