//! Applies, retains and tidies every machine of the site, two at a time.
//!
//! Owns: who has a turn, and when. Does not own: what a turn does ([`turn`]) and how (apply,
//! upload). Runs in the process server, and alone as `holdfast apply`: it meets uploading only in
//! the store.
//!
//! In the process server the pipelines say what they published ([`News`]), so an idle machine is
//! neither polled nor kept in memory beyond a deadline in the agenda. Alone nobody says anything:
//! machines are looked at, idle ones less and less often.

mod agenda;
mod error;
mod news;
mod rhythm;
mod standby;
mod turn;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

use agenda::{Agenda, Due};
pub(super) use news::News;
use turn::{Pause, Work};

use super::peers::Peers;
use crate::apply::Bodies;
use crate::clock::{Clock, Entropy};
use crate::model::{MachineId, ServerId};
use crate::observe::{Meter, Metrics, Stage, error_chain};
use crate::seal::KeyEncryptionKey;
use crate::settings::Tuning;
use crate::upload::Uplink;
use crate::vault::Vault;

/// Machines that are applied at the same moment: bounds memory to this × a run's bytes.
const APPLYING_MAX: usize = 2;
/// How often the list of machines is read in the process server. Those that it serves are known
/// from their claim; the list leads to those that nobody serves any more.
const ROLL_INTERVAL: Duration = Duration::from_secs(600);
/// The same in `holdfast apply`, which learns of new machines in no other way.
const ROLL_INTERVAL_ALONE: Duration = Duration::from_secs(10);
/// Before the list is read again that was to be read because a process server came or went.
const LIST_AGAIN: Duration = Duration::from_secs(1);
/// First looks at the machines of a list are spread by this, so that a start is no storm.
const FIRST_LOOK_EVERY: Duration = Duration::from_millis(20);
/// Pause after a turn that panicked.
const PANIC_PAUSE: Duration = Duration::from_secs(10);

/// What applying works with.
pub(super) struct Applying {
    pub(super) vault: Vault,
    pub(super) kek: Arc<KeyEncryptionKey>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tuning: Tuning,
    /// Shared with uploading where both run.
    pub(super) uplink: Arc<Uplink>,
    pub(super) drain: watch::Receiver<bool>,
    /// The process server whose pipelines tell the news; `None`: nobody does.
    pub(super) publisher: Option<ServerId>,
    /// That process server among the others: who lives decides who applies.
    pub(super) peers: Option<Arc<Peers>>,
    pub(super) news: Arc<News>,
    /// Shared by the machines that are applied at the same moment.
    pub(super) bodies: Bodies,
}

/// Turns that are being had.
#[derive(Default)]
struct Turns {
    running: JoinSet<(Work, Pause)>,
    machines: HashMap<Id, MachineId>,
}

/// All machines.
struct Machines {
    agenda: Agenda,
    works: HashMap<MachineId, Work>,
    turns: Turns,
}

impl Applying {
    /// Runs until the server drains.
    pub(super) async fn run(self: Arc<Self>) {
        let mut drain = self.drain.clone();
        let mut machines =
            Machines { agenda: Agenda::default(), works: HashMap::new(), turns: Turns::default() };
        tokio::select! {
            _ = drain.wait_for(|drain| *drain) => {}
            () = self.read_roll() => {}
            () = self.watch_peers() => {}
            () = self.take_turns(&mut machines) => {}
        }
        while let Some(ended) = machines.turns.running.join_next_with_id().await {
            self.ended(&mut machines, ended);
        }
        for work in machines.works.into_values() {
            work.release().await;
        }
    }

    /// Reads the list of machines now and then.
    async fn read_roll(&self) {
        let interval = if self.publisher.is_some() { ROLL_INTERVAL } else { ROLL_INTERVAL_ALONE };
        let mut settings = self.tuning.subscribe();
        loop {
            drop(settings.wait_for(|settings| settings.apply.enabled).await);
            match self.vault.machines().await {
                Ok(machines) => {
                    self.news.enrolled(machines);
                    self.clock.sleep(interval).await;
                }
                Err(error) => {
                    tracing::warn!(error = error_chain(&error), "the machines cannot be listed");
                    self.clock.sleep(ROLL_INTERVAL_ALONE).await;
                }
            }
        }
    }

    /// When a process server came or went, every machine is looked at: whose it is to apply may be
    /// another one's now.
    async fn watch_peers(&self) {
        let Some(peers) = &self.peers else { return std::future::pending().await };
        let mut living = peers.living();
        while living.changed().await.is_ok() {
            // Until it succeeds: the machines of a server that went are applied by nobody else.
            loop {
                match self.vault.machines().await {
                    Ok(machines) => break self.news.look_again(machines),
                    Err(error) => {
                        tracing::warn!(
                            error = error_chain(&error),
                            "the machines cannot be listed"
                        );
                        self.clock.sleep(LIST_AGAIN).await;
                    }
                }
            }
        }
    }

    async fn take_turns(self: &Arc<Self>, machines: &mut Machines) {
        let mut settings = self.tuning.subscribe();
        loop {
            let now = self.clock.monotonic();
            let enabled = settings.borrow_and_update().apply.enabled;
            let room = |turns: &Turns| enabled && turns.running.len() < APPLYING_MAX;
            while room(&machines.turns)
                && let Some(due) = machines.agenda.take(now)
            {
                self.begin(machines, due);
            }
            let next = machines.agenda.next().filter(|_| room(&machines.turns));
            let wait = next.map(|at| at.saturating_sub(now));
            tokio::select! {
                biased;
                Some(ended) = machines.turns.running.join_next_with_id() => {
                    self.ended(machines, ended);
                }
                told = self.news.next() => {
                    let now = self.clock.monotonic();
                    for machine in &told.published {
                        machines.agenda.wake(machine, now);
                    }
                    let spread = (0_u32..).map(|nth| FIRST_LOOK_EVERY.saturating_mul(nth));
                    for (machine, later) in told.enrolled.iter().zip(spread) {
                        machines.agenda.enter(machine, now + later);
                    }
                    let spread = (0_u32..).map(|nth| FIRST_LOOK_EVERY.saturating_mul(nth));
                    for (machine, later) in told.again.iter().zip(spread) {
                        machines.agenda.wake(machine, now + later);
                    }
                }
                Ok(()) = settings.changed() => {} // applying may be on or off now
                () = self.clock.sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    fn begin(self: &Arc<Self>, machines: &mut Machines, due: Due) {
        let Due { machine, woken } = due;
        let work = machines.works.remove(&machine);
        let mut work = work.unwrap_or_else(|| Work::new(self, machine.clone()));
        let meter = Meter::new(&self.metrics, Stage::Apply);
        let turn = machines.turns.running.spawn(meter.run(async move {
            let pause = work.turn(woken).await;
            (work, pause)
        }));
        machines.turns.machines.insert(turn.id(), machine);
    }

    fn ended(&self, machines: &mut Machines, ended: Result<(Id, (Work, Pause)), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some(machine) = machines.turns.machines.remove(&id) else { return };
        match ended {
            Ok((_, (work, Pause { not_before, next }))) => {
                machines.agenda.back(&machine, not_before, Some(next));
                machines.works.insert(machine, work);
            }
            Err(error) => {
                tracing::error!(%machine, %error, "applying panicked; it is tried again");
                let again = self.clock.monotonic() + PANIC_PAUSE;
                machines.agenda.back(&machine, again, Some(again));
            }
        }
    }
}

#[cfg(test)]
mod tests;
