//! Threads that drive machines: each waits for many sockets at once and for the next due write.
//!
//! Owns: sockets and when a machine is looked at. Does not own: what it then does
//! ([`super::machine`]). Few threads and few system calls, because the server that is measured has
//! the same cores: up to 1 MiB of records is composed before it is written, in one buffer for all
//! machines of a thread.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::mpsc::Sender;
use std::time::Duration;

use holdfast::clock::{Clock, System};
use rustix::event::epoll::{self, EventData, EventFlags};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::error::TryRecvError;

use super::link::{Link, LinkError, WRITE_BYTES};
use super::machine::{Machine, Nonsense, Poll};
use super::pace::{Pace, Schedule};
use super::tally::Tally;
use crate::tls::SEALED_BYTES_MAX;

/// Longest sleep: orders are looked for that often.
const NAP: Duration = Duration::from_millis(20);
/// How often RPOs are looked at.
pub(crate) const SAMPLE: Duration = Duration::from_millis(100);
/// How often it is looked whether everything is settled.
pub(crate) const SETTLED: Duration = Duration::from_millis(2);
const EVENTS: usize = 256;

/// What a thread is told.
pub(crate) enum Order {
    /// A phase of load; answered by [`Report::Settled`].
    Begin(Phase),
    /// A last bookmark on every machine; answered when it is published.
    Finish { name: String, tamper: bool },
    /// Give the machines back.
    Leave,
}

/// One phase.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    pub(crate) start: Duration,
    pub(crate) until: Duration,
    /// Slot of the course over time.
    pub(crate) slot: Duration,
    pub(crate) pace: Pace,
    /// Of the loud machine, when there is one.
    pub(crate) loud: Option<Pace>,
    pub(crate) bursts: bool,
}

impl Phase {
    /// Of the thread's machine of this number.
    pub(crate) fn schedule(&self, number: usize, loud: bool) -> Schedule {
        let pace = self.loud.filter(|_| loud).unwrap_or(self.pace);
        let offset = (number as f64 * 0.618_034).fract();
        Schedule::new(pace, self.bursts, self.start, offset)
    }
}

/// What a thread of the crew is reached by.
pub(crate) struct Desk<L> {
    /// Machines and their connections; whoever joined before an order is there when it is taken.
    pub(crate) joining: UnboundedReceiver<(Machine, L)>,
    pub(crate) orders: UnboundedReceiver<Order>,
    pub(crate) reports: Sender<Report>,
}

/// What a thread says.
pub(crate) enum Report {
    /// What was ordered is done, and everything is published.
    Settled(Box<Tally>),
    /// Its machines, at the end.
    Machines(Vec<Machine>),
    Failed(CrewError),
}

/// A machine that could not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CrewError {
    #[error("machine {machine}")]
    Link {
        machine: String,
        #[source]
        source: LinkError,
    },
    #[error("machine {machine}")]
    Nonsense {
        machine: String,
        #[source]
        source: Nonsense,
    },
    #[error("waiting for sockets")]
    Epoll(#[from] rustix::io::Errno),
    #[error("a machine's task ended in a panic")]
    Panic,
}

/// One machine and its connection.
struct Post {
    machine: Machine,
    link: Link,
    loud: bool,
    /// When it wants to be looked at next.
    wake: Duration,
    is_ready: bool,
}

/// A thread's own.
pub(crate) struct Hand {
    desk: Desk<Link>,
    epoll: std::os::fd::OwnedFd,
    posts: Vec<Post>,
    wakes: BinaryHeap<Reverse<(Duration, usize)>>,
    ready: Vec<usize>,
    scratch: Vec<u8>,
    tally: Tally,
    /// Whether somebody waits for a report.
    is_ordered: bool,
    sample_at: Duration,
    settled_at: Duration,
}

impl Hand {
    pub(crate) fn new(desk: Desk<Link>) -> Result<Self, CrewError> {
        Ok(Self {
            desk,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            posts: Vec::new(),
            wakes: BinaryHeap::new(),
            ready: Vec::new(),
            scratch: Vec::with_capacity(WRITE_BYTES + SEALED_BYTES_MAX),
            tally: Tally::new(Duration::ZERO, Duration::from_secs(1)),
            is_ordered: false,
            sample_at: Duration::ZERO,
            settled_at: Duration::ZERO,
        })
    }

    /// Works until it is told to leave, or somebody's machine fails.
    pub(crate) fn run(mut self) {
        let reports = self.desk.reports.clone();
        let last = match self.work() {
            Ok(()) => Report::Machines(self.posts.into_iter().map(|post| post.machine).collect()),
            Err(error) => Report::Failed(error),
        };
        drop(reports.send(last)); // nobody listens: the run has failed elsewhere
    }

    fn work(&mut self) -> Result<(), CrewError> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let order = self.desk.orders.try_recv();
            while let Ok((machine, link)) = self.desk.joining.try_recv() {
                self.join(machine, link)?;
            }
            match order {
                Ok(Order::Leave) | Err(TryRecvError::Disconnected) => return Ok(()),
                Ok(order) => {
                    self.take(order);
                    continue;
                }
                Err(TryRecvError::Empty) => {}
            }
            self.wake_due(System.monotonic());
            let nap = self.nap(System.monotonic());
            events.clear();
            let nap = rustix::time::Timespec {
                tv_sec: nap.as_secs() as i64,
                tv_nsec: nap.subsec_nanos().into(),
            };
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, room, Some(&nap)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let now = System.monotonic();
            for event in &events {
                let post = { event.data }.u64() as usize;
                if { event.flags }.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.receive(post, now)?;
                }
                self.ready(post);
            }
            for post in std::mem::take(&mut self.ready) {
                self.drive(post)?;
            }
            self.look_around(System.monotonic());
        }
    }

    fn join(&mut self, machine: Machine, link: Link) -> Result<(), CrewError> {
        let number = self.posts.len();
        let data = EventData::new_u64(number as u64);
        // Edges: nothing is registered again while a socket is full or empty.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&self.epoll, &link, data, flags)?;
        let (loud, wake) = (machine.is_loud(), Duration::ZERO);
        self.posts.push(Post { machine, link, loud, wake, is_ready: false });
        self.ready(number);
        Ok(())
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Begin(phase) => {
                self.tally = Tally::new(phase.start, phase.slot);
                self.is_ordered = true;
                for number in 0..self.posts.len() {
                    let post = &mut self.posts[number];
                    post.machine.begin(phase.schedule(number, post.loud), phase.until);
                    self.ready(number);
                }
            }
            Order::Finish { name, tamper } => {
                self.is_ordered = true;
                for number in 0..self.posts.len() {
                    self.posts[number].machine.finish(&name, tamper && number == 0);
                    self.ready(number);
                }
            }
            Order::Leave => {}
        }
    }

    fn ready(&mut self, number: usize) {
        let post = &mut self.posts[number];
        if !std::mem::replace(&mut post.is_ready, true) {
            self.ready.push(number);
        }
    }

    fn wake_due(&mut self, now: Duration) {
        while let Some(Reverse((wake, number))) = self.wakes.peek().copied()
            && wake <= now
        {
            self.wakes.pop();
            // One that was replaced meanwhile does no harm beyond a look.
            if self.posts[number].wake == wake {
                self.ready(number);
            }
        }
    }

    fn nap(&self, now: Duration) -> Duration {
        if !self.ready.is_empty() {
            return Duration::ZERO;
        }
        let next = self.wakes.peek().map_or(NAP, |Reverse((wake, _))| wake.saturating_sub(now));
        next.min(NAP)
    }

    fn receive(&mut self, number: usize, now: Duration) -> Result<(), CrewError> {
        let Post { machine, link, .. } = &mut self.posts[number];
        let id = machine.id().clone();
        let named = |source| CrewError::Link { machine: id.to_string(), source };
        // What came before the end is still read: a refusal says why.
        let ended = loop {
            match link.receive() {
                Ok(true) => {}
                Ok(false) => break None,
                Err(error) => break Some(error),
            }
        };
        while let Some(message) = link.next_message().map_err(named)? {
            let handled = machine.handle(message, now, &mut self.tally);
            handled.map_err(|source| CrewError::Nonsense { machine: id.to_string(), source })?;
        }
        ended.map_or(Ok(()), |error| Err(named(error)))
    }

    /// Lets a machine send what it has, up to one buffer.
    fn drive(&mut self, number: usize) -> Result<(), CrewError> {
        let Post { machine, link, wake, is_ready, .. } = &mut self.posts[number];
        *is_ready = false;
        let id = machine.id().clone();
        let named = |source| CrewError::Link { machine: id.to_string(), source };
        if !link.flush().map_err(named)? {
            return Ok(()); // the socket says when it takes more
        }
        link.swap_buffer(&mut self.scratch);
        let now = System.monotonic();
        let (mut next, mut composed) = (None, 0);
        let mut sealer = link.sealer();
        while composed < WRITE_BYTES {
            match machine.poll(now, &mut self.tally) {
                Poll::Frame(frame) => {
                    composed += frame.header.len() + frame.payload.len();
                    let pushed = sealer.push_frame(&frame);
                    pushed.map_err(|source| named(source.into()))?;
                }
                Poll::Wait(until) => {
                    next = Some(until);
                    break;
                }
            }
        }
        sealer.seal().map_err(|source| named(source.into()))?;
        let sent = link.flush().map_err(named)?;
        link.return_buffer(&mut self.scratch);
        match next {
            Some(until) if *wake != until => {
                *wake = until;
                self.wakes.push(Reverse((until, number)));
            }
            Some(_) => {}
            None if sent => self.ready(number), // the others first
            None => {}
        }
        Ok(())
    }

    /// Samples, and says when everything is settled.
    fn look_around(&mut self, now: Duration) {
        if now >= self.sample_at {
            self.sample_at = now + SAMPLE;
            for post in &self.posts {
                post.machine.note_rpo(now, &mut self.tally);
            }
        }
        if !self.is_ordered || now < self.settled_at {
            return;
        }
        self.settled_at = now + SETTLED;
        if self.posts.iter().all(|post| post.machine.is_settled()) {
            self.is_ordered = false;
            let empty = Tally::new(now, Duration::from_secs(1));
            let tally = std::mem::replace(&mut self.tally, empty);
            drop(self.desk.reports.send(Report::Settled(Box::new(tally))));
        }
    }
}
