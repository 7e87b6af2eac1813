//! One machine: the product's agent, and a workload on its disk.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast::agent::{Agent, AgentStatus};
use holdfast::clock::{Clock, System};
use holdfast::model::{BookmarkKind, MachineId, Sequence};
use holdfast::nbd::Export;
use holdfast::settings::load_agent;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::history::{History, SECTOR};
use crate::error::LoadError;
use crate::wait::pause;

/// The name of its disk.
pub(crate) const DISK: &str = "disk0";
/// Longest write, sectors.
const SECTORS_MAX: u32 = 32;

/// A machine of the run.
pub(crate) struct Machine {
    pub(crate) id: MachineId,
    pub(crate) agent: Agent,
    export: Arc<dyn Export>,
    pub(crate) history: Arc<Mutex<History>>,
    stop: Arc<AtomicBool>,
    writer: Option<JoinHandle<Result<(), LoadError>>>,
}

impl Machine {
    /// Starts its agent. Must be called inside a runtime.
    pub(crate) fn start(name: &str, config: &Path) -> Result<Self, LoadError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
            let what = "starting an agent";
            LoadError::Site { what, source }
        };
        let settings = load_agent(config).map_err(|error| failed(error.into()))?;
        let agent = Agent::start(settings, System::clock(), System::entropy());
        let agent = agent.map_err(|error| failed(error.into()))?;
        let disk = DISK.parse().expect("a legal name");
        let export = agent.export(&disk).map_err(|error| failed(error.into()))?;
        Ok(Self {
            id: name.parse().expect("a legal name"),
            agent,
            export,
            history: Arc::default(),
            stop: Arc::default(),
            writer: None,
        })
    }

    /// Begins to write: `rate` bytes per second, at random places.
    pub(crate) fn write(&mut self, seed: u64, rate: u64) {
        let export = Arc::clone(&self.export);
        let (history, stop) = (Arc::clone(&self.history), Arc::clone(&self.stop));
        let machine = self.id.to_string();
        self.writer = Some(std::thread::spawn(move || {
            let mut random = StdRng::seed_from_u64(seed);
            let (start, mut written) = (System.monotonic(), 0);
            while !stop.load(Ordering::Relaxed) {
                let due = start + Duration::from_secs_f64(written as f64 / rate as f64);
                if let Some(early) = due.checked_sub(System.monotonic()) {
                    pause(early.min(Duration::from_millis(50)));
                    continue;
                }
                let sectors = random.random_range(1..=SECTORS_MAX);
                let disk_sectors = export.size_bytes() / SECTOR;
                let first = random.random_range(0..=disk_sectors - u64::from(sectors));
                let history = history.lock();
                let bytes = history.unwrap_or_else(PoisonError::into_inner).next(first, sectors);
                written += bytes.len() as u64;
                export.write(first * SECTOR, bytes.into(), false).map_err(|error| {
                    let what = format!("a write of the workload failed: {error}");
                    LoadError::Broken { machine: machine.clone(), what }
                })?;
            }
            Ok(())
        }));
    }

    /// Ends the writes and places a bookmark behind them; `None` when the order is lost now.
    pub(crate) fn finish(&mut self, name: &str) -> Result<Option<Sequence>, LoadError> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(writer) = self.writer.take() {
            writer.join().map_err(|_| LoadError::Thread("writers"))??;
        }
        let placed = self.agent.bookmark(name, BookmarkKind::CrashConsistent);
        Ok(placed.ok().map(|(_, sequence)| sequence))
    }

    pub(crate) fn status(&self) -> AgentStatus {
        self.agent.status()
    }
}
