//! How a scan is, in words.
//!
//! Owns: what status says of it. Does not own: the facts.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::agent::capture::Age;

/// A report that the scan writes and status reads.
#[derive(Debug)]
pub(super) struct Shared(Mutex<Report>);

impl Shared {
    pub(super) fn new(snapshots: bool) -> Self {
        Self(Mutex::new(Report::new(snapshots)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Report> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last pass and the present one.
#[derive(Clone, Debug)]
pub(super) struct Report {
    snapshots: bool,
    /// Passes that were brought to their end.
    passes: u64,
    now: Now,
    /// The disk's state that a point shows, as a moment of the monotonic clock.
    as_of: Option<Duration>,
    /// How old the state before was when that one took its place.
    age_max: Option<Duration>,
    /// What the last whole pass found, bytes.
    changed: u64,
    trouble: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Now {
    Rests,
    /// A catch-up has so many bytes to read.
    Waits(u64),
    Reads {
        done: u64,
        all: u64,
        changed: u64,
    },
}

impl Report {
    fn new(snapshots: bool) -> Self {
        let (now, as_of, age_max, trouble) = (Now::Rests, None, None, None);
        Self { snapshots, passes: 0, now, as_of, age_max, changed: 0, trouble }
    }

    /// A catch-up is waited for.
    pub(super) fn waits(&mut self, dirty_bytes: u64) {
        self.now = Now::Waits(dirty_bytes);
    }

    /// So much of the disk was read in this pass.
    pub(super) fn compared(&mut self, done: u64, all: u64, changed: u64) {
        self.now = Now::Reads { done, all, changed };
    }

    /// From `now` on what is in the stream is the disk as it was `at` then: a pass is nearly over. Between
    /// two such passes lie the rest that the settings want and what else there was to do, so a state gets
    /// as old as from its begin to the end of the next.
    pub(super) fn shows(&mut self, at: Duration, now: Duration) {
        self.age_max = self.as_of.map(|before| now.saturating_sub(before));
        self.as_of = Some(at);
    }

    /// A pass is over.
    pub(super) fn ended(&mut self, changed: u64) {
        self.passes += 1;
        (self.now, self.changed, self.trouble) = (Now::Rests, changed, None);
    }

    /// A pass was given up.
    pub(super) fn failed(&mut self, why: String) {
        (self.now, self.trouble) = (Now::Rests, Some(why));
    }

    pub(super) fn age(&self, now: Duration) -> Age {
        Age { now: self.as_of.map(|at| now.saturating_sub(at)), max: self.age_max }
    }

    /// All of it.
    pub(super) fn words(&self, now: Duration) -> String {
        let Age { now, max } = self.age(now);
        let at_most = max.map(|max| format!(", the one before got {} s old", max.as_secs()));
        let points = match now {
            Some(age) => format!(
                "a point shows the disk as of {} s ago{}",
                age.as_secs(),
                at_most.unwrap_or_default()
            ),
            None => "no point is possible yet".to_owned(),
        };
        let last = match (self.passes, self.snapshots, self.changed) {
            (0, _, _) => String::new(),
            (_, true, changed) => format!("; the last pass sent {changed} bytes"),
            (_, false, 0) => "; the last pass found no change".to_owned(),
            (_, false, changed) => format!(
                "; the last pass found {changed} changed bytes, and without a snapshot hook a point \
                 needs a pass that finds none"
            ),
        };
        let doing = match self.now {
            Now::Rests => String::new(),
            Now::Waits(dirty) => format!("; a catch-up reads {dirty} bytes"),
            Now::Reads { done, all, changed } => {
                let percent = done * 100 / all.max(1);
                let pass = self.passes + 1;
                format!("; pass {pass} has read {percent} %, {changed} bytes of it changed")
            }
        };
        let trouble =
            self.trouble.as_ref().map(|why| format!("; the last pass was given up: {why}"));
        format!("{points}{last}{doing}{}", trouble.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_gets_as_old_as_from_its_begin_to_the_end_of_the_next() {
        let s = Duration::from_secs;
        let mut report = Report::new(true);
        assert_eq!(report.age(s(9)), Age::default());
        // 10 s of reading, 60 s of rest, 12 s of reading.
        report.shows(s(100), s(110));
        assert_eq!(report.age(s(115)), Age { now: Some(s(15)), max: None });
        report.shows(s(170), s(182));
        let age = Age { now: Some(s(12)), max: Some(s(60 + 10 + 12)) };
        assert_eq!(report.age(s(182)), age);
        // A pass that gives no state makes the next one's older.
        report.ended(0);
        assert_eq!(report.age(s(250)), Age { now: Some(s(80)), ..age });
        report.shows(s(310), s(320));
        assert_eq!(report.age(s(321)), Age { now: Some(s(11)), max: Some(s(150)) });
        let words = report.words(s(321));
        assert!(
            words
                .starts_with("a point shows the disk as of 11 s ago, the one before got 150 s old")
        );
    }
}
