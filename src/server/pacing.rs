//! Once a second: looks at what waits where, and sets the level of sealing.
//!
//! Owns: the rhythm, and giving each controller what it looks at. Does not own: what they decide
//! (`seal::LevelControl`; streams, breaker and bandwidth adapt themselves with every upload).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Clock;
use crate::observe::{IdleMeter, Metrics};
use crate::seal::{LevelControl, Load, SealPool};
use crate::settings::Tuning;
use crate::upload::Uplink;

/// How often.
const LOOK: Duration = Duration::from_secs(1);

/// What is paced.
pub(super) struct Pacing {
    pub(super) pool: Arc<SealPool>,
    pub(super) uplink: Arc<Uplink>,
    pub(super) level: LevelControl,
    pub(super) tuning: Tuning,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) drain: watch::Receiver<bool>,
}

impl Pacing {
    /// Runs until the server drains.
    pub(super) async fn run(mut self) {
        let mut idle = IdleMeter::default();
        idle.look();
        while !*self.drain.borrow_and_update() {
            self.uplink.observe();
            self.pool.observe();
            tokio::select! {
                _ = self.drain.changed() => {}
                () = self.clock.sleep(LOOK) => self.look(idle.look().unwrap_or(0.0)),
            }
        }
    }

    fn look(&mut self, idle: f64) {
        let settings = self.tuning.now();
        self.level.follow(settings.seal.level, settings.levels);
        let before = self.level.level();
        let load = Load {
            seals_waiting: self.pool.waiting(),
            uploads_waiting: self.uplink.uploads_waiting(),
            idle,
        };
        let level = self.level.look(load);
        self.pool.set_level(level);
        self.metrics.pacing.idle_milli.store((idle * 1e3) as u64, Ordering::Relaxed);
        if level != before {
            tracing::debug!(level, before, ?load, "the level of compression changed");
        }
    }
}
