//! The application's hook: frozen, bookmarked, thawed.
//!
//! Owns: that one bookmark at a time is made so, and that thaw runs whatever became of freeze. Does
//! not own: the bookmark itself ([`super::stream`]).

use std::process::Stdio;
use std::sync::Arc;

use crate::clock::{Clock, Entropy};
use crate::nbd::Peer;
use crate::settings::ApplicationHook;

use super::guest_agent;

/// Why a machine without a hook makes no application-consistent bookmark.
pub(super) const NO_HOOK: &str =
    "no application hook is configured: set [application] freeze and thaw, or qga, in agent.toml";

/// The hook of one agent.
pub(super) struct Quiesce {
    hook: ApplicationHook,
    guest_agent: Option<Peer>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    one_at_a_time: tokio::sync::Mutex<()>,
}

impl Quiesce {
    pub(super) fn new(
        hook: ApplicationHook,
        guest_agent: Option<Peer>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self { hook, guest_agent, clock, entropy, one_at_a_time: tokio::sync::Mutex::default() }
    }

    /// What `place` gives while the application is frozen. To be run to its end: a future that is
    /// dropped half-way would leave the application frozen.
    ///
    /// # Errors
    /// In words, when the application could not be frozen; then nothing was placed.
    pub(super) async fn run<T>(
        &self,
        place: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let _alone = self.one_at_a_time.lock().await;
        let frozen = self.call("freeze", &self.hook.freeze).await;
        let placed = match frozen {
            Ok(()) => place.await,
            Err(why) => Err(why),
        };
        if let Err(why) = self.call("thaw", &self.hook.thaw).await {
            tracing::error!(why, "the application may still be frozen: run its thaw by hand");
        }
        placed
    }

    async fn call(&self, name: &str, command: &[String]) -> Result<(), String> {
        match &self.guest_agent {
            Some(peer) => self.ask_guest(peer, name).await,
            None => self.execute(name, command).await,
        }
    }

    async fn ask_guest(&self, peer: &Peer, name: &str) -> Result<(), String> {
        let command = format!("guest-fsfreeze-{name}");
        tokio::select! {
            answer = guest_agent::call(peer, &command, self.entropy.as_ref()) => answer,
            () = self.clock.sleep(self.hook.timeout) => {
                let late = self.hook.timeout.as_millis();
                Err(format!("the guest agent at {peer}: no answer to {command} in {late} ms"))
            }
        }
    }

    async fn execute(&self, name: &str, command: &[String]) -> Result<(), String> {
        let [program, args @ ..] = command else {
            return Err(format!("the application's {name} names no program"));
        };
        let told = |what: String| format!("the application's {name} ({program}) {what}");
        let mut process = tokio::process::Command::new(program);
        process.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = process.kill_on_drop(true).spawn();
        let child = child.map_err(|error| told(format!("cannot be started: {error}")))?;
        let output = tokio::select! {
            output = child.wait_with_output() => output,
            () = self.clock.sleep(self.hook.timeout) => {
                let late = self.hook.timeout.as_millis();
                return Err(told(format!("did not end in {late} ms and was killed")));
            }
        };
        let output = output.map_err(|error| told(format!("cannot be waited for: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.trim().lines().last().unwrap_or("and said nothing");
        Err(told(format!("ended with {}: {last}", output.status)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::System;

    fn quiesce(directory: &std::path::Path, freeze: &str) -> Quiesce {
        let line = |script: &str| {
            let script = format!("cd '{}'; {script}", directory.display());
            ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
        };
        let timeout = Duration::from_millis(300);
        let hook = ApplicationHook {
            freeze: line(freeze),
            thaw: line("rm frozen"),
            guest_agent: None,
            timeout,
        };
        Quiesce::new(hook, None, System::clock(), System::entropy())
    }

    #[tokio::test]
    async fn the_bookmark_is_placed_while_the_application_is_frozen() {
        let directory = tempfile::tempdir().unwrap();
        let frozen = directory.path().join("frozen");
        let seen =
            quiesce(directory.path(), "touch frozen").run(async { Ok(frozen.exists()) }).await;
        assert_eq!(seen, Ok(true));
        assert!(!frozen.exists(), "it was thawed");
    }

    #[tokio::test]
    async fn a_freeze_that_fails_or_hangs_places_nothing_and_is_thawed() {
        let directory = tempfile::tempdir().unwrap();
        let frozen = directory.path().join("frozen");
        for (freeze, expected) in [
            ("touch frozen; echo 'database is busy' >&2; exit 3", "database is busy"),
            ("touch frozen; exec sleep 60", "did not end in 300 ms"),
        ] {
            let seen: Result<(), _> = quiesce(directory.path(), freeze)
                .run(async { panic!("nothing may be placed") })
                .await;
            let why = seen.unwrap_err();
            assert!(why.contains(expected), "{why}");
            assert!(!frozen.exists(), "it was thawed after {freeze}");
        }
        let hook = ApplicationHook {
            freeze: vec!["/no/such/program".into()],
            thaw: vec!["/bin/true".into()],
            guest_agent: None,
            timeout: Duration::from_secs(5),
        };
        let seen: Result<(), _> = Quiesce::new(hook, None, System::clock(), System::entropy())
            .run(async { Ok(()) })
            .await;
        assert!(seen.unwrap_err().contains("cannot be started"));
    }
}
