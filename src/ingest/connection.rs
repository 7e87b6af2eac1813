//! One agent's connection behind the upgrade.
//!
//! Owns: the order of hello, seat, welcome; the flow of frames into the log and of acks back; the
//! last words. Does not own: what frames mean (the session) and who may sit (the machine's link).
//!
//! Both directions run in one task beside each other, so acks flow while a frame waits for memory
//! or for room in the log. A payload is never in memory without having paid for it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::sync::{mpsc, oneshot, watch};

use super::admission::Admitted;
use super::chunks::{Breach, Chunks};
use super::listener::{Ingest, drained, within};
use super::machine::{Asked, MachineLink, Overruled, Seat, Ticket};
use super::machines::{Fingerprint, LastWord, OpenError};
use super::patience::{Overdue, Patience};
use super::pipe::{Inbox, Outbox};
use super::session::{Event, Session, greet, refuse};
use super::sitting::Party;
use super::stream::StreamState;
use super::tally::Tally;
use crate::budget::Permit;
use crate::format::wire::{
    BookmarkOutcome, FrameHeader, FrameKind, FromServer, HEADER_BYTES, Hello, Progress, Refusal,
    Refuse,
};
use crate::model::{
    BookmarkId, Change, Incarnation, MachineId, MachineKey, Payload, Record, Sequence, Timestamp,
    TrackingMode,
};

/// How long the last words may take to reach the peer.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long an agent waits to be told where its machine goes.
const PARTING: Duration = Duration::from_secs(40);
/// Bookmark requests that one agent may owe an answer for.
const ASKED_MAX: usize = 64;

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// We end it, and say why.
    Told(LastWord),
    /// The agent said goodbye, or closed between two frames.
    Left,
    /// It broke.
    Broken(io::Error),
    /// The agent does not take what we write.
    Unread,
}

impl From<Refuse> for End {
    fn from(refuse: Refuse) -> Self {
        Self::Told(refuse.into())
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Breach>() {
            Ok(Breach(refuse)) => refuse.into(),
            Err(error) => Self::Broken(error),
        }
    }
}

/// Whose connection it is, proven by its certificate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agent<'a> {
    pub(super) machine: &'a MachineId,
    pub(super) certificate: &'a Fingerprint,
    /// Where it comes from.
    pub(super) peer: SocketAddr,
}

/// What both directions of a connection use.
#[derive(Clone, Copy)]
struct Ground<'a> {
    ingest: &'a Ingest,
    agent: Agent<'a>,
    patience: &'a Patience,
}

/// Serves an upgraded connection to its end.
pub(super) async fn serve<C, W>(
    ingest: &Ingest,
    agent: Agent<'_>,
    patience: &Patience,
    chunks: C,
    writer: W,
) where
    C: Chunks,
    W: AsyncWrite + Unpin,
{
    let ground = Ground { ingest, agent, patience };
    let (mut inbox, mut outbox) = (Inbox::new(chunks), Outbox::new(writer));
    let end = tokio::select! {
        end = converse(ground, &mut inbox, &mut outbox) => end,
        end = overdue(ground) => end,
        () = drained(ingest.drain.clone()) => {
            refuse(Refusal::NotOwner, "this process server drains").into()
        }
    };
    let machine = agent.machine;
    match end {
        End::Left => {
            tracing::info!(%machine, "the agent left");
            let _ = within(&*ingest.clock, FAREWELL, outbox.close()).await;
        }
        End::Broken(error) => {
            let cause = crate::observe::error_chain(&error);
            tracing::info!(%machine, cause, "the agent's connection broke");
            // What broke may be the peer's records: then there is an alert to be sent.
            let _ = within(&*ingest.clock, FAREWELL, outbox.close()).await;
        }
        End::Unread => tracing::warn!(%machine, "the agent took no acks; its connection is closed"),
        End::Told(word) => {
            note(ingest, machine, &word);
            outbox.push(&word.into());
            let farewell = async {
                outbox.flush(patience, &*ingest.clock).await?;
                outbox.close().await?;
                inbox.discard().await;
                Ok::<_, io::Error>(())
            };
            // Whether it arrives or not, the connection ends here.
            let _ = within(&*ingest.clock, FAREWELL, farewell).await;
        }
    }
}

fn note(ingest: &Ingest, machine: &MachineId, word: &LastWord) {
    match word {
        LastWord::Refuse(refuse) => {
            tracing::info!(%machine, code = ?refuse.code, text = refuse.text, "refused");
            ingest.metrics.connections_refused.fetch_add(1, Ordering::Relaxed);
        }
        LastWord::Redirect(redirect) => {
            let (to, reason) = (redirect.addresses.join(", "), &redirect.reason);
            tracing::info!(%machine, to, reason, "redirected");
            ingest.metrics.scale.redirects.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Waits until the peer kept us waiting too long.
async fn overdue(ground: Ground<'_>) -> End {
    let clock = &*ground.ingest.clock;
    let mut settings = ground.ingest.settings.clone();
    loop {
        ground.patience.set_idle(settings.borrow_and_update().limits.idle_timeout);
        match ground.patience.look(clock.monotonic()) {
            Ok(wait) => tokio::select! {
                () = clock.sleep(wait) => {}
                Ok(()) = settings.changed() => {}
            },
            Err(Overdue::Writing) => return End::Unread,
            Err(Overdue::Reading) => {
                let text = "the next frame did not arrive in time";
                return refuse(Refusal::Protocol, text).into();
            }
        }
    }
}

async fn converse<C, W>(ground: Ground<'_>, inbox: &mut Inbox<C>, outbox: &mut Outbox<W>) -> End
where
    C: Chunks,
    W: AsyncWrite + Unpin,
{
    let Agent { machine, certificate, .. } = ground.agent;
    let hello = match first_frame(ground, inbox).await {
        Ok(hello) => hello,
        Err(end) => return end,
    };
    let link = match ground.ingest.machines.open(machine, certificate).await {
        Ok(link) => link,
        Err(error) => {
            tracing::warn!(%machine, error = &error as &dyn std::error::Error, "not served");
            return End::Told(error.last_word());
        }
    };
    let ticket = match announced(ground, &link, &hello) {
        Ok(ticket) => ticket,
        Err(refuse) => return refuse.into(),
    };
    let overruled = tokio::select! {
        biased;
        why = ticket.overruled() => why,
        word = unknown(ground, &link) => return End::Told(word),
        end = seated(ground, hello, &ticket, inbox, outbox) => return end,
    };
    // The seat is free: whoever gives the machine up waits for that.
    match overruled {
        Overruled::Told(word) => End::Told(word),
        Overruled::Soon => {
            let word = within(&*ground.ingest.clock, PARTING, link.last_word()).await;
            let late = || refuse(Refusal::NotOwner, "the machine is being given up").into();
            End::Told(word.unwrap_or_else(late))
        }
    }
}

/// The seat, as far as nobody has it who is in the right.
fn announced(ground: Ground<'_>, link: &Arc<MachineLink>, hello: &Hello) -> Result<Ticket, Refuse> {
    let Ground { ingest, agent: Agent { machine, peer, .. }, .. } = ground;
    let sitter = match link.announce(hello, Party { agent: hello.agent, peer }) {
        Ok(ticket) => return Ok(ticket),
        Err(sitter) => sitter,
    };
    let words = format!(
        "another agent of this machine, at {peer}, is refused while the one at {} is connected: stop one, and \
         see docs/operations.md, \"Two agents of one machine\"",
        sitter.peer
    );
    link.refused_another(words, ingest.clock.monotonic());
    let text = format_args!(
        "another agent of machine {machine} is connected, from {}, and this one would begin the stream anew. \
         If that one is gone, this one is let in when its connection has been silent for {} s; if both run, \
         stop one, or revoke its certificate: holdfast revoke {machine}",
        sitter.peer,
        ingest.idle_timeout().as_secs()
    );
    Err(refuse(Refusal::Busy, text))
}

/// Waits until the certificate does not speak for the machine any more. A store that does not answer
/// revokes nothing. It is looked at now and then, and when somebody else was refused for this one.
async fn unknown(ground: Ground<'_>, link: &MachineLink) -> LastWord {
    let Ground { ingest, agent, .. } = ground;
    // Agents come all at once when a server starts: they are not looked at all at once again.
    let spread = u32::from(MachineKey::of(agent.machine).0[0]) + 1;
    let mut wait = ingest.certificates_every * spread / 256;
    loop {
        tokio::select! {
            () = ingest.clock.sleep(wait) => {}
            () = link.doubted() => {}
        }
        wait = ingest.certificates_every;
        let known = ingest.machines.knows(agent.machine, agent.certificate).await;
        if let Err(error @ (OpenError::Unknown { .. } | OpenError::Revoked { .. })) = known {
            return error.last_word();
        }
    }
}

async fn first_frame<C: Chunks>(ground: Ground<'_>, inbox: &mut Inbox<C>) -> Result<Hello, End> {
    let clock = &*ground.ingest.clock;
    let bytes = inbox.header(ground.patience, clock).await?.ok_or(End::Left)?;
    let header = header_of(&bytes)?;
    // Nothing is read for a stranger's first frame but a hello, which is small.
    let payload = match header.kind() {
        FrameKind::Hello => {
            let length = header.payload_length();
            inbox.payload(length, ground.patience, clock).await?
        }
        _ => Payload::default(),
    };
    Ok(greet(ground.agent.machine, &header, payload)?)
}

/// A session in its seat, and what its two directions share. They run in one task, so the locks
/// are never waited for.
struct Live<'a> {
    ground: Ground<'a>,
    link: &'a MachineLink,
    session: Mutex<Session>,
    /// Which life of the agent, and whether a record of it was admitted here.
    life: Incarnation,
    wrote: AtomicBool,
    asked: Mutex<HashMap<BookmarkId, oneshot::Sender<BookmarkOutcome>>>,
}

async fn seated<C, W>(
    ground: Ground<'_>,
    hello: Hello,
    ticket: &Ticket,
    inbox: &mut Inbox<C>,
    outbox: &mut Outbox<W>,
) -> End
where
    C: Chunks,
    W: AsyncWrite + Unpin,
{
    let patience = ground.ingest.idle_timeout();
    let Some(mut seat) = within(&*ground.ingest.clock, patience, ticket.sit()).await else {
        let text = "what the connection before this one sent is not durable yet";
        return refuse(Refusal::Busy, text).into();
    };
    let link = Arc::clone(&seat.link);
    let share = link.credit().borrow().share_of(link.backlog_bytes());
    let window = ground.ingest.window(share);
    let life = hello.agent;
    let begun = link
        .check_writer(&hello, seat.stream.sequence)
        .and_then(|()| Session::begin(hello, &seat.stream, &link.standing(), window));
    let (session, welcome) = match begun {
        Ok(begun) => begun,
        Err(refuse) => {
            if refuse.code == Refusal::Foreign {
                link.disowned(life, two_histories(ground.agent.peer));
            }
            return refuse.into();
        }
    };
    tracing::info!(machine = %link.machine(), durable = %welcome.durable, "an agent is connected");
    inbox.welcomed(welcome.durable);
    link.welcomed(life, welcome.durable);
    outbox.push(&FromServer::Welcome(welcome));
    let (session, asked) = (Mutex::new(session), Mutex::default());
    let live = Live { ground, link: &link, session, life, wrote: AtomicBool::new(false), asked };
    let Seat { stream, durable, published, requests, .. } = &mut seat;
    tokio::select! {
        end = live.receive(inbox, stream) => end,
        end = live.send(outbox, durable, published, requests) => end,
    }
}

impl Live<'_> {
    async fn receive<C: Chunks>(&self, inbox: &mut Inbox<C>, stream: &mut StreamState) -> End {
        let mut tally = Tally::new(&self.ground.ingest.metrics);
        loop {
            if inbox.is_dry() {
                tally.tell();
            }
            if let Err(end) = self.receive_frame(inbox, stream, &mut tally).await {
                return end;
            }
        }
    }

    async fn receive_frame<C: Chunks>(
        &self,
        inbox: &mut Inbox<C>,
        stream: &mut StreamState,
        tally: &mut Tally<'_>,
    ) -> Result<(), End> {
        let Ground { ingest, patience, .. } = self.ground;
        let bytes = inbox.header(patience, &*ingest.clock).await?.ok_or(End::Left)?;
        let begun_at = ingest.clock.monotonic();
        let header = header_of(&bytes)?;
        let FrameKind::Record(_) = header.kind() else {
            let payload = inbox.payload(header.payload_length(), patience, &*ingest.clock).await?;
            let event = self.session().handle_frame(stream, &header, payload)?;
            return self.take_message(event);
        };
        let (payload, permit) = inbox.record(&header, patience, &*ingest.clock).await?;
        let received_at = ingest.clock.monotonic();
        let room = self.link.reserve().await?;
        // From here nothing waits: the stream's state and the log's queue move together.
        let event = self.session().handle_frame(stream, &header, payload)?;
        if let Event::Admit(record) = event {
            let admitted = self.admitted(record, permit, received_at);
            let payload_bytes = admitted.record.change.payload_bytes();
            let took = received_at.saturating_sub(begun_at);
            tally.count(header.frame_bytes(), payload_bytes, took);
            room.send(admitted);
        }
        Ok(())
    }

    fn admitted(&self, record: Record, permit: Permit, received_at: Duration) -> Admitted {
        let metrics = self.link.metrics();
        metrics.received(record.sequence);
        match &record.change {
            Change::Bookmark(bookmark) => self.link.admitted_bookmark(bookmark),
            Change::EpochBegin(begin) => self.link.began(begin),
            _ => {}
        }
        if !self.wrote.swap(true, Ordering::Relaxed) {
            self.link.wrote(self.life);
        }
        metrics.source_bytes.fetch_add(record.change.payload_bytes(), Ordering::Relaxed);
        let (machine, generation) = (self.link.key(), self.link.generation());
        Admitted { machine, generation, record, permit, received_at }
    }

    fn take_message(&self, event: Event) -> Result<(), End> {
        match event {
            Event::Goodbye => return Err(End::Left),
            Event::Progress(progress) => {
                show(self.link, &progress, self.ground.ingest.clock.wall());
                self.link.heard(self.ground.ingest.clock.monotonic());
                self.link.note_progress(progress);
            }
            Event::Capture(capture) => self.link.metrics().note_capture(capture),
            Event::Bookmark(reply) => {
                // One that nobody waits for any more is no error: its asker went.
                if let Some(answer) = self.asked().remove(&reply.id) {
                    let _ = answer.send(reply.outcome);
                }
            }
            Event::Admit(record) => unreachable!("record {} in no record frame", record.sequence),
        }
        Ok(())
    }

    async fn send<W: AsyncWrite + Unpin>(
        &self,
        outbox: &mut Outbox<W>,
        durable: &mut watch::Receiver<Sequence>,
        published: &mut watch::Receiver<Sequence>,
        requests: &mut mpsc::Receiver<Asked>,
    ) -> End {
        let mut credit = self.link.credit();
        let mut settings = self.ground.ingest.settings.clone();
        loop {
            let (durable_through, published_through, terms) = (
                *durable.borrow_and_update(),
                *published.borrow_and_update(),
                *credit.borrow_and_update(),
            );
            let share = terms.share_of(self.link.backlog_bytes());
            let window = share.of(settings.borrow_and_update().limits.credit_bytes);
            // Published is read after durable and may be ahead of it: an ack is never out of order.
            let published_through = published_through.min(durable_through);
            let ack = self.session().poll_ack(durable_through, published_through, window);
            if let Some(ack) = ack {
                outbox.push(&FromServer::Ack(ack));
            }
            if let Err(error) = outbox.flush(self.ground.patience, &*self.ground.ingest.clock).await
            {
                return End::Broken(error);
            }
            tokio::select! {
                Ok(()) = durable.changed() => {}
                Ok(()) = published.changed() => {}
                Ok(()) = credit.changed() => {}
                Ok(()) = settings.changed() => {}
                Some(asked) = requests.recv() => self.ask(outbox, asked),
                else => return refuse(Refusal::NotOwner, "the machine is not served here").into(),
            }
        }
    }

    fn ask<W: AsyncWrite + Unpin>(&self, outbox: &mut Outbox<W>, asked: Asked) {
        let mut waiting = self.asked();
        waiting.retain(|_, answer| !answer.is_closed());
        // Dropping the question tells its asker that no answer will come.
        if waiting.len() < ASKED_MAX {
            waiting.insert(asked.request.id, asked.answer);
            outbox.push(&FromServer::BookmarkRequest(asked.request));
        }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<BookmarkId, oneshot::Sender<BookmarkOutcome>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What operators are told of an agent whose stream somebody else writes.
fn two_histories(peer: SocketAddr) -> String {
    format!(
        "an agent of this machine, at {peer}, found that another one writes its stream, and has stopped: what \
         it protects is not protected. See docs/operations.md, \"Two agents of one machine\""
    )
}

fn header_of(bytes: &[u8; HEADER_BYTES]) -> Result<FrameHeader, Refuse> {
    FrameHeader::decode(bytes).map_err(|error| refuse(Refusal::Protocol, error))
}

fn show(link: &MachineLink, progress: &Progress, now: Timestamp) {
    let mode = match progress.mode {
        TrackingMode::Ordered => 1,
        TrackingMode::CatchingUp => 2,
        TrackingMode::Bitmap => 3,
    };
    let metrics = link.metrics();
    metrics.agent_mode.store(mode, Ordering::Relaxed);
    metrics.agent_dirty_bytes.store(progress.dirty_bytes, Ordering::Relaxed);
    metrics.agent_total_bytes.store(progress.total_bytes, Ordering::Relaxed);
    metrics.heard_time.store(now.0, Ordering::Relaxed);
    // Nothing was written since, so the newest point is as good as one made at that moment.
    let settled = metrics.watermarks().published >= progress.last;
    let has_point = metrics.recoverable_time.load(Ordering::Acquire) != 0;
    if progress.mode == TrackingMode::Ordered && settled && has_point {
        // Never the future: an agent's clock that ran ahead once would hide every later delay.
        metrics.recoverable_time.fetch_max(progress.time.min(now).0, Ordering::AcqRel);
    }
}
