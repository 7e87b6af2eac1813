//! All machines of a run: enrolled, connected, driven through phases, closed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast::model::MachineId;
use rustls::pki_types::CertificateDer;

use super::audit::Expected;
use super::crew::{Hand, Order, Phase, Report};
use super::dial::Dialer;
use super::machine::Machine;
use super::tally::Tally;
use crate::error::LoadError;

/// Threads that dial: each waits for the server's answers most of the time.
const DIALLING: usize = 16;
/// How often a waiting run looks whether the server is alive.
const LOOK: Duration = Duration::from_millis(200);

/// One thread of the crew.
struct Member {
    orders: Sender<Order>,
    reports: Receiver<Report>,
    thread: JoinHandle<()>,
}

/// Connected machines.
pub(crate) struct Fleet {
    crew: Vec<Member>,
}

impl Fleet {
    /// Connects `machines`, spread over `threads`.
    pub(crate) fn connect(
        dialer: &Dialer,
        machines: Vec<(Machine, CertificateDer<'static>)>,
        threads: u8,
        done: impl Fn() + Sync,
    ) -> Result<Self, LoadError> {
        let mut crew = Vec::new();
        for _ in 0..threads {
            let ((orders, ordered), (reporting, reports)) = (channel(), channel());
            let hand = Hand::new(ordered, reporting)?;
            let thread = std::thread::spawn(move || hand.run());
            crew.push(Member { orders, reports, thread });
        }
        let waiting = Mutex::new(machines.into_iter());
        let orders: Vec<_> = crew.iter().map(|member: &Member| member.orders.clone()).collect();
        let next = AtomicUsize::new(0);
        let dial_all = || -> Result<(), LoadError> {
            loop {
                let one = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((mut machine, certificate)) = one else { return Ok(()) };
                let link = dialer.dial(&mut machine, certificate).map_err(|source| {
                    LoadError::Dial { machine: machine.id().to_string(), source }
                })?;
                // From now on its thread keeps the connection alive.
                let member = next.fetch_add(1, Ordering::Relaxed) % orders.len();
                drop(orders[member].send(Order::Join(Box::new((machine, link)))));
                done();
            }
        };
        std::thread::scope(|scope| {
            let dialling: Vec<_> = (0..DIALLING).map(|_| scope.spawn(dial_all)).collect();
            let joined = dialling.into_iter().map(|thread| thread.join());
            let ended = joined.map(|ended| ended.map_err(|_| LoadError::Thread("dialling"))?);
            ended.collect::<Result<(), _>>()
        })?;
        Ok(Self { crew })
    }

    /// Runs a phase until everything of it is published. `looked` is called while it waits.
    pub(crate) fn run(
        &self,
        phase: &Phase,
        looked: impl FnMut() -> Result<(), LoadError>,
    ) -> Result<Tally, LoadError> {
        self.order(|| Order::Begin(phase.clone()));
        self.settled(Tally::new(phase.start, phase.slot), looked)
    }

    /// Places the last bookmark of every machine and waits until it is published.
    pub(crate) fn finish(
        &self,
        name: &str,
        tamper: bool,
        looked: impl FnMut() -> Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        for (number, member) in self.crew.iter().enumerate() {
            let (name, tamper) = (name.to_owned(), tamper && number == 0);
            drop(member.orders.send(Order::Finish { name, tamper }));
        }
        let nothing = Tally::new(Duration::ZERO, Duration::from_secs(1));
        self.settled(nothing, looked).map(drop)
    }

    /// Closes all connections; what each machine must hold.
    pub(crate) fn close(self) -> Result<Vec<Expected>, LoadError> {
        self.order(|| Order::Leave);
        let mut machines = Vec::new();
        for member in self.crew {
            for report in member.reports {
                match report {
                    Report::Machines(closed) => machines.extend(closed),
                    Report::Settled(_) => {}
                    Report::Failed(error) => return Err(error.into()),
                }
            }
            member.thread.join().map_err(|_| LoadError::Thread("machines"))?;
        }
        let closed = machines.into_iter().filter_map(Machine::closed);
        let expected = |(machine, disks, sequence, ledger): (MachineId, _, _, _)| Expected {
            machine,
            disks,
            sequence,
            ledger,
        };
        Ok(closed.map(expected).collect())
    }

    fn order(&self, order: impl Fn() -> Order) {
        for member in &self.crew {
            drop(member.orders.send(order())); // one that has failed says so itself
        }
    }

    fn settled(
        &self,
        mut sum: Tally,
        mut looked: impl FnMut() -> Result<(), LoadError>,
    ) -> Result<Tally, LoadError> {
        for member in &self.crew {
            loop {
                match member.reports.recv_timeout(LOOK) {
                    Ok(Report::Settled(tally)) => {
                        sum.add(&tally);
                        break;
                    }
                    Ok(Report::Failed(error)) => {
                        looked()?; // a server that has ended is the better reason
                        return Err(error.into());
                    }
                    Ok(Report::Machines(_)) => return Err(LoadError::Thread("machines")),
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) => looked()?,
                    Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                        return Err(LoadError::Thread("machines"));
                    }
                }
            }
        }
        Ok(sum)
    }
}
