//! Mirrors that fail, or are not believed: what was missed is read again, and little is left in QEMU.
//! With a real QEMU (its storage daemon).

use std::sync::Arc;

use super::guest::{Guest, Mirrored};
use super::renewal_tests::{Daemon, Gate, eventually};
use crate::agent::capture::Observer;
use crate::agent::stream_tests::ordered;
use crate::clock::System;

#[test]
fn a_bookmark_is_taken_back_when_a_catch_up_read_while_it_was_placed() {
    let machine = ordered(8 << 20);
    let Some(daemon) = Daemon::new(&machine) else { return };
    let server = daemon.serve(&Arc::new(Gate::default()));
    let disks = vec![Mirrored { place: daemon.place_of(&machine, 0), server }];
    let (monitor, reads) = (daemon.monitor(), daemon.reads_socket());
    let watched = Guest::watch(monitor, reads, &machine.stream, &System::clock(), disks).unwrap();
    eventually("every write is mirrored", || watched.settle().ok());
    assert_eq!(watched.confirm(), Ok(()));
    machine.repair();
    let refused = watched.confirm().unwrap_err();
    assert!(refused.contains("read again while a bookmark was placed"), "{refused}");
    watched.settle().unwrap();
    assert_eq!(watched.confirm(), Ok(()), "the next one waits for what was in flight");
    watched.stop();
}
