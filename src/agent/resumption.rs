//! When a catch-up may begin again after more was written than could be sent. Sans-io; time is an
//! argument.
//!
//! Owns: the pauses between attempts. Does not own: what else a catch-up needs ([`super::stream`]).
//! An attempt under a load that is too much reads and sends what is overwritten at once, and takes
//! from the workload what that costs. Only an attempt can tell whether the load is still too much:
//! so there are few, and never long between two.

use std::time::Duration;

use crate::model::TrackingMode;

/// Before the second attempt in a row, the third, and all later ones. The first follows at once: a
/// burst is over, as a rule.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// An ordered stretch of so long has given a point, by the default of the policy: the load is one that
/// can be sent.
const STEADY: Duration = Duration::from_secs(5);

/// The attempts since order lasted.
#[derive(Debug, Default)]
pub(super) struct Resumption {
    attempts: usize,
    /// Order was lost to the load, and nobody has looked since.
    overloaded: bool,
    not_before: Duration,
    ordered_since: Option<Duration>,
}

impl Resumption {
    /// More was written than could be sent: order is lost.
    pub(super) fn overloaded(&mut self) {
        self.overloaded = true;
    }

    /// Whether a catch-up may begin now. To be asked in every mode, about once in a second.
    pub(super) fn may_begin(&mut self, now: Duration, mode: TrackingMode) -> bool {
        let since = match mode {
            TrackingMode::Ordered => {
                self.ordered_since.get_or_insert(now);
                return false;
            }
            TrackingMode::CatchingUp | TrackingMode::Bitmap => self.ordered_since.take(),
        };
        if since.is_some_and(|since| now.saturating_sub(since) >= STEADY) {
            self.attempts = 0;
        }
        if std::mem::take(&mut self.overloaded) {
            let pause = self
                .attempts
                .checked_sub(1)
                .map_or(Duration::ZERO, |before| PAUSES[before.min(PAUSES.len() - 1)]);
            self.attempts += 1;
            self.not_before = now.saturating_add(pause);
        }
        mode == TrackingMode::Bitmap && now >= self.not_before
    }
}
