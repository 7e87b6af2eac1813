//! An agent as a process: signals end it, and a request has it begin anew with changed settings.
//!
//! Owns: what follows on what. Does not own: starting and stopping ([`super::run`]), how it is asked
//! ([`super::control`]), what the service manager is told of its health ([`super::watchdog`]).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::clock::{Clock, System};
use crate::notify::{self, Notify};
use crate::observe::error_chain;
use crate::settings::AgentSettings;
use crate::store::Class;

use super::control::Control;
use super::dial::Network;
use super::error::AgentError;
use super::run::{self, Agent, Stopped};
use super::watchdog::Watchdog;
use super::{opening, quiesce};

/// How the status begins to say that changed settings could not be used.
pub const NOT_TAKEN: &str = "the changed settings cannot be used, so it runs as before";

/// Attempts while tasks of the life before still hold its state directory or a disk, and the pause
/// between two.
const ATTEMPTS: u32 = 100;
/// Attempts of a first life: somebody may just be looking whether an agent runs.
const ATTEMPTS_FIRST: u32 = 4;
const PAUSE: Duration = Duration::from_millis(50);

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen(directory: &Path) -> Result<Self, AgentError> {
        let listen = |kind| {
            signal(kind).map_err(|source| AgentError::io(directory, "listen for signals", source))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs an agent until SIGTERM or SIGINT; a second signal ends the waiting, but not that for an
/// application to be thawed. `changed` reads the settings again when the agent is asked to begin anew.
///
/// # Errors
/// When it cannot start, or signals cannot be received.
pub async fn run(
    settings: AgentSettings,
    changed: impl Fn() -> Result<AgentSettings, String>,
) -> Result<Stopped, AgentError> {
    let mut signals = Signals::listen(&settings.state_directory)?;
    let changed = || changed().and_then(usable);
    let mut settings = settings;
    thaw_left(&settings).await?;
    let mut agent = start(&settings, ATTEMPTS_FIRST).await?;
    let watchdog = Watchdog::new(Notify::of_environment());
    watchdog.watches(&agent);
    tokio::spawn(Arc::clone(&watchdog).run());
    loop {
        let control = Control::listen(&settings.state_directory);
        watchdog.tell(notify::READY);
        let next = tokio::select! {
            next = control.asked(&changed) => Some(next),
            () = signals.any() => None,
        };
        if next.is_none() {
            watchdog.tell(notify::STOPPING);
        }
        tracing::info!(
            again = next.is_some(),
            "stopping: waiting until everything is published (a second signal ends the wait)"
        );
        let quiesce = agent.quiesce();
        let stopped = tokio::select! {
            stopped = agent.stop() => stopped,
            () = signals.any() => {
                if let Some(quiesce) = quiesce {
                    quiesce.close().await;
                }
                return Ok(Stopped::Unsettled);
            }
        };
        drop(control);
        let Some(next) = next else { return Ok(stopped) };
        (agent, settings) = again(next, settings).await?;
        watchdog.watches(&agent);
    }
}

/// Settings whose certificates cannot be used are refused while the agent still runs: most often they are the
/// files of the settings before, too, and then there would be nothing to go back to.
fn usable(settings: AgentSettings) -> Result<AgentSettings, String> {
    match Network::new(&settings) {
        Ok(_usable) => Ok(settings),
        Err(error) => Err(error_chain(&error)),
    }
}

/// With the changed settings, or as before.
async fn again(
    next: AgentSettings,
    before: AgentSettings,
) -> Result<(Agent, AgentSettings), AgentError> {
    let error = match start(&next, ATTEMPTS).await {
        Ok(agent) => return Ok((agent, next)),
        Err(error) => error,
    };
    let agent = start(&before, ATTEMPTS).await?;
    let why = format!("{NOT_TAKEN}: {error}");
    tracing::error!(why);
    agent.stream().note_trouble(Some(why));
    Ok((agent, before))
}

async fn start(settings: &AgentSettings, attempts: u32) -> Result<Agent, AgentError> {
    for _ in 1..attempts {
        match Agent::start(settings.clone(), System::clock(), System::entropy()) {
            Err(error) if error.class() == Class::Fence => System.sleep(PAUSE).await,
            other => return other.inspect(thaw_on),
        }
    }
    let agent = Agent::start(settings.clone(), System::clock(), System::entropy());
    agent.inspect(thaw_on)
}

/// What a life before left frozen is thawed before anything that may fail.
async fn thaw_left(settings: &AgentSettings) -> Result<(), AgentError> {
    let quiesce = run::quiesce(settings, &System::clock(), &System::entropy())?;
    // Where there is no directory there was no life; where another agent lives, starting says so.
    if let (Some(quiesce), Ok(_alone)) = (quiesce, opening::lock(&settings.state_directory)) {
        quiesce.thaw_left().await;
    }
    Ok(())
}

/// And again, until it has succeeded.
fn thaw_on(agent: &Agent) {
    match agent.quiesce() {
        Some(quiesce) => quiesce.thaw_on_left(),
        None => quiesce::cannot_thaw(&agent.shared().settings.state_directory),
    }
}
