//! Devices that fail a write or take long over it, partitions, and fio's own verification.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::captured::Machine;
use crate::support::held::Held;
use crate::support::loops::Loop;
use crate::support::{Site, eventually, have, have_fuse, run, text};

const CHUNK: u64 = 64 << 10;
/// Where no tool looks for signatures by itself.
const BUSY: std::ops::Range<u64> = 85 * CHUNK..86 * CHUNK;
/// Longest that a wrong agent is given to show itself. A right one passes whatever the time.
const WRONG: Duration = Duration::from_secs(2);

fn held_machine() -> Option<(Held, Machine)> {
    if !have(&["losetup", "curl"]) || !have_fuse() {
        return None;
    }
    let held = Held::new(8 << 20)?;
    let machine = Machine::on(Site::new(), &[("a", held.path())], 256 << 10);
    Some((held, machine))
}

fn same(machine: &Machine, held: &Held, name: &str) {
    let (image, device) = (machine.point(name).remove(0), held.bytes());
    let wrong = device.iter().zip(&image).position(|(one, other)| one != other);
    assert_eq!((device.len(), wrong), (image.len(), None), "{}", machine.log());
}

#[test]
fn what_the_device_fails_is_read_again_and_nothing_else() {
    let Some((held, machine)) = held_machine() else { return };
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let agent = machine.start();
    let before = machine.ordered()["caught_up_bytes"].as_u64().unwrap();
    let device = held.device.as_ref().unwrap().direct();
    device.write(BUSY.start, &[1; 8192]).unwrap();
    held.fail(Some(BUSY.start + 4096..BUSY.end));
    device.write(0, &[2; 4096]).unwrap();
    let failed = device.write(BUSY.start, &[3; 8192]).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(5), "EIO");
    device.write(4096, &[4; 4096]).unwrap();
    same(&machine, &held, "failing");
    assert!(machine.log().contains("the device failed a write"), "{}", machine.log());
    let again = machine.ordered()["caught_up_bytes"].as_u64().unwrap() - before;
    assert_eq!(again, CHUNK, "only what failed is read again");
    held.fail(None);
    device.write(BUSY.start, &[5; 8192]).unwrap();
    same(&machine, &held, "written");
    assert_eq!(machine.log().matches("the device failed a write").count(), 1);
    assert!(agent.stop().success());
    drop((apply, server));
}

/// The device has a write of `byte` and does not answer; meanwhile nobody may read what it changes.
fn held_back(held: &Held, byte: u8, meanwhile: impl FnOnce()) {
    held.hold(BUSY);
    let device = held.device.as_ref().unwrap().direct();
    std::thread::scope(|scope| {
        let write = scope.spawn(move || device.write(BUSY.start, &[byte; 4096]));
        held.holds();
        meanwhile();
        let read = held.was_read(WRONG);
        held.let_go();
        write.join().unwrap().unwrap();
        assert!(!read, "read for the stream while a write was in flight there");
    });
}

#[test]
fn nothing_is_read_before_the_writes_in_flight_have_landed() {
    let Some((held, machine)) = held_machine() else { return };
    let server = machine.site.serve();
    let apply = machine.site.apply();
    // Issued before anybody saw it.
    let mut agent = None;
    held_back(&held, 1, || agent = Some(machine.start()));
    machine.ordered();
    same(&machine, &held, "unseen");
    // Seen, and without its bytes: there was no room for them.
    let agent = agent.unwrap();
    agent.signal("STOP");
    let device = held.device.as_ref().unwrap().direct();
    for slot in 0..128_u64 {
        device.write(slot * 4096, &[slot as u8 | 1; 4096]).unwrap();
    }
    held_back(&held, 2, || agent.signal("CONT"));
    same(&machine, &held, "seen");
    assert!(machine.log().contains("ring was full"), "{}", machine.log());
    assert!(agent.stop().success());
    drop((apply, server));
}

/// A device without statistics; they outlive a loop device, and go on when this goes.
struct Uncounted(PathBuf);

impl Uncounted {
    fn new(device: &Path) -> Self {
        let counts = Path::new("/sys/block").join(device.file_name().unwrap());
        let counts = Self(counts.join("queue/iostats"));
        fs::write(&counts.0, "0").unwrap();
        counts
    }
}

impl Drop for Uncounted {
    fn drop(&mut self) {
        let _ = fs::write(&self.0, "1");
    }
}

#[test]
fn where_writes_in_flight_are_not_counted_nothing_is_read_for_a_while() {
    let Some((held, machine)) = held_machine() else { return };
    let server = machine.site.serve();
    let uncounted = Uncounted::new(&held.path());
    let mut agent = None;
    held_back(&held, 1, || agent = Some(machine.start()));
    let told = "does not count the writes in flight";
    eventually("the warning", 20, || machine.log().contains(told).then_some(()));
    assert!(machine.log().contains("queue/iostats"), "{}", machine.log());
    agent.unwrap().kill();
    drop((server, uncounted));
}

/// Sectors of the whole device: two captured parts, and one between them that is not.
const PARTS: [(u64, u64); 3] = [(2048, 16384), (18432, 16384), (34816, 16384)];
const WHOLE_BYTES: u64 = 32 << 20;

/// Makes the parts; names the captured two.
fn partitioned(device: &Loop) -> [(&'static str, PathBuf); 2] {
    for (number, (start, sectors)) in (1..).zip(PARTS) {
        let place = [number, start, sectors].map(|number: u64| number.to_string());
        run(
            "addpart",
            &[&[text(&device.path)], &place.each_ref().map(String::as_str)[..]].concat(),
        );
    }
    [("a", 1), ("b", 3)]
        .map(|(name, number)| (name, format!("{}p{number}", device.path.display()).into()))
}

fn discard(device: &Path, start: u64, end: u64) -> bool {
    let (start, length) = (start.to_string(), (end - start).to_string());
    let mut command = std::process::Command::new("blkdiscard");
    command.args(["-o", &start, "-l", &length]).arg(device);
    command.output().unwrap().status.success()
}

#[test]
fn partitions_are_captured_and_the_rest_of_their_disk_is_not() {
    if !have(&["losetup", "addpart", "blkdiscard", "curl"]) {
        return;
    }
    let site = Site::new();
    let file = site.path("whole.img");
    File::create(&file).unwrap().set_len(WHOLE_BYTES).unwrap();
    let Some(whole) = Loop::over(&file, &["-P"]) else { return };
    let machine = Machine::on(site, &partitioned(&whole), 4 << 20);
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let agent = machine.start();
    machine.ordered();
    let image = |name: &str| {
        let device = fs::read(&file).unwrap();
        for (image, (start, sectors)) in machine.point(name).iter().zip([PARTS[0], PARTS[2]]) {
            let part = &device[start as usize * 512..][..sectors as usize * 512];
            let wrong = part.iter().zip(image).position(|(one, other)| one != other);
            assert_eq!((part.len(), wrong), (image.len(), None), "{}", machine.log());
        }
    };
    let direct = whole.direct();
    direct.write(PARTS[0].0 * 512, &[1; 65536]).unwrap();
    direct.write(PARTS[2].0 * 512 + 65536, &[2; 65536]).unwrap();
    image("before");
    let between = PARTS[1].0 * 512;
    for slot in 0..40 {
        direct.write(between + slot * 65536, &[3; 65536]).unwrap();
    }
    direct.write(0, &[4; 65536]).unwrap();
    direct.write(WHOLE_BYTES - 65536, &[5; 65536]).unwrap();
    assert!(discard(&whole.path, between, between + (1 << 20)));
    image("after");
    let points = machine.site.points(&machine.name);
    let sequence = |name: &str| {
        points.iter().find(|point| point["name"] == name).unwrap()["sequence"].as_u64().unwrap()
    };
    assert_eq!(sequence("after"), sequence("before") + 1, "a bookmark, and nothing else");
    // Over the borders, as only the whole device can; each sector its own bytes.
    let sectors: Vec<u8> = (0..65536).map(|at| (at / 512) as u8 ^ 99).collect();
    direct.write(between - 32768, &sectors).unwrap();
    direct.write(PARTS[2].0 * 512 - 32768, &sectors).unwrap();
    image("borders");
    assert!(discard(&whole.path, between - 65536, PARTS[2].0 * 512 + 8192));
    direct.write(PARTS[0].0 * 512 + 65536, &[8; 65536]).unwrap();
    image("discarded");
    assert!(agent.stop().success());
    drop((apply, server));
}

#[test]
fn a_discard_that_fails_is_read_again_where_it_was_asked_for() {
    if !have(&["losetup", "addpart", "blkdiscard", "curl"]) || !have_fuse() {
        return;
    }
    let Some(held) = Held::new(WHOLE_BYTES) else { return };
    let parts = partitioned(held.device.as_ref().unwrap());
    let machine = Machine::on(Site::new(), &parts, 4 << 20);
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let agent = machine.start();
    machine.ordered();
    let (start, direct) = (PARTS[0].0 * 512, held.device.as_ref().unwrap().direct());
    direct.write(start, &[7; 65536]).unwrap();
    direct.write(PARTS[2].0 * 512, &[8; 65536]).unwrap();
    machine.bookmark("before");
    let before = machine.ordered()["caught_up_bytes"].as_u64().unwrap();
    // The kernel says that it is done: a device may leave what stands there.
    assert!(discard(&parts[0].1, 0, 4096));
    let (images, device) = (machine.point("after"), held.bytes());
    let part = &device[start as usize..][..images[0].len()];
    assert!(part[..65536] == [7; 65536] && *part == images[0], "{}", machine.log());
    let again = machine.ordered()["caught_up_bytes"].as_u64().unwrap() - before;
    assert_eq!(again, CHUNK, "the other part is not read again");
    assert!(agent.stop().success());
    drop((apply, server));
}

#[test]
fn what_fio_wrote_verifies_on_the_recovered_disk() {
    if !have(&["fio"]) {
        return;
    }
    let Some(machine) = Machine::new(64 << 20, 32 << 20) else { return };
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let agent = machine.start();
    machine.ordered();
    let fio = |file: &Path, how: &[&str]| {
        let file = format!("--filename={}", file.display());
        let all = [&file, "--ioengine=libaio", "--verify=crc32c", "--verify_state_save=0"];
        let random = ["--name=random", "--rw=randwrite", "--bs=4k", "--size=8m", "--iodepth=16"];
        let large = ["--name=large", "--rw=write", "--bs=256k", "--offset=16m", "--size=16m"];
        run("fio", &[&all, how, &random, &large].concat());
    };
    fio(&machine.loops[1].path, &["--direct=1", "--do_verify=0"]);
    machine.same("fio");
    machine.lost_nothing();
    let image = machine.images("fio").remove(1);
    fio(&image, &["--verify_only"]);
    // And it would be noticed.
    let mut bytes = fs::read(&image).unwrap();
    bytes[5 << 20] ^= 1;
    fs::write(&image, bytes).unwrap();
    assert!(std::panic::catch_unwind(|| fio(&image, &["--verify_only"])).is_err());
    assert!(agent.stop().success());
    drop((apply, server));
}
