//! Servers are taken away, one after the other, and what the agents of their machines do is watched.
//!
//! Owns: the moments that count. They are seen by looking often, so they are at most a look late.

use std::time::Duration;

use hdrhistogram::Histogram;
use holdfast::agent::AgentStatus;
use holdfast::clock::{Clock, System};

use super::machine::Machine;
use super::servers::Servers;
use crate::error::LoadError;
use crate::wait::pause;

/// How often every agent is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// How a server goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Going {
    /// SIGKILL: nobody is told
    Kill,
    /// SIGTERM: its machines are handed over, as in a rolling upgrade
    Stop,
}

/// What the rounds are made of.
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) going: Going,
    /// From one server's going to the next one's.
    pub(crate) every: Duration,
    /// How long one stays away.
    pub(crate) away: Duration,
    /// Longest time for an agent to go on.
    pub(crate) patience: Duration,
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Seen {
    /// From a server's going to the first new durable ack of each of its machines, ms.
    pub(crate) resumed_ms: Histogram<u64>,
    /// Machines that had to go on elsewhere, over all rounds.
    pub(crate) moved: u64,
    /// What was not published when their servers went: at most so much may be sent again.
    pub(crate) unpublished_bytes: u64,
    pub(crate) resent_bytes: u64,
    /// Machines that were seen without order.
    pub(crate) order_lost: u64,
}

/// One machine whose server went.
struct Victim {
    number: usize,
    resent_before: u64,
    /// At the first look without a server.
    buffered: Option<u64>,
    /// Durable at the first look with one again.
    back_at: Option<u64>,
    resumed: bool,
}

/// Takes one server after the other away.
pub(crate) fn run(
    servers: &mut Servers,
    machines: &[Machine],
    plan: &Plan,
) -> Result<Seen, LoadError> {
    let resumed_ms = Histogram::new_with_bounds(1, 3_600_000, 3);
    let mut seen = Seen {
        resumed_ms: resumed_ms.expect("constant bounds are valid"),
        moved: 0,
        unpublished_bytes: 0,
        resent_bytes: 0,
        order_lost: 0,
    };
    for round in 0..plan.rounds {
        let number = round as usize % servers.count();
        seen.round(servers, machines, plan, number)?;
    }
    Ok(seen)
}

impl Seen {
    fn round(
        &mut self,
        servers: &mut Servers,
        machines: &[Machine],
        plan: &Plan,
        number: usize,
    ) -> Result<(), LoadError> {
        let address = servers.address(number).to_owned();
        let mut victims: Vec<_> = (0..)
            .zip(machines)
            .filter_map(|(number, machine)| {
                let status = machine.status();
                status.server?.starts_with(&format!("{address} ")).then_some(Victim {
                    number,
                    resent_before: status.resent_bytes,
                    buffered: None,
                    back_at: None,
                    resumed: false,
                })
            })
            .collect();
        let gone = System.monotonic();
        // Stopping lasts until its machines are elsewhere.
        let go = || match plan.going {
            Going::Kill => servers.kill(number),
            Going::Stop => servers.stop(number),
        };
        watched(go, || self.look(&mut victims, machines, gone, &address))?;
        let mut away = true;
        loop {
            self.look(&mut victims, machines, gone, &address);
            let passed = System.monotonic().saturating_sub(gone);
            if away && passed >= plan.away {
                let begin = || servers.begin(number);
                watched(begin, || self.look(&mut victims, machines, gone, &address))??;
                away = false;
            }
            let all = victims.iter().all(|victim| victim.resumed);
            if all && !away && passed >= plan.every {
                break;
            }
            if let Some(late) = victims.iter().find(|victim| !victim.resumed)
                && passed >= plan.patience
            {
                let status = machines[late.number].status();
                let what = format!("no new durable ack in {} s: {status:?}", passed.as_secs());
                return Err(LoadError::Broken { machine: status.machine.to_string(), what });
            }
            servers.expect_alive()?;
            pause(LOOK);
        }
        self.moved += victims.len() as u64;
        for victim in victims {
            self.unpublished_bytes += victim.buffered.unwrap_or(0);
            let resent = machines[victim.number].status().resent_bytes;
            self.resent_bytes += resent - victim.resent_before;
        }
        Ok(())
    }

    fn look(
        &mut self,
        victims: &mut [Victim],
        machines: &[Machine],
        gone: Duration,
        address: &str,
    ) {
        let looked = System.monotonic();
        let statuses: Vec<AgentStatus> = machines.iter().map(Machine::status).collect();
        self.order_lost += statuses.iter().filter(|status| status.mode != "ordered").count() as u64;
        for victim in victims {
            let status = &statuses[victim.number];
            if victim.look(status, address) {
                let took = looked.saturating_sub(gone).as_millis();
                self.resumed_ms.saturating_record((took as u64).max(1));
            }
        }
    }
}

/// Does `work` on a thread of its own and looks meanwhile.
fn watched<T: Send>(
    work: impl FnOnce() -> T + Send,
    mut look: impl FnMut(),
) -> Result<T, LoadError> {
    std::thread::scope(|scope| {
        let working = scope.spawn(work);
        while !working.is_finished() {
            look();
            pause(LOOK);
        }
        working.join().map_err(|_| LoadError::Thread("servers"))
    })
}

impl Victim {
    /// Whether it went on just now.
    fn look(&mut self, status: &AgentStatus, lost: &str) -> bool {
        let there = status.server.as_ref();
        let Some(server) = there else {
            self.buffered.get_or_insert(status.buffered_bytes);
            return false;
        };
        // Still at the one that goes, or nobody noticed yet.
        if self.buffered.is_none() && server.starts_with(lost) {
            return false;
        }
        self.buffered.get_or_insert(status.buffered_bytes);
        let back_at = *self.back_at.get_or_insert(status.durable);
        let now = !self.resumed && status.durable > back_at;
        self.resumed |= now;
        now
    }
}
