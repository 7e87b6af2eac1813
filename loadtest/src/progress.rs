//! What the run is doing now, on standard error; nothing when that is no terminal but one line a step.

use std::time::Duration;

use holdfast::clock::{Clock, System};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One step of a run. Dropping it ends it.
pub(crate) struct Progress {
    bar: ProgressBar,
    begun: Duration,
}

impl Progress {
    /// A step of which nothing is known but its name.
    pub(crate) fn new(what: &str) -> Self {
        Self::start(what, ProgressBar::new_spinner(), "{spinner} {msg}")
    }

    /// So many of something.
    pub(crate) fn counting(what: &str, count: u64) -> Self {
        Self::start(what, ProgressBar::new(count), "{msg} {pos}/{len} ({eta})")
    }

    /// Bytes, nobody knows how many.
    pub(crate) fn bytes(what: &str) -> Self {
        Self::start(what, ProgressBar::new_spinner(), "{spinner} {msg} {bytes} {bytes_per_sec}")
    }

    /// Something that takes `time`, and then until everything is published.
    pub(crate) fn timed(what: &str, time: Duration) -> Self {
        let bar = ProgressBar::new(time.as_millis() as u64);
        Self::start(what, bar, "{msg} {wide_bar} {elapsed}")
    }

    fn start(what: &str, bar: ProgressBar, template: &str) -> Self {
        bar.set_draw_target(ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.expect("the templates of this file are good"));
        if bar.is_hidden() {
            eprintln!("{what}");
        }
        bar.set_message(what.to_owned());
        Self { bar, begun: System.monotonic() }
    }

    /// So much more is done.
    pub(crate) fn step(&self, more: u64) {
        self.bar.inc(more);
    }

    /// Time has passed.
    pub(crate) fn look(&self) {
        let passed = System.monotonic().saturating_sub(self.begun).as_millis() as u64;
        self.bar.set_position(passed.min(self.bar.length().unwrap_or(u64::MAX)));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
