//! `capture = "mirror"` with a Debian guest that writes to its root disk: protected by one command while
//! it writes, its agent killed and its QEMU killed. The recovered disk boots, and holds every record that
//! was synced and acknowledged before the point. And `capture = "ebpf"` on that guest's kernel, which is
//! older than those that tests run on: its verifier allows less.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::path::{Path, PathBuf};

use support::ext4::{clean_without_journal, needs_recovery};
use support::guest::{Guest, Parts};
use support::{AgentSite, Process, Site, eventually, have, pause, run, text};

const DISK_BYTES: u64 = 40 << 20;

/// A guest's machine; nothing in its settings names the guest until it is attached.
struct Machine {
    agent_site: AgentSite,
    guest: Guest,
    _server: Process,
    site: Site,
}

impl Machine {
    fn new(parts: &Parts) -> Self {
        let site = Site::new();
        let disk = site.path("root.img");
        parts.make_disk(site.directory.path(), &disk, DISK_BYTES);
        let guest = parts.boot(site.directory.path(), &disk, "write");
        let agent_site = site.enroll("vm-1", &[]);
        let server = site.serve();
        Self { agent_site, guest, _server: server, site }
    }

    /// The one command; waits until it says that every write is mirrored in order.
    fn attach(&self, turn: u32) -> Process {
        let config = self.agent_site.config();
        let args = ["agent", "attach-qemu", "--qmp", text(&self.guest.monitor)];
        let rest = ["--device", "vda", "--disk", "root", "--config", text(&config)];
        let log = self.site.path(&format!("attach-{turn}.log"));
        let agent = Process::spawn(&log, &[&args[..], &rest[..]].concat());
        agent.ready("every write is mirrored in order", 60, || {
            agent.log().contains("every write of the guest is mirrored in order").then_some(())
        });
        agent
    }

    /// A point; gives the records acknowledged before it was asked for, and the most it can hold.
    fn bookmark(&self, name: &str, more: &[&str]) -> (u64, u64) {
        let args = ["bookmark", "vm-1", "--name", name, "--wait", "recoverable"];
        let args = [&args[..], more].concat();
        let mut before = 0;
        eventually("a bookmark", 60, || {
            before = self.guest.acknowledged();
            self.site.try_holdfast(&args).status.success().then_some(())
        });
        (before, self.guest.acknowledged() + 1)
    }

    fn export(&self, point: &str) -> PathBuf {
        self.site.export("vm-1", "root", &format!("name:{point}"))
    }

    /// The points' disks boot, and each holds what it must.
    fn boot(&self, parts: &Parts, points: &[(&str, (u64, u64))]) {
        let boot = |point: &str| {
            let folder = self.site.path(point);
            std::fs::create_dir(&folder).unwrap();
            parts.boot(&folder, &self.export(point), "show")
        };
        // Beside each other.
        let guests: Vec<_> = points.iter().map(|(point, _)| boot(point)).collect();
        for (guest, (point, (least, most))) in guests.into_iter().zip(points) {
            let held = guest.shown();
            assert!((*least..=*most).contains(&held), "{point}: {held}, not {least} to {most}");
        }
    }
}

/// How long the second cut lasts beyond the moment at which the guest goes on by itself.
fn longer_s() -> u64 {
    let asked = std::env::var("HOLDFAST_TEST_CUT_S").ok();
    asked.map_or(0, |seconds| seconds.parse().expect("HOLDFAST_TEST_CUT_S is a number"))
}

#[test]
fn a_recovered_guest_boots_with_every_record_acknowledged_before_the_point() {
    let Some(parts) = Parts::find() else { return };
    let mut machine = Machine::new(&parts);
    machine.guest.goes_on(3);
    let agent = machine.attach(1);
    machine.guest.goes_on(20);
    let first = machine.bookmark("first", &[]);

    // Cut for less than QEMU waits: the guest's writes wait, too.
    agent.kill();
    pause(3_000);
    let agent = machine.attach(2);
    machine.guest.goes_on(5);
    if longer_s() > 0 {
        // One that hangs is no cut: the guest waits as long as that lasts.
        agent.signal("STOP");
        let before = machine.guest.acknowledged();
        pause(1_000 * longer_s());
        let meanwhile = machine.guest.acknowledged() - before;
        assert!(meanwhile <= 1, "{meanwhile} records without anybody who heard of them");
        agent.signal("CONT");
        machine.guest.goes_on(3);
    }
    // What the agent's own bits name is read again in any case: QEMU's shall be what counts.
    agent.ready("the first copy's bits are clear", 60, || {
        let unsettled = machine.agent_site.status()?["unsettled_bytes"].as_u64()?;
        (unsettled < DISK_BYTES / 4).then_some(())
    });
    // For longer: the guest goes on without anybody who hears of it.
    agent.kill();
    machine.guest.goes_on(10);
    pause(1_000 * longer_s());
    let agent = machine.attach(3);
    let log = agent.log();
    let told = log.lines().find(|line| line.contains("as QEMU recorded it")).unwrap();
    let (_, missed) = told.rsplit_once("bytes=").unwrap();
    let missed: u64 = missed.parse().unwrap();
    assert!((1..DISK_BYTES / 4).contains(&missed), "written while nobody heard of it: {missed}");
    machine.guest.goes_on(5);
    let last = machine.bookmark("last", &[]);
    machine.guest.goes_on(1);
    machine.guest.kill();

    machine.boot(&parts, &[("first", first), ("last", last)]);
    drop(agent);
}

#[test]
fn a_guest_that_its_own_agent_froze_needs_no_journal() {
    let Some(parts) = Parts::find() else { return };
    let mut machine = Machine::new(&parts);
    machine.agent_site.set("application.qga", text(&machine.guest.agent));
    machine.guest.goes_on(3);
    let _agent = machine.attach(1);
    machine.guest.goes_on(5);
    machine.bookmark("crash", &[]);
    machine.bookmark("frozen", &["--app"]);
    machine.guest.goes_on(5); // it was thawed
    let (crash, frozen) = (machine.export("crash"), machine.export("frozen"));
    assert!(
        needs_recovery(&crash),
        "the load leaves nothing in the journal: the test shows nothing"
    );
    assert!(!needs_recovery(&frozen));
    clean_without_journal(&frozen);
}

#[test]
fn the_program_is_proven_on_the_kernel_of_debian_12() {
    let Some(parts) = Parts::find() else { return };
    if !have(&["losetup", "strip"]) {
        return;
    }
    let site = Site::new();
    let agent = AgentSite { directory: site.path("agent-vm-1") };
    let out = text(&agent.directory);
    site.holdfast(&["enroll", "vm-1", "--out", out, "--disk", "root=/dev/vda"]);
    agent.set("state_directory", "/run/state");
    agent.set("ebpf.ring_bytes", 4 << 20);
    let settings = std::fs::read_to_string(agent.config()).unwrap();
    let settings = settings.replace("capture = \"nbd\"", "capture = \"ebpf\"");
    let folder = site.directory.path();
    std::fs::create_dir_all(folder.join("root/agent")).unwrap();
    for file in std::fs::read_dir(&agent.directory).unwrap().map(|file| file.unwrap()) {
        std::fs::copy(file.path(), folder.join("root/agent").join(file.file_name())).unwrap();
    }
    std::fs::write(folder.join("root/agent/agent.toml"), settings).unwrap();
    let (program, disk) = (folder.join("holdfast"), site.path("prove.img"));
    run("strip", &["-o", text(&program), env!("CARGO_BIN_EXE_holdfast")]);
    let losetup = run("sh", &["-c", "command -v losetup"]).stdout;
    let losetup = String::from_utf8(losetup).unwrap();
    parts.make_disk_with(folder, &disk, 160 << 20, &[&program, Path::new(losetup.trim())]);
    let said = parts.boot(folder, &disk, "prove").proved();
    assert!(said.contains("eBPF capture mode=\"ordered\""), "{said}");
}
