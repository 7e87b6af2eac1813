//! Live writes: one client of the agent's NBD export that rewrites a file's blocks until it is told
//! to stop, and can be held for a moment.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::error::DemoError;
use crate::clock::{Clock, System};
use crate::nbd::{Client, NbdError};

/// Bytes per second at most: a busy database, not a flood.
const RATE: u64 = 8 << 20;
const WRITE_BYTES: u64 = 16 << 10;

/// The writes.
pub(super) struct Live {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), NbdError>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    bytes: AtomicU64,
    gate: Mutex<Gate>,
    turned: Condvar,
}

#[derive(Default)]
struct Gate {
    held: bool,
    resting: bool,
}

impl Live {
    pub(super) fn start(socket: PathBuf, name: String, places: Vec<Range<u64>>) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || write(&theirs, &socket, &name, &places));
        Self { shared, thread }
    }

    /// Runs `action` while no write is in flight.
    pub(super) fn held<T>(&self, action: impl FnOnce() -> T) -> T {
        let mut gate = self.shared.gate.lock().unwrap_or_else(PoisonError::into_inner);
        gate.held = true;
        while !gate.resting && !self.thread.is_finished() {
            let waited = self.shared.turned.wait_timeout(gate, Duration::from_millis(50));
            gate = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(gate);
        let result = action();
        self.shared.gate.lock().unwrap_or_else(PoisonError::into_inner).held = false;
        self.shared.turned.notify_all();
        result
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn stop(self) -> Result<u64, DemoError> {
        self.shared.stop.store(true, Ordering::Release);
        let ended = self.thread.join().map_err(|_| DemoError::Thread("live writes"))?;
        ended.map_err(DemoError::Writes)?;
        Ok(self.shared.bytes.load(Ordering::Relaxed))
    }
}

impl Shared {
    /// Waits while the writes are held, or for the next one's time.
    fn rest(&self, until: Duration) {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = System.monotonic();
            if self.stop.load(Ordering::Acquire) || (!gate.held && now >= until) {
                gate.resting = false;
                return;
            }
            gate.resting = true;
            self.turned.notify_all();
            let wait = until.saturating_sub(now).max(Duration::from_millis(1));
            let waited = self.turned.wait_timeout(gate, wait);
            gate = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn write(
    shared: &Shared,
    socket: &std::path::Path,
    name: &str,
    places: &[Range<u64>],
) -> Result<(), NbdError> {
    let mut client = Client::connect(socket, name)?;
    let mut random = StdRng::seed_from_u64(1);
    let pause = Duration::from_secs_f64(WRITE_BYTES as f64 / RATE as f64);
    let mut next = System.monotonic();
    let mut line = 0_u64;
    while !shared.stop.load(Ordering::Acquire) {
        shared.rest(next);
        next += pause;
        let place = &places[random.random_range(0..places.len())];
        let length = WRITE_BYTES.min(place.end - place.start);
        let room = (place.end - place.start - length) / 4096;
        let offset = place.start + random.random_range(0..=room) * 4096;
        let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
        random.fill_bytes(&mut payload[..4096.min(length as usize)]);
        for chunk in payload[4096.min(length as usize)..].chunks_mut(64) {
            line += 1;
            let text = format!("{line:020} a line of a log that some service writes, again\n");
            let count = chunk.len().min(text.len());
            chunk[..count].copy_from_slice(&text.as_bytes()[..count]);
        }
        client.write(offset, &payload, false)?;
        shared.bytes.fetch_add(length, Ordering::Relaxed);
        if line.is_multiple_of(4096) {
            client.flush()?;
        }
    }
    client.flush()
}
