//! All machines of a run: enrolled, connected, driven through phases, closed.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast::model::MachineId;
use rustls::pki_types::CertificateDer;
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::args::Transport;
use super::audit::Expected;
use super::crew::{Desk, Hand, Order, Phase, Report};
use super::dial::{DialError, Dialer};
use super::machine::Machine;
use super::quic_crew::QuicHand;
use super::tally::Tally;
use crate::error::LoadError;

/// Threads that dial: each waits for the server's answers most of the time.
const DIALLING: usize = 16;
/// How often a waiting run looks whether the server is alive.
const LOOK: Duration = Duration::from_millis(200);

/// One thread of the crew.
struct Member {
    orders: UnboundedSender<Order>,
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
        transport: Transport,
        machines: Vec<(Machine, CertificateDer<'static>)>,
        threads: u8,
        done: impl Fn() + Sync,
    ) -> Result<Self, LoadError> {
        let mut crew = Vec::new();
        match transport {
            Transport::Tcp => {
                let mut joins = Vec::new();
                for _ in 0..threads {
                    let (joining, ()) = hire(&mut crew, |desk| {
                        let hand = Hand::new(desk)?;
                        Ok((std::thread::spawn(move || hand.run()), ()))
                    })?;
                    joins.push(joining);
                }
                dial_all(machines, done, |number, mut machine, certificate| {
                    let link = dialer.dial(&mut machine, certificate).map_err(named(&machine))?;
                    // From now on its thread keeps the connection alive.
                    drop(joins[number % joins.len()].send((machine, link)));
                    Ok(())
                })?;
            }
            Transport::Quic => {
                let mut joins: Vec<(UnboundedSender<_>, Handle)> = Vec::new();
                for _ in 0..threads {
                    joins.push(hire(&mut crew, |desk| {
                        let runtime = Builder::new_current_thread().enable_all().build();
                        let runtime =
                            runtime.map_err(LoadError::file("tokio", "starting a runtime"))?;
                        let handle = runtime.handle().clone();
                        let hand = QuicHand::new(desk);
                        Ok((std::thread::spawn(move || hand.run(&runtime)), handle))
                    })?);
                }
                dial_all(machines, done, |number, mut machine, certificate| {
                    let (joining, runtime) = &joins[number % joins.len()];
                    let link = runtime.block_on(dialer.dial_quic(&mut machine, certificate));
                    let link = link.map_err(named(&machine))?;
                    drop(joining.send((machine, link)));
                    Ok(())
                })?;
            }
        }
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

/// Adds a thread to the crew; where machines join it, and what `start` gave beside the thread.
fn hire<L, T>(
    crew: &mut Vec<Member>,
    start: impl FnOnce(Desk<L>) -> Result<(JoinHandle<()>, T), LoadError>,
) -> Result<(UnboundedSender<(Machine, L)>, T), LoadError> {
    let (joins, joining) = unbounded_channel();
    let (orders, ordered) = unbounded_channel();
    let (reporting, reports) = channel();
    let (thread, other) = start(Desk { joining, orders: ordered, reports: reporting })?;
    crew.push(Member { orders, reports, thread });
    Ok((joins, other))
}

fn named(machine: &Machine) -> impl FnOnce(DialError) -> LoadError {
    let machine = machine.id().to_string();
    move |source| LoadError::Dial { machine, source }
}

/// Calls `dial` for each machine with its number, many at a time.
fn dial_all(
    machines: Vec<(Machine, CertificateDer<'static>)>,
    done: impl Fn() + Sync,
    dial: impl Fn(usize, Machine, CertificateDer<'static>) -> Result<(), LoadError> + Sync,
) -> Result<(), LoadError> {
    let waiting = Mutex::new(machines.into_iter().enumerate());
    let one_after_the_other = || -> Result<(), LoadError> {
        loop {
            let one = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, (machine, certificate))) = one else { return Ok(()) };
            dial(number, machine, certificate)?;
            done();
        }
    };
    std::thread::scope(|scope| {
        let dialling: Vec<_> = (0..DIALLING).map(|_| scope.spawn(one_after_the_other)).collect();
        let joined = dialling.into_iter().map(|thread| thread.join());
        let ended = joined.map(|ended| ended.map_err(|_| LoadError::Thread("dialling"))?);
        ended.collect::<Result<(), _>>()
    })
}
