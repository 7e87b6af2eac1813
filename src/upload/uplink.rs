//! The way to the store that all machines of a process share.
//!
//! Owns: who may ask the store when (breaker, retry budget), how many objects travel at once and
//! whose is next (streams), how fast (bandwidth). Does not own: what is asked, and what an answer
//! means to a machine.
//!
//! The parts are sans-io and know one thing each; this file gives them the clock and lets tasks
//! wait. `docs/pacing.md` explains how they work together.

mod bandwidth;
mod breaker;
mod retries;
mod streams;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use self::bandwidth::Bandwidth;
use self::breaker::{Breaker, BreakerState, Ended, Leave};
use self::retries::RetryBudget;
use self::streams::StreamControl;
use crate::clock::{Clock, Entropy, fraction};
use crate::model::MachineKey;
use crate::observe::Metrics;
use crate::settings::{RateSchedule, StreamBounds};
use crate::store::{Class, StoreError};
use crate::turns::{Turn, Turns};

/// Streams, breaker, retries and bandwidth of one store.
pub struct Uplink {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    metrics: Arc<Metrics>,
    streams: Turns,
    bandwidth: Bandwidth,
    state: Mutex<State>,
    /// Told whenever a call ended while the breaker was not closed.
    changed: watch::Sender<()>,
}

struct State {
    breaker: Breaker,
    retries: RetryBudget,
    control: StreamControl,
    trouble: Option<String>, // the newest failure while the breaker is open
}

/// Leave to ask the store once. Dropped without [`Pass::ended`]: the call was given up.
pub(super) struct Pass<'a> {
    uplink: &'a Uplink,
    who: MachineKey,
    leave: Leave,
    ended: Option<Ended>,
}

/// A place among the objects that travel.
pub(super) struct Stream<'a> {
    pub(super) pass: Pass<'a>,
    pub(super) turn: Turn,
}

impl Uplink {
    /// An uplink with nothing on it.
    #[must_use]
    pub fn new(
        bounds: StreamBounds,
        rate: RateSchedule,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let now = clock.monotonic();
        let control = StreamControl::new(bounds, now);
        let (breaker, retries) = (Breaker::default(), RetryBudget::new(now));
        let uplink = Self {
            clock,
            entropy,
            metrics,
            streams: Turns::new(1, 0),
            bandwidth: Bandwidth::new(rate),
            state: Mutex::new(State { breaker, retries, control, trouble: None }),
            changed: watch::Sender::new(()),
        };
        uplink.resize(uplink.state().control.streams());
        Arc::new(uplink)
    }

    /// Takes changed settings over; what travels already goes on.
    pub fn follow(&self, bounds: StreamBounds, rate: RateSchedule) {
        self.bandwidth.set(rate);
        let streams = {
            let mut state = self.state();
            state.control.set_bounds(bounds);
            state.control.streams()
        };
        self.resize(streams);
    }

    /// Writes down what it does now.
    pub fn observe(&self) {
        let pacing = &self.metrics.pacing;
        let state = self.state();
        let breaker = match state.breaker.state() {
            BreakerState::Closed => 0,
            BreakerState::Open => 1,
            BreakerState::Probing => 2,
        };
        pacing.breaker.store(breaker, Ordering::Relaxed);
        pacing.streams.store(u64::from(state.control.streams()), Ordering::Relaxed);
        drop(state);
        pacing.streams_busy.store(self.streams.in_use(), Ordering::Relaxed);
        pacing.uploads_waiting.store(self.uploads_waiting() as u64, Ordering::Relaxed);
        let rate = self.bandwidth.rate(self.clock.as_ref());
        pacing.rate_bytes.store(rate.unwrap_or(0), Ordering::Relaxed);
    }

    /// Sealed objects that wait for a stream, or for the rate.
    #[must_use]
    pub fn uploads_waiting(&self) -> usize {
        self.streams.waiting() + self.bandwidth.waiting()
    }

    /// What keeps everybody from the store; `None` while it may be asked.
    pub(super) fn trouble(&self) -> Option<String> {
        let state = self.state();
        match state.breaker.state() {
            BreakerState::Closed => None,
            BreakerState::Open | BreakerState::Probing => state.trouble.clone(),
        }
    }

    /// Waits until `who` may ask the store.
    pub(super) async fn pass(&self, who: MachineKey) -> Pass<'_> {
        loop {
            self.open_for(who).await;
            if let Some(pass) = self.ask(who) {
                return pass;
            }
        }
    }

    /// Waits until the breaker lets `who` through, without taking the leave.
    async fn open_for(&self, who: MachineKey) {
        let mut changed = self.changed.subscribe();
        loop {
            let now = self.clock.monotonic();
            let allowed = self.state().breaker.allows(who, now);
            let Err(until) = allowed else { return };
            let wait = until.map(|until| until.saturating_sub(now));
            tokio::select! {
                _ = changed.changed() => {}
                () = self.clock.sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    /// Waits for a place among the objects that travel, and for leave to send one.
    pub(super) async fn stream(&self, who: MachineKey, bytes: u64) -> Stream<'_> {
        loop {
            // The breaker first: who waits for it must not hold a stream; then again, because it
            // may have opened while the stream was waited for.
            self.open_for(who).await;
            let turn = self.streams.take(who, 1, bytes).await;
            if let Some(pass) = self.ask(who) {
                return Stream { pass, turn };
            }
        }
    }

    /// Waits until a call that failed may be repeated, `wait` having been drawn for it. While the
    /// breaker is open it alone decides when: its probes are the only retries then.
    pub(super) async fn retry(&self, wait: Duration) {
        if self.trouble().is_some() {
            return;
        }
        self.clock.sleep(wait).await;
        loop {
            let spent = {
                let mut state = self.state();
                if state.breaker.state() != BreakerState::Closed {
                    return;
                }
                state.retries.spend(self.clock.monotonic())
            };
            let Err(wait) = spent else { return };
            self.clock.sleep(wait.mul_f64(1.0 + fraction(self.entropy.as_ref()))).await;
        }
    }

    /// Waits until `bytes` may be sent at the present rate; while the breaker keeps `who` from the
    /// store nothing of the rate is spent, or it would go beyond it all at once afterwards.
    pub(super) async fn send(&self, who: MachineKey, bytes: u64) {
        let mut left = bytes;
        while left > 0 {
            self.open_for(who).await;
            left -= self.bandwidth.portion(self.clock.as_ref(), who, left).await;
        }
    }

    /// An object of `bytes` stands in the store.
    pub(super) fn stored(&self, bytes: u64) {
        let waiting = self.streams.waiting() > 0;
        let streams = {
            let mut state = self.state();
            state.control.finished(bytes, waiting, self.clock.monotonic());
            state.control.streams()
        };
        self.resize(streams);
    }

    fn ask(&self, who: MachineKey) -> Option<Pass<'_>> {
        let leave = self.state().breaker.ask(who, self.clock.monotonic()).ok()?;
        if leave == Leave::Probe {
            self.metrics.pacing.probes.fetch_add(1, Ordering::Relaxed);
        }
        Some(Pass { uplink: self, who, leave, ended: None })
    }

    /// One stream is kept for machines that have none.
    fn resize(&self, streams: u32) {
        let streams = u64::from(streams);
        self.streams.resize(streams, u64::from(streams > 1));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// The call ended: with what the store said, if that was an error.
    pub(super) fn ended(mut self, error: Option<&StoreError>) {
        self.ended = Some(match error {
            Some(error) if error.class() == Class::Retry => {
                self.uplink.state().trouble = Some(crate::observe::error_chain(error));
                Ended::Failed { retry_after: error.retry_after() }
            }
            _ => Ended::Answered,
        });
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let uplink = self.uplink;
        let (now, ended) = (uplink.clock.monotonic(), self.ended.unwrap_or(Ended::GivenUp));
        let random = fraction(uplink.entropy.as_ref());
        let mut state = uplink.state();
        let before = state.breaker.state();
        state.breaker.ended(self.who, self.leave, ended, now, random);
        match ended {
            Ended::Answered => {
                state.retries.earn();
                state.trouble = None;
            }
            Ended::Failed { .. } => state.control.failed(now),
            Ended::GivenUp => {}
        }
        let (after, streams) = (state.breaker.state(), state.control.streams());
        drop(state);
        uplink.resize(streams);
        if (before, after) != (BreakerState::Closed, BreakerState::Closed) {
            uplink.changed.send_replace(());
        }
        if (before == BreakerState::Closed) != (after == BreakerState::Closed) {
            let open = after != BreakerState::Closed;
            tracing::warn!(open, "the breaker towards the store changed");
        }
    }
}
