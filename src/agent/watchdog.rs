//! What the service manager is told of a running agent, and that it is told nothing when the agent
//! does not turn over: `docs/operations.md`, "A watchdog".
//!
//! Owns: judging. Does not own: what is judged by ([`super::beats`], [`super::turnover`]), the
//! datagram ([`crate::notify`]). Looks are counted, and not time: an agent that stood still as a whole
//! (SIGSTOP, a suspended machine) finds itself well when it goes on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::clock::{Clock, System};
use crate::notify::{self, Notify};

use super::beats::{BEAT, Beats};
use super::disk::Disk;
use super::run::{Agent, Shared};
use super::status::AgentStatus;

/// Looks in each interval of the manager's watchdog, and after how many a word is due.
const LOOKS: u32 = 8;
const SAY: u32 = LOOKS / 2;
/// Between two looks where nobody waits for a word.
const UNHURRIED: Duration = Duration::from_secs(5);
/// Longest time from one life of the agent to the next: it waits for a minute until all is published,
/// and then opens its disks.
const BETWEEN_MAX: Duration = Duration::from_secs(240);

/// Tells the manager of whichever life the agent is in.
pub(super) struct Watchdog {
    notify: Notify,
    life: Mutex<Weak<Shared>>,
}

impl Watchdog {
    pub(super) fn new(notify: Notify) -> Arc<Self> {
        Arc::new(Self { notify, life: Mutex::default() })
    }

    pub(super) fn tell(&self, what: &str) {
        self.notify.tell(what);
    }

    /// From here on it is about this life.
    pub(super) fn watches(&self, agent: &Agent) {
        *self.life.lock().unwrap_or_else(PoisonError::into_inner) = agent.watched();
    }

    fn life(&self) -> Option<Arc<Shared>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// As long as the process lives.
    pub(super) async fn run(self: Arc<Self>) {
        if !self.notify.is_heard() {
            return;
        }
        let pause = self.notify.watchdog().map_or(UNHURRIED, |interval| interval / LOOKS);
        let mut watch = Watch::new(pause);
        let (mut waits, mut between, mut hung) = (SAY, Duration::ZERO, None);
        loop {
            if let Some(shared) = self.life() {
                between = Duration::ZERO;
                let found = watch.look_at(&shared);
                report(&mut hung, found);
            } else {
                between += pause;
                let late = (between > BETWEEN_MAX).then_some("beginning anew".to_owned());
                report(&mut hung, late);
            }
            waits += 1;
            if waits >= SAY {
                let status = notify::status(&match &hung {
                    Some(what) => format!("hung: {what}"),
                    None => watch.words(),
                });
                if hung.is_none() {
                    waits = 0;
                    self.notify.tell(format_args!("{}\n{status}", notify::ALIVE));
                } else {
                    self.notify.tell(status);
                }
            }
            System.sleep(pause).await;
        }
    }
}

/// Says once what hangs, and that it goes on.
fn report(before: &mut Option<String>, now: Option<String>) {
    match (&before, &now) {
        (None, Some(what)) => {
            tracing::error!(what, "the agent hangs: the service manager is told nothing more");
        }
        (Some(what), None) => tracing::warn!(what, "it goes on"),
        _ => {}
    }
    *before = now;
}

/// A look at everything that others wait for, in a thread of its own.
#[derive(Default)]
struct Probe {
    /// Of how many looks it has come back.
    done: AtomicU64,
    away: AtomicBool,
    words: Mutex<String>,
}

/// What was seen at earlier looks.
pub(super) struct Watch {
    looks_max: u32,
    parts: BTreeMap<String, Part>,
    disks: BTreeMap<usize, u64>,
    probe: Arc<Probe>,
}

#[derive(Clone, Copy, Default)]
struct Part {
    steps: u64,
    looks: u32,
}

impl Watch {
    pub(super) fn new(pause: Duration) -> Self {
        let beats = (3 * BEAT).as_micros().div_ceil(pause.as_micros().max(1));
        Self {
            looks_max: u32::try_from(beats).unwrap_or(u32::MAX).max(SAY),
            parts: BTreeMap::new(),
            disks: BTreeMap::new(),
            probe: Arc::default(),
        }
    }

    fn look_at(&mut self, shared: &Arc<Shared>) -> Option<String> {
        let all = Arc::clone(shared);
        // Through every lock that a request, a task or a bookmark takes.
        let words = move || {
            let held: usize = all.stream.disks.iter().map(|disk| disk.locks.ranges().len()).sum();
            let status = AgentStatus::of(&all, 0.0);
            tracing::trace!(held, mode = status.mode, "a look through all locks");
            format!("{}: {}", status.mode, status.why)
        };
        self.look(&shared.stream.disks, &shared.beats, words)
    }

    /// What does not turn over, if anything. While a disk owes an answer since the last look nobody is
    /// judged: whoever waits may wait for that, and to be killed would not help them. `words` says how
    /// the agent is, by way of its locks.
    pub(super) fn look(
        &mut self,
        disks: &[Arc<Disk>],
        beats: &Beats,
        words: impl FnOnce() -> String + Send + 'static,
    ) -> Option<String> {
        let disks: Vec<_> = disks.iter().map(|disk| (&disk.name, disk.turnover.now())).collect();
        let mut owed = false;
        for (at, (_, now)) in disks.iter().enumerate() {
            owed |= self.disks.insert(at, now.steps) == Some(now.steps) && now.asking;
        }
        let mut hung = None;
        for beat in beats.all() {
            let name = format!("the task {}", beat.name);
            hung = hung.or(self.judge(name, beat.count(), beat.ended() || owed));
        }
        for (name, now) in disks {
            let name = format!("a request to disk {name}");
            hung = hung.or(self.judge(name, now.steps, !now.asked || owed));
        }
        let done = self.probe.done.load(Ordering::SeqCst);
        let home = self.is_home();
        hung = hung.or(self.judge("a lock".to_owned(), done, home || owed));
        if home {
            self.send_probe(words);
        }
        hung
    }

    /// Whether a part has not moved for so many looks that it should have.
    fn judge(&mut self, name: String, steps: u64, excused: bool) -> Option<String> {
        let part = self.parts.entry(name.clone()).or_default();
        part.looks = if excused || part.steps != steps { 0 } else { part.looks + 1 };
        part.steps = steps;
        (part.looks >= self.looks_max).then_some(name)
    }

    fn send_probe(&self, words: impl FnOnce() -> String + Send + 'static) {
        let probe = Arc::clone(&self.probe);
        probe.away.store(true, Ordering::SeqCst);
        tokio::task::spawn_blocking(move || {
            let words = words();
            *probe.words.lock().unwrap_or_else(PoisonError::into_inner) = words;
            probe.done.fetch_add(1, Ordering::SeqCst);
            probe.away.store(false, Ordering::SeqCst);
        });
    }

    /// Whether the probe has come back.
    pub(super) fn is_home(&self) -> bool {
        !self.probe.away.load(Ordering::SeqCst)
    }

    fn words(&self) -> String {
        let words = self.probe.words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.is_empty() { "starting".to_owned() } else { words.clone() }
    }
}
