//! A running agent: its disks, its tasks, its orderly end.
//!
//! Owns: the state directory, starting and stopping. Does not own: any rule of the stream.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::clock::{Clock, Entropy, random16};
use crate::format::change::BOOKMARK_NAME_BYTES_MAX;
use crate::model::{BookmarkId, BookmarkKind, DiskName, Incarnation, Sequence, TrackingMode};
use crate::nbd::Export;
use crate::settings::{AgentDisk, AgentSettings};

use super::beats::Beats;
use super::capture::{self, Captures};
use super::clearing::Round;
use super::dial::{Dial, Network, Way, Ways};
use super::disk::{Captured, Disk};
use super::error::AgentError;
use super::quiesce::Quiesce;
use super::status::AgentStatus;
use super::stream::Stream;
use super::{catchup, connection, keeping, opening, session, tls};

/// Time that an orderly stop waits for the stream to be published.
const STOP_WAIT: Duration = Duration::from_secs(60);
/// Interval of the policy's bookmarks until a server has said it.
const MARK_INTERVAL_MS: u64 = 5_000;
/// Pause between two looks while stopping.
const STOP_LOOK: Duration = Duration::from_millis(50);

/// What the parts of a running agent share.
pub(super) struct Shared {
    pub(super) settings: AgentSettings,
    pub(super) stream: Arc<Stream>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) dial: Arc<dyn Dial>,
    /// How the application is quiesced, if it can be.
    pub(super) quiesce: Option<Arc<Quiesce>>,
    pub(super) ways: Ways,
    pub(super) incarnation: Incarnation,
    pub(super) beats: Beats,
    /// Wakes whoever pauses between connections when the agent leaves.
    pub(super) left: Notify,
    /// The policy asks for bookmarks in another interval.
    pub(super) mark_changed: Notify,
    mark_interval_ms: AtomicU64,
    leaving: AtomicBool,
    connection: Mutex<ConnectionState>,
    /// Held as long as anything of this agent lives.
    _lock: File,
}

/// How the connection is.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionState {
    /// The server that welcomed us, and how it is reached.
    pub(super) server: Option<(String, Way)>,
    /// The name of the last server that welcomed us.
    welcomed_by: Option<String>,
    /// How often that became another one.
    pub(super) switches: u64,
    /// Why the last session ended, while no other began.
    left_because: Option<String>,
    /// Why the server became another one last.
    pub(super) switched_because: Option<String>,
    pub(super) last_error: Option<String>,
    pub(super) halted: bool,
}

impl Shared {
    fn connection(&self) -> MutexGuard<'_, ConnectionState> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(
        &self,
        name: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        tokio::spawn(self.beats.of(name, &self.clock, work))
    }

    pub(super) fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// The server `name` at `address` welcomed us.
    pub(super) fn connected_to(&self, address: &str, name: &str, way: Way) {
        let mut connection = self.connection();
        connection.server = Some((format!("{address} ({name})"), way));
        let because = connection.left_because.take();
        let before = connection.welcomed_by.replace(name.to_owned());
        if before.is_some_and(|before| before != name) {
            connection.switches += 1;
            connection.switched_because = because;
        }
        drop(connection);
        self.stream.to_tell.notify_one();
    }

    pub(super) fn disconnected(&self) {
        self.connection().server = None;
        self.stream.to_tell.notify_one();
    }

    /// A session ended, or an attempt to begin one.
    pub(super) fn failed(&self, why: &str) {
        let mut connection = self.connection();
        connection.last_error = Some(why.to_owned());
        connection.left_because.get_or_insert_with(|| why.to_owned());
    }

    /// How often the policy wants a bookmark.
    pub(super) fn mark_interval(&self) -> Duration {
        Duration::from_millis(self.mark_interval_ms.load(Ordering::Relaxed))
    }

    pub(super) fn mark_every(&self, interval: Duration) {
        let ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        self.mark_interval_ms.store(ms, Ordering::Relaxed);
        self.mark_changed.notify_one();
    }

    /// Replication ends for this life; changes are kept in the bitmap.
    pub(super) fn halt(&self, why: &str) {
        self.connection().halted = true;
        self.stream.give_up_order(why);
        self.stream.to_tell.notify_one();
    }

    pub(super) fn connection_state(&self) -> ConnectionState {
        self.connection().clone()
    }
}

/// The application's hook, if the settings have one.
pub(super) fn quiesce(
    settings: &AgentSettings,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
) -> Result<Option<Arc<Quiesce>>, AgentError> {
    let Some(hook) = settings.application.clone() else { return Ok(None) };
    let guest = hook.guest_agent.as_ref().map(|at| tls::peer(settings, at)).transpose()?;
    let (clock, entropy) = (Arc::clone(clock), Arc::clone(entropy));
    Ok(Some(Arc::new(Quiesce::new(hook, guest, &settings.state_directory, clock, entropy))))
}

/// How an agent stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Everything is published; the next start reads nothing again.
    Clean,
    /// Time ran out; the next start reads again what may have changed.
    Unsettled,
}

/// A running agent. Dropping it is like killing it: nothing is lost, but the next start has to
/// read again what may have changed; [`Agent::stop`] leaves nothing behind.
pub struct Agent {
    shared: Arc<Shared>,
    captures: Captures,
    replication: Option<JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let machine = &self.shared.settings.machine;
        f.debug_struct("Agent").field("machine", machine).finish_non_exhaustive()
    }
}

impl Agent {
    /// Opens the disks and their bitmaps, serves them, and begins to replicate. Must be called
    /// inside a tokio runtime; blocks while bitmaps are read.
    ///
    /// # Errors
    /// When a disk, the state directory, a certificate or a socket cannot be used.
    pub fn start(
        settings: AgentSettings,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, AgentError> {
        let dial = Arc::new(Network::new(&settings)?);
        Self::start_with(settings, clock, entropy, dial)
    }

    /// Like [`Agent::start`] with another way to reach the servers.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(
        settings: AgentSettings,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        dial: Arc<dyn Dial>,
    ) -> Result<Self, AgentError> {
        let quiesce = quiesce(&settings, &clock, &entropy)?;
        let (lock, stream, scanned) = opening::open(&settings, entropy.as_ref())?;
        let shared = Arc::new(Shared {
            stream: Arc::new(stream),
            quiesce,
            clock,
            dial,
            ways: Ways::new(settings.transport),
            incarnation: Incarnation(random16(entropy.as_ref())),
            entropy,
            beats: Beats::default(),
            left: Notify::new(),
            mark_changed: Notify::new(),
            mark_interval_ms: AtomicU64::new(MARK_INTERVAL_MS),
            leaving: AtomicBool::new(false),
            connection: Mutex::default(),
            settings,
            _lock: lock,
        });
        let mut agent =
            Self { captures: Captures::default(), replication: None, tasks: Vec::new(), shared };
        agent.captures = match capture::start(&agent, scanned) {
            Ok(captures) => captures,
            Err(error) => {
                agent.shared.stream.give_back();
                return Err(error);
            }
        };
        let shared = &agent.shared;
        let (stream, clock) = (Arc::clone(&shared.stream), Arc::clone(&shared.clock));
        let tasks = [
            shared.spawn("catch-up", catchup::run(stream, clock)),
            shared.spawn("bookmarks", keeping::mark(Arc::clone(shared))),
            shared.spawn("clearing", keeping::clear(Arc::clone(shared))),
            shared.spawn("status", keeping::tell(Arc::clone(shared))),
        ];
        let replication = shared.spawn("stream", connection::run(Arc::clone(shared)));
        agent.tasks.extend(tasks);
        agent.replication = Some(replication);
        Ok(agent)
    }

    /// What a watchdog looks at; gone when nothing of this agent lives any more.
    pub(super) fn watched(&self) -> Weak<Shared> {
        Arc::downgrade(&self.shared)
    }

    pub(super) fn disks(&self) -> &[AgentDisk] {
        &self.shared.settings.disks
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn stream(&self) -> &Arc<Stream> {
        &self.shared.stream
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// A disk as its NBD clients see it, for programs that embed the agent.
    ///
    /// # Errors
    /// When there is no such disk.
    pub fn export(&self, disk: &DiskName) -> Result<Arc<dyn Export>, AgentError> {
        Ok(Arc::new(Captured {
            disk: self.disk(disk)?,
            stream: Arc::clone(&self.shared.stream),
            mode: self.shared.settings.mode,
        }))
    }

    pub(super) fn disk(&self, disk: &DiskName) -> Result<Arc<Disk>, AgentError> {
        let found = self.shared.stream.disks.iter().find(|one| one.name == *disk);
        found.cloned().ok_or_else(|| AgentError::UnknownDisk { disk: disk.clone() })
    }

    /// Places a bookmark behind every write acknowledged so far. It can be used once it is
    /// published. Blocks where writes are seen after the fact, until all so far were.
    ///
    /// # Errors
    /// When no consistent point is possible now, or the name is too long.
    pub fn bookmark(
        &self,
        name: &str,
        kind: BookmarkKind,
    ) -> Result<(BookmarkId, Sequence), AgentError> {
        let refused = |why| AgentError::Bookmark { name: name.chars().take(80).collect(), why };
        if name.len() > BOOKMARK_NAME_BYTES_MAX {
            let why = format!(
                "the name has {} bytes, at most {BOOKMARK_NAME_BYTES_MAX} are allowed",
                name.len()
            );
            return Err(refused(why));
        }
        let bookmark = session::new_bookmark(&self.shared, kind, name);
        let id = bookmark.id;
        let placed = self.shared.stream.bookmark_behind_all(bookmark).map_err(refused)?;
        Ok((id, placed.sequence))
    }

    /// How it is now.
    #[must_use]
    pub fn status(&self) -> AgentStatus {
        AgentStatus::of(&self.shared, 0.0)
    }

    /// The application's hook, for whoever ends the agent without waiting.
    pub(super) fn quiesce(&self) -> Option<Arc<Quiesce>> {
        self.shared.quiesce.clone()
    }

    /// Stops in order: nothing frozen, no more writes, everything published (for at most 60 s), bits
    /// cleared.
    pub async fn stop(self) -> Stopped {
        self.stop_within(STOP_WAIT).await
    }

    /// Like [`Agent::stop`] with another bound.
    pub async fn stop_within(mut self, wait: Duration) -> Stopped {
        // First: a file system that is thawed may write to the disks that are served.
        if let Some(quiesce) = &self.shared.quiesce {
            quiesce.close().await;
        }
        let captures = std::mem::take(&mut self.captures);
        let stream = Arc::clone(&self.shared.stream);
        let served = tokio::task::spawn_blocking(move || captures.stop(&stream.observers()));
        if served.await.is_err() {
            tracing::error!("capturing the disks did not end in order");
        }
        let stream = Arc::clone(&self.shared.stream);
        stream.close();
        let clock = Arc::clone(&self.shared.clock);
        let until = clock.monotonic() + wait;
        while !stream.settled() && !stream.stuck() && clock.monotonic() < until {
            clock.sleep(STOP_LOOK).await;
        }
        self.shared.leaving.store(true, Ordering::Release);
        stream.to_send.notify_one();
        self.shared.left.notify_one();
        if let Some(mut replication) = self.replication.take() {
            tokio::select! {
                _ended = &mut replication => {}
                () = clock.sleep(STOP_WAIT.min(wait.max(STOP_LOOK))) => replication.abort(),
            }
        }
        let last = Arc::clone(&stream);
        let stopped = match tokio::task::spawn_blocking(move || last.settle()).await {
            Ok(Ok(stopped)) => stopped,
            Ok(Err(error)) => {
                tracing::error!(%error, "the bitmap could not be closed; the next start reads again what may have changed");
                Stopped::Unsettled
            }
            Err(_) => Stopped::Unsettled,
        };
        tracing::info!(?stopped, "agent stopped");
        let _told = self.status().write(&self.shared.settings.state_directory);
        stream.observe_with(Vec::new());
        stopped
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.stream.close();
        self.shared.leaving.store(true, Ordering::Release);
        for task in self.tasks.drain(..).chain(self.replication.take()) {
            task.abort();
        }
    }
}

impl Stream {
    /// Whether nothing is left to send or to hear.
    fn settled(&self) -> bool {
        let busy = self.disks.iter().any(|disk| !disk.locks.ranges().is_empty());
        let core = self.lock();
        !busy && core.mode == TrackingMode::Ordered && core.witnessed >= core.last
    }

    /// Whether waiting is in vain: what was given out is published, and an observer that has stopped
    /// does not know enough for the catch-up to end.
    fn stuck(&self) -> bool {
        let core = self.lock();
        !core.withheld.is_empty() && core.witnessed >= core.last
    }

    /// A start that failed leaves the bitmaps as an orderly stop does: they would not know any more when
    /// their sources were changed last.
    fn give_back(&self) {
        self.close();
        if let Err(error) = self.settle() {
            tracing::error!(%error, "the bitmaps could not be closed; the next start does not see what was written meanwhile");
        }
    }

    /// Clears what can be cleared and says so in the bitmaps, and when the sources were changed last.
    /// Nothing writes any more.
    fn settle(&self) -> std::io::Result<Stopped> {
        let settled = self.settled();
        if settled {
            self.lock().connected = true; // a round begins only while watermarks can come; all came
            self.lock().round = None;
            while self.clear_step()? == Round::Waits {}
        }
        let witnessed = self.lock().witnessed;
        let clean = settled && self.disks.iter().all(|disk| disk.bitmap.set_bytes() == 0);
        for disk in &self.disks {
            let changed = disk.changed().unwrap_or_else(|error| {
                tracing::error!(disk = %disk.name, %error, "the source disk did not sync");
                None
            });
            disk.bitmap.mark_stopped(clean, witnessed, changed)?;
        }
        Ok(if clean { Stopped::Clean } else { Stopped::Unsettled })
    }
}
