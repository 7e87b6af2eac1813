//! From a disk's settings to a thread that scans it, and to its end.
//!
//! Owns: the thread. Does not own: what it does ([`super::pass`]).

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::clock::{Clock, Entropy};
use crate::model::{DISK_BYTES_MAX, DiskIndex, DiskName, MachineKey, SECTOR_BYTES};
use crate::settings::{AgentDisk, AgentSettings, ScanSettings};

use super::super::super::bitmap::{Identity, Teller};
use super::super::super::error::AgentError;
use super::super::super::medium::Medium;
use super::super::super::source_identity::SourceIdentity;
use super::super::super::stream::Stream;
use super::super::{Age, CaptureMode, Observer};
use super::device::Device;
use super::hashes::Hashes;
use super::pass::Scan;
use super::report::Shared;
use super::watched::{Source, Watched};

/// A disk that is opened and not scanned yet.
pub(in crate::agent) struct Scanned {
    name: DiskName,
    path: PathBuf,
    settings: ScanSettings,
    watched: Arc<Watched>,
}

/// A scan that runs. Dropping it ends it, and leaves a snapshot behind for the next life to drop.
pub(in crate::agent) struct Running(Arc<Watched>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Scanned {
    /// Looks at the disk, and opens its hash file.
    ///
    /// # Errors
    /// When the disk cannot be read, has an impossible size, or the hash file cannot be used.
    pub(in crate::agent) fn open(
        disk: &AgentDisk,
        settings: &ScanSettings,
        agent: &AgentSettings,
        entropy: &dyn Entropy,
    ) -> Result<Self, AgentError> {
        let refused = |source| AgentError::io(&disk.path, "open the disk to scan it", source);
        let bytes = Device::open(&disk.path, 0).and_then(|device| device.size_bytes());
        let bytes = bytes.map_err(refused)?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) || bytes > DISK_BYTES_MAX {
            return Err(AgentError::DiskSize { path: disk.path.clone(), bytes });
        }
        let identity = Identity {
            machine: MachineKey::of(&agent.machine),
            disk: disk.name.clone(),
            disk_bytes: bytes,
            chunk_bytes: agent.bitmap_chunk_bytes,
            disks_crc: 0, // other disks change nothing about what is known of this one
            teller: Teller::Scan,
            source: SourceIdentity::default(), // of whatever lies there each chunk is compared
        };
        let path = agent.state_directory.join(format!("{}.hashes", disk.name));
        let opened = Hashes::open(&path, &identity, entropy);
        let (hashes, why) = opened
            .map_err(|source| AgentError::io(&path, "open the hash file of a scan", source))?;
        if let Some(why) = why {
            let path = path.display();
            tracing::warn!(%path, why, "no usable hash file: the first pass sends every chunk");
        }
        let watched = Watched::new(bytes, agent.bitmap_chunk_bytes, hashes);
        let (name, path, settings) = (disk.name.clone(), disk.path.clone(), settings.clone());
        Ok(Self { name, path, settings, watched })
    }

    /// What catch-ups read.
    pub(in crate::agent) fn medium(&self) -> Box<dyn Medium> {
        Box::new(Source(Arc::clone(&self.watched)))
    }

    pub(in crate::agent) fn size_bytes(&self) -> u64 {
        self.watched.size_bytes()
    }

    /// Begins to scan. No point is possible before the first pass allows one.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(in crate::agent) fn start(
        self,
        stream: &Arc<Stream>,
        clock: &Arc<dyn Clock>,
    ) -> Result<(Running, Arc<dyn Observer>), AgentError> {
        let Self { name, path, settings, watched } = self;
        let found = stream.disks.iter().find(|disk| disk.name == name);
        let Some(disk) = found.map(Arc::clone) else {
            return Err(AgentError::UnknownDisk { disk: name });
        };
        let index = disk.index;
        let weak = Arc::downgrade(stream);
        watched.withhold_by(Box::new(move |why| {
            if let Some(stream) = weak.upgrade() {
                stream.withhold(index, why);
            }
        }));
        let report = Arc::new(Shared::new(settings.hook.is_some()));
        let scan = Scan {
            disk,
            stream: Arc::clone(stream),
            watched: Arc::clone(&watched),
            clock: Arc::clone(clock),
            path: path.clone(),
            settings,
            report: Arc::clone(&report),
        };
        let thread = std::thread::Builder::new().name("scan".to_owned());
        let thread = thread.spawn(move || scan.run());
        let thread =
            thread.map_err(|source| AgentError::io(&path, "begin to scan the disk", source))?;
        let observer = Watcher {
            index,
            watched: Arc::clone(&watched),
            clock: Arc::clone(clock),
            report,
            thread: Mutex::new(Some(thread)),
        };
        Ok((Running(watched), Arc::new(observer)))
    }
}

/// The scan as the stream sees it.
struct Watcher {
    index: DiskIndex,
    watched: Arc<Watched>,
    clock: Arc<dyn Clock>,
    report: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Observer for Watcher {
    /// A point shows the disk as of a pass, not as of now; while it cannot, the disk is withheld.
    fn settle(&self) -> Result<(), String> {
        Ok(())
    }

    fn modes(&self) -> Vec<(DiskIndex, CaptureMode, String)> {
        let words = self.report.lock().words(self.clock.monotonic());
        vec![(self.index, CaptureMode::Bitmap, words)]
    }

    fn ages(&self) -> Vec<(DiskIndex, Age)> {
        vec![(self.index, self.report.lock().age(self.clock.monotonic()))]
    }

    fn stop(&self) {
        self.watched.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of a scan panicked");
        }
    }
}
