//! How often the agent says how it is. Sans-io; time is an argument.
//!
//! Owns: that every change is told within a second, and that silence is never longer than the wire
//! allows. Does not own: what is told. Thousands of idle agents cost their process server what they
//! say, so while nothing changes a word is rare. It still comes: on an idle machine each one moves
//! the newest moment that is known to be complete.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::format::wire::{Capture, Progress};
use crate::model::{DiskIndex, Sequence};

/// Shortest pause between two words.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Longest: docs/formats/wire.md allows 10 s.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// What was told last, and when.
#[derive(Clone, Debug)]
pub struct Pulse {
    look_at: Duration,
    told: Option<(Progress, Sequence)>,
    told_at: Duration,
    captures: BTreeMap<DiskIndex, (Capture, Duration)>,
}

impl Pulse {
    /// The first word is due now.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self { look_at: now, told: None, told_at: now, captures: BTreeMap::new() }
    }

    /// When to ask next whether something is to be told.
    #[must_use]
    pub fn look_at(&self) -> Duration {
        self.look_at
    }

    /// Whether `progress` is to be told now. `published` is how far the agent was told that its
    /// stream is published: the first word after everything is ends the server's doubt.
    pub fn tells(&mut self, now: Duration, progress: &Progress, published: Sequence) -> bool {
        self.look_at = now + PROGRESS_INTERVAL;
        let same = |(told, through): &(Progress, Sequence)| {
            *through == published && Progress { time: told.time, ..*progress } == *told
        };
        let late = now.saturating_sub(self.told_at) >= HEARTBEAT_INTERVAL;
        if self.told.as_ref().is_some_and(same) && !late {
            return false;
        }
        self.told = Some((*progress, published));
        self.told_at = now;
        true
    }

    /// Whether `capture` is to be told now: at first, when its mode is another, and when its words are, but
    /// those no more often than a word is due anyway.
    pub fn tells_of(&mut self, now: Duration, capture: &Capture) -> bool {
        if let Some((told, at)) = self.captures.get(&capture.disk) {
            let late = now.saturating_sub(*at) >= HEARTBEAT_INTERVAL;
            if told == capture || told.mode == capture.mode && !late {
                return false;
            }
        }
        self.captures.insert(capture.disk, (capture.clone(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CaptureMode, Timestamp, TrackingMode};

    fn progress(at: u64, last: u64) -> Progress {
        Progress {
            time: Timestamp(at as i64 * 1_000_000),
            mode: TrackingMode::Ordered,
            last: Sequence(last),
            dirty_bytes: 0,
            total_bytes: 1 << 30,
            buffered_bytes: 0,
        }
    }

    /// Seconds at which something was told; `last(second)` is how the stream moves.
    fn told(seconds: u64, last: impl Fn(u64) -> u64, published: impl Fn(u64) -> u64) -> Vec<u64> {
        let mut pulse = Pulse::new(Duration::ZERO);
        let mut told = Vec::new();
        for second in 0..seconds {
            let now = Duration::from_secs(second);
            if now >= pulse.look_at()
                && pulse.tells(now, &progress(second, last(second)), Sequence(published(second)))
            {
                told.push(second);
            }
        }
        told
    }

    #[test]
    fn an_idle_machine_speaks_every_ten_seconds() {
        assert_eq!(told(41, |_| 7, |_| 7), [0, 10, 20, 30, 40]);
    }

    #[test]
    fn every_change_is_told_within_a_second_and_so_is_that_all_is_published() {
        // Idle, a write at 13, published at 15, idle again.
        let last = |second| if second < 13 { 7 } else { 8 };
        let published = |second| if second < 15 { 7 } else { 8 };
        assert_eq!(told(40, last, published), [0, 10, 13, 15, 25, 35]);
        assert_eq!(told(5, |second| second, |_| 0), [0, 1, 2, 3, 4], "while it writes");
    }

    #[test]
    fn a_disk_is_told_of_when_its_mode_changes_and_words_wait() {
        let second = Duration::from_secs;
        let mut pulse = Pulse::new(second(0));
        let capture =
            |disk, mode, why: &str| Capture { disk: DiskIndex(disk), mode, why: why.into() };
        let ordered = capture(0, CaptureMode::Ordered, "as it is written");
        assert!(pulse.tells_of(second(0), &ordered), "the first word");
        assert!(
            pulse.tells_of(second(0), &capture(1, CaptureMode::Bitmap, "pass 1, 3 %")),
            "of each"
        );
        assert!(!pulse.tells_of(second(20), &ordered), "nothing is new");
        assert!(pulse.tells_of(second(20), &capture(0, CaptureMode::Extents, "the ring was full")));
        assert!(pulse.tells_of(second(21), &ordered), "a mode is told at once");
        assert!(!pulse.tells_of(second(9), &capture(1, CaptureMode::Bitmap, "pass 1, 9 %")));
        assert!(pulse.tells_of(second(10), &capture(1, CaptureMode::Bitmap, "pass 1, 10 %")));
    }
}
