//! One connection: Hello, Welcome, then records one way and watermarks the other.
//!
//! Owns: credit, progress, how long silence may last. Does not own: reconnecting
//! ([`super::connection`]), what a watermark means ([`super::stream`]), what is answered to a bookmark's
//! request ([`super::replies`]).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, BufReader};

use crate::clock::{Clock, Entropy, random16};
use crate::format::wire::{
    BookmarkRequest, FrameHeader, FromAgent, FromServer, HEADER_BYTES, Hello, PAYLOAD_BYTES_MAX,
    Progress, Redirect, Refuse, VERSION, Welcome, decode_from_server, encode_from_agent,
};
use crate::model::{Bookmark, BookmarkId, BookmarkKind, Change, Epoch, Record, Sequence};

use super::attach::Unwelcome;
use super::bandwidth::Bandwidth;
use super::dial::Connection;
use super::error::AgentError;
use super::outgoing::Outgoing;
use super::pulse::Pulse;
use super::quiesce::NO_HOOK;
use super::replies::Replies;
use super::run::Shared;
use super::status::captures;
use super::stream::Stream;

/// Time for the server to answer the Hello, in timeouts: it may have to take the machine over first.
const WELCOME_TIMEOUTS: u32 = 3;
/// Looks at whether the server is silent, in each timeout.
const SILENCE_LOOKS: u32 = 10;
/// A record that is on its way must get on at least this fast: on a slow line a large one is no
/// silence of the server.
const RECORD_BYTES_PER_S_MIN: u64 = 32 << 10;
/// Bytes taken from the stream at a time.
const TAKE_BYTES: u64 = 1 << 20;

/// How a connection ended, if not by an error.
#[derive(Debug)]
pub(super) enum End {
    /// The server said so.
    Refused(Refuse),
    /// Other servers are better ones.
    Redirected(Redirect),
    /// Somebody else writes the stream.
    Foreign(String),
    /// The agent left in order.
    Left,
}

struct Session<'a> {
    shared: &'a Shared,
    server: &'a str,
    credit_limit: AtomicU64,
    credit_spent: AtomicU64,
    /// Microseconds of the monotonic clock when the server was last heard.
    heard_us: AtomicU64,
    replies: Arc<Replies>,
}

/// Runs a connection to its end. `welcomed` is called once it carries records.
pub(super) async fn run(
    shared: &Shared,
    server: &str,
    connection: Connection,
    welcomed: impl FnOnce(&Welcome),
) -> Result<End, AgentError> {
    let Connection { reader, mut outgoing } = connection;
    let mut reader = BufReader::new(reader);
    let lost = |source| lost(server, source);
    outgoing.send(encode_from_agent(&FromAgent::Hello(hello(shared)))).await.map_err(lost)?;
    outgoing.flush().await.map_err(lost)?;
    let first = tokio::select! {
        message = receive(&mut reader, server) => message?,
        () = shared.clock.sleep(shared.settings.server_timeout * WELCOME_TIMEOUTS) => {
            return Err(lost(io::Error::new(io::ErrorKind::TimedOut, "no answer to the Hello")));
        }
    };
    let welcome = match first {
        FromServer::Welcome(welcome) => welcome,
        FromServer::Refuse(refuse) => return Ok(End::Refused(refuse)),
        FromServer::Redirect(redirect) => return Ok(End::Redirected(redirect)),
        FromServer::Ack(_) | FromServer::BookmarkRequest(_) => {
            return Err(protocol(server, "the first message is no Welcome".to_owned()));
        }
    };
    match attach(&shared.stream, &welcome).await {
        Ok(()) => {}
        Err(Unwelcome::Nonsense(detail)) => return Err(protocol(server, detail)),
        Err(Unwelcome::Foreign(why)) => return Ok(End::Foreign(why)),
        Err(Unwelcome::Bitmap(source)) => {
            let path = &shared.settings.state_directory;
            return Err(AgentError::io(path, "write the bitmaps of a new epoch", source));
        }
    }
    welcomed(&welcome);
    shared.mark_every(Duration::from_millis(u64::from(welcome.bookmark_interval_ms.max(1))));
    let session = Session {
        shared,
        server,
        credit_limit: AtomicU64::new(welcome.credit_limit),
        credit_spent: AtomicU64::new(0),
        heard_us: AtomicU64::new(micros(shared.clock.as_ref())),
        replies: Arc::default(),
    };
    session.resume();
    // What the server said last counts more than that it takes nothing any more.
    let end = tokio::select! {
        biased;
        end = session.receive_all(&mut reader) => end,
        end = session.send_all(&mut outgoing) => end,
        end = session.listen_for_silence() => end,
    };
    shared.stream.detach();
    end
}

async fn attach(stream: &Arc<Stream>, welcome: &Welcome) -> Result<(), Unwelcome> {
    let (stream, welcome) = (Arc::clone(stream), welcome.clone());
    tokio::task::spawn_blocking(move || stream.attach(&welcome))
        .await
        .unwrap_or_else(|stopped| Err(Unwelcome::Bitmap(io::Error::other(stopped))))
}

fn hello(shared: &Shared) -> Hello {
    let core = shared.stream.lock();
    // A bitmap that cannot continue its epoch tracks in none.
    let epoch = if core.resync.is_some() { Epoch(0) } else { core.epoch };
    Hello {
        version: VERSION,
        machine: shared.settings.machine.clone(),
        agent: shared.incarnation,
        epoch,
        witnessed: core.witnessed,
        last: core.highest,
        disks: shared.stream.specs(),
    }
}

fn lost(server: &str, source: io::Error) -> AgentError {
    let server = server.to_owned();
    AgentError::Lost { server, source }
}

fn protocol(server: &str, detail: String) -> AgentError {
    let server = server.to_owned();
    AgentError::Protocol { server, detail }
}

fn micros(clock: &dyn Clock) -> u64 {
    u64::try_from(clock.monotonic().as_micros()).unwrap_or(u64::MAX)
}

async fn receive<R: AsyncRead + Unpin>(
    reader: &mut R,
    server: &str,
) -> Result<FromServer, AgentError> {
    let lost = |source| lost(server, source);
    let message = |source| AgentError::Message { server: server.to_owned(), source };
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).await.map_err(lost)?;
    let header = FrameHeader::decode(&header).map_err(message)?;
    let mut payload = vec![0; header.payload_length() as usize]; // bounded by the header's check
    reader.read_exact(&mut payload).await.map_err(lost)?;
    decode_from_server(&header, &payload).map_err(message)
}

/// What the server charges for a record.
fn price(record: &Record) -> u64 {
    let body = match &record.change {
        Change::Write { payload, .. } => payload.len(),
        Change::Zero { .. } => 0,
        // Rare and small: ask the codec.
        Change::Bookmark(_)
        | Change::EpochBegin(_)
        | Change::CatchUpBegin(_)
        | Change::CatchUpEnd => encode_from_agent(&FromAgent::Record(record.clone())).payload.len(),
    };
    (HEADER_BYTES + body) as u64
}

impl Session<'_> {
    fn credit(&self) -> u64 {
        let limit = self.credit_limit.load(Ordering::Acquire);
        limit.saturating_sub(self.credit_spent.load(Ordering::Acquire))
    }

    /// Leaves bitmap mode once the server has room for the largest record.
    fn resume(&self) {
        let largest = HEADER_BYTES as u64 + u64::from(PAYLOAD_BYTES_MAX);
        let now = self.shared.clock.monotonic();
        self.shared.stream.resume(now, self.credit(), largest);
    }

    async fn receive_all<R: AsyncRead + Unpin>(&self, reader: &mut R) -> Result<End, AgentError> {
        loop {
            let message = receive(reader, self.server).await?;
            self.heard_us.store(micros(self.shared.clock.as_ref()), Ordering::Release);
            match message {
                FromServer::Ack(ack) => {
                    let stream = &self.shared.stream;
                    let believed = stream.acked(ack.durable, ack.published);
                    believed.map_err(|detail| protocol(self.server, detail))?;
                    self.credit_limit.fetch_max(ack.credit_limit, Ordering::AcqRel);
                    self.resume();
                    stream.to_send.notify_one();
                }
                FromServer::BookmarkRequest(request) => self.ask(request),
                FromServer::Refuse(refuse) => return Ok(End::Refused(refuse)),
                FromServer::Redirect(redirect) => return Ok(End::Redirected(redirect)),
                FromServer::Welcome(_) => {
                    return Err(protocol(self.server, "a second Welcome".to_owned()));
                }
            }
        }
    }

    /// Places a requested bookmark; the answer follows its record.
    fn ask(&self, request: BookmarkRequest) {
        let BookmarkRequest { id, kind, name } = request;
        if !self.replies.open(id) {
            self.shared.stream.to_send.notify_one();
            return;
        }
        let (stream, clock) = (Arc::clone(&self.shared.stream), Arc::clone(&self.shared.clock));
        let replies = Arc::clone(&self.replies);
        let told = Arc::clone(&stream);
        // The time is that of the moment behind which it stands.
        let place = async move {
            stream.bookmark_soon(Bookmark { id, kind, time: clock.wall(), name }).await
        };
        match (kind, &self.shared.quiesce) {
            (BookmarkKind::CrashConsistent, _) => {
                tokio::spawn(async move {
                    replies.placed(id, place.await);
                    told.to_send.notify_one();
                });
            }
            (BookmarkKind::ApplicationConsistent, None) => {
                replies.placed(id, Err(NO_HOOK.to_owned()));
                told.to_send.notify_one();
            }
            (BookmarkKind::ApplicationConsistent, Some(quiesce)) => {
                let quiesce = Arc::clone(quiesce);
                // A task of its own: whatever becomes of the connection, the application is thawed.
                tokio::spawn(async move {
                    replies.placed(id, quiesce.run(place).await);
                    told.to_send.notify_one();
                });
            }
        }
    }

    async fn send_all(&self, outgoing: &mut Outgoing) -> Result<End, AgentError> {
        let lost = |source| lost(self.server, source);
        let clock = self.shared.clock.as_ref();
        let mut pulse = Pulse::new(clock.monotonic());
        let most = self.shared.settings.bandwidth_bytes_per_second_max;
        let mut bandwidth = Bandwidth::new(most, clock.monotonic());
        loop {
            if clock.monotonic() >= pulse.look_at() {
                for word in self.words(&mut pulse) {
                    outgoing.send(encode_from_agent(&word)).await.map_err(lost)?;
                }
                self.resume();
            }
            let most = TAKE_BYTES.min(bandwidth.allows(clock.monotonic()));
            let (records, spent) = self.shared.stream.take(self.credit(), most, price);
            self.credit_spent.fetch_add(spent, Ordering::AcqRel);
            bandwidth.spend(spent);
            let idle = records.is_empty();
            self.replies.sent(&records);
            for record in records {
                outgoing.send(encode_from_agent(&FromAgent::Record(record))).await.map_err(lost)?;
            }
            let losses = self.shared.stream.lock().losses;
            for reply in self.replies.answers(losses) {
                outgoing
                    .send(encode_from_agent(&FromAgent::Bookmark(reply)))
                    .await
                    .map_err(lost)?;
            }
            if !idle {
                continue;
            }
            if self.shared.leaving() {
                outgoing.send(encode_from_agent(&FromAgent::Goodbye)).await.map_err(lost)?;
                outgoing.flush().await.map_err(lost)?;
                outgoing.close().await.map_err(lost)?;
                return Ok(End::Left);
            }
            outgoing.flush().await.map_err(lost)?;
            let pause = pulse.look_at().saturating_sub(clock.monotonic());
            match bandwidth.pause() {
                // Whatever there is to send waits as well.
                Some(full) => clock.sleep(pause.min(full)).await,
                None => tokio::select! {
                    () = self.shared.stream.to_send.notified() => {}
                    () = clock.sleep(pause) => {}
                },
            }
        }
    }

    /// What is to be said of the agent and its disks now.
    fn words(&self, pulse: &mut Pulse) -> Vec<FromAgent> {
        let now = self.shared.clock.monotonic();
        let (progress, published) = self.progress();
        let progress = pulse.tells(now, &progress, published).then_some(progress);
        let captures = captures(&self.shared.stream).into_iter();
        let captures = captures.filter(|capture| pulse.tells_of(now, capture));
        progress
            .map(FromAgent::Progress)
            .into_iter()
            .chain(captures.map(FromAgent::Capture))
            .collect()
    }

    /// How the agent is, and how far it was told that its stream is published.
    fn progress(&self) -> (Progress, Sequence) {
        // The time first: what was acknowledged before it is in what is read after it.
        let time = self.shared.stream.moment_shown(self.shared.clock.wall());
        let core = self.shared.stream.lock();
        let disks = &self.shared.stream.disks;
        let progress = Progress {
            time,
            mode: core.mode,
            last: core.last,
            dirty_bytes: disks.iter().map(|disk| disk.bitmap.dirty_bytes()).sum(),
            total_bytes: disks.iter().map(|disk| disk.size_bytes).sum(),
            buffered_bytes: core.buffer.bytes(),
        };
        (progress, core.witnessed)
    }

    async fn listen_for_silence(&self) -> Result<End, AgentError> {
        let clock = self.shared.clock.as_ref();
        let timeout = self.shared.settings.server_timeout;
        let mut owed_since = None;
        loop {
            clock.sleep(timeout / SILENCE_LOOKS).await;
            let due_bytes = self.shared.stream.lock().due_bytes();
            let now = micros(clock);
            // A server that owed nothing had no reason to speak.
            owed_since = due_bytes.map(|_| owed_since.unwrap_or(now));
            let (Some(since), Some(bytes)) = (owed_since, due_bytes) else { continue };
            let heard = self.heard_us.load(Ordering::Acquire);
            let silent = Duration::from_micros(now.saturating_sub(since.max(heard)));
            if silent > patience(timeout, bytes) {
                let why = format!("no acknowledgement in {} ms", silent.as_millis());
                return Err(lost(self.server, io::Error::new(io::ErrorKind::TimedOut, why)));
            }
        }
    }
}

/// How long a server may be silent that owes the acknowledgement of a record of so many bytes.
fn patience(timeout: Duration, due_bytes: u64) -> Duration {
    timeout + Duration::from_millis(due_bytes * 1000 / RECORD_BYTES_PER_S_MIN)
}

/// A bookmark of this moment with a fresh id.
pub(super) fn new_bookmark(shared: &Shared, kind: BookmarkKind, name: &str) -> Bookmark {
    let entropy: &dyn Entropy = shared.entropy.as_ref();
    Bookmark {
        id: BookmarkId(random16(entropy)),
        kind,
        time: shared.clock.wall(),
        name: name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_record_on_a_slow_line_is_no_silence() {
        let timeout = Duration::from_secs(5);
        assert_eq!(patience(timeout, 0), timeout);
        assert!(patience(timeout, 4096) < Duration::from_millis(5200));
        // What a line of 512 kbit/s takes for the largest record, and then some.
        assert!(patience(timeout, 1 << 20) > Duration::from_secs((1 << 20) / (64 << 10)));
    }
}
