//! Whether the store may be asked: one breaker for all machines of the process. Sans-io.
//!
//! Closed: everybody may. After [`FAILURES_MAX`] failures with no success between them, or when the
//! store itself names a time, it opens: then one probe at a time asks, first at short, then at
//! longer intervals. The first success closes it.
//!
//! One machine's broken corner of the store must not keep the others out: while it is open, a
//! machine that has not failed since the last success may find out for itself at once (still one
//! at a time).

use std::collections::HashSet;
use std::time::Duration;

use crate::model::MachineKey;

/// Failures in a row that open it.
pub(super) const FAILURES_MAX: u32 = 5;
/// First wait before a probe; it doubles with every probe that fails.
pub(super) const PROBE_FIRST: Duration = Duration::from_millis(500);
/// Longest wait before a probe: how late the end of an outage is noticed.
pub(super) const PROBE_MAX: Duration = Duration::from_secs(15);
/// Longest wait that a store may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Leave to ask the store once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// As everybody.
    Usual,
    /// As the only one.
    Probe,
}

/// How a call to the store ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was answered, whatever the answer was.
    Answered,
    /// It was not, or with "later"; the store may have said when.
    Failed {
        /// What the store asked for.
        retry_after: Option<Duration>,
    },
    /// It was given up before it ended.
    GivenUp,
}

/// What it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BreakerState {
    /// Everybody may ask.
    Closed,
    /// Nobody, until the time of the next probe.
    Open,
    /// A probe is under way.
    Probing,
}

#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    failed: HashSet<MachineKey>, // since the last answer
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    until: Duration,
    ordered: bool, // by the store: nobody asks before
    probes: u32,
    probing: bool,
}

impl Breaker {
    pub(super) fn state(&self) -> BreakerState {
        match &self.open {
            None => BreakerState::Closed,
            Some(open) if open.probing => BreakerState::Probing,
            Some(_) => BreakerState::Open,
        }
    }

    /// Whether `who` may ask now; or when to come again, at the latest (`None`: when the probe has
    /// ended).
    pub(super) fn allows(&self, who: MachineKey, now: Duration) -> Result<Leave, Option<Duration>> {
        match &self.open {
            None => Ok(Leave::Usual),
            Some(open) if open.probing => Err(None),
            Some(open) if now >= open.until => Ok(Leave::Probe),
            Some(open) if !open.ordered && !self.failed.contains(&who) => Ok(Leave::Probe),
            Some(open) => Err(Some(open.until)),
        }
    }

    /// Takes the leave that [`Breaker::allows`].
    pub(super) fn ask(
        &mut self,
        who: MachineKey,
        now: Duration,
    ) -> Result<Leave, Option<Duration>> {
        let leave = self.allows(who, now)?;
        if let (Leave::Probe, Some(open)) = (leave, &mut self.open) {
            open.probing = true;
        }
        Ok(leave)
    }

    /// Notes how a call ended that had `leave`; `fraction` (0 to 1) is random.
    pub(super) fn ended(
        &mut self,
        who: MachineKey,
        leave: Leave,
        ended: Ended,
        now: Duration,
        fraction: f64,
    ) {
        if let (Leave::Probe, Some(open)) = (leave, &mut self.open) {
            open.probing = false;
        }
        match ended {
            Ended::Answered => *self = Self::default(),
            Ended::GivenUp => {}
            Ended::Failed { retry_after } => {
                self.failures = self.failures.saturating_add(1);
                self.failed.insert(who);
                self.failed(leave, retry_after, now, fraction);
            }
        }
    }

    fn failed(
        &mut self,
        leave: Leave,
        retry_after: Option<Duration>,
        now: Duration,
        fraction: f64,
    ) {
        let ordered = retry_after.map(|wait| wait.min(RETRY_AFTER_MAX));
        let probes = match &self.open {
            None if ordered.is_none() && self.failures < FAILURES_MAX => return,
            None => 0,
            Some(open) if leave == Leave::Probe => open.probes.saturating_add(1),
            // Asked before it opened: nothing new, unless the store names a later time.
            Some(open) if ordered.is_none_or(|wait| now + wait <= open.until) => return,
            Some(open) => open.probes,
        };
        let probing = self.open.as_ref().is_some_and(|open| open.probing);
        let wait = ordered.unwrap_or_else(|| {
            let factor = 1_u32.checked_shl(probes).unwrap_or(u32::MAX);
            let ceiling = PROBE_FIRST.saturating_mul(factor).min(PROBE_MAX);
            // Half of it is certain: a probe that may come at once is none.
            ceiling.mul_f64(0.5 + 0.5 * fraction)
        });
        let until = now.saturating_add(wait);
        self.open = Some(Open { until, ordered: ordered.is_some(), probes, probing });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Ended = Ended::Failed { retry_after: None };

    fn machine(number: u8) -> MachineKey {
        MachineKey([number; 16])
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        for n in 0..FAILURES_MAX {
            let who = machine(n as u8 % 2);
            assert_eq!(breaker.ask(who, seconds(1.0)), Ok(Leave::Usual));
            breaker.ended(who, Leave::Usual, FAILED, seconds(1.0), 1.0);
        }
        assert_eq!(breaker.state(), BreakerState::Open);
        breaker
    }

    #[test]
    fn an_answer_between_failures_keeps_it_closed() {
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            for ended in [FAILED, FAILED, FAILED, FAILED, Ended::Answered] {
                assert_eq!(breaker.ask(machine(0), seconds(1.0)), Ok(Leave::Usual));
                breaker.ended(machine(0), Leave::Usual, ended, seconds(1.0), 1.0);
            }
        }
    }

    #[test]
    fn one_probe_at_a_time_and_later_each_time() {
        let mut breaker = opened();
        let mut now = seconds(1.0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let until = breaker.ask(machine(0), now).unwrap_err().unwrap();
            waits.push((until - now).as_millis());
            now = until;
            assert_eq!(breaker.ask(machine(0), now), Ok(Leave::Probe));
            assert_eq!(breaker.ask(machine(1), now), Err(None), "one at a time");
            breaker.ended(machine(0), Leave::Probe, FAILED, now, 1.0);
        }
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000]);
        let until = breaker.ask(machine(0), now).unwrap_err().unwrap();
        assert_eq!(breaker.ask(machine(1), until), Ok(Leave::Probe));
        breaker.ended(machine(1), Leave::Probe, Ended::Answered, until, 1.0);
        assert_eq!(breaker.ask(machine(0), until), Ok(Leave::Usual));
    }

    #[test]
    fn who_has_not_failed_may_find_out_at_once() {
        let mut breaker = opened();
        let now = seconds(1.1);
        assert_eq!(breaker.ask(machine(9), now), Ok(Leave::Probe));
        breaker.ended(machine(9), Leave::Probe, FAILED, now, 1.0);
        assert!(breaker.ask(machine(9), now).is_err(), "once");
        assert_eq!(breaker.ask(machine(8), now), Ok(Leave::Probe));
        breaker.ended(machine(8), Leave::Probe, Ended::Answered, now, 1.0);
        assert_eq!(breaker.ask(machine(0), now), Ok(Leave::Usual));
    }

    #[test]
    fn a_time_that_the_store_names_is_kept_by_all() {
        let mut breaker = Breaker::default();
        let wait = Some(seconds(20.0));
        let throttled = Ended::Failed { retry_after: wait };
        breaker.ended(machine(0), Leave::Usual, throttled, seconds(5.0), 0.0);
        for who in [0, 7] {
            assert_eq!(breaker.ask(machine(who), seconds(6.0)), Err(Some(seconds(25.0))));
        }
        breaker.ended(machine(1), Leave::Usual, FAILED, seconds(7.0), 0.0);
        assert_eq!(breaker.ask(machine(7), seconds(8.0)), Err(Some(seconds(25.0))));
        assert_eq!(breaker.ask(machine(7), seconds(25.0)), Ok(Leave::Probe));
        let forever = Ended::Failed { retry_after: Some(Duration::MAX) };
        breaker.ended(machine(7), Leave::Probe, forever, seconds(25.0), 0.0);
        let until = breaker.ask(machine(7), seconds(26.0)).unwrap_err().unwrap();
        assert_eq!(until, seconds(325.0), "no store keeps us away for ever");
    }

    #[test]
    fn a_probe_that_is_given_up_makes_room_for_the_next() {
        let mut breaker = opened();
        assert_eq!(breaker.ask(machine(0), seconds(9.0)), Ok(Leave::Probe));
        breaker.ended(machine(0), Leave::Probe, Ended::GivenUp, seconds(9.0), 1.0);
        assert_eq!(breaker.ask(machine(1), seconds(9.0)), Ok(Leave::Probe));
    }
}
