//! When an applier that was fenced may take the machine over again.
//!
//! Two appliers that both live would take the seed disks from each other for ever. So the fenced
//! one stands by: only if the other's watermark does not move for a while although there is
//! something to apply does it claim again. Nothing depends on that time but how soon somebody
//! applies: fencing itself needs no clock.

use std::time::Duration;

/// How long the other applier may stand still.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was seen of the other applier.
#[derive(Debug)]
pub(super) struct Standby {
    applied: u64,
    moved_at: Duration,
}

impl Standby {
    pub(super) fn new(applied: u64, now: Duration) -> Self {
        Self { applied, moved_at: now }
    }

    /// Whether to claim now. `published` is how far it could be applied.
    pub(super) fn over(&mut self, applied: u64, published: u64, now: Duration) -> bool {
        if applied != self.applied || applied >= published {
            *self = Self::new(applied, now);
        }
        now.saturating_sub(self.moved_at) >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_standstill_with_work_to_do_ends_the_standby() {
        let at = Duration::from_secs;
        let mut standby = Standby::new(5, at(0));
        assert!(!standby.over(6, 9, at(29)), "it moves");
        assert!(!standby.over(6, 9, at(58)));
        assert!(standby.over(6, 9, at(59)), "30 s without moving");
        assert!(!standby.over(9, 9, at(60)), "nothing to do");
        assert!(!standby.over(9, 9, at(600)));
        assert!(!standby.over(9, 10, at(629)));
        assert!(standby.over(9, 10, at(630)));
    }
}
