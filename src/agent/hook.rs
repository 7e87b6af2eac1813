//! Freeze and thaw, each carried out once: by a command, or by the agent inside a guest.
//!
//! Owns: that it ends in time. Does not own: that thaw follows freeze ([`super::quiesce`]).

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::{Clock, Entropy};
use crate::nbd::Peer;
use crate::settings::ApplicationHook;

use super::frozen::Note;
use super::guest_agent;

/// Why something was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotDone {
    pub(super) why: String,
    pub(super) state: Undone,
}

/// What may have become of something that was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undone {
    /// It was not asked for: nothing has happened.
    Unasked,
    /// It has ended by itself.
    Ended,
    /// It may still do its work, or have done it.
    Unknown,
}

impl NotDone {
    pub(super) fn refused(why: String) -> Self {
        Self { why, state: Undone::Ended }
    }

    pub(super) fn silent(why: String) -> Self {
        Self { why, state: Undone::Unknown }
    }

    pub(super) fn unasked(why: String) -> Self {
        Self { why, state: Undone::Unasked }
    }
}

/// How the application is frozen and thawed.
pub(super) struct Hook {
    pub(super) settings: ApplicationHook,
    pub(super) guest_agent: Option<Peer>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
}

impl Hook {
    /// Freezes the application, or part of it.
    ///
    /// # Errors
    /// When it may not be frozen.
    pub(super) async fn freeze(&self, note: &Note) -> Result<(), NotDone> {
        if let Some(peer) = &self.guest_agent {
            return self.ask_guest(peer, "freeze").await;
        }
        let input = note.input();
        let input = input.map_err(|error| NotDone::refused(format!("no file handle: {error}")))?;
        self.execute("freeze", &self.settings.freeze, input).await
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it may still be frozen.
    pub(super) async fn thaw(&self) -> Result<(), NotDone> {
        match &self.guest_agent {
            Some(peer) => self.ask_guest(peer, "thaw").await,
            None => self.execute("thaw", &self.settings.thaw, Stdio::null()).await,
        }
    }

    /// How a person thaws.
    pub(super) fn thaw_in_words(&self) -> String {
        match &self.guest_agent {
            Some(peer) => format!("guest-fsfreeze-thaw at {peer}"),
            None => self.settings.thaw.join(" "),
        }
    }

    async fn ask_guest(&self, peer: &Peer, name: &str) -> Result<(), NotDone> {
        let command = format!("guest-fsfreeze-{name}");
        let asked = AtomicBool::new(false);
        tokio::select! {
            answer = guest_agent::call(peer, &command, self.entropy.as_ref(), &asked) => answer,
            () = self.clock.sleep(self.settings.timeout) => {
                let late = self.settings.timeout.as_millis();
                match asked.load(Ordering::SeqCst) {
                    true => Err(NotDone::silent(format!(
                        "the guest agent at {peer}: no answer to {command} in {late} ms"
                    ))),
                    false => Err(NotDone::unasked(format!(
                        "the guest agent at {peer} is not there: no word of it in {late} ms"
                    ))),
                }
            }
        }
    }

    async fn execute(&self, name: &str, command: &[String], input: Stdio) -> Result<(), NotDone> {
        let [program, args @ ..] = command else {
            let why = format!("the application's {name} names no program");
            return Err(NotDone::refused(why));
        };
        let told = |what: String| format!("the application's {name} ({program}) {what}");
        let mut process = tokio::process::Command::new(program);
        process.args(args).stdin(input).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = process.kill_on_drop(true).spawn();
        let child =
            child.map_err(|error| NotDone::refused(told(format!("cannot be started: {error}"))))?;
        let output = tokio::select! {
            output = child.wait_with_output() => output,
            () = self.clock.sleep(self.settings.timeout) => {
                let late = self.settings.timeout.as_millis();
                let why = told(format!("did not end in {late} ms and was killed"));
                return Err(NotDone::silent(why));
            }
        };
        let output = output
            .map_err(|error| NotDone::silent(told(format!("cannot be waited for: {error}"))))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.trim().lines().last().unwrap_or("and said nothing");
        let why = told(format!("ended with {}: {last}", output.status));
        // A signal comes from outside: the service manager ends all of a unit's processes.
        Err(match output.status.code() {
            Some(_) => NotDone::refused(why),
            None => NotDone::silent(why),
        })
    }
}
