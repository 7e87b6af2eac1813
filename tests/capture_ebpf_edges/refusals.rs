//! Kernels and settings that eBPF capture cannot work with, as a user meets them: the agent ends with an
//! exit code, the reason, and what to do instead. The kernel is shown to it otherwise than it is in a
//! mount namespace of its own; nothing of the machine is changed.

use std::path::Path;

use crate::support::captured::{Ext4, Machine};
use crate::support::loops::Loop;
use crate::support::{Process, eventually, have, run, text};

const DISK_BYTES: u64 = 16 << 20;
const TOOLS: &[&str] = &["unshare", "setpriv", "mount"];

/// Ends by itself, with that code; gives what it said.
fn refused(machine: &Machine, mut agent: Process, code: i32) -> String {
    let status = eventually("the refusal", 60, || agent.ended());
    let log = machine.log();
    std::fs::remove_file(machine.site.path("agent.log")).unwrap();
    assert_eq!(status.code(), Some(code), "{log}");
    assert!(log.contains("error: ") && !log.contains("panicked"), "{log}");
    log
}

fn says(log: &str, words: &[&str]) {
    for word in words {
        assert!(log.contains(word), "{word:?} is not in: {log}");
    }
}

#[test]
fn a_kernel_that_does_not_let_it_is_named_with_the_next_best_way() {
    if !have(TOOLS) {
        return;
    }
    let Some(machine) = Machine::new(4 << 20, DISK_BYTES) else { return };
    let release = machine.site.path("osrelease");
    std::fs::write(&release, "5.15.0-91-generic\n").unwrap();
    let release = format!("mount --bind {} /proc/sys/kernel/osrelease", text(&release));
    let lockdown = "mount -t tmpfs none /sys/kernel/security
        echo 'none integrity [confidentiality]' > /sys/kernel/security/lockdown";
    let without = |names: &str| format!("set -- setpriv --bounding-set {names} \"$@\"");
    let cases = [
        (
            "mount -t tmpfs none /sys/kernel/btf".to_owned(),
            "the kernel has no BTF (/sys/kernel/btf/",
        ),
        (release, "the kernel is 5.15.0-91-generic, 5.17 or later is needed"),
        (lockdown.to_owned(), "the kernel is locked down (confidentiality)"),
        (
            without("-sys_admin,-bpf"),
            "a capability is missing: run the agent as root, or give it CAP_BPF",
        ),
        (without("-sys_admin,-perfmon"), "a capability is missing"),
        // It has what it takes, and cannot show itself that a write is seen.
        ("PATH=/nonexistent".to_owned(), "losetup (package mount) could not be run"),
    ];
    for (script, why) in cases {
        let log = refused(&machine, machine.start_behind(&script), 1);
        says(&log, &["error: agent settings: capture = \"ebpf\": ", why, "use capture = \"scan\""]);
        assert_eq!(log.matches("use capture").count(), 1, "one way: {log}");
    }
    // Nothing of it stays in the kernel.
    assert!(!Path::new("/sys/fs/bpf/holdfast").join(&machine.name).exists());
}

#[test]
fn with_the_least_rights_and_no_place_for_pins_it_works_until_it_is_restarted() {
    if !have(TOOLS) {
        return;
    }
    let Some(machine) = Machine::new(4 << 20, DISK_BYTES) else { return };
    let server = machine.site.serve();
    let apply = machine.site.apply();
    // Locked down to integrity it works; without CAP_SYS_ADMIN no BPF file system can be mounted.
    let script = "mount -t tmpfs none /sys/kernel/security
        echo 'none [integrity] confidentiality' > /sys/kernel/security/lockdown
        mount -t tmpfs none /sys/fs/bpf
        set -- setpriv --bounding-set -all,+bpf,+perfmon,+dac_override \"$@\"";
    let agent = machine.start_behind(script);
    machine.ordered();
    says(&machine.log(), &["the program is not pinned", "/sys/fs/bpf is no BPF file system"]);
    machine.loops[0].direct().write(1 << 20, &[1; 65536]).unwrap();
    machine.same("first");
    machine.lost_nothing();
    agent.kill();
    machine.loops[0].direct().write(2 << 20, &[2; 65536]).unwrap();
    let agent = machine.start_behind(script);
    machine.same("second");
    let begun = machine.log().matches("a new epoch begins").count();
    assert_eq!((begun, machine.ordered()["epoch"].as_u64()), (2, Some(2)), "{}", machine.log());
    assert!(agent.stop().success());
    drop((apply, server));
}

#[test]
fn settings_that_cannot_be_captured_name_the_thing_and_the_cure() {
    if !have(TOOLS) {
        return;
    }
    let Some(machine) = Machine::new(4 << 20, DISK_BYTES) else { return };
    let settings = std::fs::read_to_string(machine.agent.config()).unwrap();
    let with = |from: &str, to: &str, code: i32, words: &[&str]| {
        assert!(settings.contains(from), "{from} is not in {settings}");
        std::fs::write(machine.agent.config(), settings.replacen(from, to, 1)).unwrap();
        says(&refused(&machine, machine.start(), code), words);
        std::fs::write(machine.agent.config(), &settings).unwrap();
    };
    with(
        "capture = \"ebpf\"",
        "capture = \"fuse\"",
        2,
        &[
            "disk.capture",
            "\"ebpf\"",
            "of all disks of the machine or of none",
            "for the others as well",
        ],
    );
    let ring = "ring_bytes = 4194304";
    with(ring, "ring_bytes = 65536", 2, &["ebpf.ring_bytes", "65536", "262144"]);
    with(ring, "ring_bytes = 300000", 2, &["ebpf.ring_bytes", "300000", "must be a power of two"]);
    let (device, file) = (text(&machine.loops[0].path), text(&machine.loops[0].file));
    with(device, file, 1, &[file, "sees block devices", "use \"fuse\" or \"nbd\""]);
    let other = text(&machine.loops[1].path);
    with(device, other, 1, &["disks a and b lie on each other", "name one of them"]);
    if Path::new("/dev/zram0").exists() {
        let words = ["/dev/zram0: this device has no requests", "lsblk -s", "\"scan\""];
        with(device, "/dev/zram0", 1, &words);
    }
}

#[test]
fn a_disk_that_may_not_be_opened_is_named_with_what_may_forbid_it() {
    if !have(TOOLS) {
        return;
    }
    let Some(machine) = Machine::new(4 << 20, DISK_BYTES) else { return };
    let folder = machine.site.path("nodev");
    std::fs::create_dir(&folder).unwrap();
    let disk = folder.join("disk");
    let settings = std::fs::read_to_string(machine.agent.config()).unwrap();
    let settings = settings.replace(text(&machine.loops[0].path), text(&disk));
    std::fs::write(machine.agent.config(), settings).unwrap();
    let script = format!(
        "mount -t tmpfs -o nodev none {}\ncp -a {} {}",
        text(&folder),
        text(&machine.loops[0].path),
        text(&disk)
    );
    let log = refused(&machine, machine.start_behind(&script), 1);
    says(&log, &[text(&disk), "could not open the disk", "DeviceAllow=", "Permission denied"]);
}

#[test]
fn a_state_directory_on_a_captured_disk_is_refused() {
    if !have(&["addpart"]) {
        return;
    }
    let Some(machine) = Machine::new(4 << 20, DISK_BYTES) else { return };
    let refuse = |state: &Path, device: &Loop| {
        machine.agent.set("state_directory", text(state));
        let log = refused(&machine, machine.start(), 1);
        let device = text(&device.path);
        says(
            &log,
            &["state_directory", text(state), device, "put it on another disk", "below /run"],
        );
    };
    // On the disk itself, and on a file of it that is a disk of its own.
    let (disk, folder) = (&machine.loops[0], machine.site.path("mnt"));
    run("mkfs.ext4", &["-q", text(&disk.path)]);
    let outer = Ext4::on(&disk.path, folder.clone());
    refuse(&folder.join("state"), disk);
    let inner_disk = Loop::new(&folder.join("inner.img"), 8 << 20).unwrap();
    run("mkfs.ext4", &["-q", text(&inner_disk.path)]);
    let inner = Ext4::on(&inner_disk.path, machine.site.path("inner"));
    refuse(&inner.path, disk);
    inner.unmount();
    drop(inner_disk);
    outer.unmount();
    // On a partition of it.
    let whole = Loop::over(&machine.loops[1].file, &["-P"]).unwrap();
    run("addpart", &[text(&whole.path), "1", "2048", "16384"]);
    let part = std::path::PathBuf::from(format!("{}p1", whole.path.display()));
    run("mkfs.ext4", &["-q", text(&part)]);
    let mounted = Ext4::on(&part, machine.site.path("part"));
    let settings = std::fs::read_to_string(machine.agent.config()).unwrap();
    let settings = settings.replace(text(&machine.loops[1].path), text(&whole.path));
    std::fs::write(machine.agent.config(), settings).unwrap();
    refuse(&mounted.path, &whole);
    mounted.unmount();
}
