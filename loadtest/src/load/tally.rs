//! What was seen: counts, latencies, and their course over time.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest latency that is told apart, µs: an outage is shorter.
const LONGEST_US: u64 = 3_600_000_000;

/// A histogram of µs with `digits` decimal digits.
fn histogram(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, digits).expect("constant bounds are valid")
}

/// Everything of one phase on one thread.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) writes: u64,
    /// Bytes of the writes, zeros included.
    pub(crate) bytes: u64,
    /// Bytes that travelled as payload.
    pub(crate) payload_bytes: u64,
    pub(crate) flushes: u64,
    /// Writes that were due and could not be given out before the phase ended.
    pub(crate) missed: u64,
    /// Due to durable.
    pub(crate) durable: Histogram<u64>,
    /// Due to published, of quiet machines.
    pub(crate) published: Histogram<u64>,
    /// The same of the loud one.
    pub(crate) published_loud: Histogram<u64>,
    /// Age of the newest recoverable moment, looked at ten times a second, of quiet machines.
    pub(crate) rpo: Histogram<u64>,
    /// The same of the loud one.
    pub(crate) rpo_loud: Histogram<u64>,
    pub(crate) course: Course,
    /// When the last write of all became published.
    pub(crate) last_published: Duration,
}

/// What happened in equal slots of time.
#[derive(Clone, Debug)]
pub(crate) struct Course {
    start: Duration,
    pub(crate) slot: Duration,
    pub(crate) slots: Vec<Slot>,
}

/// One slot.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) durable_bytes: u64,
    pub(crate) published_bytes: u64,
    pub(crate) durable: Histogram<u64>,
    pub(crate) rpo_us: u64,
}

impl Default for Slot {
    fn default() -> Self {
        // One digit is enough for a line, and a thousand slots stay small.
        Self { durable_bytes: 0, published_bytes: 0, durable: histogram(1), rpo_us: 0 }
    }
}

impl Tally {
    pub(crate) fn new(start: Duration, slot: Duration) -> Self {
        Self {
            writes: 0,
            bytes: 0,
            payload_bytes: 0,
            flushes: 0,
            missed: 0,
            durable: histogram(3),
            published: histogram(3),
            published_loud: histogram(3),
            rpo: histogram(2),
            rpo_loud: histogram(2),
            course: Course { start, slot, slots: Vec::new() },
            last_published: start,
        }
    }

    /// A write became durable.
    pub(crate) fn durable(&mut self, due: Duration, now: Duration, bytes: u64) {
        let us = micros(now.saturating_sub(due));
        self.durable.saturating_record(us);
        if let Some(slot) = self.course.at(now) {
            slot.durable_bytes += bytes;
            slot.durable.saturating_record(us);
        }
    }

    /// A write became published.
    pub(crate) fn published(&mut self, due: Duration, now: Duration, bytes: u64, loud: bool) {
        let histogram = if loud { &mut self.published_loud } else { &mut self.published };
        histogram.saturating_record(micros(now.saturating_sub(due)));
        self.last_published = now;
        if let Some(slot) = self.course.at(now) {
            slot.published_bytes += bytes;
        }
    }

    /// A write was never given out: it has waited at least until now.
    pub(crate) fn missed(&mut self, due: Duration, now: Duration) {
        self.missed += 1;
        self.durable.saturating_record(micros(now.saturating_sub(due)));
    }

    /// A machine's RPO at this moment.
    pub(crate) fn rpo(&mut self, age: Duration, now: Duration, loud: bool) {
        let us = micros(age);
        let histogram = if loud { &mut self.rpo_loud } else { &mut self.rpo };
        histogram.saturating_record(us);
        if let Some(slot) = self.course.at(now) {
            slot.rpo_us = slot.rpo_us.max(us);
        }
    }

    /// Adds another thread's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.writes += other.writes;
        self.bytes += other.bytes;
        self.payload_bytes += other.payload_bytes;
        self.flushes += other.flushes;
        self.missed += other.missed;
        self.last_published = self.last_published.max(other.last_published);
        let same = "all have the same bounds";
        self.durable.add(&other.durable).expect(same);
        self.published.add(&other.published).expect(same);
        self.published_loud.add(&other.published_loud).expect(same);
        self.rpo.add(&other.rpo).expect(same);
        self.rpo_loud.add(&other.rpo_loud).expect(same);
        let mine = &mut self.course.slots;
        mine.resize_with(mine.len().max(other.course.slots.len()), Slot::default);
        for (slot, other) in mine.iter_mut().zip(&other.course.slots) {
            slot.durable_bytes += other.durable_bytes;
            slot.published_bytes += other.published_bytes;
            slot.durable.add(&other.durable).expect(same);
            slot.rpo_us = slot.rpo_us.max(other.rpo_us);
        }
    }
}

impl Course {
    /// More than this many slots are not drawn.
    const SLOTS_MAX: usize = 4096;

    /// Whole slots of a span of time.
    pub(crate) fn slots_in(&self, span: Duration) -> usize {
        (span.as_nanos() / self.slot.as_nanos()) as usize
    }

    fn at(&mut self, now: Duration) -> Option<&mut Slot> {
        let number = (now.checked_sub(self.start)?.as_nanos() / self.slot.as_nanos()) as usize;
        if number >= Self::SLOTS_MAX {
            return None;
        }
        if number >= self.slots.len() {
            self.slots.resize_with(number + 1, Slot::default);
        }
        self.slots.get_mut(number)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up_and_slots_follow_time() {
        let (start, second) = (Duration::from_secs(10), Duration::from_secs(1));
        let mut one = Tally::new(start, second);
        let mut two = Tally::new(start, second);
        one.durable(start, start + second / 2, 100);
        two.durable(start + second, start + 3 * second, 50);
        two.published(start + second, start + 3 * second, 50, false);
        two.published(start, start + 3 * second, 50, true);
        two.missed(start, start + second);
        one.add(&two);
        let bytes: Vec<_> = one.course.slots.iter().map(|slot| slot.durable_bytes).collect();
        assert_eq!(bytes, [100, 0, 0, 50]);
        assert_eq!(one.durable.len(), 3, "what was never sent counts");
        assert!((1_990_000..2_010_000).contains(&one.durable.max()));
        assert_eq!(one.missed, 1);
        let seconds = |seen: &Histogram<u64>| (seen.len(), seen.max() / 990_000);
        assert_eq!(seconds(&one.published), (1, 2), "the loud one is counted apart");
        assert_eq!(seconds(&one.published_loud), (1, 3));
    }
}
