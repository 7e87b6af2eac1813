//! Who waits for whom: the guest's writes, QEMU's drain, a catch-up's read. With a real QEMU (its storage daemon).

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::super::attach::Link;
use super::super::qmp::Qmp;
use super::{Daemon, Gate, LATE, eventually, pause};
use crate::agent::bitmap::Teller;
use crate::agent::catchup::{self, Step};
use crate::agent::disk::Captured;
use crate::agent::stream_tests::{CHUNK, Machine, ordered_of};
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
