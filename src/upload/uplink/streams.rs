//! How many objects travel at once: as many as bring more bytes. Sans-io.
//!
//! While streams are what uploads wait for, one more is tried. It stays when the bytes of the next
//! epoch grew by at least [`GAIN`] of what one more of so many would bring; otherwise it goes, and
//! after a pause one fewer is tried by the same measure: a stream that brings no bytes only makes
//! each object take longer. Pauses double up to [`PAUSE_MAX`] epochs while trials change nothing. A
//! store that fails or says "later" leaves [`BACK_OFF`] of the streams at once (once an epoch):
//! additive increase, multiplicative decrease.

use std::time::Duration;

use crate::settings::StreamBounds;

/// Shortest time over which bytes are compared.
const EPOCH: Duration = Duration::from_secs(1);
/// Fewest objects for each stream in an epoch: fewer say nothing about throughput.
const OBJECTS: u64 = 2;
/// Part of the expected gain that keeps one more stream.
const GAIN: f64 = 0.3;
/// What is left after a failure.
const BACK_OFF: f64 = 0.7;
/// Epochs before the next trial, first and most.
const PAUSE_FIRST: u32 = 4;
const PAUSE_MAX: u32 = 64;

#[derive(Debug)]
pub(super) struct StreamControl {
    bounds: StreamBounds,
    streams: u32,
    epoch: Epoch,
    trial: Option<Trial>,
    /// Which way the next trial goes.
    up: bool,
    pause: u32,
    pause_next: u32,
}

/// One stream more or fewer, for an epoch.
#[derive(Debug)]
struct Trial {
    streams: u32, // before it
    rate: f64,    // bytes a second before it
}

#[derive(Debug)]
struct Epoch {
    began: Duration,
    bytes: u64,
    objects: u64,
    waited: u64, // objects at whose end others waited for a stream
    failed: bool,
}

impl Epoch {
    fn at(began: Duration) -> Self {
        Self { began, bytes: 0, objects: 0, waited: 0, failed: false }
    }
}

impl StreamControl {
    pub(super) fn new(bounds: StreamBounds, now: Duration) -> Self {
        // In the middle: neither a slow start nor a rush.
        let streams = bounds.min.midpoint(bounds.max).max(1);
        let epoch = Epoch::at(now);
        Self { bounds, streams, epoch, trial: None, up: true, pause: 0, pause_next: PAUSE_FIRST }
    }

    pub(super) fn streams(&self) -> u32 {
        self.streams.clamp(self.bounds.min.max(1), self.bounds.max.max(1))
    }

    pub(super) fn set_bounds(&mut self, bounds: StreamBounds) {
        if self.bounds != bounds {
            self.bounds = bounds;
            self.streams = self.streams();
            self.trial = None;
        }
    }

    /// An object of `bytes` stands in the store; `waiting` says whether others wait for a stream.
    pub(super) fn finished(&mut self, bytes: u64, waiting: bool, now: Duration) {
        self.epoch.bytes += bytes;
        self.epoch.objects += 1;
        self.epoch.waited += u64::from(waiting);
        let passed = now.saturating_sub(self.epoch.began);
        if passed >= EPOCH && self.epoch.objects >= OBJECTS * u64::from(self.streams) {
            self.judge(passed, now);
        }
    }

    /// The store failed or said "later".
    pub(super) fn failed(&mut self, now: Duration) {
        if self.epoch.failed && now.saturating_sub(self.epoch.began) < EPOCH {
            return;
        }
        let fewer = (f64::from(self.streams) * BACK_OFF) as u32;
        self.streams = fewer;
        self.streams = self.streams();
        self.trial = None;
        self.up = true;
        self.pause = PAUSE_FIRST;
        self.epoch = Epoch { failed: true, ..Epoch::at(now) };
    }

    fn judge(&mut self, passed: Duration, now: Duration) {
        let rate = self.epoch.bytes as f64 / passed.as_secs_f64();
        let limited = self.epoch.waited * 2 >= self.epoch.objects;
        self.epoch = Epoch::at(now);
        if let Some(trial) = self.trial.take() {
            // What one stream brought or would bring if all brought the same.
            let share = trial.rate / f64::from(trial.streams.min(self.streams).max(1));
            let good = match self.streams > trial.streams {
                true => rate >= trial.rate + GAIN * share,
                false => rate >= trial.rate - GAIN * share,
            };
            if good {
                self.pause_next = PAUSE_FIRST;
            } else {
                self.streams = trial.streams;
                self.up = !self.up;
                self.pause = self.pause_next;
                self.pause_next = (self.pause_next * 2).min(PAUSE_MAX);
            }
        }
        if self.pause > 0 {
            self.pause -= 1;
        } else if limited {
            self.start_trial(rate);
        }
    }

    fn start_trial(&mut self, rate: f64) {
        let streams = self.streams;
        self.up = match (streams <= self.bounds.min, streams >= self.bounds.max) {
            (true, true) => return,
            (true, false) => true,
            (false, true) => false,
            (false, false) => self.up,
        };
        self.streams = if self.up { streams + 1 } else { streams - 1 };
        self.trial = Some(Trial { streams, rate });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: StreamBounds = StreamBounds { min: 2, max: 64 };

    /// A line of `line` bytes/s on which one stream gets at most `each`; objects of 1 MiB, always
    /// more that wait. Returns the streams after `seconds`.
    fn settle(control: &mut StreamControl, from: f64, seconds: f64, line: f64, each: f64) -> u32 {
        let mut now = from;
        while now < from + seconds {
            let streams = f64::from(control.streams());
            let rate = (streams * each).min(line);
            now += f64::from(1 << 20) / rate;
            control.finished(1 << 20, true, Duration::from_secs_f64(now));
        }
        control.streams()
    }

    #[test]
    fn finds_what_the_line_gives_and_stays_there() {
        for (start, wanted) in [(2_u32, 3_u32), (2, 10), (33, 3), (64, 25), (2, 60)] {
            let mut control = StreamControl::new(BOUNDS, Duration::ZERO);
            let (each, line) = (20e6, f64::from(wanted) * 20e6);
            control.streams = start;
            let found = settle(&mut control, 0.0, 300.0, line, each);
            assert!(found.abs_diff(wanted) <= 1, "{found} for {wanted} from {start}");
            let later = settle(&mut control, 300.0, 900.0, line, each);
            assert!(later.abs_diff(wanted) <= 1, "{later} for {wanted}");
        }
    }

    #[test]
    fn gives_way_to_a_failing_store_once_an_epoch_and_comes_back() {
        let mut control = StreamControl::new(BOUNDS, Duration::ZERO);
        assert_eq!(control.streams(), 33);
        for n in 0..50 {
            control.failed(Duration::from_secs(10) + Duration::from_millis(n));
        }
        assert_eq!(control.streams(), 23, "one outage is one reason");
        for n in 0..50 {
            control.failed(Duration::from_secs(20 + 2 * n));
        }
        assert_eq!(control.streams(), BOUNDS.min);
        let found = settle(&mut control, 200.0, 300.0, 400e6, 20e6);
        assert!(found.abs_diff(20) <= 1, "{found}");
    }

    #[test]
    fn nothing_is_tried_while_nobody_waits_and_bounds_hold_at_once() {
        let mut control = StreamControl::new(BOUNDS, Duration::ZERO);
        for n in 0..10_000 {
            control.finished(1 << 20, false, Duration::from_millis(100 * n));
        }
        assert_eq!(control.streams(), 33);
        control.set_bounds(StreamBounds { min: 1, max: 4 });
        assert_eq!(control.streams(), 4);
        control.set_bounds(StreamBounds { min: 9, max: 12 });
        assert_eq!(control.streams(), 9);
    }
}
