//! The application's hook: frozen, bookmarked, thawed.
//!
//! Owns: that one bookmark at a time is made so, and that thaw runs whatever became of freeze, again and
//! again until it has succeeded. Does not own: the bookmark itself ([`super::stream`]), what freeze and
//! thaw are ([`super::hook`]).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::{Clock, Entropy};
use crate::nbd::Peer;
use crate::settings::ApplicationHook;

use super::frozen::Frozen;
use super::hook::{Hook, NotDone, Undone};

/// Why a machine without a hook makes no application-consistent bookmark.
pub(super) const NO_HOOK: &str =
    "no application hook is configured: set [application] freeze and thaw, or qga, in agent.toml";
const STOPPING: &str = "the agent is stopping: nothing is frozen any more";
const THAWING: &str =
    "the application is still being thawed, see the agent's log: nothing is frozen meanwhile";

/// Pauses between two thaws that did not succeed double from the one to the other.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Thaws, and how long they are repeated, until a person has to do it.
const THAWS_MAX: u32 = 120;
const THAWS_FOR: Duration = Duration::from_secs(600);
/// After so many that did not succeed a person should know.
const THAWS_SAID: u32 = 5;
/// So many thaws that end by themselves with an error are believed when it is not certain that
/// anything was frozen: `fsfreeze -u` of what is not frozen is such a one.
const THAWS_BELIEVED: u32 = 5;
/// Longest time to place a bookmark, beside that of freeze and thaw: observers settle.
const PLACE: Duration = Duration::from_secs(20);

/// The hook of one agent.
pub(super) struct Quiesce {
    hook: Hook,
    frozen: Frozen,
    one_at_a_time: tokio::sync::Mutex<()>,
    /// Thaw did not succeed yet, and is repeated by a task of its own.
    thawing: watch::Sender<bool>,
    closed: AtomicBool,
    /// The agent has stopped without a thaw: that is the next life's.
    left: AtomicBool,
}

/// What is known while the application is thawed.
struct Thaw {
    /// It was frozen, or may be by now.
    certain: bool,
    /// Nobody waited for the end of its freeze.
    loose: bool,
    begun: Duration,
    attempts: u32,
    refusals: u32,
}

impl Quiesce {
    pub(super) fn new(
        settings: ApplicationHook,
        guest_agent: Option<Peer>,
        state_directory: &Path,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self {
            hook: Hook { settings, guest_agent, clock, entropy },
            frozen: Frozen::of(state_directory),
            one_at_a_time: tokio::sync::Mutex::default(),
            thawing: watch::Sender::new(false),
            closed: AtomicBool::new(false),
            left: AtomicBool::new(false),
        }
    }

    /// What `place` gives while the application is frozen. To be run to its end: a future that is
    /// dropped half-way would leave the application frozen.
    ///
    /// # Errors
    /// In words, when the application could not be frozen; then nothing was placed.
    pub(super) async fn run<T>(
        self: &Arc<Self>,
        place: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let _alone = self.one_at_a_time.lock().await;
        if self.closed.load(Ordering::SeqCst) {
            return Err(STOPPING.to_owned());
        }
        if *self.thawing.borrow() {
            return Err(THAWING.to_owned());
        }
        let (frozen, words) = (self.frozen.clone(), self.hook.thaw_in_words());
        let left = self.frozen.left().is_some();
        let noted = tokio::task::spawn_blocking(move || frozen.note(&words)).await;
        let note = noted.map_err(|_stopped| STOPPING.to_owned())?.map_err(|error| {
            let path = self.frozen.path().display();
            format!("{path} cannot be written before the application is frozen: {error}")
        })?;
        let (placed, mut thaw) = match self.hook.freeze(&note).await {
            Ok(()) => (place.await, self.to_thaw(true, false)),
            Err(NotDone { why, state: Undone::Unasked }) => {
                drop(note);
                if !left {
                    self.forget().await;
                }
                return Err(why);
            }
            Err(NotDone { why, state }) => {
                let loose = state == Undone::Unknown;
                (Err(why), self.to_thaw(loose, loose))
            }
        };
        drop(note);
        if !self.attempt(&mut thaw).await {
            self.thaw_on(thaw, PAUSE_MIN);
        }
        placed
    }

    /// Thaws what a life before this one left frozen, once.
    pub(super) async fn thaw_left(&self) {
        if self.frozen.left().is_some() {
            let path = self.frozen.path().display();
            tracing::warn!(%path, "an agent before this one ended while the application was frozen, or about to be: it is thawed");
            let _over = self.attempt(&mut self.to_thaw(false, true)).await;
        }
    }

    /// The same in the background, as often as it takes.
    pub(super) fn thaw_on_left(self: &Arc<Self>) {
        if self.frozen.left().is_some() {
            self.thaw_on(self.to_thaw(false, true), PAUSE_MIN);
        }
    }

    /// Freezes nothing any more. Returns when nothing is frozen, or that has taken too long.
    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let thawed = async {
            let _alone = self.one_at_a_time.lock().await;
            let mut thawing = self.thawing.subscribe();
            let _sender_lives = thawing.wait_for(|thawing| !thawing).await;
        };
        tokio::select! {
            biased;
            () = thawed => {}
            () = self.hook.clock.sleep(2 * self.hook.settings.timeout + PLACE) => {
                self.left.store(true, Ordering::SeqCst);
                let thaw = self.hook.thaw_in_words();
                tracing::error!(thaw, "the application may still be frozen: the next start of the agent thaws it, or you do");
            }
        }
    }

    /// A task of its own that thaws until that is over. Meanwhile nothing is frozen.
    fn thaw_on(self: &Arc<Self>, mut thaw: Thaw, first: Duration) {
        self.thawing.send_replace(true);
        let (quiesce, mut pause) = (Arc::clone(self), first);
        tokio::spawn(async move {
            loop {
                quiesce.hook.clock.sleep(pause).await;
                pause = PAUSE_MAX.min(2 * pause);
                if quiesce.left.load(Ordering::SeqCst) || quiesce.attempt(&mut thaw).await {
                    break;
                }
            }
            quiesce.thawing.send_replace(false);
        });
    }

    fn to_thaw(&self, certain: bool, loose: bool) -> Thaw {
        let begun = self.hook.clock.monotonic();
        Thaw { certain, loose, begun, attempts: 0, refusals: 0 }
    }

    /// Nothing is frozen.
    async fn forget(&self) {
        let frozen = self.frozen.clone();
        let forgotten = tokio::task::spawn_blocking(move || frozen.forget()).await;
        if let Ok(Err(error)) = forgotten {
            let path = self.frozen.path().display();
            tracing::warn!(%path, %error, "cannot be removed: the next start thaws once more");
        }
    }

    /// Thaws once more. Whether that is over: it succeeded, or was tried often enough.
    async fn attempt(&self, thaw: &mut Thaw) -> bool {
        // Before: what it freezes behind this thaw is not thawed.
        let runs = thaw.loose && self.frozen.runs();
        let outcome = self.hook.thaw().await;
        thaw.attempts += 1;
        let lasted = self.hook.clock.monotonic().saturating_sub(thaw.begun);
        let often = thaw.attempts >= THAWS_MAX || lasted >= THAWS_FOR;
        let why = match outcome {
            Ok(()) if !runs || often => {
                self.forget().await;
                if thaw.attempts > 1 {
                    tracing::info!(attempts = thaw.attempts, "the application is thawed");
                }
                return true;
            }
            Ok(()) => "its freeze still runs".to_owned(),
            Err(failed) => {
                thaw.refusals += u32::from(failed.state == Undone::Ended);
                failed.why
            }
        };
        let over = often || (!thaw.certain && thaw.refusals >= THAWS_BELIEVED);
        let by_hand = self.hook.thaw_in_words();
        match (over, thaw.attempts) {
            (true, attempts) => tracing::error!(
                why,
                attempts,
                by_hand,
                "the application may still be frozen: thaw it by hand"
            ),
            (false, 1) => {
                tracing::warn!(why, "the application is not thawed yet: thaw is run again");
            }
            (false, THAWS_SAID) => tracing::error!(
                why,
                by_hand,
                "the application may still be frozen: thaw is run again, or run it by hand"
            ),
            (false, _) => {}
        }
        over
    }
}

/// Says what an agent before left frozen, where this one does not know how to thaw.
pub(super) fn cannot_thaw(state_directory: &Path) {
    let frozen = Frozen::of(state_directory);
    if let Some(by_hand) = frozen.left() {
        let path = frozen.path().display();
        tracing::error!(%path, by_hand, "an agent before this one may have left the application frozen, and agent.toml has no [application] any more: thaw it by hand, and remove this file");
    }
}
