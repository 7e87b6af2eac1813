//! The program in the kernel, and its maps.
//!
//! Owns: loading, attaching and pinning; every call into the kernel. Does not own: what records mean
//! ([`super::record`]), or when something is called.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, Map, MapData, RingBuf};
use aya::programs::links::FdLink;
use aya::programs::{
    BtfTracePoint, Program, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun,
};
use aya::{Btf, BtfError, Ebpf, EbpfLoader};

use super::walk;

/// Built from `program/capture.bpf.c`; a test of `tests/capture_ebpf.rs` proves it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("program/capture.bpf.o");
/// Words of one element of the dirty map.
pub(super) const PAGE_WORDS: usize = 512;
/// Most captured ranges on one device.
pub(super) const RANGES_MAX: usize = 16;
const RANGE_WORDS: usize = 4;
/// As many as libbpf makes.
const LOAD_ATTEMPTS: u32 = 5;
/// How often its reader is woken while the ring fills.
const WAKES_PER_RING: u32 = 8;
/// The pinned parts.
const DIRTY: &str = "dirty";
const ISSUE: &str = "issue";
const COMPLETE: &str = "complete";
const FAILED: &str = "failed";
/// Pins of the programs themselves beside their links, to be asked how often they were left out.
const PROGRAMS: [(&str, &str); 3] =
    [(ISSUE, "issue-program"), (COMPLETE, "complete-program"), (FAILED, "failed-program")];
const CONTROL: &str = "control";
/// Where they are attached, in this order.
const POINTS: [(&str, &str); 3] =
    [(COMPLETE, "block_rq_complete"), (FAILED, "block_rq_error"), (ISSUE, "block_rq_issue")];

/// Places in the map `control`.
const ACTIVE: usize = 0;
const WITH_DATA: usize = 1;
const PAGES_AT: usize = 2;
const STRUCTS_AT: usize = 3;
const PROBED_DEVICE: usize = 4;
/// Of no use to the program: runs that it was left out of, and that are in the bitmap file.
const HANDLED: usize = 5;

type Page = [u64; PAGE_WORDS];
type Eight = [u64; 8];
type Ranges = [u64; 1 + RANGES_MAX * RANGE_WORDS];

/// Part of a device that is a captured disk, in sectors of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) device: u32,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) first_chunk: u64,
    pub(super) disk: u16,
}

/// A write that the device has and has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flight {
    pub(super) request: u64,
    pub(super) disk: u64,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) id: u64,
    first_chunk: u64,
}

impl Flight {
    /// The same for all that one write is noted as.
    pub(super) fn of_request(&self) -> u64 {
        self.request - self.request % RANGES_MAX as u64
    }
}

/// What the program counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Records that did not fit into the first ring.
    pub(super) dropped: u64,
    /// Records that fitted into neither.
    pub(super) forgotten: u64,
    /// Requests in flight that could not be noted.
    pub(super) unflown: u64,
    /// Payloads that could not be read.
    pub(super) faults: u64,
    /// Runs of the program that the kernel left out, and that nothing else makes good.
    pub(super) missed: u64,
}

/// What a write to our own device looked like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Probed {
    pub(super) page: u64,
    pub(super) request: u64,
    pub(super) offset: u64,
    pub(super) page_struct_bytes: u64,
}

/// The loaded program.
pub(super) struct Kernel {
    programs: Mutex<Ebpf>,
    maps: Mutex<Maps>,
    links: Mutex<Vec<(&'static str, FdLink)>>,
    /// Those of [`POINTS`] that this kernel has.
    points: Vec<&'static str>,
    /// The map of flights, to be read as a whole.
    all_flying: OwnedFd,
    pages: u32,
}

struct Maps {
    counts: Array<MapData, Eight>,
    probed: Array<MapData, Eight>,
    watched: HashMap<MapData, u32, Ranges>,
    flying: HashMap<MapData, u64, [u64; 5]>,
}

/// Both rings, for the one who reads them.
pub(super) struct Rings {
    pub(super) events: RingBuf<MapData>,
    pub(super) extents: RingBuf<MapData>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with all its causes.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

fn said<E: std::error::Error>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {}", words(&error))
}

fn no_map(name: &str) -> String {
    format!("the program has no map {name}")
}

impl Kernel {
    /// Loads the program; it is not attached yet.
    ///
    /// # Errors
    /// In words, what the kernel said.
    pub(super) fn load(
        ring_bytes: u32,
        chunk_bytes: u32,
        chunks: u64,
    ) -> Result<(Self, Rings), String> {
        let btf = Btf::from_sys_fs().map_err(said("read the kernel's BTF"))?;
        let pages = chunks.div_ceil(64 * PAGE_WORDS as u64).max(1);
        let elements =
            u32::try_from(2 * pages).map_err(|_| "the disks are too large".to_owned())?;
        let shift = u64::from(chunk_bytes.trailing_zeros());
        let mut programs = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("chunk_shift", &shift, true)
            .override_global("dirty_pages", &pages, true)
            .override_global("wake_bytes", &u64::from(ring_bytes / WAKES_PER_RING), true)
            .map_max_entries("events", ring_bytes)
            .map_max_entries(DIRTY, elements)
            .load(OBJECT)
            .map_err(said("load the program"))?;
        let points = load_all(&mut programs, &btf)?;
        let mut take = |name: &'static str| programs.take_map(name).ok_or_else(|| no_map(name));
        let wrong = "a map of the program";
        let flying = take("flying")?;
        let Map::HashMap(data) = &flying else { return Err(no_map("flying")) };
        let all_flying = data.fd().as_fd().try_clone_to_owned().map_err(said(wrong))?;
        let maps = Maps {
            counts: Array::try_from(take("counts")?).map_err(said(wrong))?,
            probed: Array::try_from(take("probed")?).map_err(said(wrong))?,
            watched: HashMap::try_from(take("watched")?).map_err(said(wrong))?,
            flying: HashMap::try_from(flying).map_err(said(wrong))?,
        };
        let rings = Rings {
            events: RingBuf::try_from(take("events")?).map_err(said(wrong))?,
            extents: RingBuf::try_from(take("extents")?).map_err(said(wrong))?,
        };
        let kernel = Self {
            programs: Mutex::new(programs),
            maps: Mutex::new(maps),
            links: Mutex::default(),
            points,
            all_flying,
            pages: pages as u32,
        };
        Ok((kernel, rings))
    }

    /// From here on requests are seen.
    pub(super) fn attach(&self) -> Result<(), String> {
        self.points.iter().try_for_each(|name| self.attach_one(name))
    }

    /// One of the programs, unless it is attached.
    pub(super) fn attach_one(&self, name: &'static str) -> Result<(), String> {
        let mut links = lock(&self.links);
        if links.iter().any(|(attached, _)| *attached == name) {
            return Ok(());
        }
        let mut programs = lock(&self.programs);
        let program: &mut BtfTracePoint = program(&mut programs, name)?;
        let link = program.attach().map_err(said("attach the program"))?;
        let link = program.take_link(link).map_err(said("attach the program"))?;
        links.push((name, link.into()));
        Ok(())
    }

    /// The program and its bits outlive this process; `folder` is on a BPF file system.
    pub(super) fn pin(&self, folder: &Path) -> Result<(), String> {
        let mut programs = lock(&self.programs);
        for name in [DIRTY, CONTROL] {
            let map = programs.map(name).ok_or_else(|| no_map(name))?;
            map.pin(folder.join(name)).map_err(said("pin the map"))?;
        }
        for (name, pin) in of_all_runs(self.tells_errors()) {
            let program: &mut BtfTracePoint = program(&mut programs, name)?;
            program.pin(folder.join(pin)).map_err(said("pin the program"))?;
        }
        drop(programs);
        let mut links = lock(&self.links);
        for (name, link) in std::mem::take(&mut *links) {
            let pinned = link.pin(folder.join(name)).map_err(said("pin the program"))?;
            // Held here as well: whoever removes the pin does not end the capture.
            links.push((name, pinned.into()));
        }
        Ok(())
    }

    /// Attaches again what a pin that did not succeed has cost; `true` when it has cost anything. Whatever is
    /// attached stays so: a program that is attached twice is refused by older kernels.
    pub(super) fn ensure_attached(&self) -> Result<bool, String> {
        let whole = lock(&self.links).len() == self.points.len();
        self.attach()?;
        Ok(!whole)
    }

    /// Which parts of which devices are captured.
    pub(super) fn watch(&self, watched: &[Watched]) -> Result<(), String> {
        let mut devices: BTreeMap<u32, Vec<&Watched>> = BTreeMap::new();
        for one in watched {
            devices.entry(one.device).or_default().push(one);
        }
        for (device, ranges) in devices {
            if ranges.len() > RANGES_MAX {
                return Err(format!("at most {RANGES_MAX} captured disks may lie on one device"));
            }
            let mut words = [0; 1 + RANGES_MAX * RANGE_WORDS];
            words[0] = ranges.len() as u64;
            for (at, range) in ranges.iter().enumerate() {
                words[1 + at * RANGE_WORDS..][..RANGE_WORDS].copy_from_slice(&[
                    range.start,
                    range.end,
                    range.first_chunk,
                    u64::from(range.disk),
                ]);
            }
            let map = &mut lock(&self.maps).watched;
            map.insert(device, words, 0).map_err(said("watch a device"))?;
        }
        Ok(())
    }

    /// Forgets a device.
    pub(super) fn unwatch(&self, device: u32) -> Result<(), String> {
        lock(&self.maps).watched.remove(&device).map_err(said("leave a device"))
    }

    fn control(&self, change: impl FnOnce(&mut Eight)) -> Result<(), String> {
        let mut programs = lock(&self.programs);
        let map = programs.map_mut(CONTROL).ok_or_else(|| no_map(CONTROL))?;
        let mut map = Array::<_, Eight>::try_from(map).map_err(said("read the control map"))?;
        let mut words = map.get(&0, 0).map_err(said("read the control map"))?;
        change(&mut words);
        map.set(0, words, 0).map_err(said("write the control map"))
    }

    /// The device whose writes tell where the kernel describes a page.
    pub(super) fn probe(&self, device: u32) -> Result<(), String> {
        self.control(|words| words[PROBED_DEVICE] = u64::from(device))
    }

    /// Payloads are copied from here on: all memory is mapped at `pages_at`, described at `structs_at`.
    pub(super) fn with_data(&self, pages_at: u64, structs_at: u64) -> Result<(), String> {
        self.control(|words| {
            words[PAGES_AT] = pages_at;
            words[STRUCTS_AT] = structs_at;
            words[WITH_DATA] = 1;
        })
    }

    /// Whether payloads are copied from here on, where [`Kernel::with_data`] was told how.
    pub(super) fn copy(&self, payloads: bool) -> Result<(), String> {
        self.control(|words| words[WITH_DATA] = u64::from(payloads))
    }

    pub(super) fn probed(&self) -> Result<Probed, String> {
        let words = lock(&self.maps).probed.get(&0, 0).map_err(said("read the probe"))?;
        Ok(Probed {
            page: words[0],
            request: words[1],
            offset: words[2],
            page_struct_bytes: words[3],
        })
    }

    /// Where all memory is mapped, if it is at one of `count` places at and below `highest`, and the
    /// kernel describes memory at `structs_at`; known by 32 bytes that the probed page holds.
    pub(super) fn find(
        &self,
        probed: &Probed,
        structs_at: u64,
        highest: u64,
        count: u64,
        want: [u64; 4],
    ) -> Result<Option<u64>, String> {
        let [a, b, c, d] = want;
        let args = [probed.page, structs_at, highest, count, a, b, c, d, probed.offset, 0, 0, 0];
        self.run("find", args)?;
        let words = lock(&self.maps).probed.get(&0, 0).map_err(said("read the probe"))?;
        Ok((words[4] != 0).then_some(words[4]))
    }

    /// Puts a marker behind everything in the ring; `false` when there is no room for it.
    pub(super) fn mark(&self, id: u64) -> Result<bool, String> {
        let mut args = [0; 12];
        args[0] = id;
        Ok(self.run("marker", args)? == 0)
    }

    fn run(&self, name: &'static str, args: [u64; 12]) -> Result<u32, String> {
        let mut programs = lock(&self.programs);
        let options = RawTracePointRunOptions { args, cpu: None };
        let program: &mut RawTracePoint = program(&mut programs, name)?;
        let result = program.test_run(options);
        Ok(result.map_err(said("run a part of the program"))?.return_value)
    }

    /// Whether the kernel tells of errors by themselves.
    fn tells_errors(&self) -> bool {
        self.points.contains(&FAILED)
    }

    pub(super) fn counts(&self) -> Result<Counts, String> {
        let words = lock(&self.maps).counts.get(&0, 0).map_err(said("read the counts"))?;
        let mut missed = 0;
        for (name, _) in of_all_runs(self.tells_errors()) {
            missed += left_out(program(&mut lock(&self.programs), name)?)?;
        }
        Ok(Counts {
            dropped: words[1],
            forgotten: words[2],
            unflown: words[3],
            faults: words[4],
            missed,
        })
    }

    /// The bitmap file knows of that many runs that the program was left out of. The next life asks.
    pub(super) fn handled(&self, missed: u64) -> Result<(), String> {
        self.control(|words| words[HANDLED] = missed)
    }

    /// Writes that the devices have not answered: each that flies at the call and when it returns; one that
    /// begins or ends meanwhile may be there, or twice.
    pub(super) fn flights(&self) -> Result<Vec<Flight>, String> {
        let elements = walk::elements(&self.all_flying).map_err(said("read the flights"))?;
        let flights = elements.into_iter().map(|(request, words)| {
            let [disk, start, end, id, first_chunk] = words;
            Flight { request, disk, start, end, id, first_chunk }
        });
        Ok(flights.collect())
    }

    /// As if the program had seen that request begin (or, without words, end).
    #[cfg(test)]
    pub(super) fn note(&self, request: u64, words: Option<[u64; 5]>) {
        let flying = &mut lock(&self.maps).flying;
        match words {
            Some(words) => flying.insert(request, words, 0).unwrap(),
            None => flying.remove(&request).unwrap(),
        }
    }

    /// Whether that very flight is still in the air.
    pub(super) fn flies(&self, flight: &Flight) -> bool {
        let found = lock(&self.maps).flying.get(&flight.request, 0);
        let Flight { disk, start, end, id, first_chunk, .. } = *flight;
        found.is_ok_and(|words| words == [disk, start, end, id, first_chunk])
    }

    /// Bits go to the other half of the dirty map from here on; returns which half is left.
    pub(super) fn turn(&self) -> Result<u32, String> {
        let mut left = 0;
        self.control(|words| {
            left = (words[ACTIVE] & 1) as u32;
            words[ACTIVE] ^= 1;
        })?;
        Ok(left)
    }

    /// All bits of one half are cleared.
    pub(super) fn clear(&self, half: u32) -> Result<(), String> {
        let mut programs = lock(&self.programs);
        let map = programs.map_mut(DIRTY).ok_or_else(|| no_map(DIRTY))?;
        let mut map = Array::<_, Page>::try_from(map).map_err(said("clear the dirty map"))?;
        for page in half * self.pages..(half + 1) * self.pages {
            map.set(page, [0; PAGE_WORDS], 0).map_err(said("clear the dirty map"))?;
        }
        Ok(())
    }

    /// The bits of both halves.
    pub(super) fn dirty(&self) -> Result<Vec<u64>, String> {
        let programs = lock(&self.programs);
        let map = programs.map(DIRTY).ok_or_else(|| no_map(DIRTY))?;
        joined(&Array::try_from(map).map_err(said("read the dirty map"))?)
    }
}

/// The bits of both halves of a map, each as long as the disks together.
fn joined<T: Borrow<MapData>>(map: &Array<T, Page>) -> Result<Vec<u64>, String> {
    let pages = map.len() / 2;
    let mut bits = Vec::new();
    for page in 0..pages {
        let one = map.get(&page, 0).map_err(said("read the dirty map"))?;
        let other = map.get(&(pages + page), 0).map_err(said("read the dirty map"))?;
        bits.extend(one.iter().zip(other).map(|(one, other)| one | other));
    }
    Ok(bits)
}

/// The bits that a pinned program of an earlier life collected, and collects.
pub(super) fn pinned_dirty(folder: &Path) -> Result<Vec<u64>, String> {
    let data = MapData::from_pin(folder.join(DIRTY)).map_err(said("open the pinned map"))?;
    let map = Array::try_from(Map::Array(data)).map_err(said("open the pinned map"))?;
    joined(&map)
}

/// How often the kernel has left out the pinned program of an earlier life, and of how many of these the
/// bitmap file knows.
pub(super) fn pinned_misses(folder: &Path) -> Result<(u64, u64), String> {
    let data = MapData::from_pin(folder.join(CONTROL)).map_err(said("open the pinned map"))?;
    let map: Array<_, Eight> =
        Array::try_from(Map::Array(data)).map_err(said("open the pinned map"))?;
    let words = map.get(&0, 0).map_err(said("read the control map"))?;
    let mut missed = 0;
    for (_, pin) in of_all_runs(folder.join(FAILED).exists()) {
        let program = BtfTracePoint::from_pin(folder.join(pin));
        missed += left_out(&program.map_err(said("open the pinned program"))?)?;
    }
    Ok((missed, words[HANDLED]))
}

/// The programs of which no run may be missing. A completion is left out where a device interrupts another one: that
/// makes a flight that seems to last, and of its error `failed` tells where the kernel has it.
fn of_all_runs(tells_errors: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    let made_good = if tells_errors { COMPLETE } else { FAILED };
    PROGRAMS.into_iter().filter(move |(name, _)| *name != made_good)
}

/// How often the kernel left the program out because it ran already on that CPU.
fn left_out(program: &BtfTracePoint) -> Result<u64, String> {
    let fd = program.fd().map_err(said("name the program"))?.as_fd().as_raw_fd();
    let path = format!("/proc/self/fdinfo/{fd}");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    line.and_then(|count| count.trim().parse().ok())
        .ok_or_else(|| format!("{path} does not tell recursion_misses"))
}

/// Loads all programs; returns which of [`POINTS`] this kernel has.
fn load_all(programs: &mut Ebpf, btf: &Btf) -> Result<Vec<&'static str>, String> {
    let mut points = Vec::new();
    for (name, point) in POINTS {
        let program: &mut BtfTracePoint = program(programs, name)?;
        match attempted(|| program.load(point, btf), gave_up) {
            Ok(()) => points.push(name),
            // It came with Linux 5.18; without it `complete` tells of each error.
            Err(ProgramError::Btf(BtfError::UnknownBtfTypeName { .. })) if name == FAILED => {
                tracing::debug!(point, "this kernel has no such tracepoint");
            }
            Err(error) => return Err(said("load the program")(error)),
        }
    }
    for name in ["marker", "find"] {
        let program: &mut RawTracePoint = program(programs, name)?;
        attempted(|| program.load(), gave_up).map_err(said("load the program"))?;
    }
    Ok(points)
}

/// The verifier gives up when a signal arrives, that of a child that ended for one.
fn attempted<E>(mut load: impl FnMut() -> Result<(), E>, gave_up: fn(&E) -> bool) -> Result<(), E> {
    let mut outcome = load();
    for _ in 1..LOAD_ATTEMPTS {
        if !outcome.as_ref().is_err_and(gave_up) {
            break;
        }
        outcome = load();
    }
    outcome
}

fn gave_up(error: &ProgramError) -> bool {
    // EAGAIN.
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.kind() == io::ErrorKind::WouldBlock)
}

/// One of the programs, by its name.
fn program<'a, T>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut T, String>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program =
        programs.program_mut(name).ok_or_else(|| format!("there is no program {name}"))?;
    program.try_into().map_err(said("the program"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_by_a_program_of_which_no_run_is_missing() {
        let names = |tells| of_all_runs(tells).map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(true), [ISSUE, FAILED]);
        assert_eq!(names(false), [ISSUE, COMPLETE], "Linux 5.17");
    }

    #[test]
    fn a_signal_during_a_load_is_no_refusal() {
        let cases = [("signal", 3, 3), ("signal", 99, LOAD_ATTEMPTS), ("refused", 99, 1)];
        for (error, until, attempts) in cases {
            let mut made = 0;
            let load = || {
                made += 1;
                if made < until { Err(error) } else { Ok(()) }
            };
            let outcome = attempted(load, |error| *error == "signal");
            assert_eq!((made, outcome.is_ok()), (attempts, until == 3));
        }
    }
}
