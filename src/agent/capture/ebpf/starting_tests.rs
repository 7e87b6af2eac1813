//! What an earlier life left in the kernel, and whether it is believed. Takes root.

use super::kernel::Kernel;
use super::pins::{Note, Pins};
use super::reader::Tracked;
use super::reader_tests::loaded;
use super::starting::resume;
use crate::agent::stream_tests::{CHUNK, DISK_BYTES, ordered};

/// Nothing of them stays in the kernel.
struct Unpinned(Pins);

impl Drop for Unpinned {
    fn drop(&mut self) {
        self.0.forget();
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
