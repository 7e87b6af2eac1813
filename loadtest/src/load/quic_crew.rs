//! Threads that drive machines over QUIC: a task for each, on one runtime of one thread.
//!
//! Owns: when a machine is looked at. Does not own: what it then does ([`super::machine`]), how its
//! records are laid out over streams (the product's own [`holdfast::agent::Outgoing`]). A due write
//! leaves up to a millisecond late, which is how fine the runtime's timer is; its latency counts from
//! when it was due all the same.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use holdfast::agent::Outgoing;
use holdfast::clock::{Clock, System};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};

use super::crew::{CrewError, Desk, Order, Report, SAMPLE, SETTLED};
use super::dial::QuicLink;
use super::link::{Inbox, LinkError, WRITE_BYTES};
use super::machine::{Machine, Poll};
use super::tally::Tally;

/// What all tasks of a thread share.
struct Shared {
    tally: RefCell<Tally>,
    /// Everybody closes their connection.
    leaving: Cell<bool>,
}

/// One machine.
struct Post {
    machine: RefCell<Machine>,
    /// It was told something, or may send more.
    look: Notify,
}

/// A thread's own, until it runs.
pub(crate) struct QuicHand {
    desk: Desk<QuicLink>,
}

/// A thread's own while it runs.
struct Running {
    desk: Desk<QuicLink>,
    shared: Rc<Shared>,
    posts: Vec<Rc<Post>>,
    tasks: JoinSet<Result<(), CrewError>>,
    is_ordered: bool,
    sample_at: Duration,
}

impl QuicHand {
    pub(crate) fn new(desk: Desk<QuicLink>) -> Self {
        Self { desk }
    }

    /// Works until it is told to leave, or somebody's machine fails.
    pub(crate) fn run(self, runtime: &Runtime) {
        let reports = self.desk.reports.clone();
        let tally = RefCell::new(Tally::new(Duration::ZERO, Duration::from_secs(1)));
        let mut running = Running {
            desk: self.desk,
            shared: Rc::new(Shared { tally, leaving: Cell::new(false) }),
            posts: Vec::new(),
            tasks: JoinSet::new(),
            is_ordered: false,
            sample_at: Duration::ZERO,
        };
        let last = match LocalSet::new().block_on(runtime, running.work()) {
            // The tasks are gone, so nobody else holds them.
            Ok(()) => Report::Machines(running.posts.into_iter().filter_map(alone).collect()),
            Err(error) => Report::Failed(error),
        };
        drop(reports.send(last)); // nobody listens: the run has failed elsewhere
    }
}

fn alone(post: Rc<Post>) -> Option<Machine> {
    Some(Rc::into_inner(post)?.machine.into_inner())
}

impl Running {
    async fn work(&mut self) -> Result<(), CrewError> {
        loop {
            let pause = if self.is_ordered { SETTLED } else { SAMPLE };
            tokio::select! {
                Some(ended) = self.tasks.join_next() => ended.map_err(|_| CrewError::Panic)??,
                Some((machine, link)) = self.desk.joining.recv() => self.join(machine, link),
                order = self.desk.orders.recv() => {
                    while let Ok((machine, link)) = self.desk.joining.try_recv() {
                        self.join(machine, link);
                    }
                    match order {
                        None | Some(Order::Leave) => return self.leave().await,
                        Some(order) => self.take(order),
                    }
                }
                () = System.sleep(pause) => self.look_around(System.monotonic()),
            }
        }
    }

    fn join(&mut self, machine: Machine, link: QuicLink) {
        let post = Rc::new(Post { machine: RefCell::new(machine), look: Notify::new() });
        self.posts.push(Rc::clone(&post));
        let shared = Rc::clone(&self.shared);
        self.tasks.spawn_local(async move {
            let QuicLink { reader, outgoing, inbox } = link;
            let served = tokio::select! {
                sent = send_all(&post, &shared, outgoing) => sent,
                received = receive_all(&post, &shared, reader, inbox) => received,
            };
            match served {
                Err(CrewError::Link { .. }) if shared.leaving.get() => Ok(()),
                served => served,
            }
        });
    }

    fn take(&mut self, order: Order) {
        self.is_ordered = true;
        for (number, post) in self.posts.iter().enumerate() {
            let mut machine = post.machine.borrow_mut();
            match &order {
                Order::Begin(phase) => {
                    let schedule = phase.schedule(number, machine.is_loud());
                    machine.begin(schedule, phase.until);
                }
                Order::Finish { name, tamper } => machine.finish(name, *tamper && number == 0),
                Order::Leave => {}
            }
            post.look.notify_one();
        }
        if let Order::Begin(phase) = order {
            self.shared.tally.replace(Tally::new(phase.start, phase.slot));
        }
    }

    /// Samples, and says when everything is settled.
    fn look_around(&mut self, now: Duration) {
        if now >= self.sample_at {
            self.sample_at = now + SAMPLE;
            for post in &self.posts {
                post.machine.borrow().note_rpo(now, &mut self.shared.tally.borrow_mut());
            }
        }
        if self.is_ordered && self.posts.iter().all(|post| post.machine.borrow().is_settled()) {
            self.is_ordered = false;
            let tally = self.shared.tally.replace(Tally::new(now, Duration::from_secs(1)));
            drop(self.desk.reports.send(Report::Settled(Box::new(tally))));
        }
    }

    async fn leave(&mut self) -> Result<(), CrewError> {
        self.shared.leaving.set(true);
        for post in &self.posts {
            post.look.notify_one();
        }
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|_| CrewError::Panic)??;
        }
        Ok(())
    }
}

async fn send_all(post: &Post, shared: &Shared, mut outgoing: Outgoing) -> Result<(), CrewError> {
    let named = |source: std::io::Error| broken(post, source.into());
    let mut composed = 0;
    while !shared.leaving.get() {
        let now = System.monotonic();
        let next = post.machine.borrow_mut().poll(now, &mut shared.tally.borrow_mut());
        match next {
            Poll::Frame(frame) => {
                composed += frame.header.len() + frame.payload.len();
                outgoing.send(frame).await.map_err(named)?;
                if composed >= WRITE_BYTES {
                    composed = 0;
                    tokio::task::yield_now().await; // the others first
                }
            }
            Poll::Wait(until) => {
                tokio::select! {
                    () = post.look.notified() => {}
                    () = System.sleep(until.saturating_sub(now)) => {}
                }
            }
        }
    }
    outgoing.close().await.map_err(named)
}

async fn receive_all(
    post: &Post,
    shared: &Shared,
    mut reader: impl AsyncRead + Unpin,
    mut inbox: Inbox,
) -> Result<(), CrewError> {
    loop {
        let now = System.monotonic();
        while let Some(message) = inbox.next_message().map_err(|error| broken(post, error))? {
            let mut machine = post.machine.borrow_mut();
            let handled = machine.handle(message, now, &mut shared.tally.borrow_mut());
            handled.map_err(|source| {
                let machine = machine.id().to_string();
                CrewError::Nonsense { machine, source }
            })?;
        }
        post.look.notify_one();
        let read = reader.read_buf(&mut inbox.plain).await;
        if read.map_err(|error| broken(post, error.into()))? == 0 {
            return Err(broken(post, LinkError::Closed));
        }
    }
}

fn broken(post: &Post, source: LinkError) -> CrewError {
    CrewError::Link { machine: post.machine.borrow().id().to_string(), source }
}
