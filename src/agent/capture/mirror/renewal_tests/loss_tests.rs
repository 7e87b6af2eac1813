//! Mirrors that fail, or are not believed: what was missed is read again, and little is left in QEMU.
//! With a real QEMU (its storage daemon).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::super::attach::{Attached, Link};
use super::super::error::MirrorError;
use super::super::guest::{Guest, Mirrored};
use super::super::qmp::Qmp;
use super::super::reach::Reach;
use super::super::steps;
use super::{DEVICE, Daemon, Gate, OTHER_DEVICE, eventually, pause};
use crate::agent::capture::Observer;
use crate::agent::stream_tests::{CHUNK, DISK_BYTES, Machine, ordered};
use crate::clock::System;
use crate::nbd::{self, Client, Peer};

#[test]
fn a_bookmark_is_taken_back_when_a_catch_up_read_while_it_was_placed() {
    let machine = ordered(8 << 20);
    let Some(daemon) = Daemon::new(&machine) else { return };
    let server = daemon.serve(&Arc::new(Gate::default()));
    let disks = vec![Mirrored { place: daemon.place_of(&machine, 0), server }];
    let watched = Guest::watch(daemon.reach(), &machine.stream, &System::clock(), disks).unwrap();
    eventually("every write is mirrored", || watched.settle().ok());
    assert_eq!(watched.confirm(), Ok(()));
    machine.repair();
    let refused = watched.confirm().unwrap_err();
    assert!(refused.contains("read again while a bookmark was placed"), "{refused}");
    watched.settle().unwrap();
    assert_eq!(watched.confirm(), Ok(()), "the next one waits for what was in flight");
    watched.stop();
}

/// A monitor between the agent and QEMU: it knows what was asked, tells events that never were, refuses
/// in QEMU's place, and says that each disk is a guest's device.
#[derive(Default)]
pub(super) struct Between {
    asked: Mutex<Vec<Value>>,
    events: Mutex<Vec<Value>>,
    /// Of which disk it refuses to begin a mirror.
    refused: Mutex<Option<&'static str>>,
}

impl Between {
    pub(super) fn listen(self: &Arc<Self>, socket: &Path, qemu: PathBuf) {
        let (between, listener) = (Arc::clone(self), UnixListener::bind(socket).unwrap());
        std::thread::spawn(move || {
            for agent in listener.incoming() {
                let relayed = agent.and_then(|agent| between.relay(agent, &qemu));
                drop(relayed); // whoever is gone comes again
            }
        });
    }

    fn relay(&self, mut agent: UnixStream, qemu: &Path) -> io::Result<()> {
        let mut qemu = UnixStream::connect(qemu)?;
        let mut answers = BufReader::new(qemu.try_clone()?).lines();
        let mut next = || answers.next().unwrap_or(Err(io::ErrorKind::UnexpectedEof.into()));
        writeln!(agent, "{}", next()?)?;
        for line in BufReader::new(agent.try_clone()?).lines() {
            let line = line?;
            let command: Value = serde_json::from_str(&line)?;
            let refused = *self.refused.lock().unwrap();
            if refused.is_some_and(|device| begins(&command, device)) {
                self.asked.lock().unwrap().push(command);
                writeln!(agent, "{}", json!({ "error": { "desc": "it is in use" } }))?;
                continue;
            }
            writeln!(qemu, "{line}")?;
            let drives = command["execute"] == "query-block";
            self.asked.lock().unwrap().push(command);
            for event in self.events.lock().unwrap().drain(..) {
                writeln!(agent, "{event}")?;
            }
            loop {
                let answer: Value = serde_json::from_str(&next()?)?;
                let event = answer.get("event").is_some();
                let told =
                    if drives && !event { json!({ "return": drives_said() }) } else { answer };
                writeln!(agent, "{told}")?;
                if !event {
                    break;
                }
            }
        }
        Ok(())
    }

    pub(super) fn count(&self, wanted: impl Fn(&Value) -> bool) -> usize {
        self.asked.lock().unwrap().iter().filter(|command| wanted(command)).count()
    }

    /// How often each disk was attached.
    fn begun(&self) -> [usize; 2] {
        DEVICES.map(|device| self.count(|one| begins(one, device)))
    }

    /// Returns when the agent has heard of them, and has looked at each disk twice after that.
    fn tell(&self, events: Vec<Value>) {
        *self.events.lock().unwrap() = events;
        eventually("events", || self.events.lock().unwrap().is_empty().then_some(()));
        // Each third turn adds one to each, and attaching does.
        let added = |device: &str| {
            self.count(|one| {
                one["execute"] == "block-dirty-bitmap-add" && one["arguments"]["node"] == device
            })
        };
        let before = DEVICES.map(added);
        eventually("turns", || {
            let now = DEVICES.map(added);
            (now[0] > before[0] + 2 && now[1] > before[1] + 2).then_some(())
        });
    }
}

const DEVICES: [&str; 2] = [DEVICE, OTHER_DEVICE];

fn begins(command: &Value, device: &str) -> bool {
    command["execute"] == "blockdev-mirror" && command["arguments"]["device"] == device
}

fn drives_said() -> Value {
    let drive = |name: &str| {
        let qdev = format!("/machine/peripheral/{name}/virtio-backend");
        json!({ "device": "", "qdev": qdev, "inserted": { "node-name": name } })
    };
    json!(DEVICES.map(drive))
}

/// Watches both disks of the QEMU.
fn two_disks(daemon: &Daemon, machine: &Machine, between: &Arc<Between>) -> Arc<Guest> {
    let monitor = daemon.monitor().with_extension("between");
    Between::listen(between, &monitor, daemon.monitor());
    let gate = Arc::new(Gate::default());
    let mirrored = |number| {
        let place = daemon.place_of(machine, number);
        let (socket, name) = (&place.names.target_socket, place.disk.name.as_str());
        let server = nbd::Server::bind_for_one(socket, name, Arc::clone(&gate) as _).unwrap();
        Mirrored { place, server }
    };
    let reach = Reach::here(&monitor, monitor.parent().unwrap());
    let disks = (0..2).map(mirrored).collect();
    Guest::watch(reach, &machine.stream, &System::clock(), disks).unwrap()
}

#[test]
fn a_disk_whose_write_failed_is_attached_again_and_no_other() {
    let machine = ordered(8 << 20);
    let Some(daemon) = Daemon::new(&machine) else { return };
    let between = Arc::default();
    let watched = two_disks(&daemon, &machine, &between);
    eventually("every write is mirrored", || watched.settle().ok());
    let failed = |node: &str| {
        let about = json!({ "device": "", "node-name": node, "operation": "write" });
        json!({ "event": "BLOCK_IO_ERROR", "data": about })
    };
    let [first, second] = between.begun();
    between.tell(vec![failed(&daemon.place_of(&machine, 1).names.filter)]);
    assert_eq!(between.begun(), [first, second + 1]);
    let completed = json!({ "event": "BLOCK_JOB_COMPLETED", "data": { "device": "backup0" } });
    between.tell(vec![failed("somebody's"), completed]);
    assert_eq!(between.begun(), [first, second + 1], "no disk of ours");
    let added = between.count(|one| one["execute"] == "block-dirty-bitmap-add");
    let coarse = between.count(|one| one["arguments"]["granularity"] == 65536);
    assert_eq!(added, coarse, "whatever its clusters are");
    watched.stop();
}

#[test]
fn a_disk_that_qemu_refuses_is_tried_again_and_no_other() {
    let machine = ordered(8 << 20);
    let Some(daemon) = Daemon::new(&machine) else { return };
    let between = Arc::new(Between::default());
    *between.refused.lock().unwrap() = Some(OTHER_DEVICE);
    let watched = two_disks(&daemon, &machine, &between);
    eventually("attempts", || (between.begun()[1] > 2).then_some(()));
    assert_eq!(between.begun()[0], 1);
    assert!(watched.settle().unwrap_err().contains("it is in use"));
    *between.refused.lock().unwrap() = None;
    eventually("every write is mirrored", || watched.settle().ok());
    assert_eq!(between.begun()[0], 1, "all the time");
    watched.stop();
}

/// One attempt, on a connection of its own.
fn attach(daemon: &Daemon, machine: &Machine) -> Result<Attached, MirrorError> {
    let reach = daemon.reach();
    let mut qmp = Qmp::connect(&reach.monitor).unwrap();
    let mut link = Link { qmp: &mut qmp, reach: &reach, stream: &machine.stream };
    link.attach(&daemon.place_of(machine, 0), &mut pause)
}

/// Nothing reaches the file of the agent's bitmap any more.
fn broken(machine: &Machine) {
    machine.bits[0].broken.store(true, Ordering::Relaxed);
}

/// The guest writes to its disk itself while there is no mirror, and through each that begins later.
fn unwatched(daemon: &mut Daemon) -> Client {
    steps::end_mirror(&mut daemon.other, &daemon.place.names, &mut pause).unwrap();
    let export = json!({ "type": "nbd", "id": "guest", "name": "guest", "writable": true,
        "node-name": daemon.place.device });
    daemon.other.execute("block-export-add", export).unwrap();
    Client::connect_to(&daemon.reach().reads, "guest").unwrap()
}

#[test]
fn what_was_missed_is_marked_all_at_once() {
    let machine = ordered(8 << 20);
    let Some(mut daemon) = Daemon::new(&machine) else { return };
    let _server = daemon.serve(&Arc::new(Gate::default()));
    attach(&daemon, &machine).unwrap();
    let mut guest = unwatched(&mut daemon);
    for chunk in (0..DISK_BYTES / CHUNK).step_by(2) {
        guest.write(chunk * CHUNK, &[7; 512], false).unwrap();
    }
    let machine = ordered(8 << 20);
    let syncs = || machine.bits[0].syncs.load(Ordering::Relaxed);
    let before = syncs();
    attach(&daemon, &machine).unwrap();
    assert_eq!((machine.dirty(), syncs() - before), (DISK_BYTES / 2, 1));
}

#[test]
fn however_often_attaching_fails_few_bitmaps_are_left_and_they_hold_all_that_was_missed() {
    let machine = ordered(8 << 20);
    let Some(mut daemon) = Daemon::new(&machine) else { return };
    let _server = daemon.serve(&Arc::new(Gate::default()));
    attach(&daemon, &machine).unwrap();
    let mut guest = unwatched(&mut daemon);
    guest.write(5 * CHUNK, &[7; 512], false).unwrap();
    // An agent that knows of nothing to be read, and learns of it in vain.
    let machine = ordered(8 << 20);
    broken(&machine);
    for failed in 0..5 {
        let error = attach(&daemon, &machine).unwrap_err().to_string();
        assert!(error.contains("the bitmap cannot be written"), "{error}");
        guest.write((10 + failed) * CHUNK, &[7; 512], false).unwrap();
        let left = daemon.bitmaps();
        assert_eq!(left.len(), 2, "{left:?}");
    }
    // The agent's next life, which knows nothing of those writes.
    let machine = ordered(8 << 20);
    attach(&daemon, &machine).unwrap();
    let bitmap = &machine.stream.disks[0].bitmap;
    for chunk in [5].into_iter().chain(10..15) {
        let range = chunk * CHUNK..(chunk + 1) * CHUNK;
        assert_eq!(bitmap.next_dirty(range.start, CHUNK), Some(range));
    }
    assert_eq!((machine.dirty(), daemon.bitmaps().len()), (6 * CHUNK, 1));
}

/// Passes connections on; the first that asks where a bitmap is dirty has no answer to that, nor to
/// anything later. `false` when it has asked.
fn silent_once(socket: &Path, qemu: PathBuf) -> Arc<AtomicBool> {
    const ASKS: [u8; 8] = [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 7];
    let listener = UnixListener::bind(socket).unwrap();
    let silence = Arc::new(AtomicBool::new(true));
    let shared = Arc::clone(&silence);
    std::thread::spawn(move || {
        for agent in listener.incoming() {
            let (Ok(agent), Ok(qemu)) = (agent, UnixStream::connect(&qemu)) else { return };
            for (mut from, mut to) in [
                (agent.try_clone().unwrap(), qemu.try_clone().unwrap()),
                (qemu.try_clone().unwrap(), agent.try_clone().unwrap()),
            ] {
                let silence = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let (mut part, mut silent) = ([0; 64 << 10], false);
                    while let Ok(length @ 1..) = from.read(&mut part) {
                        let asks = part[..length].windows(8).any(|bytes| bytes == ASKS);
                        silent |= asks && silence.swap(false, Ordering::Relaxed);
                        if !silent && to.write_all(&part[..length]).is_err() {
                            break;
                        }
                    }
                    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                });
            }
        }
    });
    silence
}

/// Watches a disk of which QEMU has a bitmap, through [`silent_once`].
pub(super) fn watched_in_silence(
    daemon: &Daemon,
    machine: &Machine,
    patience: Duration,
) -> (Arc<Guest>, Arc<AtomicBool>) {
    let server = daemon.serve(&Arc::new(Gate::default()));
    attach(daemon, machine).unwrap();
    let mut reach = daemon.reach();
    let Peer::Socket(reads) = &reach.reads else { panic!("{}", reach.reads) };
    let between = reads.with_extension("between");
    let silence = silent_once(&between, reads.clone());
    (reach.reads, reach.patience) = (Peer::Socket(between), patience);
    let disks = vec![Mirrored { place: daemon.place_of(machine, 0), server }];
    (Guest::watch(reach, &machine.stream, &System::clock(), disks).unwrap(), silence)
}

#[test]
fn a_bitmap_that_is_not_told_in_time_is_asked_for_again() {
    let machine = ordered(8 << 20);
    let Some(daemon) = Daemon::new(&machine) else { return };
    let (watched, _) = watched_in_silence(&daemon, &machine, Duration::from_millis(100));
    eventually("another attempt", || watched.settle().ok());
    watched.stop();
}

#[test]
fn a_bitmap_is_not_believed_before_what_is_older_was_marked() {
    let machine = ordered(8 << 20);
    let Some(mut daemon) = Daemon::new(&machine) else { return };
    let _server = daemon.serve(&Arc::new(Gate::default()));
    broken(&machine);
    for _ in 0..3 {
        attach(&daemon, &machine).unwrap_err();
        let left = daemon.bitmaps();
        assert_eq!(left.len(), 2, "{left:?}");
    }
    // The agent was killed before it could mark anything: this is its next life.
    let machine = ordered(8 << 20);
    attach(&daemon, &machine).unwrap();
    assert_eq!((machine.dirty(), daemon.bitmaps().len()), (DISK_BYTES, 1), "all is read again");
    let machine = ordered(8 << 20);
    attach(&daemon, &machine).unwrap();
    assert_eq!((machine.dirty(), daemon.bitmaps().len()), (0, 1), "and the next one believes it");
}
