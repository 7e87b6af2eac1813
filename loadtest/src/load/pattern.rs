//! What is written where: the profiles, and replaying a trace.
//!
//! Owns: the sequence of one machine's writes, reproducible from its seed. Does not own: when they
//! are due ([`super::pace`]).

use std::sync::Arc;
use std::time::Duration;

use holdfast::model::{WRITE_BYTES_MAX, ZERO_BYTES_MAX};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::trace::{Action, Trace};
use super::zipf::{Zipf, spread};

const KIB: u32 = 1 << 10;
/// A hot block of the oltp profile; 90 % of its writes go to 10 % of them.
const SLOT: u64 = 16 << 10;
/// Gives the hottest tenth of some ten thousand blocks nine tenths of the writes.
const EXPONENT: f64 = 1.13;
/// Writes of the oltp profile between two flushes: about those of one transaction group.
const FLUSH_EVERY: u32 = 64;

/// Kinds of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Profile {
    /// 4 to 16 KiB, 90 % of the writes to 10 % of the blocks (Zipf), a flush every 64
    Oltp,
    /// 256 KiB, one behind the other
    Sequential,
    /// seven in ten 4 to 64 KiB at random places, three in ten sequential 256 KiB
    Mixed,
    /// mixed for one second, nothing for four; with a rate: the same mean
    Burst,
    /// nothing is written: what machines cost that only stay connected
    IdleMany,
    /// zeros: 1 MiB, sequential, as agents send them (extents, no payload)
    Zero,
    /// 64 KiB at random places that nothing can compress
    Random,
    /// 4 KiB at random places
    #[value(name = "4k")]
    #[serde(rename = "4k")]
    FourK,
}

impl Profile {
    /// Bytes that each of its writes zeroes, when it zeroes.
    pub(crate) fn zeroes(self, block: Option<u32>) -> Option<u64> {
        (self == Self::Zero).then(|| block.unwrap_or(WRITE_BYTES_MAX).into())
    }

    /// Whether its writes carry bytes that no compressor makes smaller.
    pub(crate) fn is_incompressible(self) -> bool {
        self == Self::Random
    }
}

/// One thing that a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) disk: u16,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) zero: bool,
    /// It waits until everything before it is durable.
    pub(crate) flush_before: bool,
    /// When a trace did it, since the trace's begin.
    pub(crate) at: Option<Duration>,
    /// Which content it carries: another one at each overwrite.
    pub(crate) content: u64,
}

/// Where one machine's writes come from.
#[derive(Debug)]
pub(crate) struct Pattern {
    kind: Kind,
    random: StdRng,
    disks: u16,
    disk_bytes: u64,
    block: Option<u32>,
    /// Next place of sequential writes, by disk.
    cursors: Vec<u64>,
    laps: u64,
    since_flush: u32,
    given: u64,
}

#[derive(Debug)]
enum Kind {
    Profile(Profile, Zipf),
    Trace(Replay),
}

/// A place in a trace that is repeated without end.
#[derive(Debug)]
struct Replay {
    trace: Arc<Trace>,
    next: usize,
    round: u32,
    /// Bytes of the present step that are done.
    done: u64,
    flush: bool,
}

impl Pattern {
    /// A profile's writes over `disks` disks of `disk_bytes`; `block` replaces the write size of
    /// profiles that have one.
    pub(crate) fn of_profile(
        profile: Profile,
        disks: u16,
        disk_bytes: u64,
        block: Option<u32>,
        seed: u64,
    ) -> Self {
        let zipf = Zipf::new(disk_bytes / SLOT, EXPONENT);
        Self::new(Kind::Profile(profile, zipf), disks, disk_bytes, block, seed)
    }

    /// A trace's writes.
    pub(crate) fn of_trace(trace: Arc<Trace>) -> Self {
        let disks = trace.disk_bytes.len() as u16;
        let replay = Replay { trace, next: 0, round: 0, done: 0, flush: false };
        Self::new(Kind::Trace(replay), disks, 0, None, 0)
    }

    fn new(kind: Kind, disks: u16, disk_bytes: u64, block: Option<u32>, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        // Machines do not march in step: each begins somewhere else on its disks.
        let blocks = (disk_bytes >> 20).max(1);
        let cursors = (0..disks).map(|_| random.random_range(0..blocks) << 20).collect();
        Self {
            kind,
            random,
            disks,
            disk_bytes,
            block,
            cursors,
            laps: 0,
            since_flush: 0,
            given: seed,
        }
    }

    /// The next thing to do; `None` where nothing ever is.
    pub(crate) fn next(&mut self) -> Option<Op> {
        self.given = self.given.wrapping_add(1);
        let scattered = self.given.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 8;
        let (profile, zipf) = match &mut self.kind {
            Kind::Profile(profile, zipf) => (*profile, *zipf),
            Kind::Trace(replay) => return Some(Op { content: scattered, ..replay.next() }),
        };
        let disk = self.random.random_range(0..self.disks);
        let block = |default: u32| self.block.unwrap_or(default);
        let (sequential, length) = match profile {
            Profile::IdleMany => return None,
            Profile::Oltp => return Some(self.oltp(disk, zipf, scattered)),
            Profile::Sequential => (true, block(256 * KIB)),
            Profile::Zero => (true, block(WRITE_BYTES_MAX)), // `zeroes` says the same
            Profile::Random => (false, block(64 * KIB)),
            Profile::FourK => (false, block(4 * KIB)),
            Profile::Mixed | Profile::Burst => match self.random.random_range(0..10) {
                0..3 => (true, 256 * KIB),
                _ => (false, 4 * KIB * self.random.random_range(1..=16)),
            },
        };
        let offset = if sequential {
            self.advance(disk, length)
        } else {
            let places = (self.disk_bytes - u64::from(length)) / u64::from(4 * KIB) + 1;
            self.random.random_range(0..places) * u64::from(4 * KIB)
        };
        // What lies side by side on the disk lay side by side in a file.
        let content = if sequential { offset / 4096 + 7919 * self.laps } else { scattered };
        let zero = profile == Profile::Zero;
        Some(Op { disk, offset, length, zero, flush_before: false, at: None, content })
    }

    fn oltp(&mut self, disk: u16, zipf: Zipf, content: u64) -> Op {
        let slots = self.disk_bytes / SLOT;
        let slot = spread(zipf.draw(&mut self.random), slots);
        let length = match self.random.random_range(0..10) {
            0..5 => 4 * KIB,
            5..8 => 8 * KIB,
            _ => 16 * KIB,
        };
        let within = self.random.random_range(0..SLOT / u64::from(length));
        let offset = slot * SLOT + within * u64::from(length);
        self.since_flush += 1;
        let flush_before = self.since_flush > FLUSH_EVERY;
        if flush_before {
            self.since_flush = 0;
        }
        Op { disk, offset, length, zero: false, flush_before, at: None, content }
    }

    fn advance(&mut self, disk: u16, length: u32) -> u64 {
        let cursor = &mut self.cursors[usize::from(disk)];
        if *cursor + u64::from(length) > self.disk_bytes {
            *cursor = 0;
            self.laps += 1;
        }
        let offset = *cursor;
        *cursor += u64::from(length);
        offset
    }
}

impl Replay {
    fn next(&mut self) -> Op {
        loop {
            let Some(step) = self.trace.steps.get(self.next).copied() else {
                (self.next, self.round) = (0, self.round + 1);
                continue; // a trace has at least one write
            };
            if step.action == Action::Flush {
                self.flush = true;
                self.next += 1;
                continue;
            }
            let zero = step.action == Action::Zero;
            let most = if zero { ZERO_BYTES_MAX } else { WRITE_BYTES_MAX };
            let length = (step.length - self.done).min(u64::from(most));
            let offset = step.offset + self.done;
            self.done += length;
            if self.done == step.length {
                (self.next, self.done) = (self.next + 1, 0);
            }
            let at = Some(step.at + self.trace.span() * self.round);
            let flush_before = std::mem::take(&mut self.flush);
            let (disk, length) = (step.disk, length as u32);
            return Op { disk, offset, length, zero, flush_before, at, content: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn pattern(profile: Profile) -> Pattern {
        Pattern::of_profile(profile, 2, 1 << 30, None, 9)
    }

    #[test]
    fn every_profile_stays_on_its_disks_and_repeats_from_its_seed() {
        for profile in [
            Profile::Oltp,
            Profile::Sequential,
            Profile::Mixed,
            Profile::Burst,
            Profile::Zero,
            Profile::Random,
            Profile::FourK,
        ] {
            let (mut one, mut two) = (pattern(profile), pattern(profile));
            for _ in 0..20_000 {
                let op = one.next().unwrap();
                assert_eq!(Some(op), two.next(), "{profile:?}");
                assert!(op.disk < 2 && op.offset + u64::from(op.length) <= 1 << 30, "{op:?}");
                assert!(op.offset % 4096 == 0 && op.length % 4096 == 0 && op.length > 0, "{op:?}");
                assert!(op.length <= WRITE_BYTES_MAX);
            }
        }
        assert_eq!(pattern(Profile::IdleMany).next(), None);
    }

    #[test]
    fn nine_tenths_of_oltp_writes_go_to_a_tenth_of_the_blocks() {
        let mut oltp = pattern(Profile::Oltp);
        let (mut seen, draws) = (HashMap::<(u16, u64), u32>::new(), 400_000);
        let mut flushes = 0;
        for _ in 0..draws {
            let op = oltp.next().unwrap();
            flushes += u32::from(op.flush_before);
            *seen.entry((op.disk, op.offset / SLOT)).or_default() += 1;
        }
        let mut counts: Vec<_> = seen.into_values().collect();
        counts.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
        let tenth = 2 * ((1 << 30) / SLOT) as usize / 10;
        let hot: u32 = counts[..tenth].iter().sum();
        let part = f64::from(hot) / f64::from(draws);
        assert!((0.88..0.94).contains(&part), "{part}");
        assert_eq!(flushes, draws / (FLUSH_EVERY + 1));
    }

    #[test]
    fn sequential_writes_follow_each_other_and_wrap() {
        let mut sequential = Pattern::of_profile(Profile::Sequential, 1, 4 << 20, Some(1 << 20), 1);
        let offsets: Vec<_> = (0..5).map(|_| sequential.next().unwrap().offset >> 20).collect();
        let first = offsets[0];
        assert_eq!(offsets, (0..5).map(|n| (first + n) % 4).collect::<Vec<_>>());
    }

    #[test]
    fn traces_are_cut_into_records_and_go_on_for_ever() {
        let text = "fio version 3 iolog\n0 a add\n10 a write 0 2097664\n15 a sync 0 0\n\
                    20 a trim 0 4096\n";
        let mut replay = Pattern::of_trace(Arc::new(Trace::parse(text).unwrap()));
        let ops: Vec<_> = (0..6).map(|_| replay.next().unwrap()).collect();
        let lengths: Vec<_> = ops.iter().map(|op| op.length).collect();
        assert_eq!(lengths, [1 << 20, 1 << 20, 512, 4096, 1 << 20, 1 << 20]);
        assert_eq!(ops[2].offset, 2 << 20);
        assert!(ops[3].zero && ops[3].flush_before && !ops[2].zero && !ops[2].flush_before);
        let at: Vec<_> = ops.iter().map(|op| op.at.unwrap().as_micros()).collect();
        assert_eq!(at, [10, 10, 10, 20, 30, 30]);
    }
}
