//! One page write that Azure surely did not carry out is sent again.
//!
//! Owns: which failures allow that, how often, for how long. Without it one write that was throttled
//! would repeat the whole run that it belongs to. Never after an ambiguous answer: the lost request may
//! still arrive, and put older bytes over newer ones.

use std::time::Duration;

use super::{Result, StoreError};
use crate::clock::{Clock, Entropy, back_off};

/// Further sends of one request.
const RESENDS: u32 = 5;
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(2);
/// The lease must live through it: whoever would have to wait longer hands the failure to its caller.
const PATIENCE: Duration = Duration::from_secs(8);

/// Calls `send` until it succeeds, fails for good, or patience ends. `stopped`: another request of the
/// same call failed, so this one is not worth another try.
pub(super) async fn resend<F>(
    clock: &dyn Clock,
    entropy: &dyn Entropy,
    stopped: impl Fn() -> bool + Send,
    mut send: impl FnMut() -> F + Send,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send,
{
    let until = clock.monotonic() + PATIENCE;
    let mut resends = 0;
    loop {
        let error = match send().await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // Of a change, `Transient` says that it was never sent.
        let had_no_effect =
            matches!(error, StoreError::Throttled { .. } | StoreError::Transient { .. });
        let jittered = || back_off(resends, FIRST, LONGEST, entropy);
        let wait = error.retry_after().unwrap_or_else(jittered);
        let too_late = clock.monotonic().saturating_add(wait) > until;
        if !had_no_effect || resends == RESENDS || too_late {
            return Err(error);
        }
        clock.sleep(wait).await;
        if stopped() {
            return Err(error);
        }
        resends += 1;
    }
}

#[cfg(test)]
#[path = "resend_tests.rs"]
mod tests;
