//! What an earlier life left in the kernel, and whether it is believed. Takes root.

use super::kernel::Kernel;
use super::pins::{Note, Pins};
use super::reader::Tracked;
use super::reader_tests::{Rig, loaded};
use super::starting::{resume, unpinned, with_cure};
use crate::agent::stream_tests::{CHUNK, DISK_BYTES, ordered};

/// Nothing of them stays in the kernel.
struct Unpinned(Pins);

impl Drop for Unpinned {
    fn drop(&mut self) {
        self.0.forget();
    }
}

#[test]
fn a_pin_that_fails_half_way_leaves_nothing_unseen_and_nothing_seen_twice() {
    // Their names are taken; the last of them are the links, in the order of their pins.
    for (taken, was_out) in [("dirty", false), ("complete", true), ("issue", true)] {
        let Some(mut rig) = Rig::new() else { return };
        let state = tempfile::tempdir().unwrap();
        let name = format!("test-{taken}-{}", std::process::id());
        let pins = Unpinned(Pins::new(&name, state.path()));
        let (_, folder) = pins.0.make().unwrap();
        std::fs::create_dir(folder.join(taken)).unwrap();
        let (kernel, stream) = (&rig.reader.shared.kernel, &rig.machine.stream);
        let why = kernel.pin(&folder).unwrap_err();
        assert_eq!(unpinned(stream, kernel, &pins.0, &why), Ok(was_out));
        let resync = stream.lock().resync.clone();
        assert_eq!(resync.is_some_and(|why| why.contains("for a moment")), was_out);
        rig.write(3 * CHUNK, 512);
        assert_eq!(rig.pass(), 1, "{taken}");
        assert_eq!(rig.reader.shared.kernel.flights().unwrap(), [], "{taken}");
    }
}

#[test]
fn runs_that_the_last_life_did_not_know_of_begin_a_new_epoch() {
    let Some((kernel, _rings)) = loaded() else { return };
    kernel.attach().unwrap();
    let state = tempfile::tempdir().unwrap();
    let pins = Unpinned(Pins::new(&format!("test-{}", std::process::id()), state.path()));
    let note = Note { boot: Pins::boot(), folder: 0, chunk_bytes: CHUNK as u32, disks: Vec::new() };
    let disks = (0..2)
        .map(|disk| Tracked { bytes: DISK_BYTES, first_chunk: disk * DISK_BYTES / CHUNK })
        .collect::<Vec<_>>();
    // Each is the life behind the one before, and leaves its own pins.
    let life = |kernel: &Kernel| {
        let machine = ordered(8 << 20);
        resume(&machine.stream, kernel, &pins.0, note.clone(), &disks).unwrap();
        machine.stream.lock().resync.clone()
    };
    let said = |why: Option<String>, word| assert!(why.as_ref().unwrap().contains(word), "{why:?}");
    said(life(&kernel), "no earlier eBPF capture");
    let missed = kernel.counts().unwrap().missed;
    kernel.handled(missed).unwrap();
    assert_eq!(life(&kernel), None);
    kernel.handled(missed + 1).unwrap();
    said(life(&kernel), "the kernel left the program out");
    kernel.handled(missed).unwrap();
    assert_eq!(life(&kernel), None);
    for pin in ["control", "issue-program", "failed-program"] {
        for folder in [0, 1].map(|number| pins.0.at(number)) {
            let _other = std::fs::remove_file(folder.join(pin));
        }
        said(life(&kernel), "open the pinned");
    }
    assert_eq!(life(&kernel), None);
}

#[test]
fn who_has_no_memory_for_a_second_ring_is_told_of_the_first() {
    let none = "load the program: map creation: Cannot allocate memory (os error 12)";
    let (earlier, alone) = (with_cure(none, true), with_cure(none, false));
    for told in [&earlier, &alone] {
        assert!(told.starts_with(none) && told.contains("ring_bytes smaller"), "{told}");
    }
    assert!(earlier.contains("holdfast agent release") && !alone.contains("release"));
    let other = with_cure("load the program: Operation not permitted (os error 1)", true);
    assert!(other.ends_with("; use capture = \"scan\""), "{other}");
}
