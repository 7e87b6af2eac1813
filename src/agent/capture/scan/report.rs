//! How a scan is, in words.
//!
//! Owns: what status says of it. Does not own: the facts.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
        let (now, as_of, trouble) = (Now::Rests, None, None);
        Self { snapshots, passes: 0, now, as_of, changed: 0, trouble }
    }

    /// A catch-up is waited for.
    pub(super) fn waits(&mut self, dirty_bytes: u64) {
        self.now = Now::Waits(dirty_bytes);
    }

    /// So much of the disk was read in this pass.
    pub(super) fn compared(&mut self, done: u64, all: u64, changed: u64) {
        self.now = Now::Reads { done, all, changed };
    }

    /// A pass is over; with `at`, what is in the stream is the disk as it was then.
    pub(super) fn ended(&mut self, changed: u64, at: Option<Duration>) {
        self.passes += 1;
        (self.now, self.changed, self.trouble) = (Now::Rests, changed, None);
        self.as_of = at.or(self.as_of);
    }

    /// A pass was given up.
    pub(super) fn failed(&mut self, why: String) {
        (self.now, self.trouble) = (Now::Rests, Some(why));
    }

    /// Age of the newest state of the disk that a point can show.
    fn age(&self, now: Duration) -> Option<Duration> {
        self.as_of.map(|at| now.saturating_sub(at))
    }

    /// All of it.
    pub(super) fn words(&self, now: Duration) -> String {
        let points = match self.age(now) {
            Some(age) => format!("a point shows the disk as of {} s ago", age.as_secs()),
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
