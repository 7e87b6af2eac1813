//! The commands that make a snapshot of a disk and drop it.
//!
//! Owns: that they end. Does not own: when they run.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::clock::Clock;

use super::pauses::Pauses;

/// Pause between two looks at a command that runs.
const LOOK: Duration = Duration::from_millis(20);

/// Runs a command to its end, or kills it. What it says on standard error is said on the agent's.
///
/// # Errors
/// In words, when it cannot be started, ends with anything but 0, takes too long, or the agent stops.
pub(super) fn call(
    name: &str,
    command: &[String],
    timeout: Duration,
    clock: &dyn Clock,
    pauses: &Pauses,
) -> Result<(), String> {
    let [program, args @ ..] = command else {
        return Err(format!("the {name} hook names no program"));
    };
    let told = |what: String| format!("the {name} hook ({program}) {what}");
    let mut process = Command::new(program);
    process.args(args).stdin(Stdio::null()).stdout(Stdio::null());
    let child = process.spawn().map_err(|error| told(format!("cannot be started: {error}")))?;
    let mut child = Kept(child);
    let until = clock.monotonic() + timeout;
    loop {
        match child.0.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                return Err(told(format!("ended with {status}: see the agent's log")));
            }
            Ok(None) if pauses.stopped() => {
                return Err(told("was ended, because the agent stops".to_owned()));
            }
            Ok(None) if clock.monotonic() >= until => {
                let late = timeout.as_millis();
                return Err(told(format!("did not end in {late} ms and was killed")));
            }
            Ok(None) => pauses.rest(LOOK),
            Err(error) => return Err(told(format!("cannot be waited for: {error}"))),
        }
    }
}

/// A command that does not outlive whoever waits for it.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}
