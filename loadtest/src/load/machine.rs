//! One generated machine, sans-io: time, messages and credit in, frames out.
//!
//! Owns: the agent's side of the protocol as docs/formats/wire.md says it (epoch begin, initial
//! replication, records within the credit, bookmarks, progress), what is waiting for which ack, what
//! the disks must hold. Does not own: sockets, threads, what is written where.

use std::collections::VecDeque;
use std::time::Duration;

use holdfast::agent::Pulse;
use holdfast::clock::{Clock, System, random16};
use holdfast::format::wire::{
    Ack, BookmarkOutcome, BookmarkReply, BookmarkRequest, Frame, FromAgent, FromServer,
    HEADER_BYTES, Hello, Progress, VERSION, Welcome, encode_from_agent,
};
use holdfast::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, Change, DiskIndex, DiskSpec, Epoch, EpochBegin,
    Extent, Incarnation, MachineId, Record, Sequence, TrackingMode, ZERO_BYTES_MAX,
};

use super::content::Content;
use super::ledger::{Held, Ledger};
use super::pace::Schedule;
use super::pattern::{Op, Pattern};
use super::tally::Tally;

/// What a mark is long.
const SECTOR: u64 = 512;

/// What a machine is made from.
pub(crate) struct Setup {
    pub(crate) id: MachineId,
    pub(crate) disks: Vec<DiskSpec>,
    pub(crate) pattern: Pattern,
    pub(crate) content: Content,
    /// Whether what the disks must hold is remembered.
    pub(crate) audited: bool,
    pub(crate) loud: bool,
    /// Every so many bytes of its disks a sector with content comes first, so that a zero that gets
    /// lost does not look like one that arrived.
    pub(crate) marked_every: Option<u64>,
}

/// A machine.
pub(crate) struct Machine {
    setup: Setup,
    schedule: Option<Schedule>,
    until: Duration,
    next: Option<Op>,
    ledger: Option<Ledger>,
    last: Sequence,
    durable: Sequence,
    published: Sequence,
    credit_limit: u64,
    credit_spent: u64,
    /// Records that go first.
    opening: VecDeque<Change>,
    /// Writes that are not published, oldest first; the first `durable_count` are durable.
    sent: VecDeque<Sent>,
    durable_count: usize,
    /// Bookmarks that are not published.
    bookmarks: VecDeque<(Sequence, Duration)>,
    /// Newest moment that can be recovered to.
    recoverable: Option<Duration>,
    written_since: bool,
    bookmark_interval: Duration,
    bookmark_at: Duration,
    /// It says how it is as often as the product's agent does.
    pulse: Pulse,
    asked: VecDeque<BookmarkRequest>,
    replies: VecDeque<BookmarkReply>,
    /// The bookmark that is audited: its name until it is placed, then its sequence.
    last_name: Option<String>,
    last_bookmark: Option<Sequence>,
    tampers: bool,
}

/// A write on its way.
#[derive(Clone, Copy, Debug)]
struct Sent {
    sequence: Sequence,
    due: Duration,
    bytes: u32,
}

/// What a machine does next.
pub(crate) enum Poll {
    /// Send this.
    Frame(Frame),
    /// Nothing before this moment, unless the server says something.
    Wait(Duration),
}

/// Nonsense that a server said.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Nonsense {
    #[error("the server refused: {0}")]
    Refused(String),
    #[error("a second welcome")]
    SecondWelcome,
    #[error("an ack of record {acked}, only {last} were sent")]
    Ahead { acked: Sequence, last: Sequence },
    #[error("the stream is at record {0} already: the machine is not new")]
    NotNew(Sequence),
}

impl Machine {
    pub(crate) fn new(setup: Setup) -> Self {
        let disks = setup.disks.clone();
        let mut ledger = setup.audited.then(|| Ledger::new(disks.len()));
        let mut opening = VecDeque::from([
            Change::EpochBegin(EpochBegin { epoch: Epoch(1), disks: disks.clone() }),
            // The disks are blank: there is nothing to copy.
            Change::CatchUpBegin(CatchUp::InitialReplication),
            Change::CatchUpEnd,
        ]);
        if let Some((every, place)) = setup.marked_every.zip(setup.content.not_zero()) {
            for (number, disk) in disks.iter().enumerate() {
                for offset in (0..disk.size_bytes).step_by(every as usize) {
                    if let Some(ledger) = &mut ledger {
                        ledger.note(number, offset, SECTOR, Held::Content(place));
                    }
                    let extent = Extent::new(offset, SECTOR, ZERO_BYTES_MAX)
                        .expect("a sector of a disk of whole MiB");
                    let payload = setup.content.shared(place, SECTOR as u32).into();
                    opening.push_back(Change::Write { disk: disk.index, extent, payload });
                }
            }
        }
        Self {
            setup,
            schedule: None,
            until: Duration::ZERO,
            next: None,
            ledger,
            last: Sequence::ZERO,
            durable: Sequence::ZERO,
            published: Sequence::ZERO,
            credit_limit: 0,
            credit_spent: 0,
            opening,
            sent: VecDeque::new(),
            durable_count: 0,
            bookmarks: VecDeque::new(),
            recoverable: None,
            written_since: true, // the first bookmark follows the initial replication at once
            bookmark_interval: Duration::from_secs(5),
            bookmark_at: Duration::ZERO,
            pulse: Pulse::new(Duration::ZERO),
            asked: VecDeque::new(),
            replies: VecDeque::new(),
            last_name: None,
            last_bookmark: None,
            tampers: false,
        }
    }

    /// Its name.
    pub(crate) fn id(&self) -> &MachineId {
        &self.setup.id
    }

    /// Whether it is the loud one among quiet ones.
    pub(crate) fn is_loud(&self) -> bool {
        self.setup.loud
    }

    /// First on the connection.
    pub(crate) fn hello(&self) -> Frame {
        encode_from_agent(&FromAgent::Hello(Hello {
            version: VERSION,
            machine: self.setup.id.clone(),
            agent: Incarnation(random16(&System)),
            epoch: Epoch(0),
            disks: self.setup.disks.clone(),
            witnessed: Sequence::ZERO,
            last: Sequence::ZERO,
        }))
    }

    /// The server's first word.
    pub(crate) fn welcome(&mut self, welcome: &Welcome) -> Result<(), Nonsense> {
        if welcome.durable != Sequence::ZERO {
            return Err(Nonsense::NotNew(welcome.durable));
        }
        self.credit_limit = welcome.credit_limit;
        self.bookmark_interval = Duration::from_millis(welcome.bookmark_interval_ms.into());
        Ok(())
    }

    /// Begins to write; what was due before `until` is the phase's.
    pub(crate) fn begin(&mut self, schedule: Schedule, until: Duration) {
        (self.schedule, self.until) = (Some(schedule), until);
    }

    /// Places the last bookmark behind everything. `tamper`: one more write goes before it, with
    /// other bytes than are remembered.
    pub(crate) fn finish(&mut self, name: &str, tamper: bool) {
        self.last_name = Some(name.to_owned());
        self.tampers = tamper;
    }

    /// Whether everything that was sent is published and nothing more is due.
    pub(crate) fn is_settled(&self) -> bool {
        self.schedule.is_none()
            && self.opening.is_empty()
            && self.last_name.is_none()
            && self.published == self.last
    }

    /// The last bookmark, and what the disks must hold there.
    pub(crate) fn closed(self) -> Option<(MachineId, Vec<DiskSpec>, Sequence, Ledger)> {
        Some((self.setup.id, self.setup.disks, self.last_bookmark?, self.ledger?))
    }

    /// Takes what the server said.
    pub(crate) fn handle(
        &mut self,
        message: FromServer,
        now: Duration,
        tally: &mut Tally,
    ) -> Result<(), Nonsense> {
        match message {
            FromServer::Ack(ack) => self.acked(ack, now, tally),
            FromServer::BookmarkRequest(request) => {
                self.asked.push_back(request);
                Ok(())
            }
            FromServer::Refuse(refuse) => Err(Nonsense::Refused(refuse.text)),
            FromServer::Redirect(redirect) => Err(Nonsense::Refused(redirect.reason)),
            FromServer::Welcome(_) => Err(Nonsense::SecondWelcome),
        }
    }

    fn acked(&mut self, ack: Ack, now: Duration, tally: &mut Tally) -> Result<(), Nonsense> {
        if ack.durable > self.last {
            return Err(Nonsense::Ahead { acked: ack.durable, last: self.last });
        }
        self.credit_limit = self.credit_limit.max(ack.credit_limit);
        (self.durable, self.published) = (ack.durable, ack.published);
        while let Some(sent) = self.sent.get(self.durable_count)
            && sent.sequence <= ack.durable
        {
            tally.durable(sent.due, now, sent.bytes.into());
            self.durable_count += 1;
        }
        while let Some(sent) = self.sent.front()
            && sent.sequence <= ack.published
        {
            tally.published(sent.due, now, sent.bytes.into(), self.setup.loud);
            self.sent.pop_front();
            self.durable_count -= 1;
        }
        while let Some((sequence, time)) = self.bookmarks.front()
            && *sequence <= ack.published
        {
            self.recoverable = Some(*time);
            self.bookmarks.pop_front();
        }
        Ok(())
    }

    /// Counts its RPO: everything published is as good as a point of this moment.
    pub(crate) fn note_rpo(&self, now: Duration, tally: &mut Tally) {
        if let Some(recoverable) = self.recoverable {
            let settled = self.published == self.last;
            let age = if settled { Duration::ZERO } else { now.saturating_sub(recoverable) };
            tally.rpo(age, now, self.setup.loud);
        }
    }

    /// What to do at `now`.
    pub(crate) fn poll(&mut self, now: Duration, tally: &mut Tally) -> Poll {
        if now >= self.pulse.look_at() {
            let progress = self.progress();
            if self.pulse.tells(now, &progress, self.published) {
                return Poll::Frame(encode_from_agent(&FromAgent::Progress(progress)));
            }
        }
        if let Some(reply) = self.replies.pop_front() {
            return Poll::Frame(encode_from_agent(&FromAgent::Bookmark(reply)));
        }
        if let Some(frame) = self.mark(now) {
            return Poll::Frame(frame);
        }
        let mut wake = self.pulse.look_at();
        if self.written_since {
            wake = wake.min(self.bookmark_at.max(now + Duration::from_millis(1)));
        }
        self.end_of_phase(now, tally);
        let Some(schedule) = self.schedule else {
            return Poll::Wait(wake);
        };
        if self.next.is_none() {
            self.next = self.pattern_next();
        }
        let Some(op) = self.next else {
            return Poll::Wait(wake.min(self.until)); // it never writes
        };
        let due = schedule.due(now, op.at);
        if due > now {
            return Poll::Wait(wake.min(due).min(self.until));
        }
        let waits_for_acks = self.sent.len() - self.durable_count >= schedule.depth()
            || (op.flush_before && self.durable < self.last)
            || !self.covers(payload_bytes(&op));
        if waits_for_acks {
            return Poll::Wait(wake.min(self.until));
        }
        Poll::Frame(self.write(op, due, tally))
    }

    /// At its end a phase leaves nothing behind: what was due and could not be sent is counted.
    fn end_of_phase(&mut self, now: Duration, tally: &mut Tally) {
        if now < self.until {
            return;
        }
        let Some(mut schedule) = self.schedule.take() else { return };
        while schedule.is_open() {
            let Some(op) = self.next.take().or_else(|| self.pattern_next()) else { return };
            let due = schedule.due(now, op.at);
            if due >= self.until {
                self.next = Some(op);
                return;
            }
            tally.missed(due, self.until);
            schedule.gave(op.length);
        }
    }

    fn pattern_next(&mut self) -> Option<Op> {
        self.setup.pattern.next()
    }

    /// A record that is no write, when one is to be sent.
    fn mark(&mut self, now: Duration) -> Option<Frame> {
        const MARK_BYTES: u64 = holdfast::format::wire::CONTROL_BYTES_MAX as u64;
        if !self.covers(MARK_BYTES) {
            return None;
        }
        if let Some(change) = self.opening.pop_front() {
            return Some(self.record(change));
        }
        if let Some(BookmarkRequest { id, kind, name }) = self.asked.pop_front() {
            let frame = self.bookmark(id, kind, name, now);
            let outcome = BookmarkOutcome::Placed(self.last);
            self.replies.push_back(BookmarkReply { id, outcome });
            return Some(frame);
        }
        if self.schedule.is_none()
            && let Some(name) = self.last_name.take()
        {
            if std::mem::take(&mut self.tampers) {
                self.last_name = Some(name);
                return Some(self.tampered());
            }
            let id = BookmarkId(random16(&System));
            let frame = self.bookmark(id, BookmarkKind::CrashConsistent, name, now);
            self.last_bookmark = Some(self.last);
            return Some(frame);
        }
        if self.written_since && now >= self.bookmark_at {
            let id = BookmarkId(random16(&System));
            return Some(self.bookmark(id, BookmarkKind::CrashConsistent, String::new(), now));
        }
        None
    }

    fn bookmark(
        &mut self,
        id: BookmarkId,
        kind: BookmarkKind,
        name: String,
        now: Duration,
    ) -> Frame {
        let time = System.wall();
        let frame = self.record(Change::Bookmark(Bookmark { id, kind, time, name }));
        self.bookmarks.push_back((self.last, now));
        self.bookmark_at = now + self.bookmark_interval;
        self.written_since = false;
        frame
    }

    fn write(&mut self, op: Op, due: Duration, tally: &mut Tally) -> Frame {
        self.next = None;
        if let Some(schedule) = &mut self.schedule {
            schedule.gave(op.length);
        }
        let extent = Extent::new(op.offset, op.length.into(), ZERO_BYTES_MAX)
            .expect("patterns give whole sectors, traces are checked when they are read");
        let (disk, place) = (DiskIndex(op.disk), self.setup.content.place(op.content));
        if let Some(ledger) = &mut self.ledger {
            let held = if op.zero { Held::Zero } else { Held::Content(place) };
            ledger.note(op.disk.into(), op.offset, op.length.into(), held);
        }
        let change = if op.zero {
            Change::Zero { disk, extent }
        } else {
            let payload = self.setup.content.shared(place, op.length);
            Change::Write { disk, extent, payload: payload.into() }
        };
        tally.writes += 1;
        tally.bytes += u64::from(op.length);
        tally.payload_bytes += payload_bytes(&op);
        tally.flushes += u64::from(op.flush_before);
        let frame = self.record(change);
        self.sent.push_back(Sent { sequence: self.last, due, bytes: op.length });
        self.written_since = true;
        frame
    }

    /// A sector whose last byte is not the remembered one.
    fn tampered(&mut self) -> Frame {
        let place = self.setup.content.place(0);
        let mut payload = self.setup.content.shared(place, 512).to_vec();
        payload[511] ^= 1;
        if let Some(ledger) = &mut self.ledger {
            ledger.note(0, 0, 512, Held::Content(place));
        }
        let extent = Extent::new(0, 512, 512).expect("the first sector");
        self.record(Change::Write { disk: DiskIndex(0), extent, payload: payload.into() })
    }

    fn record(&mut self, change: Change) -> Frame {
        self.last = self.last.next();
        let record = Record { sequence: self.last, change };
        let frame = encode_from_agent(&FromAgent::Record(record));
        self.credit_spent += (HEADER_BYTES + frame.payload.len()) as u64;
        frame
    }

    fn covers(&self, payload_bytes: u64) -> bool {
        self.credit_spent + HEADER_BYTES as u64 + payload_bytes <= self.credit_limit
    }

    fn progress(&self) -> Progress {
        let copying = !self.opening.is_empty();
        Progress {
            time: System.wall(),
            mode: if copying { TrackingMode::CatchingUp } else { TrackingMode::Ordered },
            last: self.last,
            dirty_bytes: 0,
            total_bytes: self.setup.disks.iter().map(|disk| disk.size_bytes).sum(),
            buffered_bytes: 0,
        }
    }
}

fn payload_bytes(op: &Op) -> u64 {
    if op.zero { 0 } else { op.length.into() }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
