//! Passes over a scanned disk: what differs is to be read again, and when the stream's state is one
//! that the disk was in, a point may be placed.
//!
//! Owns: when the disk is read, and when a point is possible. Does not own: what is placed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::model::TrackingMode;
use crate::settings::{ScanSettings, SnapshotHook};

use super::super::super::disk::Disk;
use super::super::super::stream::Stream;
use super::device::Device;
use super::hooks;
use super::pauses::Pauses;
use super::report::Shared;
use super::watched::{Compared, Watched};

/// Bytes read at a time, or a chunk where that is larger.
const READ_BYTES: u64 = 1 << 20;
/// Changed chunks that are made known together.
const BATCH_CHUNKS: usize = 256;
/// Pause between two looks at a catch-up.
const LOOK: Duration = Duration::from_millis(50);
/// Longest rest without a look at what was published.
const REST: Duration = Duration::from_secs(5);
/// So long a pass waits for a process server that takes what changed; then its snapshot is dropped.
const SERVER_PATIENCE: Duration = Duration::from_secs(60);
const WHY: &str = "a scan found changes";
/// Behind a pass that failed whoever waits for a snapshot waits for so long, twice as long behind the next.
const FAILED_MIN: Duration = Duration::from_secs(1);
const FAILED_MAX: Duration = Duration::from_secs(60);

/// The scan of one disk.
pub(super) struct Scan {
    pub(super) disk: Arc<Disk>,
    pub(super) stream: Arc<Stream>,
    pub(super) watched: Arc<Watched>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) path: PathBuf,
    pub(super) settings: ScanSettings,
    pub(super) report: Arc<Shared>,
}

/// A device for the time of a pass; a snapshot is dropped with it.
struct Shown<'a> {
    scan: &'a Scan,
    device: Arc<Device>,
    /// The disk's state in the pass is one that it had no earlier than then.
    at: Duration,
    /// Reads of catch-ups before it.
    reads: u64,
    hook: Option<&'a SnapshotHook>,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        let Some(hook) = self.hook else { return };
        self.scan.watched.end();
        if let Err(why) = self.scan.drop_snapshot(hook) {
            tracing::error!(disk = %self.scan.disk.name, why, "the snapshot may still be there");
        }
    }
}

/// Shortest rest behind so many passes in a row that failed.
pub(super) fn behind_a_failure(failures: u32, interval: Duration) -> Duration {
    let Some(before) = failures.checked_sub(1) else { return Duration::ZERO };
    let doubled = FAILED_MIN.saturating_mul(1_u32.checked_shl(before).unwrap_or(u32::MAX));
    doubled.min(FAILED_MAX).min(interval)
}

impl Scan {
    /// Passes, for as long as the agent lives.
    pub(super) fn run(&self) {
        if let Some(hook) = &self.settings.hook {
            // Of a life that was killed in a pass; as a rule there is none, and that is fine.
            if let Err(why) = self.drop_snapshot(hook) {
                tracing::info!(disk = %self.disk.name, why, "no snapshot of an earlier life dropped");
            }
        }
        let mut failures = 0_u32;
        while !self.watched.pauses.stopped() {
            let outcome = self.pass();
            self.learn();
            failures = if outcome.is_ok() { 0 } else { failures.saturating_add(1) };
            if let Err(why) = outcome {
                if self.watched.pauses.stopped() {
                    return;
                }
                tracing::warn!(disk = %self.disk.name, why, "a pass over the disk was given up");
                self.report.lock().failed(why);
            }
            self.rest(behind_a_failure(failures, self.settings.interval));
        }
    }

    /// Waits for the next pass; a catch-up that needs a snapshot makes it due after `least`.
    fn rest(&self, least: Duration) {
        let began = self.clock.monotonic();
        let (early, due) = (began + least, began + self.settings.interval);
        loop {
            let now = self.clock.monotonic();
            let starves = now >= early && self.watched.starving();
            if now >= due || self.watched.pauses.stopped() || starves {
                return;
            }
            let next = if now < early { early } else { due };
            self.watched.pauses.wait(REST.min(next - now));
            self.learn();
        }
    }

    /// One pass.
    ///
    /// # Errors
    /// In words, when it cannot be brought to its end: whatever it found is dirty all the same.
    pub(super) fn pass(&self) -> Result<(), String> {
        let shown = match &self.settings.hook {
            Some(hook) => self.snapshot(hook)?,
            None => self.live()?,
        };
        // With a snapshot: what is dirty is read from it, too. Else: that is over.
        self.repaired()?;
        let changed = self.compare(&shown)?;
        self.repaired()?;
        self.learn();
        // A snapshot is one state, and all that differed from it was read from it. Without one, all
        // of the disk must have been the same before this pass began and after.
        let quiet = match shown.hook {
            Some(_) => self.watched.unless_read(None, || self.allow(shown.at)),
            None => {
                changed == 0 && self.watched.unless_read(Some(shown.reads), || self.allow(shown.at))
            }
        };
        tracing::debug!(disk = %self.disk.name, changed, quiet, "a pass over the disk ended");
        self.report.lock().ended(changed);
        Ok(())
    }

    /// A point may be placed, and shows the disk as it was then. That first: a bookmark says it.
    fn allow(&self, at: Duration) {
        self.report.lock().shows(at, self.clock.monotonic());
        self.stream.release(self.disk.index);
    }

    fn snapshot<'a>(&'a self, hook: &'a SnapshotHook) -> Result<Shown<'a>, String> {
        let at = self.clock.monotonic();
        let (clock, pauses) = (self.clock.as_ref(), &self.watched.pauses);
        let made = hooks::call("snapshot", &hook.snapshot, hook.timeout, clock, pauses);
        let opened = made.and_then(|()| self.open(&hook.path));
        match opened {
            Ok(device) => {
                let reads = self.watched.begin(&device);
                Ok(Shown { scan: self, device, at, reads, hook: Some(hook) })
            }
            Err(why) => {
                // Half of it may be there.
                let _told_with_the_next = self.drop_snapshot(hook);
                Err(why)
            }
        }
    }

    /// Not ended by a stop of the agent: nothing may be left behind.
    fn drop_snapshot(&self, hook: &SnapshotHook) -> Result<(), String> {
        let pauses = Pauses::default();
        hooks::call("release", &hook.release, hook.timeout, self.clock.as_ref(), &pauses)
    }

    /// The disk itself. A catch-up may read it at any time; the pass begins when none is left to.
    fn live(&self) -> Result<Shown<'_>, String> {
        let device = self.open(&self.path)?;
        self.watched.begin(&device);
        self.repaired()?;
        // Whoever reads now has read before the pass.
        self.watched.end();
        let reads = self.watched.begin(&device);
        Ok(Shown { scan: self, device, at: self.clock.monotonic(), reads, hook: None })
    }

    fn open(&self, path: &std::path::Path) -> Result<Arc<Device>, String> {
        let device = Device::open(path, self.disk.size_bytes);
        device.map(Arc::new).map_err(|error| error.to_string())
    }

    /// Waits until nothing is dirty.
    fn repaired(&self) -> Result<(), String> {
        let mut taken_at = self.clock.monotonic();
        while self.disk.bitmap.dirty_bytes() > 0 {
            let now = self.clock.monotonic();
            if self.watched.pauses.stopped() {
                return Err("the agent stops".to_owned());
            }
            let mode = self.stream.lock().mode;
            if mode != TrackingMode::Bitmap {
                taken_at = now;
            } else if now - taken_at > SERVER_PATIENCE {
                return Err("no process server takes what changed".to_owned());
            }
            self.report.lock().waits(self.disk.bitmap.dirty_bytes());
            self.watched.pauses.rest(LOOK);
            self.learn();
        }
        Ok(())
    }

    /// Reads the whole disk; gives the bytes of chunks that differ.
    fn compare(&self, shown: &Shown<'_>) -> Result<u64, String> {
        let (watched, began) = (&self.watched, self.clock.monotonic());
        let chunk_bytes = u64::from(self.disk.bitmap.identity().chunk_bytes);
        let step = (READ_BYTES / chunk_bytes).max(1);
        let (mut batch, mut changed) = (Vec::new(), 0);
        let mut content = Vec::new();
        for first in (0..watched.chunks()).step_by(step as usize) {
            if watched.pauses.stopped() {
                return Err("the agent stops".to_owned());
            }
            let chunks = first..(first + step).min(watched.chunks());
            let range = watched.bytes(&chunks);
            content.resize((range.end - range.start) as usize, 0);
            let named = |error: io::Error| format!("reading at {}: {error}", range.start);
            shown.device.read_at(range.start, &mut content).map_err(named)?;
            for (chunk, content) in chunks.zip(content.chunks(chunk_bytes as usize)) {
                let compared = watched.compare(chunk, content);
                let compared = compared.map_err(|error| format!("the hash file: {error}"))?;
                if compared == Compared::Changed {
                    changed += content.len() as u64;
                    batch.push(chunk);
                }
            }
            if batch.len() >= BATCH_CHUNKS {
                self.found(&mut batch)?;
            }
            self.report.lock().compared(range.end, self.disk.size_bytes, changed);
            self.pace(range.end, began);
        }
        self.found(&mut batch)?;
        Ok(changed)
    }

    /// Makes changed chunks known to the stream.
    pub(super) fn found(&self, batch: &mut Vec<u64>) -> Result<(), String> {
        let forgotten = self.watched.forget(batch);
        forgotten.map_err(|error| format!("the hash file: {error}"))?;
        let runs = batch.chunk_by(|one, next| one + 1 == *next);
        let bytes = |run: &[u64]| self.watched.bytes(&(run[0]..run[run.len() - 1] + 1));
        let ranges = runs.map(|run| (self.disk.index, bytes(run)));
        if let Some((_, error)) = self.stream.unordered_all(ranges, WHY).pop_first() {
            return Err(format!("the bitmap: {error}"));
        }
        batch.clear();
        Ok(())
    }

    /// Rests until so many bytes may have been read.
    fn pace(&self, bytes: u64, began: Duration) {
        let Some(rate) = self.settings.read_bytes_per_second_max else { return };
        let due = began + Duration::from_secs_f64(bytes as f64 / rate as f64);
        let now = self.clock.monotonic();
        if due > now {
            self.watched.pauses.rest(due - now);
        }
    }

    fn learn(&self) {
        if let Err(error) = self.watched.learn(&self.disk.bitmap) {
            // What is not known is sent again.
            tracing::warn!(disk = %self.disk.name, %error, "the hash file cannot be written");
        }
    }
}
