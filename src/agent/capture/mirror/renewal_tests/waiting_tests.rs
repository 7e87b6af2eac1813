//! Who waits for whom: the guest's writes, QEMU's drain, a catch-up's read. With a real QEMU (its storage daemon).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::super::attach::Link;
use super::super::guest::{Guest, Mirrored};
use super::super::qmp::Qmp;
use super::super::reach::Reach;
use super::loss_tests::{Between, watched_in_silence};
use super::{Daemon, Gate, LATE, eventually, moment, pause};
use crate::agent::bitmap::Teller;
use crate::agent::capture::Observer;
use crate::agent::catchup::{self, Step};
use crate::agent::disk::Captured;
use crate::agent::observed_tests::{Said, marked};
use crate::agent::stream_tests::{CHUNK, Machine, ordered_of};
use crate::clock::System;
use crate::model::TrackingMode;
use crate::nbd::Client;
use crate::settings::AgentMode;

const FIVE: u64 = 5 * CHUNK;

/// The first disk as its mirror writes it.
fn captured(machine: &Machine, mode: AgentMode) -> Captured {
    let disk = Arc::clone(&machine.stream.disks[0]);
    Captured { disk, stream: Arc::clone(&machine.stream), mode }
}

/// While it drains QEMU takes no read, and it waits for a write that is on its way to the agent.
#[test]
fn a_drain_ends_while_a_catch_up_reads_what_the_guest_writes() {
    let machine = ordered_of(Teller::Guest, 8 << 20);
    let Some(mut daemon) = Daemon::new(&machine) else { return };
    let gate = Arc::new(Gate::before(captured(&machine, AgentMode::Async)));
    let _server = daemon.serve(&gate);
    let reach = daemon.reach();
    let mut qmp = Qmp::connect(&reach.monitor).unwrap();
    let mut link = Link { qmp: &mut qmp, reach: &reach, stream: &machine.stream };
    let mut attached = link.attach(&daemon.place, &mut pause).unwrap();
    machine.repair();
    let disk = &machine.stream.disks[0];
    machine.sources[0].bytes.lock().unwrap()[FIVE as usize] = 1; // no hole
    machine.stream.unordered(disk.index, FIVE..FIVE + CHUNK, "test").unwrap();
    let mut guest = daemon.guest(&reach);
    let connect = || Client::connect_to(&reach.reads, &daemon.place.names.reads).unwrap();
    let (mut reads, mut probe) = (connect(), connect());
    reads.within(LATE).unwrap();
    probe.within(Duration::from_millis(200)).unwrap();

    let (came, go) = gate.close();
    let writer = std::thread::spawn(move || guest.write(FIVE, &[7; 512], false));
    came.recv_timeout(LATE).unwrap();
    let (begun, reading) = channel();
    *machine.sources[0].hook.lock().unwrap() = Some(Box::new(move || {
        begun.send(()).unwrap();
        reads.read(FIVE, &mut [0; 512]).unwrap();
    }));
    let (renewed, step) = std::thread::scope(|scope| {
        let (place, link, attached) = (&daemon.place, &mut link, &mut attached);
        let renewed = scope.spawn(move || link.rotate(place, attached));
        // Whoever believes that too early proves less, and nothing wrong.
        eventually("QEMU holds everything still", || probe.read(0, &mut [0; 512]).err());
        let step = scope.spawn(|| catchup::step(&machine.stream, Default::default(), 512 << 10));
        reading.recv_timeout(LATE).unwrap();
        go.send(()).unwrap();
        (renewed.join().unwrap(), step.join().unwrap())
    });
    renewed.unwrap();
    assert!(matches!(step, Ok(Step::Placed(_))), "read and placed");
    assert!(writer.join().unwrap().is_ok());
    assert_eq!(machine.dirty(), 0);
}

/// In mode sync a write behind a bookmark is answered when that is confirmed and sent.
#[test]
fn no_bitmap_is_renewed_while_a_bookmark_is_placed() {
    let machine = Arc::new(ordered_of(Teller::Guest, 8 << 20));
    let Some(mut daemon) = Daemon::new(&machine) else { return };
    let (monitor, between) =
        (daemon.monitor().with_extension("between"), Arc::<Between>::default());
    Between::listen(&between, &monitor, daemon.monitor());
    let gate = Arc::new(Gate::before(captured(&machine, AgentMode::Sync)));
    let server = daemon.serve(&gate);
    let [reach, through] = [(); 2].map(|()| Reach::here(&monitor, monitor.parent().unwrap()));
    let disks = vec![Mirrored { place: daemon.place_of(&machine, 0), server }];
    let watched = Guest::watch(reach, &machine.stream, &System::clock(), disks).unwrap();
    eventually("every write is mirrored", || watched.settle().ok());
    machine.repair();
    machine.publish_all();
    let mut guest = daemon.guest(&through);
    let (begin, begun) = channel();
    let (shared, asked) = (Arc::clone(&machine), Arc::clone(&between));
    let renewals = move || asked.count(|one| one["execute"] == "transaction");
    // The bookmark stands and is not sent.
    let said = Said::new(
        Some(Box::new(move || {
            let before = renewals();
            begin.send(std::thread::spawn(move || guest.write(FIVE, &[7; 512], false))).unwrap();
            eventually("it waits", || (shared.stream.lock().waiters == 1).then_some(()));
            // Time for ten renewals.
            (0..30).for_each(|_| moment());
            assert_eq!(renewals(), before);
        })),
        Ok(()),
    );
    machine.stream.observe_with(vec![said, Arc::clone(&watched) as _]);
    marked(&machine).unwrap();
    assert_eq!(machine.mode(), TrackingMode::Ordered, "nothing was taken back");
    machine.publish_all();
    assert!(begun.recv().unwrap().join().unwrap().is_ok());
    watched.stop();
}

/// A disk that is being attached is withheld, so no bookmark can be placed: whoever asks for one hears that.
#[test]
fn a_bookmark_does_not_wait_for_a_disk_that_is_being_attached() {
    let machine = ordered_of(Teller::Guest, 8 << 20);
    let Some(daemon) = Daemon::new(&machine) else { return };
    let (watched, silence) = watched_in_silence(&daemon, &machine, LATE);
    eventually("its bitmap is asked for", || (!silence.load(Ordering::Relaxed)).then_some(()));
    assert!(machine.stream.bookmarking.try_write().is_ok());
    drop(daemon); // nor does the agent's stop wait for it then
    watched.stop();
}
