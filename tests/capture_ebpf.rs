//! Existing block devices, captured by a program in the kernel while they are written: what the
//! program saw is one prefix over both disks, and whatever the rings could not hold is read again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use holdfast::clock::{Clock, System};
use support::captured::{DISKS, End, Machine};
use support::oracle::History;
use support::{Process, eventually, have, run, text};

const DISK_BYTES: u64 = 48 << 20;

#[test]
fn the_program_is_built_from_its_source() {
    if !have(&["clang-14"]) {
        return;
    }
    let folder = std::path::Path::new("src/agent/capture/ebpf/program");
    let fresh = tempfile::NamedTempFile::new().unwrap();
    let built = run(text(&folder.join("build.sh")), &[text(fresh.path())]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let same = fs::read(folder.join("capture.bpf.o")).unwrap() == fs::read(fresh.path()).unwrap();
    assert!(same, "capture.bpf.o is not what build.sh makes of capture.bpf.c");
}

/// Who calls whom in the program, deepest calls only; a loop's body is called by it.
const CALLS: [&[&str]; 9] = [
    &["issue", "see_zeroes", "zero_bio", "set_dirty", "set_word"],
    &["issue", "see_zeroes", "zero_bio", "tell"],
    &["issue", "see_write", "copy_piece"],
    &["issue", "see_write", "tell"],
    &["complete", "tell"],
    &["complete", "set_dirty", "set_word"],
    &["complete", "fail", "set_dirty", "set_word"],
    &["failed", "fail", "tell"],
    &["find", "look"],
];
/// Of all frames of a call together; older kernels (6.1) round each up to 32 bytes (check_max_stack_depth).
const STACK_BYTES_MAX: usize = 512;
const FRAME_BYTES: usize = 32;

#[test]
fn no_call_of_the_program_needs_more_stack_than_an_older_kernel_gives() {
    if !have(&["clang-14"]) {
        return;
    }
    let object = tempfile::NamedTempFile::new().unwrap();
    let script = "src/agent/capture/ebpf/program/build.sh";
    let built = run(script, &[text(object.path()), "-Wframe-larger-than=0"]);
    let said = String::from_utf8_lossy(&built.stderr).into_owned();
    let frame = |line: &str| {
        let (bytes, rest) = line.split_once("stack frame size (")?.1.split_once(')')?;
        Some((rest.split('\'').nth(1)?.to_owned(), bytes.parse().ok()?))
    };
    let frames: BTreeMap<String, usize> = said.lines().filter_map(frame).collect();
    assert!(frames.len() > 5, "the compiler tells no frames: {said}");
    for function in frames.keys() {
        assert!(CALLS.concat().contains(&function.as_str()), "who calls {function}?");
    }
    for call in CALLS {
        let bytes = |name: &&str| frames.get(*name).copied().unwrap_or(0).max(1);
        let all: usize = call.iter().map(|one| bytes(one).next_multiple_of(FRAME_BYTES)).sum();
        assert!(all <= STACK_BYTES_MAX, "{call:?} take {all} bytes: {frames:?}");
    }
}

#[test]
fn points_under_load_are_prefixes_over_both_disks() {
    let Some(machine) = Machine::new(64 << 20, DISK_BYTES) else { return };
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let agent = machine.start();
    machine.ordered();
    let (done, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut history = History::default();
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut history = History::default();
            machine.write(7, &mut history, &done, |_| !ended.load(Ordering::Acquire));
            history
        });
        let _end = End(&ended);
        for turn in 0..4 {
            let before = done.load(Ordering::Acquire);
            let images = machine.point(&format!("p{turn}"));
            seen.push((before, done.load(Ordering::Acquire) + 1, images));
        }
        ended.store(true, Ordering::Release);
        history = writer.join().unwrap();
    });
    for (from, to, images) in &seen {
        let cut = history.check_bytes(images, *from..=*to);
        assert!(cut.is_ok(), "{cut:?}\n{}", machine.log());
    }
    assert!(history.writes.len() > 20, "the load was none");
    // Asked for while the agent has not read the ring yet: a point must still have all of it.
    for turn in 0..3 {
        agent.signal("STOP");
        let from = history.writes.len() as u64;
        machine.write(20 + turn, &mut history, &done, |number| number < from + 60);
        let name = format!("behind-{turn}");
        let args = ["bookmark", &machine.name, "--name", &name, "--wait", "recoverable"];
        let mut asked = machine.site.spawn(&args);
        support::pause(400); // the request waits in the agent's socket
        agent.signal("CONT");
        assert!(eventually("the bookmark", 60, || asked.ended()).success(), "{}", asked.log());
        let images: Vec<_> = (DISKS.iter())
            .map(|disk| machine.site.export(&machine.name, disk, &format!("name:{name}")))
            .map(|path| fs::read(path).unwrap())
            .collect();
        let all = history.writes.len() as u64;
        assert_eq!(history.check_bytes(&images, all..=all), Ok(all));
    }
    machine.same("last");
    machine.lost_nothing();
    assert!(agent.stop().success());
    drop((apply, server));
}

#[test]
fn file_systems_with_discards_arrive_as_they_are() {
    let Some(machine) = Machine::new(64 << 20, DISK_BYTES) else { return };
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let agent = machine.start();
    machine.ordered();
    for (number, device) in machine.loops.iter().enumerate() {
        let folder = machine.site.path(&format!("mnt{number}"));
        fs::create_dir(&folder).unwrap();
        assert!(run("mkfs.ext4", &["-q", text(&device.path)]).status.success());
        assert!(run("mount", &[text(&device.path), text(&folder)]).status.success());
        for file in 0..40_u8 {
            let path = folder.join(format!("f{file}"));
            fs::write(&path, vec![file; 3000 * usize::from(file) + 1]).unwrap();
            if file % 3 == 0 {
                fs::File::open(&path).unwrap().sync_all().unwrap();
            }
            if file % 4 == 3 {
                fs::remove_file(folder.join(format!("f{}", file - 1))).unwrap();
            }
        }
        fs::remove_file(folder.join("f39")).unwrap();
        let trimmed = run("fstrim", &["-v", text(&folder)]);
        let unmounted = run("umount", &[text(&folder)]);
        assert!(trimmed.status.success() && unmounted.status.success());
    }
    machine.same("last");
    machine.lost_nothing();
    assert!(agent.stop().success());
    drop((apply, server));
}

#[test]
fn a_ring_that_overflows_is_noticed_and_repaired() {
    let Some(machine) = Machine::new(256 << 10, DISK_BYTES) else { return };
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let agent = machine.start();
    machine.ordered();
    agent.signal("STOP");
    let mut history = History::default();
    let done = AtomicU64::new(0);
    machine.write(11, &mut history, &done, |number| number < 40);
    // More extents than the second ring holds: the bits alone know of the rest.
    let device = machine.loops[1].direct();
    for slot in 0..6100_u64 {
        device.write(DISK_BYTES / 2 + slot * 4096, &[slot as u8 | 1; 512]).unwrap();
    }
    agent.signal("CONT");
    machine.same("last");
    let log = machine.log();
    assert!(log.contains("rings were full"), "{log}");
    assert!(log.contains("to=CatchingUp"), "{log}");
    machine.ordered();
    assert!(agent.stop().success());
    drop((apply, server));
}

#[test]
fn what_is_written_while_no_agent_runs_is_read_again_and_nothing_else() {
    let Some(machine) = Machine::new(4 << 20, DISK_BYTES) else { return };
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let mut agent = machine.start();
    machine.ordered();
    machine.same("first");
    machine.settled();
    for (turn, kill) in [(1, true), (2, false), (3, true)] {
        if kill {
            agent.kill();
        } else {
            assert!(agent.stop().success());
        }
        let device = machine.loops[0].direct();
        for part in 0..8 {
            device.write((turn * 8 + part) << 20, &[turn as u8 * 16 + part as u8; 4096]).unwrap();
        }
        agent = machine.start();
        // Something in order right behind it.
        machine.loops[1].direct().write(turn << 20, &[turn as u8; 8192]).unwrap();
        machine.same(&format!("turn-{turn}"));
        let status = machine.ordered();
        let again = status["caught_up_bytes"].as_u64().unwrap();
        assert!((8 * 65536..4 << 20).contains(&again), "{again}: {}", machine.log());
    }
    let epochs = machine.log().matches("a new epoch begins").count();
    assert_eq!(epochs, 1, "only the first start resyncs: {}", machine.log());
    assert!(agent.stop().success());
    drop((apply, server));
}

#[test]
fn an_agent_stops_in_order_while_its_disks_are_written() {
    let Some(machine) = Machine::new(64 << 20, DISK_BYTES) else { return };
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let agent = machine.start();
    machine.ordered();
    let (done, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let device = machine.loops[0].direct();
            for slot in (0..512_u64).cycle().take_while(|_| !ended.load(Ordering::Acquire)) {
                device.write(slot * 4096, &[slot as u8 | 1; 4096]).unwrap();
                done.fetch_add(1, Ordering::Release);
            }
        });
        let _end = End(&ended);
        eventually("writes", 60, || (done.load(Ordering::Acquire) > 100).then_some(()));
        let stopped = agent.stop();
        assert!(stopped.success(), "{stopped}: {}", machine.log());
    });
    let log = machine.log();
    assert!(log.contains("stopped=Clean") && !log.contains("ERROR"), "{log}");
    let agent = machine.start();
    machine.same("last");
    assert!(agent.stop().success());
    drop((apply, server));
}

/// How often the thread that reads the ring has given up its CPU to wait for something.
fn rests(agent: &Process) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
    let mut folders = threads.map(|thread| thread.unwrap().path());
    let is_reader = |folder: &std::path::PathBuf| {
        fs::read_to_string(folder.join("comm")).unwrap().trim() == "ebpf-reader"
    };
    let status = fs::read_to_string(folders.find(is_reader).unwrap().join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn nobody_is_woken_for_each_record() {
    let Some(machine) = Machine::new(4 << 20, DISK_BYTES) else { return };
    let server = machine.site.serve();
    let agent = machine.start();
    machine.ordered();
    let device = machine.loops[0].direct();
    let (before, begin) = (rests(&agent), System.monotonic());
    for slot in 0..4000_u64 {
        device.write(slot % 64 * 512, &[slot as u8; 512]).unwrap();
    }
    // Looks are 5 ms apart, and some wait for a sync or a lock as well; a slow machine has more of them.
    let looks = (System.monotonic() - begin).as_millis() as u64 / 5 + 1;
    let rested = rests(&agent) - before;
    assert!(rested < 2 * looks + 100, "{rested} rests in {looks} looks at 4000 records");
    assert!(agent.stop().success());
    drop(server);
}

#[test]
fn what_nobody_takes_is_not_copied_and_bytes_come_again_with_a_server() {
    let Some(machine) = Machine::new(4 << 20, DISK_BYTES) else { return };
    let agent = machine.start();
    eventually("nothing is copied any more", 60, || {
        let status = machine.agent.status()?;
        (status["disks"][0]["capture"] == "extents").then_some(())
    });
    agent.signal("STOP");
    for part in 0..64_u64 {
        // Four times what the ring holds.
        let bytes = vec![part as u8 + 1; 256 << 10];
        machine.loops[1].direct().write(DISK_BYTES / 2 + part * (256 << 10), &bytes).unwrap();
    }
    agent.signal("CONT");
    let (done, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut services = None;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut history = History::default();
            machine.write(5, &mut history, &done, |_| !ended.load(Ordering::Acquire));
            history
        });
        let _end = End(&ended);
        services = Some((machine.site.serve(), machine.site.apply()));
        machine.ordered();
        let before = done.load(Ordering::Acquire);
        let mut images = machine.point("under-load");
        let seen = before..=done.load(Ordering::Acquire) + 1;
        ended.store(true, Ordering::Release);
        let history = writer.join().unwrap();
        images.iter_mut().for_each(|image| image.truncate(DISK_BYTES as usize / 8));
        let cut = history.check_bytes(&images, seen);
        assert!(cut.is_ok(), "{cut:?}\n{}", machine.log());
    });
    machine.same("first");
    machine.lost_nothing();
    let caught_up = |status: serde_json::Value| status["caught_up_bytes"].as_u64().unwrap();
    let before = caught_up(machine.ordered());
    for part in 0..64_u64 {
        machine.loops[0].direct().write(part * 65536, &[part as u8 | 64; 4096]).unwrap();
    }
    machine.same("last");
    assert_eq!(caught_up(machine.ordered()), before, "{}", machine.log());
    assert!(agent.stop().success());
    drop(services);
}
