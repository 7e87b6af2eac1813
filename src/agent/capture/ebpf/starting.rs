//! Starts the capture in the order in which nothing can be missed, and stops it.
//!
//! Owns: that the new program sees everything before the old one's bits are read. Does not own: what
//! each part does.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::io::Errno;

use crate::clock::{Clock, Entropy};
use crate::model::DiskIndex;
use crate::settings::{AgentDisk, AgentSettings};

use crate::agent::capture::{CaptureMode, Observer};
use crate::agent::error::AgentError;
use crate::agent::medium::Medium;
use crate::agent::stream::Stream;

use super::device::Part;
use super::facts::{Facts, Possible};
use super::kernel::{Kernel, Rings, Watched};
use super::medium::DiskGate;
use super::naps::Naps;
use super::pins::{Note, Pins, whole};
use super::proof::Proven;
use super::reader::{Reader, Tracked, runs};
use super::shared::Shared;
use super::{device, kernel, medium, proof};

/// Opens a disk that others write.
pub(in crate::agent::capture) fn open(
    disk: &AgentDisk,
) -> Result<(Box<dyn Medium>, u64), AgentError> {
    let (medium, bytes) = medium::open(&disk.path)?;
    Ok((Box::new(medium), bytes))
}

/// The observer of all disks that are captured this way.
struct Ebpf {
    shared: Arc<Shared>,
    disks: usize,
    reader: Mutex<Option<JoinHandle<()>>>,
}

/// Captures all disks of the stream.
///
/// # Errors
/// When the kernel does not let it, in words with the next best way.
pub(in crate::agent::capture) fn start(
    stream: &Arc<Stream>,
    settings: &AgentSettings,
    clock: &Arc<dyn Clock>,
    entropy: &dyn Entropy,
) -> Result<Arc<dyn Observer>, AgentError> {
    let refuse = |why: String| AgentError::Settings(format!("capture = \"ebpf\": {why}"));
    let facts = Facts::read();
    let possible = facts.judge();
    if let Possible::Nothing(why) = possible {
        return Err(refuse(why));
    }
    let parts = parts(stream, settings)?;
    let tracked = tracked(stream, u64::from(settings.bitmap_chunk_bytes));
    let chunks = tracked.last().map_or(0, |last| {
        last.first_chunk + last.bytes.div_ceil(u64::from(settings.bitmap_chunk_bytes))
    });
    let ring_bytes = settings.ebpf_ring_bytes;
    let directory = &settings.state_directory;
    let started = || {
        let chunk_bytes = settings.bitmap_chunk_bytes;
        let (kernel, mut rings) = Kernel::load(ring_bytes, chunk_bytes, chunks + proof::CHUNKS)?;
        kernel.attach()?;
        let mode = proven(possible, &kernel, &mut rings, directory, chunks, entropy)?;
        Ok((kernel, rings, mode))
    };
    let pins = Pins::new(settings.machine.as_str(), directory);
    let (kernel, rings, mode) =
        started().map_err(|why: String| refuse(with_cure(&why, pins.hold_a_ring())))?;
    tracing::info!(mode = mode.0.as_str(), why = mode.1, ring_bytes, "eBPF capture");
    let watched: Vec<Watched> = (parts.iter().zip(&tracked).enumerate())
        .map(|(disk, ((_, part), tracked))| Watched {
            device: part.device,
            start: part.start,
            end: part.end,
            first_chunk: tracked.first_chunk,
            disk: disk as u16,
        })
        .collect();
    kernel.watch(&watched).map_err(refuse)?;
    let note = Note {
        boot: Pins::boot(),
        folder: 0,
        chunk_bytes: settings.bitmap_chunk_bytes,
        disks: parts,
    };
    let shared = Arc::new(Shared::new(kernel, Arc::clone(clock), mode, watched));
    shared.landed_unseen().map_err(refuse)?;
    // Behind it: which of these failed the old program alone knows, by its bits.
    if resume(stream, &shared.kernel, &pins, note, &tracked).map_err(refuse)? {
        shared.blind();
    }
    for disk in &stream.disks {
        let gate = DiskGate { shared: Arc::clone(&shared), disk: disk.index.0 };
        disk.source.guard(Arc::new(gate));
    }
    let disks = tracked.len();
    let chunk_bytes = u64::from(settings.bitmap_chunk_bytes);
    let naps = Naps::new(&rings.events);
    let naps = naps.map_err(|error| refuse(format!("wait for the ring: {error}")))?;
    let (shared_too, stream) = (Arc::clone(&shared), Arc::clone(stream));
    let reader = Reader::new(shared_too, stream, rings, naps, tracked, chunk_bytes);
    let thread = std::thread::Builder::new()
        .name("ebpf-reader".to_owned())
        .spawn(move || reader.run())
        .map_err(|source| AgentError::io(directory, "start a thread", source))?;
    Ok(Arc::new(Ebpf { shared, disks, reader: Mutex::new(Some(thread)) }))
}

/// Why the program could not be started, and what to do about it.
pub(super) fn with_cure(why: &str, earlier_ring: bool) -> String {
    let memory = format!("(os error {})", Errno::NOMEM.raw_os_error());
    let cure = match (why.contains(&memory), earlier_ring) {
        (true, true) => {
            "the program of the agent that stopped keeps its ring until the new one has taken over: make \
             [ebpf] ring_bytes smaller, or have `holdfast agent release` take it out (the disks are read again \
             then)"
        }
        (true, false) => "make [ebpf] ring_bytes smaller, or use capture = \"scan\"",
        (false, _) => "use capture = \"scan\"",
    };
    format!("{why}; {cure}")
}

/// The disks in the order of the stream, each on its device.
fn parts(stream: &Stream, settings: &AgentSettings) -> Result<Vec<(String, Part)>, AgentError> {
    let mut parts: Vec<(String, Part)> = Vec::new();
    for disk in &stream.disks {
        let named = settings.disks.iter().find(|one| one.name == disk.name);
        let Some(named) = named else { continue };
        let part = device::part(&named.path)?;
        if device::below(&settings.state_directory).contains(&part.device) {
            return Err(AgentError::Settings(format!(
                "state_directory {} lies on {}, which is captured: each write of the agent would be one more to \
                 send; put it on another disk, or below /run",
                settings.state_directory.display(),
                named.path.display()
            )));
        }
        let meets = |other: &&(String, Part)| {
            other.1.device == part.device && other.1.start < part.end && part.start < other.1.end
        };
        if let Some((other, _)) = parts.iter().find(meets) {
            let name = &disk.name;
            let why = format!("disks {other} and {name} lie on each other; name one of them");
            return Err(AgentError::Settings(why));
        }
        parts.push((disk.name.to_string(), part));
    }
    Ok(parts)
}

/// Where the bits of each disk begin.
fn tracked(stream: &Stream, chunk_bytes: u64) -> Vec<Tracked> {
    let mut first_chunk = 0;
    let each = stream.disks.iter().map(|disk| {
        let tracked = Tracked { bytes: disk.size_bytes, first_chunk };
        first_chunk += disk.size_bytes.div_ceil(chunk_bytes);
        tracked
    });
    each.collect()
}

/// The best mode that the kernel allows and that was proven.
///
/// # Errors
/// When it is not known that writes are seen at all.
fn proven(
    possible: Possible,
    kernel: &Kernel,
    rings: &mut Rings,
    directory: &Path,
    first_chunk: u64,
    entropy: &dyn Entropy,
) -> Result<(CaptureMode, String), String> {
    let places_only = match possible {
        Possible::Data => None,
        Possible::Extents(why) | Possible::Nothing(why) => Some(why),
    };
    match proof::prove(kernel, rings, directory, first_chunk, entropy, places_only)? {
        Proven::Data => {
            let why = "each write is copied as it goes to the device";
            Ok((CaptureMode::Ordered, why.to_owned()))
        }
        Proven::Places(why) => {
            let why = format!(
                "payloads are not copied ({why}): points come only when nothing is written"
            );
            tracing::warn!(why, "eBPF capture sees where is written, not what");
            Ok((CaptureMode::Extents, why))
        }
    }
}

/// Takes over what an earlier life of this boot left collecting; the new program sees everything
/// already. Without that nobody knows what was written since: a new epoch. `true` when the program was out of
/// the kernel for a moment: a write may fly that nobody noted.
///
/// # Errors
/// In words, when a bitmap cannot be written, or the program is not in the kernel any more.
pub(super) fn resume(
    stream: &Stream,
    kernel: &Kernel,
    pins: &Pins,
    mut note: Note,
    tracked: &[Tracked],
) -> Result<bool, String> {
    let bits = pins.earlier(&note).and_then(|folder| {
        let (missed, handled) = kernel::pinned_misses(&folder)?;
        whole(missed, handled)?;
        kernel::pinned_dirty(&folder)
    });
    match bits {
        Ok(bits) => {
            let chunk_bytes = u64::from(note.chunk_bytes);
            let why = "written while the agent was not running";
            let runs = runs(&bits, tracked, chunk_bytes);
            let bytes: u64 = runs.iter().map(|(_, range)| range.end - range.start).sum();
            // The pins that hold these bits go below: not before they are in the file.
            if let Some((disk, error)) = stream.unordered_all(runs, why).pop_first() {
                return Err(format!("the bitmap of disk {} cannot be written: {error}", disk.0));
            }
            tracing::info!(bytes, "what was written while no agent ran is known, and read again");
        }
        Err(why) => {
            tracing::warn!(why, "the disks are read again: a new epoch begins");
            let mut core = stream.lock();
            core.clean = false;
            core.resync.get_or_insert(why);
        }
    }
    let pinned = pins.make().and_then(|(folder, path)| {
        note.folder = folder;
        kernel.pin(&path)?;
        pins.keep(&note)
    });
    pinned.map_or_else(|why| unpinned(stream, kernel, pins, &why), |()| Ok(false))
}

/// The program could not be pinned. An attempt that ended half-way has taken it out of the kernel: what was
/// written until it is back was seen by nobody, and the bits of the earlier life were read before.
pub(super) fn unpinned(
    stream: &Stream,
    kernel: &Kernel,
    pins: &Pins,
    why: &str,
) -> Result<bool, String> {
    tracing::warn!(
        why,
        "the program is not pinned: after a restart of the agent the disks are read again"
    );
    let was_out = kernel.ensure_attached()?;
    if was_out {
        let why = format!("the program was out of the kernel for a moment: {why}");
        tracing::warn!(why, "the disks are read again: a new epoch begins");
        let mut core = stream.lock();
        core.clean = false;
        core.resync.get_or_insert(why);
    }
    pins.forget();
    Ok(was_out)
}

impl Observer for Ebpf {
    fn settle(&self) -> Result<(), String> {
        self.shared.settle()
    }

    fn modes(&self) -> Vec<(DiskIndex, CaptureMode, String)> {
        let (mode, why) = self.shared.mode();
        (0..self.disks).map(|disk| (DiskIndex(disk as u16), mode, why.clone())).collect()
    }

    /// The pinned program goes on setting bits: the next life reads them. So the stream ends with what was
    /// told in order, however much is written: a record without payload would have it lose its order.
    fn stop(&self) {
        let settled = self.shared.settle();
        self.shared.stopping.store(true, Ordering::Release);
        let thread = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the reader of the eBPF rings ended in a panic");
        }
        // Behind the reader's end: what it told without its bytes would have to be read again, and nobody
        // reads any more.
        if let Err(why) = settled.and(self.shared.kernel.copy(false)) {
            tracing::warn!(why, "eBPF capture did not stop in order");
        }
    }
}

impl Drop for Ebpf {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
    }
}
