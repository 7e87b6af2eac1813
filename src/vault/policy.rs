//! What a policy may say.

use super::{Policy, PolicyViolation, VaultError};

/// Ten years: longer than anything here is tested for.
const SECONDS_MAX: u64 = 10 * 366 * 86_400;
/// Most steps of a ladder.
const LADDER_STEPS_MAX: usize = 16;

/// Bounds that an installation sets for its policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyBounds {
    /// Shortest snapshot interval. A managed disk takes 7 snapshots per 5 min, hence 60 by default.
    pub snapshot_interval_min_s: u32,
}

impl Default for PolicyBounds {
    fn default() -> Self {
        Self { snapshot_interval_min_s: 60 }
    }
}

impl Policy {
    /// Holds every rule and names all that are broken.
    ///
    /// # Errors
    /// `Policy` with every broken rule.
    pub fn check(&self, bounds: PolicyBounds) -> Result<(), VaultError> {
        let mut rules = Rules(Vec::new());
        let bookmark = self.bookmark_interval_s;
        let snapshot = self.snapshot_interval_s;
        let low = bounds.snapshot_interval_min_s;
        rules.range("bookmark_interval_s", bookmark.into(), 1, 3_600);
        rules.range("snapshot_interval_s", snapshot.into(), low.into(), 86_400);
        rules.hold(
            snapshot >= bookmark,
            "snapshot_interval_s",
            snapshot,
            &format!("must be at least bookmark_interval_s = {bookmark}"),
        );
        let window = self.journal_window_s;
        rules.range("journal_window_s", window, 1, SECONDS_MAX);
        rules.hold(
            window >= u64::from(snapshot),
            "journal_window_s",
            window,
            &format!("must be at least snapshot_interval_s = {snapshot}"),
        );
        rules.range("rpo_warn_s", self.rpo_warn_s.into(), 1, 86_400);
        self.check_ladder(&mut rules);
        if rules.0.is_empty() {
            return Ok(());
        }
        Err(VaultError::Policy { violations: rules.0 })
    }

    fn check_ladder(&self, rules: &mut Rules) {
        let steps = self.ladder.len();
        rules.hold(
            (1..=LADDER_STEPS_MAX).contains(&steps),
            "ladder",
            format!("{steps} steps"),
            &format!("must have 1 to {LADDER_STEPS_MAX} steps"),
        );
        for (number, step) in self.ladder.iter().enumerate() {
            let age = format!("ladder[{number}].age_s");
            let every = format!("ladder[{number}].every_s");
            rules.range(&age, step.age_s, 1, SECONDS_MAX);
            rules.range(&every, step.every_s, 0, step.age_s.max(1));
            let Some(before) = number.checked_sub(1).map(|n| self.ladder[n]) else {
                continue;
            };
            let rule = "must be larger than that of the step before";
            rules.hold(step.age_s > before.age_s, &age, step.age_s, rule);
            let rule = "must not be denser than the step before";
            rules.hold(step.every_s >= before.every_s, &every, step.every_s, rule);
        }
    }
}

struct Rules(Vec<PolicyViolation>);

impl Rules {
    fn hold(&mut self, holds: bool, field: &str, value: impl ToString, rule: &str) {
        if !holds {
            self.0.push(PolicyViolation {
                field: field.to_owned(),
                value: value.to_string(),
                rule: rule.to_owned(),
            });
        }
    }

    fn range(&mut self, field: &str, value: u64, low: u64, high: u64) {
        let rule = format!("must be {low} to {high}");
        self.hold((low..=high).contains(&value), field, value, &rule);
    }
}
