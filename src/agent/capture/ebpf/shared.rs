//! What the reader of the rings and those who wait for it share.
//!
//! Owns: that a settled marker means everything before it was told. Does not own: reading rings
//! ([`super::reader`]).

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::agent::capture::CaptureMode;
use crate::clock::Clock;

use super::device::{self, counts_inflight, inflight_writes};
use super::kernel::{Flight, Kernel, Watched};

/// Longest wait for the reader, or for a write that a device has not answered.
const WAIT: Duration = Duration::from_secs(20);
/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(2);
/// A request that seems to fly longer has landed unseen where the kernel does not count it any more, or counts
/// nothing: it may leave a run of a program out.
const STALE: Duration = Duration::from_secs(300);

/// Shared by the reader, the observer and the disks' media.
pub(super) struct Shared {
    pub(super) kernel: Kernel,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stopping: AtomicBool,
    next_marker: AtomicU64,
    state: Mutex<State>,
    moved: Condvar,
    watched: Vec<Watched>,
}

#[derive(Debug)]
struct State {
    /// Newest marker before which everything was told.
    told: u64,
    /// The reader ended, and why.
    ended: Option<String>,
    mode: (CaptureMode, String),
    /// Until then a write may be in flight that nobody noted.
    blind_until: Duration,
    /// Flights that were waited for, and since when.
    waited: HashMap<(u64, u64), Duration>,
}

impl Shared {
    pub(super) fn new(
        kernel: Kernel,
        clock: Arc<dyn Clock>,
        mode: (CaptureMode, String),
        watched: Vec<Watched>,
    ) -> Self {
        let state = State {
            told: 0,
            ended: None,
            mode,
            blind_until: Duration::ZERO,
            waited: HashMap::new(),
        };
        Self {
            kernel,
            clock,
            stopping: AtomicBool::new(false),
            next_marker: AtomicU64::new(1),
            state: Mutex::new(state),
            moved: Condvar::new(),
            watched,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.moved.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0
    }

    pub(super) fn marker(&self) -> u64 {
        self.next_marker.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn told(&self, marker: u64) {
        let mut state = self.lock();
        state.told = state.told.max(marker);
        self.moved.notify_all();
    }

    pub(super) fn end(&self, why: &str) {
        self.lock().ended.get_or_insert_with(|| why.to_owned());
        self.moved.notify_all();
    }

    pub(super) fn mode(&self) -> (CaptureMode, String) {
        self.lock().mode.clone()
    }

    pub(super) fn set_mode(&self, mode: CaptureMode, why: &str) {
        self.lock().mode = (mode, why.to_owned());
    }

    /// A request was issued and could not be noted as in flight.
    pub(super) fn blind(&self) {
        self.lock().blind_until = self.clock.monotonic() + STALE;
    }

    /// Returns when everything that was issued before has been told to the stream.
    ///
    /// # Errors
    /// In words, when the reader does not get there.
    pub(super) fn settle(&self) -> Result<(), String> {
        let marker = self.marker();
        let until = self.clock.monotonic() + WAIT;
        let mut marked = self.kernel.mark(marker)?;
        let mut state = self.lock();
        while state.told < marker {
            if let Some(why) = &state.ended {
                return Err(format!("eBPF capture has ended: {why}"));
            }
            if self.clock.monotonic() > until {
                return Err("more is written than the agent reads from the ring".to_owned());
            }
            state = self.wait(state);
            if !marked {
                drop(state);
                marked = self.kernel.mark(marker)?;
                state = self.lock();
            }
        }
        Ok(())
    }

    /// Returns when every write of the range that was in flight at the call is complete.
    ///
    /// # Errors
    /// In words, when one does not complete.
    pub(super) fn landed(&self, disk: u64, range: &Range<u64>) -> Result<(), String> {
        let now = self.clock.monotonic();
        if self.lock().blind_until > now {
            return Err("writes are in flight that could not be noted; waiting 5 min".to_owned());
        }
        let mut flights = self.kernel.flights()?;
        flights.retain(|flight| {
            flight.disk == disk && flight.start < range.end && flight.end > range.start
        });
        let until = now + WAIT;
        loop {
            let mut flying = Vec::new();
            for flight in flights {
                if self.kernel.flies(&flight) && !self.stale(&flight)? {
                    flying.push(flight);
                }
            }
            flights = flying;
            if flights.is_empty() {
                return Ok(());
            }
            if self.clock.monotonic() > until {
                return Err(format!("{} writes of the range do not complete", flights.len()));
            }
            drop(self.wait(self.lock()));
        }
    }

    /// Returns when no write is in flight that was issued before its device was watched: a catch-up could
    /// read what stood there before it. Where that cannot be seen, catch-ups wait as long as any write may
    /// fly.
    ///
    /// # Errors
    /// In words, when the kernel does not tell.
    pub(super) fn landed_unseen(&self) -> Result<(), String> {
        let until = self.clock.monotonic() + WAIT;
        for one in &self.watched {
            if !counts_inflight(one.device) {
                let queue = device::shown(one.device).join("queue/iostats");
                let path = queue.display().to_string();
                tracing::warn!(
                    path,
                    "the kernel does not count the writes in flight (0 in this file), so those from before \
                     the capture cannot be seen: catching up begins in 5 min"
                );
                self.blind();
                return Ok(());
            }
            while self.flies_unseen(one.device)? {
                if self.clock.monotonic() > until {
                    let device = one.device;
                    tracing::warn!(
                        device,
                        "writes from before the capture may be in flight: catching up begins in 5 min"
                    );
                    self.blind();
                    return Ok(());
                }
                drop(self.wait(self.lock()));
            }
        }
        Ok(())
    }

    /// Whether the device has more writes than were noted before it was asked and still fly: those flew
    /// all the while, so if there are no more, all that flew are noted.
    fn flies_unseen(&self, device: u32) -> Result<bool, String> {
        let (noted, writes) = self.in_flight(device)?;
        // One that touches several disks is noted for each.
        let requests: BTreeSet<u64> = noted.iter().map(Flight::of_request).collect();
        Ok(writes > requests.len() as u64)
    }

    /// What is noted of a device, and flew when the kernel was asked how many writes it has; and how many.
    fn in_flight(&self, device: u32) -> Result<(Vec<Flight>, u64), String> {
        let mut noted = self.kernel.flights()?;
        let writes = inflight_writes(device)?;
        noted.retain(|flight| {
            let on_device = self.part_of(flight).is_some_and(|part| part.device == device);
            on_device && self.kernel.flies(flight)
        });
        Ok((noted, writes))
    }

    fn part_of(&self, flight: &Flight) -> Option<&Watched> {
        self.watched.iter().find(|part| u64::from(part.disk) == flight.disk)
    }

    /// Whether a noted flight has been waited for too long, and ended as far as the kernel knows.
    fn stale(&self, flight: &Flight) -> Result<bool, String> {
        let now = self.clock.monotonic();
        let mut state = self.lock();
        if state.waited.len() > 4096 {
            state.waited.clear();
        }
        let since = *state.waited.entry((flight.request, flight.id)).or_insert(now);
        drop(state);
        match self.part_of(flight) {
            _ if now <= since + STALE => Ok(false),
            Some(part) if counts_inflight(part.device) => self.counted_out(part.device, now),
            _ => Ok(true),
        }
    }

    /// Whether the kernel counts no more writes of the device than there are others: then it has none of those
    /// that were waited for too long. A command that was passed to the device it does not count, and that
    /// covers its disk.
    fn counted_out(&self, device: u32, now: Duration) -> Result<bool, String> {
        let (noted, writes) = self.in_flight(device)?;
        let covers = |flight: &Flight| {
            let bytes = self.part_of(flight).map(|part| (part.end - part.start) * 512);
            flight.start == 0 && Some(flight.end) == bytes
        };
        let state = self.lock();
        let late = |flight: &Flight| {
            let since = state.waited.get(&(flight.request, flight.id));
            since.is_some_and(|since| now > *since + STALE)
        };
        let (late, others): (Vec<_>, Vec<_>) =
            noted.iter().partition(|flight| late(flight) || covers(flight));
        let late: BTreeSet<u64> = late.into_iter().map(Flight::of_request).collect();
        let others: BTreeSet<u64> = others.into_iter().map(Flight::of_request).collect();
        Ok(writes <= others.difference(&late).count() as u64)
    }
}
