//! A power cut at any moment loses any subset of the unsynced bytes of source and bitmap. After
//! it, every chunk whose source differs from what is published must have its bit set: for any
//! publication that the bitmap's witness does not rule out.

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::bitmap::{self, Bitmap, Identity, Teller};
use super::catchup::{self, Place};
use super::disk::{Captured, Disk};
use super::locks::RangeLocks;
use super::medium::Medium;
use super::source_identity::SourceIdentity;
use super::stream::Stream;
use super::syncs::Syncs;
use crate::format::wire::{HEADER_BYTES, Welcome};
use crate::model::{
    Change, DiskIndex, Epoch, Generation, MachineKey, Record, SECTOR_BYTES, Sequence,
};
use crate::nbd::Export;
use crate::settings::AgentMode;

pub(super) const CHUNK: u64 = 1024;
/// Two pages of the bitmap; the writes go to both sides of their border.
pub(super) const CHUNKS: u64 = 4096;
pub(super) const FIRST: u64 = 4016;
pub(super) const DISK_BYTES: u64 = CHUNK * CHUNKS;
/// A power cut tears even sectors: half of one may be new.
const TORN_BYTES: usize = 256;

/// Counts calls that reach a disk; at zero the power is gone.
pub(super) struct Power(pub(super) AtomicI64);

impl Power {
    fn spend(&self) -> io::Result<()> {
        match self.0.fetch_sub(1, Ordering::Relaxed) {
            1.. => Ok(()),
            _ => Err(io::Error::other("no power")),
        }
    }

    pub(super) fn is_off(&self) -> bool {
        self.0.load(Ordering::Relaxed) <= 0
    }
}

type Hook = Box<dyn FnOnce() + Send>;

/// A disk of which a power cut keeps what was synced and any part of the rest.
pub(super) struct Fragile {
    power: Arc<Power>,
    content: Mutex<Content>,
    /// Runs in the middle of the next write, as another thread might.
    hook: Mutex<Option<Hook>>,
}

struct Content {
    seen: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl Fragile {
    pub(super) fn new(power: &Arc<Power>, bytes: Vec<u8>) -> Arc<Self> {
        let content = Content { seen: bytes.clone(), synced: bytes, unsynced: Vec::new() };
        Arc::new(Self {
            power: Arc::clone(power),
            content: Mutex::new(content),
            hook: Mutex::new(None),
        })
    }

    /// What a power cut leaves; `dice` decides the fate of each unsynced piece.
    pub(super) fn after_cut(&self, dice: &mut impl FnMut() -> bool) -> Vec<u8> {
        let content = self.content.lock().unwrap();
        let mut bytes = content.synced.clone();
        for (at, piece) in &content.unsynced {
            if dice() {
                bytes[*at..*at + piece.len()].copy_from_slice(piece);
            }
        }
        bytes
    }
}

impl Medium for Arc<Fragile> {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let content = self.content.lock().unwrap();
        let from = content.seen.get(offset as usize..offset as usize + target.len());
        target.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(hook) = self.hook.lock().unwrap().take() {
            hook();
        }
        let outcome = self.power.spend();
        let mut content = self.content.lock().unwrap();
        // The write that meets the cut may be on disk in part all the same.
        for (n, piece) in bytes.chunks(TORN_BYTES).enumerate() {
            let at = offset as usize + n * TORN_BYTES;
            content.seen[at..at + piece.len()].copy_from_slice(piece);
            content.unsynced.push((at, piece.to_vec()));
        }
        outcome
    }

    fn zero_at(&self, offset: u64, length: u64, _release: bool) -> io::Result<()> {
        self.write_at(offset, &vec![0; length as usize])
    }

    fn sync(&self) -> io::Result<()> {
        self.power.spend()?;
        let mut content = self.content.lock().unwrap();
        content.synced = content.seen.clone();
        content.unsynced.clear();
        Ok(())
    }

    fn next_data(&self, offset: u64, _end: u64) -> io::Result<u64> {
        Ok(offset)
    }

    fn next_hole(&self, _offset: u64, end: u64) -> io::Result<u64> {
        Ok(end)
    }
}

/// The stream as a process server holds it.
#[derive(Clone, Default)]
pub(super) struct Server {
    pub(super) log: Vec<Record>,
    pub(super) durable: u64,
    pub(super) published: u64,
}

impl Server {
    pub(super) fn welcome(&mut self) -> Welcome {
        self.log.truncate(self.durable as usize);
        let epoch = self.log.iter().rev().find_map(|record| match &record.change {
            Change::EpochBegin(begin) => Some(begin.epoch),
            _ => None,
        });
        Welcome {
            server: "ps-1".parse().unwrap(),
            generation: Generation(1),
            epoch: epoch.unwrap_or_default(),
            durable: Sequence(self.durable),
            published: Sequence(self.published),
            credit_limit: u64::MAX,
            bookmark_interval_ms: 5000,
        }
    }

    pub(super) fn take(&mut self, stream: &Stream) {
        let (records, _) = stream.take(u64::MAX, u64::MAX, |_| HEADER_BYTES as u64);
        for record in records {
            assert_eq!(record.sequence.0, self.log.len() as u64 + 1, "gap in the stream");
            self.log.push(record);
        }
    }

    /// The disk at each publication from `from` on, with the epoch that holds there.
    pub(super) fn image(&self, through: u64) -> (Vec<u8>, Epoch) {
        let (mut image, mut epoch) = (vec![0; DISK_BYTES as usize], Epoch(0));
        for record in &self.log[..through as usize] {
            match &record.change {
                Change::Write { extent, payload, .. } => {
                    image[extent.offset() as usize..extent.end() as usize]
                        .copy_from_slice(&payload.to_bytes());
                }
                Change::Zero { extent, .. } => {
                    image[extent.offset() as usize..extent.end() as usize].fill(0);
                }
                Change::EpochBegin(begin) => {
                    epoch = begin.epoch;
                    image.fill(0);
                }
                _ => {}
            }
        }
        (image, epoch)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write {
        at: u64,
        sectors: u64,
        fua: bool,
    },
    Zero {
        at: u64,
        sectors: u64,
    },
    /// A write during which rounds of clearing make so many steps.
    Raced {
        at: u64,
        steps: u8,
    },
    Flush,
    Take,
    Durable,
    Publish {
        all: bool,
    },
    Clear,
    Repair {
        pieces: u8,
    },
    /// The server's process restarts: what was not durable is gone.
    Restart,
    /// The server is lost: what was not published is gone.
    TakeOver,
    Lose,
}

fn op() -> impl Strategy<Value = Op> {
    let at = 0u64..64;
    prop_oneof![
        6 => (at.clone(), 1u64..9, any::<bool>()).prop_map(|(at, sectors, fua)| Op::Write { at, sectors, fua }),
        2 => (at.clone(), 1u64..9).prop_map(|(at, sectors)| Op::Zero { at, sectors }),
        2 => (at, 1u8..3).prop_map(|(at, steps)| Op::Raced { at, steps }),
        1 => Just(Op::Flush),
        4 => Just(Op::Take),
        4 => Just(Op::Durable),
        5 => prop::bool::weighted(0.8).prop_map(|all| Op::Publish { all }),
        5 => Just(Op::Clear),
        4 => (1u8..9).prop_map(|pieces| Op::Repair { pieces }),
        1 => Just(Op::Restart),
        1 => Just(Op::TakeOver),
        1 => Just(Op::Lose),
    ]
}

pub(super) fn identity() -> Identity {
    Identity {
        machine: MachineKey([1; 16]),
        disk: "root".parse().unwrap(),
        disk_bytes: DISK_BYTES,
        chunk_bytes: CHUNK as u32,
        disks_crc: 7,
        teller: Teller::Agent,
        source: SourceIdentity::default(),
    }
}

/// One life of the agent between two power cuts.
struct Life {
    power: Arc<Power>,
    source: Arc<Fragile>,
    bits: Arc<Fragile>,
    stream: Arc<Stream>,
    export: Captured,
    stamp: u8,
}

impl Life {
    fn begin(calls: i64, source: Vec<u8>, bits: Vec<u8>, server: &mut Server) -> Self {
        let power = Arc::new(Power(AtomicI64::new(calls)));
        let source = Fragile::new(&power, source);
        let bits = Fragile::new(&power, bits);
        let (bitmap, _) = bitmap::load(Box::new(Arc::clone(&bits)), &identity()).unwrap();
        let bitmap = bitmap.expect("two headers, one written at a time: one is always whole");
        let (epoch, witnessed, clean) = bitmap.history();
        let _said = bitmap.mark_running();
        let disk = Arc::new(Disk {
            index: DiskIndex(0),
            name: "root".parse().unwrap(),
            size_bytes: DISK_BYTES,
            source: Box::new(Arc::clone(&source)),
            bitmap,
            locks: RangeLocks::default(),
            syncs: Syncs::default(),
            turnover: Arc::default(),
        });
        let disks = vec![Arc::clone(&disk)];
        let stream = Arc::new(Stream::new(disks, 64 << 10, epoch, witnessed, clean, None));
        let life = Self {
            export: Captured { disk, stream: Arc::clone(&stream), mode: AgentMode::Async },
            power,
            source,
            bits,
            stream,
            stamp: 0,
        };
        life.connect(server);
        life
    }

    fn connect(&self, server: &mut Server) {
        self.stream.detach();
        if self.stream.attach(&server.welcome()).is_ok() {
            self.stream.resume(Duration::MAX, u64::MAX, 0);
        }
    }

    fn write(&mut self, at: u64, sectors: u64, fua: bool) {
        self.stamp = self.stamp.wrapping_add(1).max(1);
        let payload = vec![self.stamp; (sectors * SECTOR_BYTES) as usize];
        let offset = FIRST * CHUNK + at * SECTOR_BYTES;
        let _failed_without_power = self.export.write(offset, payload.into(), fua);
    }

    fn run(&mut self, op: &Op, server: &mut Server) {
        let stream = &self.stream;
        match *op {
            Op::Write { at, sectors, fua } => self.write(at, sectors, fua),
            Op::Zero { at, sectors } => {
                let (offset, length) = (FIRST * CHUNK + at * SECTOR_BYTES, sectors * SECTOR_BYTES);
                let _failed_without_power = self.export.zero(offset, length, true, false);
            }
            Op::Raced { at, steps } => {
                let racing = Arc::clone(stream);
                *self.source.hook.lock().unwrap() = Some(Box::new(move || {
                    for _ in 0..steps {
                        let _failed_without_power = racing.clear_step();
                    }
                }));
                self.write(at, 2, false);
                *self.source.hook.lock().unwrap() = None;
            }
            Op::Flush => drop(self.export.flush()),
            Op::Take => server.take(stream),
            Op::Durable => {
                server.durable = server.log.len() as u64;
                self.acknowledge(server);
            }
            Op::Publish { all } => {
                let part = if all { 1 } else { 2 };
                server.published += (server.durable - server.published) / part;
                self.acknowledge(server);
            }
            Op::Clear => drop(stream.clear_step()),
            Op::Repair { pieces } => {
                for _ in 0..pieces {
                    let _failed_without_power = catchup::step(stream, Place::default(), 16 << 10);
                }
            }
            Op::Restart => self.connect(server),
            Op::TakeOver => {
                server.durable = server.published;
                self.connect(server);
            }
            Op::Lose => stream.give_up_order("test"),
        }
    }

    fn acknowledge(&self, server: &Server) {
        let (durable, published) = (Sequence(server.durable), Sequence(server.published));
        self.stream.acked(durable, published).unwrap();
        self.stream.resume(Duration::MAX, u64::MAX, 0);
    }
}

/// Brings a first life to ordered mode with everything published and cleared.
fn settle(life: &mut Life, server: &mut Server) {
    for _ in 0..2000 {
        for op in [Op::Repair { pieces: 4 }, Op::Take, Op::Durable, Op::Publish { all: true }] {
            life.run(&op, server);
        }
        if life.stream.disks[0].bitmap.dirty_bytes() == 0 {
            break;
        }
    }
    life.run(&Op::Clear, server);
    life.run(&Op::Clear, server);
    assert_eq!(life.stream.disks[0].bitmap.set_bytes(), 0, "everything is settled");
}

fn check(server: &Server, source: &[u8], bits: &[u8]) -> Result<(), TestCaseError> {
    let power = Arc::new(Power(AtomicI64::new(i64::MAX)));
    let medium = Fragile::new(&power, bits.to_vec());
    let (bitmap, _) = bitmap::load(Box::new(medium), &identity()).unwrap();
    let bitmap: Bitmap = bitmap.expect("one header is always whole");
    let (epoch, witnessed, _) = bitmap.history();
    for published in witnessed.0..=server.published {
        let (image, stream_epoch) = server.image(published);
        prop_assert_eq!(stream_epoch, epoch, "a power cut must not cost a new epoch");
        for chunk in 0..CHUNKS {
            let range = (chunk * CHUNK) as usize..((chunk + 1) * CHUNK) as usize;
            if source[range.clone()] != image[range] {
                let dirty = bitmap.next_dirty(chunk * CHUNK, CHUNK);
                let set = dirty.is_some_and(|found| found.start == chunk * CHUNK);
                prop_assert!(
                    set,
                    "chunk {chunk} differs from publication {published}, its bit is clear"
                );
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]
    #[test]
    fn a_power_cut_never_hides_a_difference(
        lives in prop::collection::vec((prop::collection::vec(op(), 1..60), 1i64..250, any::<u64>()), 1..4),
    ) {
        let mut server = Server::default();
        let mut first = Life::begin(i64::MAX, vec![0; DISK_BYTES as usize], bitmap::blank(&identity()), &mut server);
        settle(&mut first, &mut server);
        let mut all = || true;
        let (mut source, mut bits) = (first.source.after_cut(&mut all), first.bits.after_cut(&mut all));
        for (ops, calls, mut seed) in lives {
            let mut life = Life::begin(calls, source, bits, &mut server);
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
            source = life.source.after_cut(&mut dice);
            bits = life.bits.after_cut(&mut dice);
            check(&server, &source, &bits)?;
        }
    }
}
