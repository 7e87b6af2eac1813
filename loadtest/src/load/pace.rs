//! When writes are due.
//!
//! In a closed loop a write is due when there is room for it. In an open loop it is due at a moment
//! that nothing can move: a server that stalls does not make its load go away, and what had to wait
//! is measured from the moment at which it was due (coordinated omission).

use std::time::Duration;

/// How fast one machine writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// Closed loop: as fast as acks come, with at most so many writes that are not durable.
    Flat { depth: u32 },
    /// Open loop: bytes per second.
    Bytes(f64),
    /// Open loop: writes per second.
    Writes(f64),
    /// Open loop: as the trace says.
    Trace,
}

impl Pace {
    /// The same, `part` of it.
    pub(crate) fn scaled(self, part: f64) -> Self {
        match self {
            Self::Bytes(rate) => Self::Bytes(rate * part),
            Self::Writes(rate) => Self::Writes(rate * part),
            Self::Flat { .. } | Self::Trace => self,
        }
    }
}

/// Load that comes and goes.
const BURST: Duration = Duration::from_secs(1);
const PERIOD: Duration = Duration::from_secs(5);

/// The schedule of one machine through one phase.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    pace: Pace,
    bursts: bool,
    start: Duration,
    /// Time of its own that has passed for the writes given out: without gaps between bursts.
    passed: Duration,
}

impl Schedule {
    /// Begins at `start`, `offset` (0 to 1) of a write's time into it, so that many machines do not
    /// write at the same moment.
    pub(crate) fn new(pace: Pace, bursts: bool, start: Duration, offset: f64) -> Self {
        let first = match pace {
            Pace::Writes(rate) => Duration::from_secs_f64(offset / rate.max(1e-6)),
            // Writes differ in length: a spread of one tenth of a second is enough.
            Pace::Bytes(_) => Duration::from_millis(100).mul_f64(offset),
            Pace::Flat { .. } | Pace::Trace => Duration::ZERO,
        };
        Self { pace, bursts, start, passed: first }
    }

    /// When the next write is due. A closed loop's is due at once, outside the gaps of bursts.
    pub(crate) fn due(&self, now: Duration, traced: Option<Duration>) -> Duration {
        match self.pace {
            Pace::Flat { .. } if !self.bursts => now,
            Pace::Flat { .. } => {
                let elapsed = now.saturating_sub(self.start);
                let periods = (elapsed.as_nanos() / PERIOD.as_nanos()) as u32;
                let begun = self.start + PERIOD * periods;
                if now < begun + BURST { now } else { begun + PERIOD }
            }
            Pace::Bytes(_) | Pace::Writes(_) => self.start + self.with_gaps(),
            Pace::Trace => self.start + traced.unwrap_or_default(),
        }
    }

    /// The write that was due was given out.
    pub(crate) fn gave(&mut self, bytes: u32) {
        let cost = match self.pace {
            Pace::Bytes(rate) => f64::from(bytes) / rate.max(1.0),
            Pace::Writes(rate) => 1.0 / rate.max(1e-6),
            Pace::Flat { .. } | Pace::Trace => return,
        };
        let cost = if self.bursts { cost * BURST.div_duration_f64(PERIOD) } else { cost };
        self.passed += Duration::from_secs_f64(cost);
    }

    /// Most writes that may wait for their durable ack.
    pub(crate) fn depth(&self) -> usize {
        match self.pace {
            Pace::Flat { depth } => depth as usize,
            Pace::Bytes(_) | Pace::Writes(_) | Pace::Trace => usize::MAX,
        }
    }

    /// Whether the load does not wait for the server.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.pace, Pace::Flat { .. })
    }

    fn with_gaps(&self) -> Duration {
        if !self.bursts {
            return self.passed;
        }
        let bursts = (self.passed.as_nanos() / BURST.as_nanos()) as u32;
        self.passed + (PERIOD - BURST) * bursts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(100);

    fn moments(mut schedule: Schedule, count: usize, bytes: u32) -> Vec<f64> {
        let next = || {
            let due = schedule.due(START, None);
            schedule.gave(bytes);
            (due - START).as_secs_f64()
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    #[test]
    fn an_open_loop_does_not_wait() {
        let writes = Schedule::new(Pace::Writes(10.0), false, START, 0.0);
        let due = moments(writes, 31, 4096);
        assert!((due[30] - 3.0).abs() < 1e-6, "{due:?}");
        let bytes = Schedule::new(Pace::Bytes(4096.0), false, START, 0.0);
        assert!((moments(bytes, 3, 8192)[2] - 4.0).abs() < 1e-6);
    }

    #[test]
    fn bursts_have_the_same_mean() {
        let schedule = Schedule::new(Pace::Writes(10.0), true, START, 0.0);
        let due = moments(schedule, 500, 4096);
        let within = |from: f64, to: f64| due.iter().filter(|at| (from..to).contains(*at)).count();
        assert!((49..=51).contains(&within(0.0, 1.0)), "{}", within(0.0, 1.0));
        assert!(within(1.001, 5.0) == 0 && (49..=51).contains(&within(5.0, 6.0)));
        assert!((due[499] - 45.98).abs() < 0.1, "{}", due[499]);
    }

    #[test]
    fn a_closed_loop_is_always_due_except_between_bursts() {
        let flat = Schedule::new(Pace::Flat { depth: 4 }, false, START, 0.5);
        assert_eq!(flat.due(START + PERIOD, None), START + PERIOD);
        assert!(flat.depth() == 4 && !flat.is_open());
        let bursts = Schedule::new(Pace::Flat { depth: 4 }, true, START, 0.0);
        let half = Duration::from_millis(500);
        assert_eq!(bursts.due(START + half, None), START + half);
        assert_eq!(bursts.due(START + BURST, None), START + PERIOD);
        assert_eq!(bursts.due(START + PERIOD + half, None), START + PERIOD + half);
    }
}
