//! A rate that all uploads together keep, by turns over machines.
//!
//! Bytes are let through in portions of a tenth of a second, and every portion is a turn: under a
//! low rate a machine with little to send waits for a portion of each other machine, never for
//! another's whole object.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::model::MachineKey;
use crate::settings::{Rate, RateSchedule};
use crate::turns::Turns;

/// What is let through at once, as part of a second; at least [`PORTION_MIN`].
const PORTIONS: u64 = 10;
const PORTION_MIN: u64 = 4 << 10;
/// Lateness of timers that may be made good: more would be a burst.
const LATE_MAX: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Bandwidth {
    turns: Turns,
    schedule: Mutex<RateSchedule>,
    pace: Mutex<Pace>,
}

impl Bandwidth {
    pub(super) fn new(schedule: RateSchedule) -> Self {
        let (turns, pace) = (Turns::new(1, 0), Mutex::default());
        Self { turns, schedule: Mutex::new(schedule), pace }
    }

    pub(super) fn set(&self, schedule: RateSchedule) {
        *self.schedule.lock().unwrap_or_else(PoisonError::into_inner) = schedule;
    }

    pub(super) fn rate(&self, clock: &dyn Clock) -> Rate {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner).at(clock.wall())
    }

    /// Objects that wait.
    pub(super) fn waiting(&self) -> usize {
        self.turns.waiting() + usize::try_from(self.turns.in_use()).unwrap_or(usize::MAX)
    }

    /// Waits until a portion of `who`'s `left` bytes may be sent: how many.
    pub(super) async fn portion(&self, clock: &dyn Clock, who: MachineKey, left: u64) -> u64 {
        let Some(rate) = self.rate(clock) else { return left };
        let portion = (rate / PORTIONS).max(PORTION_MIN).min(left);
        let turn = self.turns.take(who, 1, portion).await;
        let wait = self.pace.lock().unwrap_or_else(PoisonError::into_inner).wait(
            portion,
            rate,
            clock.monotonic(),
        );
        clock.sleep(wait).await;
        drop(turn);
        portion
    }
}

/// When the next portion may end.
#[derive(Debug, Default)]
struct Pace {
    free_at: Duration,
}

impl Pace {
    fn wait(&mut self, bytes: u64, rate: u64, now: Duration) -> Duration {
        let begin = self.free_at.max(now.saturating_sub(LATE_MAX));
        self.free_at = begin + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        self.free_at.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_however_late_the_timers_are_and_idleness_saves_nothing_up() {
        let mut pace = Pace::default();
        let mut now = Duration::from_secs(100);
        let began = now;
        for _ in 0..1_000 {
            now += pace.wait(100_000, 1_000_000, now) + Duration::from_millis(7);
        }
        let took = (now - began).as_secs_f64();
        assert!((99.5..100.1).contains(&took), "{took}");
        now += Duration::from_secs(3_600);
        let wait = pace.wait(1_000_000, 1_000_000, now);
        assert_eq!(wait, Duration::from_secs(1) - LATE_MAX);
    }
}
