//! How many calls may be repeated: a budget over all machines, so that a store that is nearly
//! overloaded does not get a second load made of retries. Sans-io.

use std::time::Duration;

/// What an answered call earns, as part of a repeated one.
const PER_ANSWER: f64 = 0.1;
/// What passing time earns each second: whatever happens, some are tried again.
const PER_SECOND: f64 = 1.0;
/// Most that can be saved up.
pub(super) const SAVED_MAX: f64 = 20.0;

#[derive(Debug)]
pub(super) struct RetryBudget {
    saved: f64,
    at: Duration,
}

impl RetryBudget {
    pub(super) fn new(now: Duration) -> Self {
        Self { saved: SAVED_MAX, at: now }
    }

    /// A call was answered.
    pub(super) fn earn(&mut self) {
        self.saved = (self.saved + PER_ANSWER).min(SAVED_MAX);
    }

    /// Takes one retry, or says after which time to ask again.
    pub(super) fn spend(&mut self, now: Duration) -> Result<(), Duration> {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.saved = (self.saved + passed * PER_SECOND).min(SAVED_MAX);
        self.at = now;
        if self.saved >= 1.0 {
            self.saved -= 1.0;
            return Ok(());
        }
        let missing = (1.0 - self.saved) / PER_SECOND;
        Err(Duration::from_secs_f64(missing).max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_tenth_of_what_is_answered_and_one_a_second() {
        let now = Duration::from_secs(1);
        let mut budget = RetryBudget::new(now);
        let mut retries = 0;
        for _ in 0..10_000 {
            budget.earn();
            retries += u32::from(budget.spend(now).is_ok());
        }
        assert!((1_000..=1_021).contains(&retries), "{retries}");
        let wait = budget.spend(now).unwrap_err();
        assert!(budget.spend(now + wait).is_ok(), "asked when it said so");
        let later = now + Duration::from_secs(3_600);
        let saved = (0..100).filter(|_| budget.spend(later).is_ok()).count();
        assert_eq!(saved, SAVED_MAX as usize, "an idle hour saves up no storm");
    }
}
