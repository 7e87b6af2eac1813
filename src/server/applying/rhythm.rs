//! When one machine is looked at, tidied, or put to rest. Sans-io; time is an argument.
//!
//! Owns: all pauses. Does not own: the order of machines ([`super::agenda`]). A machine whose
//! publishing process server is this one needs no looks: it says itself when there is news.

use std::time::Duration;

/// Retention and tidying while something happens on a machine.
pub(super) const TIDY_INTERVAL: Duration = Duration::from_secs(30);
/// The same while nothing does: what may go then is little (pins that ran out, a policy that was
/// changed, orphans past their grace), and each time costs about eight requests to the store.
pub(super) const TIDY_IDLE_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// Keys, points and seed disks are let go when nothing was applied for so long: then what was
/// applied last has been tidied, too.
pub(super) const REST_AFTER: Duration = Duration::from_secs(300);
const _: () = assert!(TIDY_INTERVAL.as_secs() < REST_AFTER.as_secs());

/// One machine's deadlines.
#[derive(Debug)]
pub(super) struct Rhythm {
    /// Pause between turns, and the first pause between looks.
    interval: Duration,
    /// Longest pause between looks.
    interval_max: Duration,
    pause: Duration,
    look_at: Option<Duration>,
    tidy_at: Duration,
    rest_at: Option<Duration>,
}

impl Rhythm {
    /// `spread` (0 to 1) moves the first tidying, so that machines do not tidy in step.
    pub(super) fn new(now: Duration, spread: f64) -> Self {
        Self {
            interval: Duration::ZERO,
            interval_max: Duration::ZERO,
            pause: Duration::ZERO,
            look_at: Some(now),
            tidy_at: now + TIDY_IDLE_INTERVAL.mul_f64(spread.clamp(0.0, 1.0)),
            rest_at: None,
        }
    }

    /// What the settings say now.
    pub(super) fn pace(&mut self, interval: Duration, interval_max: Duration) {
        self.interval = interval;
        self.interval_max = interval_max.max(interval);
        self.pause = self.pause.clamp(self.interval, self.interval_max);
    }

    /// Whether it is time to see if there is something to apply.
    pub(super) fn looks(&self, now: Duration) -> bool {
        self.look_at.is_some_and(|at| at <= now)
    }

    /// Whether it is time for retention.
    pub(super) fn tidies(&self, now: Duration) -> bool {
        self.tidy_at <= now
    }

    /// Whether nothing was applied for so long that the seed disks are let go.
    pub(super) fn rests(&self, now: Duration) -> bool {
        self.rest_at.is_none_or(|at| at <= now)
    }

    /// Something was applied.
    pub(super) fn applied(&mut self, now: Duration) {
        self.pause = self.interval;
        self.tidy_at = self.tidy_at.min(now + TIDY_INTERVAL);
        self.rest_at = Some(now + REST_AFTER);
    }

    /// It was written to not long ago, and whoever applied that may have been killed before tidying.
    pub(super) fn inherited(&mut self, now: Duration) {
        self.tidy_at = self.tidy_at.min(now + TIDY_INTERVAL);
    }

    /// Something did not work and is tried again: it may need the room that retention makes.
    pub(super) fn troubled(&mut self, now: Duration) {
        self.tidy_at = self.tidy_at.min(now + TIDY_INTERVAL);
        self.rest_at = Some(now + REST_AFTER);
    }

    /// There is more to apply than one turn may take.
    pub(super) fn unfinished(&mut self, now: Duration) {
        self.look_at = Some(now);
    }

    /// All is applied, and whoever publishes says when there is more.
    pub(super) fn told(&mut self) {
        self.look_at = None;
    }

    /// All is applied, and nobody will say when there is more: each look in vain doubles the pause.
    pub(super) fn untold(&mut self, now: Duration) {
        self.look_at = Some(now + self.pause);
        self.pause = self.pause.saturating_mul(2).min(self.interval_max);
    }

    /// Something is to be seen after `pause`, whoever publishes.
    pub(super) fn again_after(&mut self, now: Duration, pause: Duration) {
        self.look_at = Some(now + pause);
    }

    /// Retention was done, or is not ours to do.
    pub(super) fn tidied(&mut self, now: Duration) {
        self.tidy_at = now + TIDY_IDLE_INTERVAL;
    }

    /// It was put to rest.
    pub(super) fn rested(&mut self) {
        self.rest_at = None;
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Duration {
        let early = self.look_at.into_iter().chain(self.rest_at);
        early.fold(self.tidy_at, Duration::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn rhythm() -> Rhythm {
        let mut rhythm = Rhythm::new(at(0), 0.5);
        rhythm.pace(at(1), at(300));
        rhythm
    }

    #[test]
    fn looks_in_vain_grow_rare_and_work_makes_them_frequent_again() {
        let mut rhythm = rhythm();
        let (mut now, mut looks) = (at(0), 0);
        while now < at(3600) {
            assert!(rhythm.looks(now));
            rhythm.untold(now);
            now = rhythm.next();
            looks += 1;
        }
        assert!((16..=22).contains(&looks), "{looks} looks in an idle hour");
        rhythm.applied(now);
        rhythm.untold(now);
        assert_eq!(rhythm.next(), now + at(1));
    }

    #[test]
    fn a_machine_that_is_told_of_has_only_tidying_left() {
        let mut rhythm = rhythm();
        rhythm.told();
        assert_eq!(rhythm.next(), at(3 * 3600), "spread over six hours");
        assert!(!rhythm.looks(at(9999)) && !rhythm.tidies(at(9999)) && rhythm.tidies(at(10_800)));
        rhythm.applied(at(100));
        assert_eq!(rhythm.next(), at(130), "what was applied is tidied soon");
        assert!(!rhythm.rests(at(399)) && rhythm.rests(at(400)), "then its disks are let go");
        rhythm.tidied(at(400));
        rhythm.rested();
        assert_eq!(rhythm.next(), at(400 + 6 * 3600));
    }
}
