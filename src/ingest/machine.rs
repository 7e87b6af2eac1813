//! A machine on this process server: where its one live session and the pipeline meet.
//!
//! Owns: who sits in the machine's one seat, the stream's state behind the last admitted record,
//! the watermarks that go back to the agent. Does not own: the log behind `appends`, the manifest,
//! the policy; whoever runs the pipeline makes the link and tells it how far things came.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedMutexGuard, mpsc, oneshot, watch};

use super::admission::Admitted;
use super::credit::CreditTerms;
use super::machines::LastWord;
use super::session::{Standing, follows, refuse};
use super::sitting::{Party, Sitting};
use super::stream::StreamState;
use crate::cache::DurableThrough;
use crate::format::change::BOOKMARK_NAME_BYTES_MAX;
use crate::format::wire::{BookmarkOutcome, BookmarkRequest, Hello, Progress, Refusal, Refuse};
use crate::model::{
    Bookmark, BookmarkId, EpochBegin, Generation, Incarnation, MachineId, MachineKey, Sequence,
    ServerId, Timestamp, Watermarks,
};
use crate::observe::MachineMetrics;

/// Bookmark requests that may wait for one agent.
const REQUESTS_MAX: usize = 16;

/// What a link begins with.
#[derive(Debug)]
pub struct LinkSetup {
    /// Which machine.
    pub machine: MachineId,
    /// This process server.
    pub server: ServerId,
    /// Its ownership of the machine.
    pub generation: Generation,
    /// The stream behind its last durable record: the manifest's end, then what recovery found.
    pub stream: StreamState,
    /// The stream is published through here.
    pub published: Sequence,
    /// How often the policy wants a bookmark, ms.
    pub bookmark_interval_ms: u32,
    /// Where admitted records go: the log of the machine's shard.
    pub appends: mpsc::Sender<Admitted>,
    /// The share of their credit that agents get: shrinks while that log fills.
    pub credit: watch::Receiver<CreditTerms>,
    /// Where the machine's watermarks are shown.
    pub metrics: Arc<MachineMetrics>,
}

/// One machine, shared by its sessions and the pipeline. Every method may be called from any
/// thread.
#[derive(Debug)]
pub struct MachineLink {
    machine: MachineId,
    key: MachineKey,
    server: ServerId,
    generation: Generation,
    bookmark_interval_ms: AtomicU32,
    appends: mpsc::Sender<Admitted>,
    credit: watch::Receiver<CreditTerms>,
    progress: watch::Sender<Option<Progress>>,
    metrics: Arc<MachineMetrics>,
    durable: watch::Sender<Sequence>,
    published: watch::Sender<Sequence>,
    /// Why the machine is not served here any more.
    ended: watch::Sender<Ending>,
    /// Number of the newest connection: an older one leaves its seat.
    newest: watch::Sender<u64>,
    /// Whose that is, and who else wants it.
    sitting: Mutex<Sitting>,
    /// Somebody was refused for the one in the seat.
    doubted: Notify,
    /// The seat itself. Its holder alone admits, so the stream's state lies in it.
    stream: Arc<tokio::sync::Mutex<StreamState>>,
    /// Way to the agent that sits now.
    requests: Mutex<Option<mpsc::Sender<Asked>>>,
    /// Who waits for bookmarks that are not admitted yet, and wants their time.
    awaited: Mutex<HashMap<BookmarkId, oneshot::Sender<Timestamp>>>,
}

/// Where a bookmark stands in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedBookmark {
    /// Its record.
    pub sequence: Sequence,
    /// When it was made, as its record says.
    pub time: Timestamp,
}

/// Why a bookmark was not placed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BookmarkError {
    /// No agent is connected, or it went before it answered: the bookmark may still stand in the
    /// stream, under its id.
    #[error("the agent of machine {machine} is not connected: bookmark {id} was not confirmed")]
    NotConnected {
        /// Which machine.
        machine: MachineId,
        /// Which bookmark.
        id: BookmarkId,
    },
    /// Too many requests wait for this agent.
    #[error("{REQUESTS_MAX} bookmark requests wait for the agent of machine {machine} already")]
    Busy {
        /// Which machine.
        machine: MachineId,
    },
    /// The name does not fit.
    #[error("the bookmark's name has {found} bytes, {BOOKMARK_NAME_BYTES_MAX} are allowed")]
    Name {
        /// Its length.
        found: usize,
    },
    /// The agent said no.
    #[error("the agent of machine {machine} placed no bookmark {id}: {reason}")]
    Refused {
        /// Which machine.
        machine: MachineId,
        /// Which bookmark.
        id: BookmarkId,
        /// Its words.
        reason: String,
    },
}

/// Whether the machine is served here.
#[derive(Debug)]
enum Ending {
    NotYet,
    /// It is given up: nothing more is admitted, and what is to be said is not known yet.
    Soon,
    Said(LastWord),
}

fn not_served() -> Refuse {
    refuse(Refusal::NotOwner, "the machine is not served here")
}

/// Why a connection has to leave the seat.
#[derive(Debug)]
pub(super) enum Overruled {
    /// With these words.
    Told(LastWord),
    /// The words follow.
    Soon,
}

/// A bookmark request on its way to the agent.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: BookmarkRequest,
    pub(super) answer: oneshot::Sender<BookmarkOutcome>,
}

impl MachineLink {
    /// A link to a machine that this process server owns now.
    #[must_use]
    pub fn new(setup: LinkSetup) -> Arc<Self> {
        let through = setup.stream.sequence;
        setup.metrics.raise(Watermarks {
            received: through,
            durable: through,
            published: setup.published,
            ..Watermarks::default()
        });
        Arc::new(Self {
            key: MachineKey::of(&setup.machine),
            machine: setup.machine,
            server: setup.server,
            generation: setup.generation,
            bookmark_interval_ms: AtomicU32::new(setup.bookmark_interval_ms),
            appends: setup.appends,
            credit: setup.credit,
            progress: watch::Sender::new(None),
            metrics: setup.metrics,
            durable: watch::Sender::new(through),
            published: watch::Sender::new(setup.published),
            ended: watch::Sender::new(Ending::NotYet),
            newest: watch::Sender::new(0),
            sitting: Mutex::new(Sitting::new(EpochBegin {
                epoch: setup.stream.epoch,
                disks: setup.stream.disks.clone(),
            })),
            stream: Arc::new(tokio::sync::Mutex::new(setup.stream)),
            doubted: Notify::new(),
            requests: Mutex::new(None),
            awaited: Mutex::default(),
        })
    }

    /// Which machine.
    #[must_use]
    pub fn machine(&self) -> &MachineId {
        &self.machine
    }

    /// The same in binary formats.
    #[must_use]
    pub fn key(&self) -> MachineKey {
        self.key
    }

    /// The ownership under which its records are taken.
    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    /// Where its watermarks are shown.
    #[must_use]
    pub fn metrics(&self) -> &Arc<MachineMetrics> {
        &self.metrics
    }

    /// Its stream is durable through this record: the only source of durable acks. Records come in
    /// any number at a time; the last of a commit is enough.
    pub fn made_durable(&self, through: DurableThrough) {
        assert!(
            through.machine() == self.key,
            "a record of another machine was routed to the link of {}",
            self.machine
        );
        let durable = through.sequence();
        raise(&self.durable, durable);
        self.metrics.raise(Watermarks { durable, ..Watermarks::default() });
    }

    /// The manifest names its stream through here.
    pub fn published_through(&self, published: Sequence) {
        raise(&self.published, published);
        self.metrics.raise(Watermarks { published, ..Watermarks::default() });
    }

    /// The policy's interval; an agent learns it with its next welcome.
    pub fn set_bookmark_interval_ms(&self, interval: u32) {
        self.bookmark_interval_ms.store(interval, Ordering::Relaxed);
    }

    /// The machine is not served here any more (fenced, given up, unprotected, the log failed): the
    /// present session and all later ones end with this.
    pub fn end(&self, why: impl Into<LastWord>) {
        self.ended.send_if_modified(|ended| {
            let first = !matches!(ended, Ending::Said(_));
            if first {
                *ended = Ending::Said(why.into());
            }
            first
        });
    }

    /// Nothing more is admitted: the present session leaves its seat and waits for the word that
    /// [`MachineLink::end`] gives, and later ones do, too.
    pub fn close_door(&self) {
        self.ended.send_if_modified(|ended| {
            let open = matches!(ended, Ending::NotYet);
            if open {
                *ended = Ending::Soon;
            }
            open
        });
    }

    /// Whether nothing more is admitted.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        !matches!(*self.ended.borrow(), Ending::NotYet)
    }

    /// Once the door is closed: completes when the session has left its seat and everything that was
    /// ever admitted is durable, and handed to the pipeline.
    pub async fn settled(&self) {
        let stream = self.stream.lock().await;
        let admitted = stream.sequence;
        drop(stream);
        self.durable_at(admitted).await;
    }

    /// As if a session had admitted the stream through here.
    #[cfg(test)]
    pub(crate) async fn admitted(&self, through: Sequence) {
        self.stream.lock().await.sequence = through;
    }

    /// The last word, once it is said.
    pub async fn last_word(&self) -> LastWord {
        let mut ended = self.ended.subscribe();
        let said = ended.wait_for(|ended| matches!(ended, Ending::Said(_))).await;
        match said.as_deref() {
            Ok(Ending::Said(word)) => word.clone(),
            Ok(Ending::NotYet | Ending::Soon) | Err(_) => not_served().into(),
        }
    }

    /// The agent's last word on itself; `None` before its first. On an idle machine it says up to
    /// which moment the stream is complete.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Option<Progress>> {
        self.progress.subscribe()
    }

    /// Completes when the stream is durable through `sequence`.
    pub async fn durable_at(&self, sequence: Sequence) {
        let mut durable = self.durable.subscribe();
        drop(durable.wait_for(|durable| *durable >= sequence).await); // we hold the sender
    }

    /// Completes when the stream is published through `sequence`.
    pub async fn published_at(&self, sequence: Sequence) {
        let mut published = self.published.subscribe();
        drop(published.wait_for(|published| *published >= sequence).await); // we hold the sender
    }

    /// Completes when everything is published that is durable now.
    pub async fn caught_up(&self) {
        let durable = *self.durable.borrow();
        self.published_at(durable).await;
    }

    /// Asks the agent to put a bookmark into the stream; returns once its record was admitted. It is
    /// recoverable when the stream is published through there. Callers bound the wait.
    ///
    /// # Errors
    /// When no agent answers, or it refuses.
    pub async fn bookmark(
        &self,
        request: BookmarkRequest,
    ) -> Result<PlacedBookmark, BookmarkError> {
        let (machine, id) = (|| self.machine.clone(), request.id);
        if request.name.len() > BOOKMARK_NAME_BYTES_MAX {
            let found = request.name.len();
            return Err(BookmarkError::Name { found });
        }
        let way = self.way_to_agent().clone();
        let Some(way) = way else {
            return Err(BookmarkError::NotConnected { machine: machine(), id });
        };
        let (answer, outcome) = oneshot::channel();
        let (tell, time) = oneshot::channel();
        {
            let mut awaited = self.awaited();
            awaited.retain(|_, tell| !tell.is_closed()); // their askers went
            awaited.insert(id, tell);
        }
        way.try_send(Asked { request, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => BookmarkError::Busy { machine: machine() },
            mpsc::error::TrySendError::Closed(_) => {
                BookmarkError::NotConnected { machine: machine(), id }
            }
        })?;
        match outcome.await {
            Ok(BookmarkOutcome::Placed(sequence)) => match time.await {
                Ok(time) => Ok(PlacedBookmark { sequence, time }),
                // Another request has the same id: nobody can tell them apart.
                Err(_) => Err(BookmarkError::NotConnected { machine: machine(), id }),
            },
            Ok(BookmarkOutcome::Refused(reason)) => {
                Err(BookmarkError::Refused { machine: machine(), id, reason })
            }
            Err(_) => Err(BookmarkError::NotConnected { machine: machine(), id }),
        }
    }

    /// A bookmark was admitted.
    pub(super) fn admitted_bookmark(&self, bookmark: &Bookmark) {
        if let Some(tell) = self.awaited().remove(&bookmark.id) {
            let _asker_may_be_gone = tell.send(bookmark.time);
        }
    }

    fn awaited(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<BookmarkId, oneshot::Sender<Timestamp>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a welcome says beside the stream's state.
    pub(super) fn standing(&self) -> Standing {
        Standing {
            server: self.server.clone(),
            generation: self.generation,
            published: *self.published.borrow(),
            bookmark_interval_ms: self.bookmark_interval_ms.load(Ordering::Relaxed),
        }
    }

    pub(super) fn note_progress(&self, progress: Progress) {
        self.progress.send_replace(Some(progress));
    }

    pub(super) fn credit(&self) -> watch::Receiver<CreditTerms> {
        self.credit.clone()
    }

    /// Bytes of it that are durable and not yet published.
    pub(super) fn backlog_bytes(&self) -> u64 {
        self.metrics.backlog_bytes.load(Ordering::Acquire)
    }

    /// Room for one record in the log's queue; waiting here is the back-pressure.
    pub(super) async fn reserve(&self) -> Result<mpsc::Permit<'_, Admitted>, Refuse> {
        self.appends.reserve().await.map_err(|_| {
            let text = format_args!("the cache log of machine {} has stopped", self.machine);
            refuse(Refusal::NotOwner, text)
        })
    }

    /// Announces a connection: from now on older ones leave.
    ///
    /// # Errors
    /// The party that has the seat, when this one cannot be its next life.
    pub(super) fn announce(self: &Arc<Self>, hello: &Hello, party: Party) -> Result<Ticket, Party> {
        let published = *self.published.borrow();
        let mut sitting = self.sitting();
        let follows = follows(hello, sitting.tracks(), published);
        match sitting.defends(party.agent, follows) {
            Some(sitter) => Err(sitter.clone()),
            None => Ok(self.seat(&mut sitting, party)),
        }
    }

    fn seat(self: &Arc<Self>, sitting: &mut Sitting, party: Party) -> Ticket {
        let mut number = 0;
        self.newest.send_modify(|newest| {
            *newest += 1;
            number = *newest;
        });
        sitting.enter(number, party);
        Ticket { link: Arc::clone(self), number }
    }

    /// Whether a connection has the seat, or is about to.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        self.sitting().is_taken()
    }

    /// Another agent of the machine was refused, here or elsewhere: that is said as soon as the one in the
    /// seat is heard.
    pub fn refused_another(&self, words: String, now: Duration) {
        self.sitting().refused(words, now);
        self.doubted.notify_one();
    }

    /// Completes when somebody was refused for the one in the seat.
    pub(super) async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// This life was refused, and its history proves that it is another agent than the machine's.
    pub(super) fn disowned(&self, agent: Incarnation, words: String) {
        self.metrics.set_rival(Some(words.clone()));
        self.sitting().disowned(agent, words);
    }

    /// The agent in the seat said how it is.
    pub(super) fn heard(&self, now: Duration) {
        let said = self.sitting().heard(now);
        self.metrics.set_rival(said);
    }

    /// A record of this life was admitted.
    pub(super) fn wrote(&self, agent: Incarnation) {
        self.sitting().wrote(agent);
    }

    /// The stream begins another epoch.
    pub(super) fn began(&self, begin: &EpochBegin) {
        self.sitting().began(begin.clone());
    }

    /// This life was welcomed behind that record.
    pub(super) fn welcomed(&self, agent: Incarnation, at: Sequence) {
        let mut sitting = self.sitting();
        if sitting.welcomed(agent, at) {
            self.metrics.set_rival(sitting.stopped());
        }
    }

    /// Whether the records behind what this life gave out itself are another one's. Two that follow each
    /// other without knowing would each take the other's for its own.
    ///
    /// # Errors
    /// The refusal to send.
    pub(super) fn check_writer(&self, hello: &Hello, end: Sequence) -> Result<(), Refuse> {
        if hello.last == Sequence::ZERO || !self.sitting().is_anothers(hello.agent, end) {
            return Ok(());
        }
        let text = format_args!(
            "the stream of {} goes on with another agent's records, and this one gave out some up to {} \
             itself: somebody else writes it",
            self.machine, hello.last
        );
        Err(refuse(Refusal::Foreign, text))
    }

    fn sitting(&self) -> MutexGuard<'_, Sitting> {
        self.sitting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way_to_agent(&self) -> std::sync::MutexGuard<'_, Option<mpsc::Sender<Asked>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that wants the seat.
#[derive(Debug)]
pub(super) struct Ticket {
    link: Arc<MachineLink>,
    number: u64,
}

impl Ticket {
    /// Why this connection must end now; waits until there is a reason.
    pub(super) async fn overruled(&self) -> Overruled {
        let mut ended = self.link.ended.subscribe();
        let mut newest = self.link.newest.subscribe();
        tokio::select! {
            why = ended.wait_for(|ended| !matches!(ended, Ending::NotYet)) => match why.as_deref() {
                Ok(Ending::Said(word)) => Overruled::Told(word.clone()),
                Ok(Ending::NotYet | Ending::Soon) => Overruled::Soon,
                Err(_) => Overruled::Told(not_served().into()),
            },
            _ = newest.wait_for(|newest| *newest > self.number) => {
                let machine = &self.link.machine;
                let text = format_args!("a newer connection of machine {machine} took over");
                Overruled::Told(refuse(Refusal::Superseded, text).into())
            }
        }
    }

    /// Sits down once the one before has left and all it admitted is durable, so that a welcome
    /// can name one position that is both the last durable record and the last received one.
    pub(super) async fn sit(&self) -> Seat {
        let stream = Arc::clone(&self.link.stream).lock_owned().await;
        if self.link.has_ended() {
            // Whoever gives the machine up has seen this seat free: nobody sits down any more.
            // `overruled` says why.
            drop(stream);
            return std::future::pending().await;
        }
        let mut durable = self.link.durable.subscribe();
        let settled = durable.wait_for(|durable| *durable >= stream.sequence).await;
        drop(settled); // the link holds the sender: waiting cannot fail
        let (way, requests) = mpsc::channel(REQUESTS_MAX);
        *self.link.way_to_agent() = Some(way);
        self.link.metrics.connected.store(1, Ordering::Relaxed);
        Seat {
            durable: self.link.durable.subscribe(),
            published: self.link.published.subscribe(),
            link: Arc::clone(&self.link),
            requests,
            stream,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.link.sitting().leave(self.number);
    }
}

/// The one place from which a machine's records are admitted.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) link: Arc<MachineLink>,
    pub(super) durable: watch::Receiver<Sequence>,
    pub(super) published: watch::Receiver<Sequence>,
    pub(super) requests: mpsc::Receiver<Asked>,
    pub(super) stream: OwnedMutexGuard<StreamState>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Before the stream's guard is dropped: the next one has not sat down yet.
        *self.link.way_to_agent() = None;
        self.link.metrics.connected.store(0, Ordering::Relaxed);
        self.link.metrics.forget_captures();
    }
}

fn raise(watermark: &watch::Sender<Sequence>, to: Sequence) {
    watermark.send_if_modified(|present| {
        let higher = to > *present;
        *present = to.max(*present);
        higher
    });
}
