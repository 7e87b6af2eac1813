//! The steps of a run, and the one in which the store goes away.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::pace::Pace;
use super::report::{PhaseReport, Quantiles, ms};
use super::tally::{Course, Slot};
use crate::error::LoadError;

/// One phase of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// `None`: half of what the step before reached.
    pub(crate) pace: Option<Pace>,
    pub(crate) loud: Option<Pace>,
    pub(crate) time: Duration,
    pub(crate) outage: Option<Outage>,
}

impl Step {
    /// Waits until everything that was sent is published.
    pub(crate) fn nothing(name: &'static str) -> Self {
        Self::paced(name, Pace::Flat { depth: 1 })
    }

    /// All machines alike, for no time yet.
    pub(crate) fn paced(name: &'static str, pace: Pace) -> Self {
        Self { name, pace: Some(pace), loud: None, time: Duration::ZERO, outage: None }
    }

    /// Its pace, now that the step before is known.
    pub(crate) fn settled(&self, before: Option<&PhaseReport>) -> Self {
        let half = before.map(|before| Pace::Bytes(before.published_bytes_per_second / 2.0));
        Self { pace: self.pace.or(half), ..*self }
    }
}

/// A time in which the store refuses everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outage {
    begin: Duration,
    end: Duration,
    whole: Duration,
}

impl Outage {
    /// `length` of it, `lead` behind the phase's begin; the load goes on as long again, and `lead`.
    pub(crate) fn of(length: Duration, lead: Duration) -> Self {
        let end = lead + length;
        Self { begin: lead, end, whole: end + length + lead }
    }

    /// The phase in which it lies.
    pub(crate) fn whole(&self) -> Duration {
        self.whole
    }

    /// What a phase's course says about it.
    pub(crate) fn seen(&self, course: &Course) -> OutageSeen {
        let slot = course.slot.as_secs_f64();
        let number = |at: Duration| (at.as_secs_f64() / slot) as usize;
        let (begin, end) = (number(self.begin), number(self.end));
        let part = |range: std::ops::Range<usize>| {
            let last = course.slots.len();
            &course.slots[range.start.min(last)..range.end.min(last)]
        };
        let sum = |slots: &[Slot], of: fn(&Slot) -> u64| slots.iter().map(of).sum::<u64>();
        let durable = |slots: &[Slot]| sum(slots, |slot| slot.durable_bytes);
        let published = |slots: &[Slot]| sum(slots, |slot| slot.published_bytes);
        let before = part(0..end);
        let backlog = durable(before).saturating_sub(published(before));
        // Drained: what waits is no more than two seconds of the load, as before the outage.
        let rate = durable(part(0..begin)) as f64 / (begin as f64 * slot).max(slot);
        let mut waiting = backlog as f64;
        let drained = part(end..usize::MAX).iter().position(|slot| {
            waiting += slot.durable_bytes as f64 - slot.published_bytes as f64;
            waiting <= 2.0 * rate
        });
        let drained = drained.map_or(end, |slots| end + slots + 1);
        let seconds = (drained - end) as f64 * slot;
        let drain_rate = published(part(end..drained)) as f64 / seconds.max(slot);
        OutageSeen {
            seconds: (self.end - self.begin).as_secs_f64(),
            backlog_bytes: backlog,
            drained_after_seconds: (drained > end).then_some(seconds),
            drain_bytes_per_second: drain_rate,
            drain_to_load: drain_rate / rate.max(1.0),
            durable_before_ms: merged(part(0..begin)),
            durable_during_ms: merged(part(begin..end)),
            durable_drain_ms: merged(part(end..drained)),
        }
    }
}

fn merged(slots: &[Slot]) -> Quantiles {
    let mut all: Option<Histogram<u64>> = None;
    for slot in slots {
        match &mut all {
            Some(all) => all.add(&slot.durable).expect("all have the same bounds"),
            None => all = Some(slot.durable.clone()),
        }
    }
    Quantiles::of(&all.unwrap_or_else(|| Slot::default().durable))
}

/// What an outage did.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct OutageSeen {
    pub(crate) seconds: f64,
    /// Durable and not published at its end.
    pub(crate) backlog_bytes: u64,
    /// Absent when the phase ended before.
    pub(crate) drained_after_seconds: Option<f64>,
    pub(crate) drain_bytes_per_second: f64,
    /// Drain rate over the load's.
    pub(crate) drain_to_load: f64,
    pub(crate) durable_before_ms: Quantiles,
    pub(crate) durable_during_ms: Quantiles,
    pub(crate) durable_drain_ms: Quantiles,
}

impl OutageSeen {
    pub(crate) fn rows(&self, row: &mut impl FnMut(&str, String)) {
        let gb = self.backlog_bytes as f64 / 1e9;
        row("backlog at the end of the outage", format!("{gb:.2} GB after {:.0} s", self.seconds));
        let after = self.drained_after_seconds;
        let after = after.map_or("not before the end".to_owned(), |s| format!("after {s:.0} s"));
        let (rate, ratio) = (self.drain_bytes_per_second / 1e6, self.drain_to_load);
        row("drained", format!("{after}, at {rate:.0} MB/s, {ratio:.1} × the load"));
        let three = [self.durable_before_ms, self.durable_during_ms, self.durable_drain_ms];
        let three = three.map(|quantiles| ms(quantiles.p99)).join(" / ");
        row("durable ack p99 before / during / draining", three);
    }
}

/// Takes the embedded server's store offline and back.
pub(crate) struct Switch {
    outage: Outage,
    path: PathBuf,
    is_off: bool,
}

impl Switch {
    pub(crate) fn new(outage: Outage, store: &Path) -> Self {
        Self { outage, path: store.join(".offline"), is_off: false }
    }

    /// Called now and then, `passed` into the phase.
    pub(crate) fn look(&mut self, passed: Duration) -> Result<(), LoadError> {
        let off = (self.outage.begin..self.outage.end).contains(&passed);
        if off == self.is_off {
            return Ok(());
        }
        self.is_off = off;
        let turned = match off {
            true => std::fs::write(&self.path, ""),
            false => std::fs::remove_file(&self.path),
        };
        turned.map_err(LoadError::file(&self.path, "turning the store's switch"))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if self.is_off {
            drop(std::fs::remove_file(&self.path)); // the run failed: what is kept can be looked at
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::tally::Tally;

    #[test]
    fn an_outage_is_read_from_the_course() {
        let second = Duration::from_secs(1);
        let outage = Outage::of(10 * second, 5 * second);
        assert_eq!(outage.whole(), 30 * second);
        let mut tally = Tally::new(Duration::ZERO, second);
        for n in 0..30u32 {
            let (at, due) = (second * n + second / 2, second * n);
            tally.durable(due, at, 100);
            let published = match n {
                0..5 => 100,
                5..15 => 0,
                15..20 => 300,
                _ => 100,
            };
            if published > 0 {
                tally.published(due, at, published, false);
            }
        }
        let seen = outage.seen(&tally.course);
        assert_eq!(seen.backlog_bytes, 1000);
        assert_eq!(seen.drained_after_seconds, Some(4.0)); // 1000 + 4 × (100 − 300) ≤ 200
        assert!((seen.drain_to_load - 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_switch_is_turned_once_and_back() {
        let store = tempfile::tempdir().unwrap();
        let (file, second) = (store.path().join(".offline"), Duration::from_secs(1));
        let mut switch = Switch::new(Outage::of(2 * second, second), store.path());
        for (at, off) in [(0, false), (1, true), (2, true), (3, false), (4, false)] {
            switch.look(second * at).unwrap();
            assert_eq!(file.exists(), off, "{at}");
        }
        switch.look(second).unwrap();
        drop(switch);
        assert!(!file.exists());
    }
}
