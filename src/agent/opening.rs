//! From settings to a stream: the state directory, the disks, their bitmaps.
//!
//! Owns: what may be believed after the last life. Does not own: anything that runs.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::clock::Entropy;
use crate::format::bytes::Writer;
use crate::model::{DISKS_MAX, DiskIndex, Epoch, MachineKey, Sequence, WRITE_BYTES_MAX};
use crate::settings::{AgentDisk, AgentSettings};

use super::bitmap::{self, Bitmap, Found, Identity, Teller};
use super::capture::{self, Scanned};
use super::disk::Disk;
use super::error::AgentError;
use super::locks::RangeLocks;
use super::medium::Medium;
use super::stream::Stream;
use super::syncs::Syncs;
use super::turnover::{Awaited, Turnover};

/// Smallest resend buffer.
const BUFFER_BYTES_MIN: u64 = 64 << 10;

/// Locks the state directory and opens everything in it.
pub(super) fn open(
    settings: &AgentSettings,
    entropy: &dyn Entropy,
) -> Result<(File, Stream, Vec<Scanned>), AgentError> {
    check(settings)?;
    let directory = &settings.state_directory;
    let action = |action| move |source| AgentError::io(directory, action, source);
    std::fs::create_dir_all(directory).map_err(action("make the state directory"))?;
    let lock = lock(directory)?;
    // By name, so that the order in the settings means nothing.
    let mut order: Vec<&AgentDisk> = settings.disks.iter().collect();
    order.sort_by(|one, other| one.name.cmp(&other.name));
    let mut opening = capture::Opening { settings, entropy, scanned: Vec::new() };
    let mut sources = Vec::new();
    let mut layout = Writer::new();
    for disk in &order {
        let (medium, bytes) = capture::open(disk, &mut opening)?;
        layout.text(disk.name.as_str()).u64(bytes);
        sources.push((medium, bytes));
    }
    let disks_crc = crc32fast::hash(&layout.0);
    let (mut disks, mut past) = (Vec::new(), Past::default());
    for (index, (disk, (medium, size_bytes))) in order.iter().zip(sources).enumerate() {
        let turnover = Arc::new(Turnover::default());
        let identity = identity(settings, disk, medium.as_ref(), size_bytes, disks_crc);
        let path = directory.join(format!("{}.bitmap", disk.name));
        let (bitmap, found) = bitmap::open(&path, &identity, &turnover)
            .map_err(|source| AgentError::io(&path, "open the bitmap", source))?;
        past.add(disk, &path, &found, bitmap.history());
        past.written(disk, &bitmap, medium.as_ref())?;
        disks.push(Arc::new(Disk {
            index: DiskIndex(index as u16),
            name: disk.name.clone(),
            size_bytes,
            source: Box::new(Awaited::new(medium, &turnover)),
            bitmap,
            locks: RangeLocks::default(),
            syncs: Syncs::default(),
            turnover,
        }));
    }
    let clean = past.clean && past.resync.is_none();
    for disk in &disks {
        disk.bitmap.mark_running().map_err(action("write the bitmap"))?;
    }
    let Past { epoch, witnessed, resync, because, .. } = past;
    let epoch = epoch.unwrap_or_default();
    let bytes_max = settings.buffer_bytes_max;
    let stream = Stream::new(disks, bytes_max, epoch, witnessed, clean, resync);
    stream.lock().because = because;
    Ok((lock, stream, opening.scanned))
}

/// What a disk's bitmap must be about.
fn identity(
    settings: &AgentSettings,
    disk: &AgentDisk,
    medium: &dyn Medium,
    disk_bytes: u64,
    disks_crc: u32,
) -> Identity {
    let (teller, source) = (Teller::from(&disk.capture), medium.identity());
    if teller == Teller::Agent && !source.is_known() {
        let (disk, path) = (&disk.name, disk.path.display());
        tracing::warn!(%disk, %path, "nothing that lasts over a boot tells this device from another one of its \
            size (no WWID, serial or UUID): after putting another in its place run `holdfast agent resync`");
    }
    Identity {
        machine: MachineKey::of(&settings.machine),
        disk: disk.name.clone(),
        disk_bytes,
        chunk_bytes: settings.bitmap_chunk_bytes,
        disks_crc,
        teller,
        source,
    }
}

fn check(settings: &AgentSettings) -> Result<(), AgentError> {
    let AgentSettings {
        bitmap_chunk_bytes: chunk, buffer_bytes_max: buffer, disks, servers, ..
    } = settings;
    let refuse = |text: String| Err(AgentError::Settings(text));
    if !chunk.is_power_of_two() || !(4096..=WRITE_BYTES_MAX).contains(chunk) {
        return refuse(format!(
            "bitmap_chunk_bytes is {chunk}, a power of two from 4096 to {WRITE_BYTES_MAX} is allowed"
        ));
    }
    let least = BUFFER_BYTES_MIN.max(4 * u64::from(*chunk));
    if *buffer < least {
        return refuse(format!(
            "buffer_bytes_max is {buffer}, at least {least} is needed (four chunks of the bitmap)"
        ));
    }
    if servers.is_empty() || disks.is_empty() || disks.len() > DISKS_MAX {
        let (servers, disks) = (servers.len(), disks.len());
        return refuse(format!(
            "{servers} servers and {disks} disks are named; at least 1 server, 1 to {DISKS_MAX} disks"
        ));
    }
    let mut names: Vec<_> = disks.iter().map(|disk| &disk.name).collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => refuse(format!("disk {} is named twice", pair[0])),
        None => Ok(()),
    }
}

/// Refuses root where another user's agent lives: what root leaves there that one cannot open, and so it
/// would never start again.
fn own(directory: &Path) -> Result<(), AgentError> {
    let failed = |source| AgentError::io(directory, "see whose state directory this is", source);
    let owner = match directory.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(failed)?.uid(),
    };
    if owner == 0 || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // passwd(5): the name is the first field, the number the third.
    let (users, number) = (std::fs::read_to_string("/etc/passwd"), owner.to_string());
    let users = users.unwrap_or_default();
    let named = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        (fields.get(2) == Some(&number.as_str())).then(|| fields[0].to_owned())
    };
    let user = users.lines().find_map(named).unwrap_or_else(|| format!("#{number}"));
    Err(AgentError::Foreign { path: directory.into(), user })
}

pub(super) fn lock(directory: &Path) -> Result<File, AgentError> {
    own(directory)?;
    let path = directory.join("lock");
    let file =
        File::create(&path).map_err(|source| AgentError::io(&path, "make the lock", source))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(AgentError::StateInUse { path: directory.into() }),
        Err(error) => Err(AgentError::io(&path, "lock the state directory", error.into())),
    }
}

/// The state directory of an agent that does not run, whoever's it is: nothing is made in it. `None` when
/// there was no agent.
pub(super) fn lock_left(directory: &Path) -> Result<Option<File>, AgentError> {
    let path = directory.join("lock");
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|source| AgentError::io(&path, "open the lock", source))?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Err(AgentError::StateInUse { path: directory.into() }),
        Err(error) => Err(AgentError::io(&path, "lock the state directory", error.into())),
    }
}

/// Whether this user may run an agent of these settings.
///
/// # Errors
/// When not: what it leaves in the state directory would shut the directory's own user out.
pub fn may_run(settings: &AgentSettings) -> Result<(), AgentError> {
    own(&settings.state_directory)
}

/// Whether an agent lives in the state directory. An agent that starts in the moment in which this is asked
/// finds it locked, and looks again.
///
/// # Errors
/// When its lock cannot be looked at.
pub fn runs(settings: &AgentSettings) -> Result<bool, AgentError> {
    let path = settings.state_directory.join("lock");
    let failed = |source| AgentError::io(&path, "see whether an agent runs", source);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened.map_err(failed)?,
    };
    // Shared: two who ask do not take each other for an agent.
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(failed(error.into())),
    }
}

/// What the bitmaps of all disks say together.
struct Past {
    epoch: Option<Epoch>,
    witnessed: Sequence,
    clean: bool,
    resync: Option<String>,
    /// Why everything of a disk is read again in the same epoch.
    because: Option<String>,
}

impl Default for Past {
    fn default() -> Self {
        Self { epoch: None, witnessed: Sequence::ZERO, clean: true, resync: None, because: None }
    }
}

impl Past {
    fn add(
        &mut self,
        disk: &AgentDisk,
        path: &Path,
        found: &Found,
        history: (Epoch, Sequence, bool),
    ) {
        let (epoch, witnessed, clean) = history;
        let (source, path) = (disk.path.display(), path.display());
        match found {
            Found::Kept { damaged_pages, damaged_header } => {
                if *damaged_pages > 0 || *damaged_header {
                    tracing::error!(%path, damaged_pages, damaged_header,
                        "the bitmap is damaged; the chunks of damaged pages are sent again");
                }
                if self.epoch.is_some_and(|known| known != epoch) {
                    self.resync = Some(format!("{path} tracks another epoch than the other disks"));
                }
            }
            Found::Nothing(why) => {
                tracing::warn!(%source, %path, why, "no usable bitmap: the next connection begins a new epoch");
                self.resync = Some(format!("{source} ({path}): {why}"));
            }
        }
        self.epoch = self.epoch.max(Some(epoch));
        self.witnessed = self.witnessed.max(witnessed);
        self.clean &= clean;
    }

    /// Whether the source was written past the agent since it stopped: then nothing of it is believed.
    fn written(
        &mut self,
        disk: &AgentDisk,
        bitmap: &Bitmap,
        medium: &dyn Medium,
    ) -> Result<(), AgentError> {
        let path = &disk.path;
        let Some(before) = bitmap.changed() else { return Ok(()) };
        let now = medium.changed();
        let now = now.map_err(|source| AgentError::io(path, "look when it was changed", source))?;
        if now == Some(before) {
            return Ok(());
        }
        let why = format!(
            "{} was changed while no agent ran (written, or its owner, mode or name), so all of it is read again",
            path.display()
        );
        tracing::warn!(disk = %disk.name, why);
        // On disk before the note of that time goes.
        bitmap.distrust().map_err(|source| AgentError::io(path, "write the bitmap", source))?;
        self.because = Some(why);
        Ok(())
    }
}
