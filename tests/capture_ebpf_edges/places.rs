//! Where it is only known where was written: everything is read again, and a point is the disks as they
//! stood when nothing was left to read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::captured::{End, Machine};
use crate::support::mounts::Mounted;
use crate::support::oracle::History;
use crate::support::pause;

const DISK_BYTES: u64 = 16 << 20;
/// What the state directory has room for: bitmaps and status, not the writes of the proof.
const ROOM_BYTES: u64 = 80 << 10;

#[test]
fn points_of_places_without_bytes_are_prefixes_too() {
    // The proof's device fails its larger write: that it was made is seen, its bytes are not proven.
    let Some(state) = Mounted::new("tmpfs", 16) else { return };
    // Declared behind it: what it pinned is released by what stands there.
    let Some(mut machine) = Machine::new(64 << 20, DISK_BYTES) else { return };
    state.fill(ROOM_BYTES);
    machine.agent.set("state_directory", state.path.to_str().unwrap());
    machine.state.clone_from(&state.path);
    let server = machine.site.serve();
    let apply = machine.site.apply();
    let agent = machine.start();
    let status = machine.caught_up("extents");
    let why = status["disks"][0]["capture_why"].as_str().unwrap();
    assert!(why.contains("payloads are not copied") && why.contains("test device"), "{why}");
    let (mut history, done) = (History::default(), AtomicU64::new(0));
    machine.write(3, &mut history, &done, |number| number < 40);
    let images = machine.point("quiet");
    assert_eq!(history.check_bytes(&images, 40..=40), Ok(40), "{}", machine.log());
    let ended = AtomicBool::new(false);
    let (mut points, mut refused) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        let (machine, done, ended) = (&machine, &done, &ended);
        let writer = scope.spawn(move || {
            while !ended.load(Ordering::Acquire) {
                let until = history.writes.len() as u64 + 5;
                machine.write(until, &mut history, done, |number| number < until);
                pause(150);
            }
            history
        });
        let end = End(ended);
        for turn in 0..6 {
            let (before, name) = (done.load(Ordering::Acquire), format!("p{turn}"));
            let args = ["bookmark", &machine.name, "--name", &name, "--wait", "recoverable"];
            match machine.site.try_holdfast(&args).status.success() {
                true => points.push((name, before..=done.load(Ordering::Acquire) + 1)),
                false => refused += 1,
            }
        }
        drop(end);
        let history = writer.join().unwrap();
        for (name, allowed) in &points {
            let images = machine.images(name);
            let images: Vec<_> = images.iter().map(std::path::PathBuf::as_path).collect();
            let cut = history.check(&images, allowed.clone());
            assert!(cut.is_ok(), "{name}: {cut:?}\n{}", machine.log());
        }
    });
    println!("{} points between writes, {refused} refused", points.len());
    machine.same("last");
    assert!(agent.stop().success());
    drop((apply, server));
}
