//! One QEMU whose disks are mirrored to the agent, watched for as long as the agent lives.
//!
//! Owns: its thread, when a disk is attached again. Does not own: the steps of attaching
//! ([`super::attach`]), what a disk's state is called ([`super::state`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::agent::capture::{CaptureMode, Observer};
use crate::agent::stream::Stream;
use crate::clock::Clock;
use crate::model::DiskIndex;
use crate::nbd;

use super::attach::{Attached, Link, Place};
use super::error::MirrorError;
use super::qmp::Qmp;
use super::reach::Reach;
use super::state::State;
use super::steps::{self, Mirror};

/// Pause between two looks at the mirrors. Shorter under test, so that much happens in little time.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 500 });
/// Looks between two rotations of the dirty bitmap: half a minute of writes is read again at most.
const ROTATE_LOOKS: u32 = if cfg!(test) { 3 } else { 60 };
/// Pause between two looks at a step that QEMU is carrying out.
const STEP: Duration = Duration::from_millis(20);
/// Pauses between attempts to attach, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);

const ANEW: &str = "it is being attached again";

/// One disk.
pub(super) struct Mirrored {
    pub(super) place: Place,
    pub(super) server: nbd::Server,
}

/// What is held while QEMU is asked.
#[derive(Default)]
struct Connected {
    qmp: Option<Qmp>,
    attached: BTreeMap<DiskIndex, Attached>,
    /// Disks of which the last attempt or look failed.
    attempts: BTreeMap<DiskIndex, Attempts>,
    /// What catch-ups had read at the last bookmark.
    read_bytes: u64,
    /// How often a disk was attached, and how often it was when a bookmark was settled.
    attachments: u64,
    settled_at: u64,
}

impl Connected {
    /// What QEMU refuses is of one disk. After anything else nothing it says is believed: the watcher
    /// connects again.
    fn begin_anew_after(&mut self, error: &MirrorError) {
        if error.ends_connection() {
            (self.qmp, self.attached) = (None, BTreeMap::new());
        }
    }
}

/// A QEMU with its disks.
pub(super) struct Guest {
    reach: Reach,
    stream: Arc<Stream>,
    clock: Arc<dyn Clock>,
    disks: Vec<Mirrored>,
    connected: Mutex<Connected>,
    states: Mutex<BTreeMap<DiskIndex, State>>,
    stopping: Mutex<bool>,
    stopped: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guest {
    /// Begins to watch. All disks are withheld until they are attached.
    pub(super) fn watch(
        reach: Reach,
        stream: &Arc<Stream>,
        clock: &Arc<dyn Clock>,
        disks: Vec<Mirrored>,
    ) -> std::io::Result<Arc<Self>> {
        let guest = Arc::new(Self {
            reach,
            stream: Arc::clone(stream),
            clock: Arc::clone(clock),
            disks,
            connected: Mutex::default(),
            states: Mutex::default(),
            stopping: Mutex::new(false),
            stopped: Condvar::new(),
            thread: Mutex::default(),
        });
        for mirrored in &guest.disks {
            guest.apart(mirrored, false, "it is not attached to its guest yet");
        }
        let watcher = Arc::downgrade(&guest);
        let thread = std::thread::Builder::new().name("mirror".to_owned());
        let thread = thread.spawn(move || {
            let mut looks = 0;
            // An agent that is dropped without a stop ends its watchers, too.
            while let Some(guest) = watcher.upgrade() {
                guest.turn(&mut looks);
                if !guest.pause(LOOK) {
                    return;
                }
            }
        })?;
        *lock(&guest.thread) = Some(thread);
        Ok(guest)
    }

    /// `false` when the agent stops.
    fn pause(&self, pause: Duration) -> bool {
        let held = lock(&self.stopping);
        let waited = self.stopped.wait_timeout_while(held, pause, |stopping| !*stopping);
        !*waited.unwrap_or_else(PoisonError::into_inner).0 && !self.stream.closed()
    }

    /// No point of this disk now. `off`: its guest is.
    fn apart(&self, mirrored: &Mirrored, off: bool, why: &str) {
        let disk = &mirrored.place.disk;
        let now = self.clock.wall();
        let (state, news) = {
            let states = &mut *lock(&self.states);
            let before = states.get(&disk.index);
            let state = State::apart(before, off, why, now);
            let news = before != Some(&state);
            states.insert(disk.index, state.clone());
            (state.words(), news)
        };
        if news {
            // Once for each change: a guest may be off for weeks.
            tracing::warn!(disk = %disk.name, state, "no consistent point of this disk now");
            self.stream.withhold(disk.index, &not_mirrored(disk.name.as_str(), &state));
        }
    }

    fn synced(&self, mirrored: &Mirrored) {
        let disk = &mirrored.place.disk;
        let before = lock(&self.states).insert(disk.index, State::Synced);
        if !matches!(before, Some(State::Synced)) {
            tracing::info!(disk = %disk.name, "every write of the guest reaches the agent first");
            self.stream.release(disk.index);
        }
    }

    /// One turn of the watch: attaches what is not attached, looks at the rest.
    fn turn(&self, looks: &mut u32) {
        // Before `connected`, as a bookmark does. QEMU drains when a disk is attached and when its bitmap
        // is renewed: that waits for the guest's writes, in mode sync these for the server, and what
        // stands behind a bookmark is not sent before this lets it ask.
        let mut held = self.stream.between_bookmarks();
        if held.is_none() {
            return;
        }
        let rotates = *looks == ROTATE_LOOKS;
        *looks = if rotates { 1 } else { *looks + 1 };
        let connected = &mut *lock(&self.connected);
        for mirrored in &self.disks {
            let index = mirrored.place.disk.index;
            // One that fails is nothing to the others: they are looked at as before.
            let due = connected.attempts.get(&index).map_or(Duration::ZERO, |tried| tried.due);
            if self.clock.monotonic() < due {
                continue;
            }
            let Err(error) = self.tend(connected, mirrored, rotates, &mut held) else {
                connected.attempts.remove(&index);
                continue;
            };
            connected.attached.remove(&index);
            let tried = connected.attempts.entry(index).or_default();
            tried.failed(self.clock.monotonic());
            self.apart(mirrored, error.off(), &in_words(&error));
            connected.begin_anew_after(&error);
        }
    }

    fn tend<'a>(
        &'a self,
        connected: &mut Connected,
        mirrored: &Mirrored,
        rotates: bool,
        held: &mut Option<RwLockReadGuard<'a, ()>>,
    ) -> Result<(), MirrorError> {
        let place = &mirrored.place;
        let Connected { qmp, attached, attachments, .. } = connected;
        if qmp.is_none() {
            *qmp = Some(Qmp::connect(&self.reach.monitor)?);
        }
        let Some(qmp) = qmp else { return Ok(()) };
        let mut link = Link { qmp, reach: &self.reach, stream: &self.stream };
        let Some(known) = attached.get_mut(&place.disk.index) else {
            if matches!(lock(&self.states).get(&place.disk.index), Some(State::Synced)) {
                self.apart(mirrored, false, ANEW);
            }
            // It is withheld, so no bookmark is placed before it is attached, and none waits for that.
            *held = None;
            *attachments += 1;
            let begun = link.attach(place, &mut || self.pause(STEP))?;
            attached.insert(place.disk.index, begun);
            self.synced(mirrored);
            return Ok(());
        };
        match steps::mirror(link.qmp, &place.names)? {
            Mirror::Gone => return Err(steps::ended(link.qmp, &place.names)),
            Mirror::Completed => {
                return Err(steps::end_completed(link.qmp, &place.names, &mut || self.pause(STEP)));
            }
            Mirror::Behind(why) => self.apart(mirrored, false, &why),
            Mirror::Synced if mirrored.server.connections() == 0 => {
                // Its writes wait for a new connection; QEMU gives up after a while and the job ends.
                self.apart(mirrored, false, "QEMU's connection to the agent is broken");
            }
            Mirror::Synced => {
                if let Some(trouble) = link.qmp.take_trouble(&place.names.job) {
                    return Err(MirrorError::State(trouble));
                }
                place.disk.source.connect(false).map_err(MirrorError::Reads)?;
                if rotates && held.is_none() {
                    *held = self.stream.between_bookmarks();
                }
                if rotates && held.is_some() {
                    steps::still_below(link.qmp, &place.names, known.above.as_deref())?;
                    link.rotate(place, known)?;
                }
                self.synced(mirrored);
            }
        }
        Ok(())
    }

    /// Ends the mirrors so that the guest waits for nobody; QEMU's bitmaps record what follows.
    fn detach(&self) {
        let _held = self.stream.bookmarking.read().unwrap_or_else(PoisonError::into_inner);
        let connected = &mut *lock(&self.connected);
        let Some(qmp) = connected.qmp.as_mut() else { return };
        let mut link = Link { qmp, reach: &self.reach, stream: &self.stream };
        for mirrored in &self.disks {
            let place = &mirrored.place;
            let Some(attached) = connected.attached.get_mut(&place.disk.index) else { continue };
            // A young bitmap: the next start reads little again.
            let ended = link
                .rotate(place, attached)
                .and_then(|()| steps::end_mirror(link.qmp, &place.names, &mut || true));
            if let Err(error) = ended {
                let (disk, why) = (&place.disk.name, in_words(&error));
                tracing::warn!(%disk, why, "the mirror was not ended in order; the guest goes on");
            }
        }
        connected.qmp = None;
    }
}

impl Guest {
    /// Whether all mirrors are synced now, unless something failed before that. `below`: whether each is that
    /// of its guest's device, too. That has QEMU look at its images, so it is not asked at each look.
    fn whole(
        &self,
        connected: &mut Connected,
        before: Result<(), MirrorError>,
        below: bool,
    ) -> Result<(), String> {
        let Some(qmp) = connected.qmp.as_mut() else {
            return Err(format!("QEMU's monitor at {} is not connected", self.reach.monitor));
        };
        let outcome = before.and_then(|()| {
            for Mirrored { place: Place { disk, names, .. }, .. } in &self.disks {
                let why = match steps::mirror(qmp, names)? {
                    Mirror::Synced => {
                        let Some(known) = connected.attached.get(&disk.index) else {
                            return Ok(Err(not_mirrored(disk.name.as_str(), ANEW)));
                        };
                        let above = known.above.as_deref().filter(|_| below);
                        if let Err(error) = steps::still_below(qmp, names, above) {
                            connected.attached.remove(&disk.index); // the watcher attaches what is there
                            return Err(error);
                        }
                        continue;
                    }
                    Mirror::Behind(why) => why,
                    Mirror::Completed => "the mirror job was completed by somebody".to_owned(),
                    Mirror::Gone => "the mirror job is gone".to_owned(),
                };
                return Ok(Err(not_mirrored(disk.name.as_str(), &why)));
            }
            Ok(Ok(()))
        });
        outcome.unwrap_or_else(|error| {
            connected.begin_anew_after(&error);
            Err(in_words(&error))
        })
    }
}

fn not_mirrored(disk: &str, why: &str) -> String {
    format!("disk {disk}: {why}")
}

impl Observer for Guest {
    fn settle(&self) -> Result<(), String> {
        for mirrored in &self.disks {
            let disk = &mirrored.place.disk;
            if let Some(state @ State::Apart { .. }) = lock(&self.states).get(&disk.index) {
                return Err(not_mirrored(disk.name.as_str(), &state.words()));
            }
        }
        let connected = &mut *lock(&self.connected);
        let Some(qmp) = connected.qmp.as_mut() else {
            return Err(format!("QEMU's monitor at {} is not connected", self.reach.monitor));
        };
        // A catch-up read may have seen half of a write that is still on its way to the agent.
        let read_bytes = self.stream.lock().repaired_bytes;
        let was_read = std::mem::replace(&mut connected.read_bytes, read_bytes) != read_bytes;
        let drained = if was_read { steps::drain(qmp) } else { Ok(()) };
        connected.settled_at = connected.attachments;
        self.whole(connected, drained, false)
    }

    /// A job that died after the first look, and whose guest went on, is gone now or was begun anew.
    fn confirm(&self) -> Result<(), String> {
        let connected = &mut *lock(&self.connected);
        if connected.attachments != connected.settled_at {
            return Err("a mirror was begun anew while a bookmark was placed".to_owned());
        }
        // Half of a write may stand before the bookmark, and nobody waited for the other half.
        if self.stream.lock().repaired_bytes != connected.read_bytes {
            return Err("the disks were read again while a bookmark was placed".to_owned());
        }
        self.whole(connected, Ok(()), true)
    }

    fn modes(&self) -> Vec<(DiskIndex, CaptureMode, String)> {
        let mode = |(disk, state): (&DiskIndex, &State)| {
            let mode = match state {
                State::Synced => CaptureMode::Ordered,
                State::Apart { .. } => CaptureMode::Bitmap,
            };
            (*disk, mode, state.words())
        };
        lock(&self.states).iter().map(mode).collect()
    }

    fn stop(&self) {
        *lock(&self.stopping) = true;
        self.stopped.notify_all();
        let thread = lock(&self.thread).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(monitor = %self.reach.monitor, "the thread of a mirror panicked");
        }
        self.detach();
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("reach", &self.reach.monitor).finish_non_exhaustive()
    }
}

/// Attempts at a disk that failed, one after the other.
#[derive(Debug, Default)]
struct Attempts {
    failed: u32,
    /// When the next one may be made.
    due: Duration,
}

impl Attempts {
    fn failed(&mut self, now: Duration) {
        let pause = PAUSE_MIN * 2u32.pow(self.failed.min(10));
        self.failed += 1;
        self.due = now + pause.min(PAUSE_MAX);
    }
}

/// An error with its causes on one line.
pub(super) fn in_words(error: &MirrorError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rarer() {
        let (mut attempts, mut now) = (Attempts::default(), Duration::from_secs(7));
        let mut next = || {
            attempts.failed(now);
            let pause = attempts.due - now;
            now = attempts.due;
            pause
        };
        let pauses: Vec<_> = (0..12).map(|_| next()).collect();
        assert_eq!(pauses[..3], [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 4]);
        assert_eq!(pauses[11], PAUSE_MAX);
    }
}
