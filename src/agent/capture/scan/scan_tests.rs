//! A power cut at any moment: what the hash file and the bitmap say together is never that a chunk
//! is published as it is not, for any publication that the bitmap's witness does not rule out. So
//! the next pass finds every difference.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::device::Device;
use super::hashes::{self, Hashes};
use super::pass::Scan;
use super::report::Shared;
use super::watched::{Compared, Source, Watched};
use crate::agent::bitmap;
use crate::agent::catchup::{self, Place};
use crate::agent::crash_tests::{CHUNK, DISK_BYTES, FIRST, Fragile, Power, Server, identity};
use crate::agent::disk::Disk;
use crate::agent::locks::RangeLocks;
use crate::agent::medium::Medium;
use crate::agent::stream::Stream;
use crate::agent::syncs::Syncs;
use crate::clock::System;
use crate::model::{DiskIndex, Sequence, TrackingMode};
use crate::settings::ScanSettings;

/// Chunks that are written to: on both sides of a border between pages of the hash file.
const BUSY: u64 = 24;

#[derive(Clone, Debug)]
enum Op {
    /// Somebody writes; few values, so that a chunk becomes again what it was.
    Behind {
        chunk: u64,
        value: u8,
    },
    /// Part of a pass.
    Compare {
        first: u64,
        chunks: u64,
    },
    Repair {
        pieces: u8,
    },
    /// A catch-up read in whose midst somebody writes and a pass sees it.
    Raced {
        chunk: u64,
        value: u8,
    },
    Take,
    Durable,
    Publish {
        all: bool,
    },
    Clear,
    Learn,
    Restart,
    TakeOver,
    Lose,
}

fn op() -> impl Strategy<Value = Op> {
    let chunk = 0..BUSY;
    prop_oneof![
        6 => (chunk.clone(), 1u8..4).prop_map(|(chunk, value)| Op::Behind { chunk, value }),
        6 => (chunk.clone(), 1..BUSY).prop_map(|(first, chunks)| Op::Compare { first, chunks }),
        5 => (1u8..9).prop_map(|pieces| Op::Repair { pieces }),
        2 => (chunk, 1u8..4).prop_map(|(chunk, value)| Op::Raced { chunk, value }),
        4 => Just(Op::Take),
        4 => Just(Op::Durable),
        4 => prop::bool::weighted(0.8).prop_map(|all| Op::Publish { all }),
        6 => Just(Op::Clear),
        5 => Just(Op::Learn),
        1 => Just(Op::Restart),
        1 => Just(Op::TakeOver),
        1 => Just(Op::Lose),
    ]
}

struct Life {
    power: Arc<Power>,
    bits: Arc<Fragile>,
    hashes: Arc<Fragile>,
    watched: Arc<Watched>,
    stream: Arc<Stream>,
    file: std::fs::File,
}

impl Life {
    fn begin(
        calls: i64,
        file: &tempfile::NamedTempFile,
        (bits, hashes): (Vec<u8>, Vec<u8>),
        server: &mut Server,
    ) -> Option<Self> {
        let power = Arc::new(Power(AtomicI64::new(calls)));
        let bits = Fragile::new(&power, bits);
        let (bitmap, _) = bitmap::load(Box::new(Arc::clone(&bits)), &identity()).unwrap();
        let bitmap = bitmap.expect("one header is always whole");
        let (epoch, witnessed, clean) = bitmap.history();
        let _said = bitmap.mark_running();
        let medium = Fragile::new(&power, hashes);
        // Without power enough to open it, nothing was changed that was not on disk.
        let hashes = Hashes::load(Box::new(Arc::clone(&medium)), &identity()).ok()?;
        let watched = Watched::new(DISK_BYTES, CHUNK as u32, hashes.expect("its header is whole"));
        let device = Device::open(file.path(), DISK_BYTES).unwrap();
        watched.begin(&Arc::new(device));
        let disk = Disk {
            index: DiskIndex(0),
            name: "root".parse().unwrap(),
            size_bytes: DISK_BYTES,
            source: Box::new(Source(Arc::clone(&watched))),
            bitmap,
            locks: RangeLocks::default(),
            syncs: Syncs::default(),
            turnover: Arc::default(),
        };
        let disks = vec![Arc::new(disk)];
        let stream = Arc::new(Stream::new(disks, 64 << 10, epoch, witnessed, clean, None));
        let file = file.reopen().unwrap();
        let life = Self { power, bits, hashes: medium, watched, stream, file };
        life.connect(server);
        Some(life)
    }

    fn connect(&self, server: &mut Server) {
        self.stream.detach();
        if self.stream.attach(&server.welcome()).is_ok() {
            self.stream.resume(Duration::MAX, u64::MAX, 0);
        }
    }

    fn acknowledge(&self, server: &Server) {
        let (durable, published) = (Sequence(server.durable), Sequence(server.published));
        self.stream.acked(durable, published).unwrap();
        self.stream.resume(Duration::MAX, u64::MAX, 0);
    }

    fn compare(&self, chunks: std::ops::Range<u64>) {
        // Each is a pass of its own: none is passed over for having been read.
        self.watched.begin(&self.device());
        for chunk in chunks {
            let mut content = vec![0; CHUNK as usize];
            self.file.read_exact_at(&mut content, chunk * CHUNK).unwrap();
            if self.watched.compare(chunk, &content).is_ok_and(|found| found == Compared::Changed) {
                let range = self.watched.bytes(&(chunk..chunk + 1));
                let _failed_without_power = self.stream.unordered(DiskIndex(0), range, "test");
            }
        }
    }

    fn device(&self) -> Arc<Device> {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        Arc::new(Device::open(path.as_ref(), DISK_BYTES).unwrap())
    }

    fn repair(&self) {
        let _failed_without_power = catchup::step(&self.stream, Place::default(), 16 << 10);
    }

    fn behind(&self, chunk: u64, value: u8) {
        let at = (FIRST + chunk) * CHUNK;
        self.file.write_all_at(&[value; CHUNK as usize], at).unwrap();
    }

    fn run(&self, op: &Op, server: &mut Server) {
        match *op {
            Op::Behind { chunk, value } => self.behind(chunk, value),
            Op::Compare { first, chunks } => {
                self.compare(FIRST + first..FIRST + (first + chunks).min(BUSY));
            }
            Op::Repair { pieces } => (0..pieces).for_each(|_| self.repair()),
            Op::Raced { chunk, value } => std::thread::scope(|scope| {
                scope.spawn(|| self.repair());
                self.behind(chunk, value);
                self.compare(FIRST..FIRST + BUSY);
            }),
            Op::Take => server.take(&self.stream),
            Op::Durable => {
                server.durable = server.log.len() as u64;
                self.acknowledge(server);
            }
            Op::Publish { all } => {
                let part = if all { 1 } else { 2 };
                server.published += (server.durable - server.published) / part;
                self.acknowledge(server);
            }
            Op::Clear => drop(self.stream.clear_step()),
            Op::Learn => drop(self.watched.learn(&self.stream.disks[0].bitmap)),
            Op::Restart => self.connect(server),
            Op::TakeOver => {
                server.durable = server.published;
                self.connect(server);
            }
            Op::Lose => self.stream.give_up_order("test"),
        }
    }
}

/// Brings a first life to where everything is published and known.
fn settle(life: &Life, server: &mut Server) {
    for _ in 0..2000 {
        for op in [Op::Repair { pieces: 4 }, Op::Take, Op::Durable, Op::Publish { all: true }] {
            life.run(&op, server);
        }
        if life.stream.disks[0].bitmap.dirty_bytes() == 0 {
            break;
        }
    }
    for op in [Op::Clear, Op::Clear, Op::Learn] {
        life.run(&op, server);
    }
    assert_eq!(life.stream.disks[0].bitmap.set_bytes(), 0, "everything is settled");
}

/// Gives how many chunks are known.
fn check(server: &Server, bits: &[u8], file: &[u8]) -> Result<u64, TestCaseError> {
    let power = Arc::new(Power(AtomicI64::new(i64::MAX)));
    let medium = Fragile::new(&power, bits.to_vec());
    let bitmap = bitmap::load(Box::new(medium), &identity()).unwrap().0.expect("a header is whole");
    let medium = Fragile::new(&power, file.to_vec());
    let hashes = Hashes::load(Box::new(medium), &identity()).unwrap().expect("its header is whole");
    let (_, witnessed, _) = bitmap.history();
    let mut known = 0;
    for published in witnessed.0..=server.published {
        let (image, _) = server.image(published);
        for chunk in FIRST..FIRST + BUSY {
            let range = chunk * CHUNK..(chunk + 1) * CHUNK;
            let Some(hash) = hashes.known(chunk).unwrap() else { continue };
            if bitmap.is_clear(range.clone()) {
                known += 1;
                let content = &image[range.start as usize..range.end as usize];
                let same = hashes.hasher().of(content) == hash;
                prop_assert!(same, "chunk {chunk}: its hash is not of publication {published}");
            }
        }
    }
    Ok(known)
}

/// A life with everything published and known, in ordered mode.
fn settled(file: &tempfile::NamedTempFile, server: &mut Server) -> Life {
    file.as_file().set_len(DISK_BYTES).unwrap();
    let blank = (bitmap::blank(&identity()), hashes::blank(&identity(), [7; 16]));
    let life = Life::begin(i64::MAX, file, blank, server).unwrap();
    settle(&life, server);
    life.repair(); // which finds nothing, and ends the catch-up
    life
}

#[test]
fn after_a_catch_up_has_read_the_disk_no_point_is_placed_until_a_pass_allows_it() {
    let (mut server, file) = (Server::default(), tempfile::NamedTempFile::new().unwrap());
    let life = settled(&file, &mut server);
    let stream = Arc::downgrade(&life.stream);
    life.watched.withhold_by(Box::new(move |why| {
        stream.upgrade().unwrap().withhold(DiskIndex(0), why);
    }));
    let mode = || life.stream.lock().mode;
    let allow = || life.watched.unless_read(None, || life.stream.release(DiskIndex(0)));
    assert_eq!(mode(), TrackingMode::CatchingUp, "no pass has ended yet");
    allow();
    life.repair();
    assert_eq!(mode(), TrackingMode::Ordered);
    life.behind(3, 9);
    life.compare(FIRST..FIRST + BUSY);
    assert_eq!(mode(), TrackingMode::CatchingUp);
    (0..9).for_each(|_| life.repair());
    assert_eq!(life.stream.disks[0].bitmap.dirty_bytes(), 0);
    assert_eq!(mode(), TrackingMode::CatchingUp, "other chunks may have changed as well");
    allow();
    life.repair();
    assert_eq!(mode(), TrackingMode::Ordered);
}

#[test]
fn a_pass_in_which_a_catch_up_read_is_not_quiet_and_passes_over_what_was_read() {
    let (mut server, file) = (Server::default(), tempfile::NamedTempFile::new().unwrap());
    let life = settled(&file, &mut server);
    let changed = [1; CHUNK as usize];
    let compare = |chunk: u64| life.watched.compare(chunk, &changed).unwrap();
    let reads = life.watched.begin(&life.device());
    assert_eq!(compare(FIRST), Compared::Changed);
    assert!(life.watched.unless_read(Some(reads), || {}));
    let mut content = [0; CHUNK as usize];
    Source(Arc::clone(&life.watched)).read_at(FIRST * CHUNK, &mut content).unwrap();
    assert!(!life.watched.unless_read(Some(reads), || panic!("released")));
    assert_eq!(compare(FIRST), Compared::Same, "it was read in this pass");
    assert_eq!(compare(FIRST + 1), Compared::Changed);
    life.watched.end();
    life.watched.begin(&life.device());
    assert_eq!(compare(FIRST), Compared::Changed, "not in this one");
}

#[test]
fn what_a_pass_found_is_marked_all_at_once() {
    let (mut server, file) = (Server::default(), tempfile::NamedTempFile::new().unwrap());
    let life = settled(&file, &mut server);
    let scan = Scan {
        disk: Arc::clone(&life.stream.disks[0]),
        stream: Arc::clone(&life.stream),
        watched: Arc::clone(&life.watched),
        clock: System::clock(),
        path: file.path().to_owned(),
        settings: ScanSettings {
            interval: Duration::ZERO,
            read_bytes_per_second_max: None,
            hook: None,
        },
        report: Arc::new(Shared::new(false)),
    };
    let calls_left = || life.power.0.load(Ordering::Relaxed);
    let before = calls_left();
    scan.found(&mut (FIRST..FIRST + BUSY).step_by(2).collect()).unwrap();
    assert_eq!(scan.disk.bitmap.dirty_bytes(), BUSY / 2 * CHUNK);
    let calls = before - calls_left();
    assert!(calls < 8, "{calls} writes and syncs");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn no_power_cut_makes_a_hash_of_something_that_is_not_published(
        lives in prop::collection::vec((prop::collection::vec(op(), 1..80), 20i64..250, any::<u64>()), 1..4),
    ) {
        let mut server = Server::default();
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = settled(&file, &mut server);
        let mut all = || true;
        let mut files = (first.bits.after_cut(&mut all), first.hashes.after_cut(&mut all));
        prop_assert!(check(&server, &files.0, &files.1)? >= BUSY, "hashes are learnt");
        for (ops, calls, mut seed) in lives {
            let Some(life) = Life::begin(calls, &file, files.clone(), &mut server) else { continue };
            for op in &ops {
                if life.power.is_off() {
                    break;
                }
                life.run(op, &mut server);
            }
            let mut dice = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                seed >> 63 == 1
            };
            files = (life.bits.after_cut(&mut dice), life.hashes.after_cut(&mut dice));
            check(&server, &files.0, &files.1)?;
        }
    }
}
