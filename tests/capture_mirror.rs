//! `capture = "mirror"` with a real QEMU (its storage daemon, which speaks the same QMP and runs the same
//! block jobs): a guest writes to its disk, and the agent is but the target of a mirror.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use holdfast::nbd::Client;
use serde_json::{Value, json};
use support::guest::have_mirror;
use support::qemu::Qemu;
use support::{AgentSite, Process, Site, eventually, have, text};

const DISK_BYTES: u64 = 48 << 20;
const CHUNK: u64 = 64 << 10;
const MACHINE: &str = "qemu-system-x86_64";

struct Vm {
    site: Site,
    agent_site: AgentSite,
    image: PathBuf,
    /// What the disk must hold, by what was acknowledged to the guest.
    model: Vec<u8>,
    writes: u64,
}

impl Vm {
    fn new() -> Self {
        let site = Site::new();
        let agent_site = site.enroll("vm-1", &[("root", DISK_BYTES)]);
        let image = site.disk("vm-1", "root");
        // Some of it holds data from the beginning.
        let mut model = vec![0; DISK_BYTES as usize];
        for (at, byte) in model[..10 << 20].iter_mut().enumerate() {
            *byte = ((at * 2_654_435_761) >> 13) as u8;
        }
        std::fs::write(&image, &model).unwrap();
        let vm = Self { site, agent_site, image, model, writes: 0 };
        vm.settings(&vm.monitor(1), "vda");
        vm
    }

    fn monitor(&self, number: u32) -> PathBuf {
        self.site.path(&format!("qmp{number}"))
    }

    fn settings(&self, monitor: &std::path::Path, device: &str) {
        let config = self.agent_site.config();
        let mut table: toml::Table = std::fs::read_to_string(&config).unwrap().parse().unwrap();
        let mut disk = toml::Table::new();
        for (key, value) in
            [("name", "root"), ("capture", "mirror"), ("qmp", text(monitor)), ("device", device)]
        {
            disk.insert(key.to_owned(), value.into());
        }
        table.insert("disk".to_owned(), toml::Value::Array(vec![disk.into()]));
        std::fs::write(&config, toml::to_string(&table).unwrap()).unwrap();
    }

    /// Of its two monitors the first is the agent's.
    fn boot(&self) -> Qemu {
        let monitor = |number| {
            let path = self.monitor(number);
            let _ = std::fs::remove_file(&path);
            format!("socket,id=m{number},path={},server=on,wait=off", path.display())
        };
        let (ours, own) = (monitor(1), monitor(2));
        let arguments = [
            "--chardev",
            &ours,
            "--monitor",
            "chardev=m1",
            "--chardev",
            &own,
            "--monitor",
            "chardev=m2",
        ];
        Qemu::start("qemu-storage-daemon", &self.image, &arguments, &self.monitor(2))
    }

    /// One whose disk is that of a device, with another disk beside it. There is no guest: the monitor writes.
    fn boot_machine(&self, other: &std::path::Path) -> Qemu {
        let own = self.monitor(2);
        let other =
            format!("driver=raw,node-name=other,file.driver=file,file.filename={}", text(other));
        let monitors =
            [1, 2].map(|number| format!("unix:{},server=on,wait=off", text(&self.monitor(number))));
        let arguments = [
            ["-machine", "q35,accel=tcg"],
            ["-m", "64"],
            ["-display", "none"],
            ["-vga", "none"],
            ["-net", "none"],
            ["-device", "virtio-blk-pci,id=vda,drive=vda"],
            ["-blockdev", &other],
            ["-qmp", &monitors[0]],
            ["-qmp", &monitors[1]],
        ];
        Qemu::start(MACHINE, &self.image, &[&arguments.concat()[..], &["-S"]].concat(), &own)
    }

    fn protect(&self) -> Process {
        self.agent_site.start(&[])
    }

    /// Waits until points are possible; gives the agent's status.
    fn ordered(&self, agent: &Process) -> Value {
        let mut status = Value::Null;
        agent.ready("every write is mirrored in order", 60, || {
            status = self.agent_site.status()?;
            let pid_is_ours = status["last"].as_u64()? > 0;
            (pid_is_ours && status["mode"] == "ordered" && status["dirty_bytes"] == 0).then_some(())
        });
        status
    }

    /// The guest's connection to its disk.
    fn guest(&self, qemu: &mut Qemu) -> Client {
        qemu.export_guest();
        let socket = support::files(&self.agent_site.directory)
            .into_iter()
            .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("qemu-"));
        let mut client = Client::connect(&socket.unwrap(), "guest").unwrap();
        // A QEMU that stands still fails the test.
        client.within(Duration::from_secs(60)).unwrap();
        client
    }

    /// One write of the guest, acknowledged.
    fn write(&mut self, guest: &mut Client, chunk: u64) {
        self.writes += 1;
        let (at, byte) = (chunk * CHUNK + (self.writes * 512) % 16_384, self.writes as u8 | 1);
        let length = 512 * (1 + self.writes % 17);
        if self.writes.is_multiple_of(5) {
            guest.zero(at, length).unwrap();
            self.model[at as usize..(at + length) as usize].fill(0);
        } else {
            let payload = vec![byte; length as usize];
            guest.write(at, &payload, false).unwrap();
            self.model[at as usize..(at + length) as usize].fill(byte);
        }
    }

    /// All over the first part of the disk.
    fn write_many(&mut self, guest: &mut Client, count: u64) {
        for turn in 0..count {
            self.write(guest, (turn * 37 + self.writes) % 256);
        }
    }

    fn bookmark(&self, name: &str) {
        let args = ["bookmark", "vm-1", "--name", name, "--wait", "recoverable"];
        eventually("a bookmark", 60, || {
            self.site.try_holdfast(&args).status.success().then_some(())
        });
    }

    /// The point holds what the guest's disk held then, byte by byte.
    fn compare(&self, name: &str, model: &[u8]) {
        let out = self.site.export("vm-1", "root", &format!("name:{name}"));
        let found = std::fs::read(out).unwrap();
        assert_eq!(found.len(), model.len());
        let differs =
            found.chunks(512).zip(model.chunks(512)).position(|(one, other)| one != other);
        assert_eq!(differs, None, "first sector of point {name} that differs");
    }
}

#[test]
fn a_guest_is_protected_while_it_writes_and_after_each_loss_little_is_read_again() {
    if !have(&["qemu-storage-daemon", "curl"]) || !have_mirror("qemu-storage-daemon") {
        return;
    }
    let mut vm = Vm::new();
    let _server = vm.site.serve();
    let mut qemu = vm.boot();
    let agent = vm.protect();
    let mut guest = vm.guest(&mut qemu);
    // Live writes beside the initial copy.
    vm.write_many(&mut guest, 400);
    vm.ordered(&agent);
    vm.bookmark("first");
    let first = vm.model.clone();
    vm.write_many(&mut guest, 300);
    vm.bookmark("second");
    let second = vm.model.clone();
    // Somebody cancels the mirror, again and again: what the guest writes then reaches nobody.
    let before = vm.agent_site.status().unwrap()["caught_up_bytes"].as_u64().unwrap();
    for _ in 0..6 {
        let job = eventually("mirrored", 30, || qemu.jobs().pop());
        qemu.ask("block-job-cancel", json!({ "device": job, "force": true })).unwrap();
        eventually("the job is gone", 20, || qemu.jobs().is_empty().then_some(()));
        vm.write_many(&mut guest, 3);
    }
    eventually("mirrored again", 30, || (!qemu.jobs().is_empty()).then_some(()));
    vm.write_many(&mut guest, 50);
    vm.bookmark("third");
    let third = vm.model.clone();
    let after = vm.agent_site.status().unwrap()["caught_up_bytes"].as_u64().unwrap();
    assert!(after - before <= 2 * 256 * CHUNK, "{} bytes were read again", after - before);

    // An agent that stops lets the guest go on; QEMU records, and only that is read again.
    agent.stop();
    assert!(qemu.jobs().is_empty());
    for chunk in [700, 3, 44, 3] {
        vm.write(&mut guest, chunk);
    }
    let agent = vm.protect();
    eventually("mirrored again", 30, || (!qemu.jobs().is_empty()).then_some(()));
    let status = vm.ordered(&agent);
    assert_eq!(status["caught_up_bytes"], 3 * CHUNK, "{status}");
    vm.bookmark("fourth");
    let fourth = vm.model.clone();

    // A killed one holds the guest for a few seconds; then the guest goes on.
    agent.kill();
    vm.write_many(&mut guest, 5);
    let agent = vm.protect();
    vm.ordered(&agent);
    vm.write_many(&mut guest, 100);
    vm.bookmark("fifth");
    assert!(std::fs::read(&vm.image).unwrap() == vm.model, "the guest's own disk");
    for (name, model) in
        [("first", first), ("second", second), ("third", third), ("fourth", fourth)]
    {
        vm.compare(name, &model);
    }
    vm.compare("fifth", &vm.model);
    agent.stop();
}

#[test]
fn a_point_holds_what_was_acknowledged_before_qemu_was_killed_and_a_new_qemu_is_read_as_a_whole() {
    if !have(&["qemu-storage-daemon", "curl"]) || !have_mirror("qemu-storage-daemon") {
        return;
    }
    let mut vm = Vm::new();
    let _server = vm.site.serve();
    let mut qemu = vm.boot();
    let agent = vm.protect();
    let mut guest = vm.guest(&mut qemu);
    vm.ordered(&agent);
    // Under load: the point is what the guest's disk was at one moment between two of its writes.
    const HOT: usize = 5 * 4096;
    let done = std::sync::atomic::AtomicBool::new(false);
    let states = std::thread::scope(|scope| {
        let (site, taken) = (&vm.site, &done);
        let taker = scope.spawn(move || {
            let args = ["bookmark", "vm-1", "--name", "load", "--wait", "recoverable"];
            eventually("a bookmark", 60, || {
                site.try_holdfast(&args).status.success().then_some(())
            });
            taken.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut hot = vm.model[..HOT].to_vec();
        let (mut states, mut number) = (vec![hot.clone()], 0_u64);
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            number += 1;
            let (at, payload) = (number * 7 % 5 * 4096, number.to_le_bytes().repeat(512));
            guest.write(at, &payload, false).unwrap();
            hot[at as usize..at as usize + 4096].copy_from_slice(&payload);
            states.push(hot.clone());
        }
        taker.join().unwrap();
        states
    });
    let out = std::fs::read(vm.site.export("vm-1", "root", "name:load")).unwrap();
    let moment = states.iter().position(|state| state[..] == out[..HOT]);
    assert!(moment.is_some(), "none of {} moments looks so", states.len());
    assert!(out[HOT..] == vm.model[HOT..]);
    vm.model[..HOT].copy_from_slice(states.last().unwrap());

    vm.write_many(&mut guest, 200);
    vm.bookmark("last");
    let last = vm.model.clone();
    vm.write_many(&mut guest, 200);
    qemu.kill();
    drop(guest);
    vm.compare("last", &last);
    let why = eventually("points are refused", 30, || {
        let args = ["bookmark", "vm-1", "--name", "dead", "--wait", "recoverable"];
        let output = vm.site.try_holdfast(&args);
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    });
    assert!(
        why.contains("disk root") || why.contains("qmp1"),
        "it names the disk or its monitor: {why}"
    );
    eventually("the status says so", 30, || {
        let status = vm.agent_site.status()?;
        let why = status["disks"][0]["capture_why"].as_str()?.to_owned();
        (why.starts_with("guest off since 2") && why.contains("qmp1")).then_some(())
    });
    // An agent that starts while its guest is off waits for it, and needs no human.
    agent.kill();
    // Whatever it has cleared by now: there is something to be read.
    std::fs::remove_file(vm.agent_site.directory.join("root.bitmap")).unwrap();
    let log = vm.site.path("off.log");
    let args = ["agent", "--config", text(&vm.agent_site.config())].map(str::to_owned);
    let args = args.each_ref().map(String::as_str);
    let agent = Process::spawn_with(&log, &args, &[("HOLDFAST_LOG", "holdfast=debug")]);
    agent.ready("it tries to read what it does not know", 60, || {
        agent.log().contains("the catch-up waits").then_some(())
    });
    let told = std::fs::read_to_string(&log).unwrap();
    assert!(!told.contains("ERROR"), "{told}");
    assert_eq!(vm.agent_site.status().unwrap()["trouble"], Value::Null);

    // Its successor may have been written before anybody looked.
    vm.model[47 << 20..(47 << 20) + 512].fill(9);
    std::fs::write(&vm.image, &vm.model).unwrap();
    let mut qemu = vm.boot();
    eventually("mirrored again", 30, || (!qemu.jobs().is_empty()).then_some(()));
    vm.bookmark("again");
    vm.compare("again", &vm.model);
    agent.stop();
}

/// 64 KiB from the device, on the way that a guest's writes go.
fn write_by_device(qemu: &mut Qemu, chunk: u64, byte: u8, content: &mut [u8]) {
    let line = format!(
        "qemu-io -d /machine/peripheral/vda/virtio-backend \"write -P {byte} {} {CHUNK}\"",
        chunk * CHUNK
    );
    let said = qemu.ask("human-monitor-command", json!({ "command-line": line })).unwrap();
    assert_eq!(said, "", "written");
    content[(chunk * CHUNK) as usize..][..CHUNK as usize].fill(byte);
}

#[test]
fn a_device_keeps_its_disk_when_the_job_is_completed_and_another_disk_of_it_is_noticed() {
    if !have(&[MACHINE, "curl"]) || !have_mirror(MACHINE) {
        return;
    }
    let mut vm = Vm::new();
    let mut other = vec![5; DISK_BYTES as usize];
    let file = vm.site.path("other.img");
    std::fs::write(&file, &other).unwrap();
    let _server = vm.site.serve();
    let mut qemu = vm.boot_machine(&file);
    let agent = vm.protect();
    vm.ordered(&agent);
    let said = |words: &str| {
        eventually(words, 30, || agent.log().contains(words).then_some(()));
    };
    let job = eventually("mirrored", 30, || qemu.jobs().pop());
    qemu.ask("block-job-complete", json!({ "device": job })).unwrap();
    said("completed by somebody");
    eventually("mirrored again", 30, || qemu.jobs().pop());
    write_by_device(&mut qemu, 3, 7, &mut vm.model);
    vm.bookmark("completed");
    vm.compare("completed", &vm.model);
    assert!(std::fs::read(&vm.image).unwrap() == vm.model, "the guest's own disk");

    let give = |qemu: &mut Qemu, node: &str| {
        let drive =
            json!({ "path": "/machine/peripheral/vda", "property": "drive", "value": node });
        qemu.ask("qom-set", drive).unwrap();
    };
    give(&mut qemu, "other");
    vm.bookmark("other");
    vm.compare("other", &other);
    said("has another disk in QEMU now");
    write_by_device(&mut qemu, 4, 9, &mut other);
    vm.ordered(&agent);
    // What QEMU recorded of the first one says nothing of what was published since.
    give(&mut qemu, "vda");
    vm.bookmark("back");
    vm.compare("back", &vm.model);
    agent.stop();
}

#[test]
fn what_cannot_be_mirrored_is_said_with_what_there_is() {
    if !have(&["qemu-storage-daemon", "curl"]) || !have_mirror("qemu-storage-daemon") {
        return;
    }
    let vm = Vm::new();
    let _qemu = vm.boot();
    let refused = |monitor: &std::path::Path, device: &str| {
        vm.settings(monitor, device);
        let config = vm.agent_site.config();
        let output = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .args(["agent", "--config", text(&config)])
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let told = refused(&vm.monitor(1), "vdb");
    assert!(told.contains("no device vdb") && told.contains("vda"), "{told}");
    let told = refused(&vm.site.path("no-monitor"), "vda");
    assert!(told.contains("no-monitor: connecting") && told.contains("-qmp"), "{told}");
}

#[test]
fn one_command_protects_a_guest_and_one_forgets_it() {
    if !have(&["qemu-storage-daemon", "curl"]) || !have_mirror("qemu-storage-daemon") {
        return;
    }
    let vm = Vm::new();
    let config = vm.agent_site.config();
    let mut table: toml::Table = std::fs::read_to_string(&config).unwrap().parse().unwrap();
    table.remove("disk");
    let bare = toml::to_string(&table).unwrap();
    std::fs::write(&config, &bare).unwrap();
    let _server = vm.site.serve();
    let mut qemu = vm.boot();
    let monitor = vm.monitor(1);
    let command = |device: &'static str, rest: &[&'static str]| {
        let mut args = vec!["agent", "attach-qemu", "--qmp", text(&monitor), "--device", device];
        args.extend(rest);
        args.extend(["--config", text(&config)]);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let fails = |device, rest: &[&'static str], words: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_holdfast")).args(command(device, rest)).output();
        let output = output.unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(words), "{told}");
    };
    fails("sda", &[], "no device sda");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), bare, "nothing was changed");
    let args = command("vda", &["--json"]);
    let log = vm.site.path("attach.log");
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let agent = Process::spawn(&log, &args);
    vm.ordered(&agent);
    vm.bookmark("one");
    vm.compare("one", &vm.model);
    agent.ready("the command says so", 20, || {
        agent.log().contains("\"capture\": \"ordered\"").then_some(())
    });
    fails("vda", &["--detach"], "stop it first");
    fails("vdb", &[], "another one");
    agent.stop();

    let bitmaps = |qemu: &mut Qemu| {
        let nodes = qemu.ask("query-named-block-nodes", json!({ "flat": true })).unwrap();
        let nodes = nodes.as_array().unwrap().clone();
        assert_eq!(nodes.len(), 2, "none of ours is left: {nodes:?}");
        nodes.iter().any(|node| node["dirty-bitmaps"].as_array().is_some_and(|all| !all.is_empty()))
    };
    assert!(bitmaps(&mut qemu), "what is written while no agent runs is recorded");
    let args = command("vda", &["--detach"]);
    support::run(env!("CARGO_BIN_EXE_holdfast"), &args);
    assert!(!bitmaps(&mut qemu));
    assert_eq!(qemu.ask("query-block-exports", json!({})).unwrap(), json!([]));
    assert!(!std::fs::read_to_string(&config).unwrap().contains("mirror"));
    let address = json!({ "addr": { "type": "unix", "data": { "path": vm.site.path("own") } } });
    qemu.ask("nbd-server-start", address).unwrap();
}

#[test]
fn a_running_agent_takes_one_disk_more_by_the_same_command() {
    if !have(&["qemu-storage-daemon", "curl"]) || !have_mirror("qemu-storage-daemon") {
        return;
    }
    let vm = Vm::new();
    let (config, data) = (vm.agent_site.config(), vm.site.path("data.img"));
    std::fs::write(&data, vec![3; 1 << 20]).unwrap();
    let mut table: toml::Table = std::fs::read_to_string(&config).unwrap().parse().unwrap();
    let disk: toml::Table =
        format!("name = \"data\"\npath = {:?}\ncapture = \"nbd\"\n", text(&data)).parse().unwrap();
    table.insert("disk".to_owned(), toml::Value::Array(vec![disk.into()]));
    std::fs::write(&config, toml::to_string(&table).unwrap()).unwrap();
    let _server = vm.site.serve();
    let mut qemu = vm.boot();
    let mut agent = vm.agent_site.start(&["data"]);
    vm.bookmark("alone");
    let monitor = vm.monitor(1);
    let attach = |disk: &str, device: &str, more: &[&str]| {
        let args = ["agent", "attach-qemu", "--qmp", text(&monitor), "--device", device];
        let rest = ["--disk", disk, "--config", text(&config)];
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        let output = command.args([&args[..], &rest[..], more].concat()).output().unwrap();
        let told =
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        (output.status.success(), told.into_owned())
    };
    let (done, told) = attach("root", "vda", &[]);
    assert!(done && told.contains("begins anew with this disk"), "{told}");
    assert!(!qemu.jobs().is_empty());
    let status = vm.agent_site.status().unwrap();
    assert_eq!((&status["mode"], &status["epoch"]), (&"ordered".into(), &2.into()), "{status}");
    vm.bookmark("both");
    vm.compare("both", &vm.model);
    let out = std::fs::read(vm.site.export("vm-1", "data", "name:both")).unwrap();
    assert!(out == vec![3; 1 << 20]);
    // Asked for once more there is nothing to do.
    let (done, told) = attach("root", "vda", &[]);
    assert!(done && !told.contains("begins anew"), "{told}");
    // What cannot be taken changes nothing: the agent, which holds the monitor, finds that out.
    let before = std::fs::read_to_string(&config).unwrap();
    let (done, told) = attach("more", "vdb", &[]);
    assert!(!done && told.contains("no device vdb"), "{told}");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), before);
    vm.bookmark("still");
    assert_eq!(vm.agent_site.status().unwrap()["epoch"], 2);
    // And it lets go of it again.
    let (done, told) = attach("root", "vda", &["--detach"]);
    assert!(done && told.contains("not protected any more"), "{told}");
    assert!(qemu.jobs().is_empty());
    assert_eq!(qemu.ask("query-block-exports", json!({})).unwrap(), json!([]));
    vm.bookmark("left");
    let status = vm.agent_site.status().unwrap();
    assert_eq!((&status["epoch"], status["disks"].as_array().unwrap().len()), (&3.into(), 1));
    // An agent that could not take something before takes what it can.
    assert!(!attach("more", "vdb", &[]).0);
    let (done, told) = attach("root", "vda", &[]);
    assert!(done, "{told}");
    assert!(std::fs::read_to_string(&config).unwrap().contains("name = \"root\""));
    assert!(agent.ended().is_none(), "one process all the time");
    agent.stop();
}
