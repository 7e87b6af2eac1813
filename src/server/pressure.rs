//! Back-pressure: from the fill of the cache to the credit of agents.
//!
//! Owns: when a mark counts as passed, what is said about it, how much credit is left. Does not own:
//! what a connection makes of its credit (ingest), what an agent without credit does (it remembers
//! dirty extents once its resend buffer is full, and the workload never waits).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::cache::Fill;
use crate::clock::Clock;
use crate::ingest::{CreditShare, CreditTerms};
use crate::observe::{CacheOutlook, Metrics, Pressure};
use crate::settings::{CacheSettings, ServerSettings};

/// How often the fill of the cache logs is compared with their marks.
const FILL_INTERVAL: Duration = Duration::from_millis(50);
/// A mark is left below this part of it, so that a fill that plays around it changes nothing.
const LEAVE_PART: f64 = 0.9;
/// How often the backlog is looked at.
const TREND_INTERVAL: Duration = Duration::from_secs(1);
/// How far back the trend looks, about.
const TREND_SECONDS: f64 = 15.0;
/// A backlog that changes by less than this stands still, bytes per second.
const STILL: f64 = 1024.0;

/// How `fill` stands to the marks, coming from `before`.
pub(super) fn judge(before: Pressure, fill: f64, marks: &CacheSettings) -> Pressure {
    let reached =
        |level: Pressure, mark: f64| fill >= if before >= level { mark * LEAVE_PART } else { mark };
    if reached(Pressure::Stop, marks.stop_fill) {
        Pressure::Stop
    } else if reached(Pressure::Slow, marks.slow_fill) {
        Pressure::Slow
    } else if reached(Pressure::Warn, marks.warn_fill) {
        Pressure::Warn
    } else {
        Pressure::Free
    }
}

/// The credit that agents get at this pressure and fill.
pub(super) fn credit(pressure: Pressure, fill: f64, marks: &CacheSettings) -> CreditShare {
    match pressure {
        Pressure::Free | Pressure::Warn => CreditShare::WHOLE,
        Pressure::Slow => CreditShare::at(fill, marks.slow_fill, marks.stop_fill),
        Pressure::Stop => CreditShare::NONE,
    }
}

/// The terms of credit in a cache of `max_bytes` for so many machines. At stop each may still use
/// its part of what lies above the mark: one that has less than that unpublished did not fill the
/// cache, and its points must not age for it.
fn terms(
    share: CreditShare,
    max_bytes: u64,
    machines: usize,
    marks: &CacheSettings,
) -> CreditTerms {
    let spare = max_bytes as f64 * (1.0 - marks.stop_fill);
    let each = spare as u64 / machines.max(1) as u64;
    let small_backlog_bytes = if share == CreditShare::NONE { each } else { 0 };
    CreditTerms { share, small_backlog_bytes }
}

/// Where the backlog goes: bytes per second, smoothed.
#[derive(Debug, Default)]
struct Trend {
    last: Option<(Duration, u64)>,
    slope: f64,
}

impl Trend {
    fn see(&mut self, now: Duration, backlog: u64) {
        if let Some((at, before)) = self.last.replace((now, backlog)) {
            let seconds = now.saturating_sub(at).as_secs_f64().max(1e-3);
            let slope = (backlog as f64 - before as f64) / seconds;
            let weight = 1.0 - (-seconds / TREND_SECONDS).exp();
            self.slope += (slope - self.slope) * weight;
        }
    }

    /// Seconds until `room` more bytes are taken; `None` when they will not be.
    fn full_in(&self, room: f64) -> Option<f64> {
        (self.slope > STILL).then(|| room.max(0.0) / self.slope)
    }

    /// Seconds until the backlog is gone; `None` when it does not shrink.
    fn drained_in(&self) -> Option<f64> {
        let (_, backlog) = self.last.filter(|(_, backlog)| *backlog > 0)?;
        (self.slope < -STILL).then(|| backlog as f64 / -self.slope)
    }
}

/// One shard's cache.
struct Watched {
    fill: Arc<Fill>,
    pressure: Pressure,
    credit: watch::Sender<CreditTerms>,
}

/// Watches all shards' caches.
pub(super) struct Pressures {
    settings: watch::Receiver<Arc<ServerSettings>>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    drain: watch::Receiver<bool>,
    shards: Vec<Watched>,
    trend: Trend,
    seen_at: Option<Duration>,
}

impl Pressures {
    pub(super) fn new(
        settings: watch::Receiver<Arc<ServerSettings>>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        drain: watch::Receiver<bool>,
    ) -> Self {
        let (shards, trend) = (Vec::new(), Trend::default());
        Self { settings, clock, metrics, drain, shards, trend, seen_at: None }
    }

    /// Adds the next shard's cache; gives the credit of its agents.
    pub(super) fn watch(&mut self, fill: Arc<Fill>) -> watch::Receiver<CreditTerms> {
        let (credit, receiver) = watch::channel(CreditTerms::FREE);
        self.shards.push(Watched { fill, pressure: Pressure::Free, credit });
        receiver
    }

    /// Runs until the server drains.
    pub(super) async fn run(mut self) {
        let mut drain = self.drain.clone();
        while !*drain.borrow_and_update() {
            self.look();
            tokio::select! {
                _ = drain.changed() => {}
                Ok(()) = self.settings.changed() => {}
                () = self.clock.sleep(FILL_INTERVAL) => {}
            }
        }
    }

    fn look(&mut self) {
        let settings = Arc::clone(&self.settings.borrow_and_update());
        let marks = &settings.cache;
        let now = self.clock.monotonic();
        if self.seen_at.is_none_or(|at| now.saturating_sub(at) >= TREND_INTERVAL) {
            self.seen_at = Some(now);
            self.trend.see(now, self.metrics.backlog_bytes());
        }
        let (mut worst, mut least) = (Pressure::Free, CreditShare::WHOLE);
        let (mut refusal, mut used, mut max) = (None, 0, 0);
        for (shard, watched) in self.shards.iter_mut().enumerate() {
            let fill = watched.fill.fraction();
            let refused = watched.fill.refusal();
            let pressure = match refused {
                Some(_) => Pressure::Stop,
                None => judge(watched.pressure, fill, marks),
            };
            let share = credit(pressure, fill, marks);
            if std::mem::replace(&mut watched.pressure, pressure) != pressure {
                self.metrics.pressure_changed(pressure);
                say(shard, pressure, fill);
            }
            // A connection listens beside its machine: they are counted twice rather than not at all.
            let machines = watched.credit.receiver_count();
            let room = if refused.is_none() { watched.fill.max_bytes() } else { 0 };
            let terms = terms(share, room, machines, marks);
            watched.credit.send_if_modified(|now| {
                // Not for a machine more or less: thousands listen.
                let said =
                    |terms: &CreditTerms| (terms.share, terms.small_backlog_bytes.checked_ilog2());
                let news = said(now) != said(&terms);
                *now = if news { terms } else { *now };
                news
            });
            (worst, least) = (worst.max(pressure), least.min(share));
            (used, max) = (used + watched.fill.used_bytes(), max + watched.fill.max_bytes());
            refusal = refusal.or(refused);
        }
        let full = "cache full: uploads are behind; credit is withheld";
        let said = refusal.or_else(|| (worst == Pressure::Stop).then(|| full.to_owned()));
        self.metrics.set_cache_trouble(said);
        self.metrics.outlook.set(CacheOutlook {
            pressure: worst,
            credit_share: least.fraction(),
            full_in_seconds: self.trend.full_in(max as f64 * marks.stop_fill - used as f64),
            drained_in_seconds: self.trend.drained_in(),
        });
    }
}

fn say(shard: usize, pressure: Pressure, fill: f64) {
    let percent = (fill * 100.0).round();
    match pressure {
        Pressure::Free => tracing::info!(shard, percent, "the cache is below its marks again"),
        Pressure::Warn => tracing::warn!(shard, percent, "the cache fills: uploads are behind"),
        Pressure::Slow => {
            tracing::warn!(shard, percent, "the cache fills: agents get less credit");
        }
        Pressure::Stop => {
            tracing::warn!(shard, percent, "the cache is full: agents get no credit");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> CacheSettings {
        CacheSettings {
            directory: "/nowhere".into(),
            segment_bytes: 4 << 20,
            bytes_max: 64 << 20,
            warn_fill: 0.5,
            slow_fill: 0.6,
            stop_fill: 0.8,
        }
    }

    #[test]
    fn a_mark_counts_when_reached_and_until_clearly_left() {
        use Pressure::{Free, Slow, Stop, Warn};
        let marks = marks();
        for (before, fill, after) in [
            (Free, 0.499, Free),
            (Free, 0.5, Warn),
            (Free, 0.6, Slow),
            (Free, 0.8, Stop),
            (Warn, 0.46, Warn),
            (Warn, 0.44, Free),
            (Slow, 0.55, Slow),
            (Slow, 0.53, Warn),
            (Stop, 0.73, Stop),
            (Stop, 0.71, Slow),
            (Stop, 0.1, Free),
            (Slow, 0.8, Stop),
        ] {
            assert_eq!(judge(before, fill, &marks), after, "{before:?} {fill}");
        }
    }

    #[test]
    fn credit_is_whole_until_slow_and_none_at_stop() {
        let marks = marks();
        let at = |fill| credit(judge(Pressure::Free, fill, &marks), fill, &marks).fraction();
        assert_eq!([at(0.0), at(0.59), at(0.6), at(0.7)], [1.0, 1.0, 1.0, 0.5]);
        assert_eq!([at(0.8), at(1.2)], [0.0, 0.0]);
        assert_eq!(credit(Pressure::Stop, 0.75, &marks), CreditShare::NONE, "not left yet");
    }

    #[test]
    fn at_stop_each_machine_keeps_its_part_of_what_lies_above_the_mark() {
        let marks = marks();
        let small =
            |share, room, machines| terms(share, room, machines, &marks).small_backlog_bytes;
        assert_eq!(small(CreditShare::NONE, 100_000, 10), 1_999);
        assert_eq!(small(CreditShare::NONE, 0, 10), 0, "the disk is full: there is none");
        assert_eq!(small(CreditShare::at(0.7, 0.6, 0.8), 100_000, 10), 0, "nobody needs it yet");
    }

    #[test]
    fn the_trend_tells_when_it_is_full_and_when_empty() {
        let mut trend = Trend::default();
        for second in 0..120 {
            trend.see(Duration::from_secs(second), second * 1_000_000);
        }
        let full = trend.full_in(60e6).unwrap();
        assert!((59.0..61.0).contains(&full), "{full}");
        assert_eq!(trend.drained_in(), None);
        for second in 0..240 {
            trend.see(Duration::from_secs(120 + second), 600_000_000 - second * 2_000_000);
        }
        let empty = trend.drained_in().unwrap();
        assert!((55.0..65.0).contains(&empty), "{empty}");
        assert_eq!(trend.full_in(60e6), None);
        for second in 0..240 {
            trend.see(Duration::from_secs(360 + second), 0);
        }
        assert_eq!((trend.full_in(1.0), trend.drained_in()), (None, None));
    }
}
