//! One page after another: rates, histories, and whether the server answers.
//!
//! Owns: what follows from two readings and from none. Pure: time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use super::history::History;
use super::reading::Reading;
use crate::model::Timestamp;
use crate::observe::Stage;

/// Everything that is shown.
#[derive(Debug)]
pub(super) struct Model {
    /// Who is asked.
    pub(super) address: String,
    /// What it said last.
    pub(super) last: Option<Taken>,
    pub(super) rates: Rates,
    pub(super) histories: Histories,
    /// Since when nothing came, and why.
    pub(super) lost: Option<Lost>,
    began: Timestamp,
}

/// A reading and when it was taken.
#[derive(Debug)]
pub(super) struct Taken {
    /// Since an arbitrary start.
    at: Duration,
    /// By the clock on this side.
    pub(super) wall: Timestamp,
    pub(super) reading: Reading,
}

/// A server that does not answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lost {
    /// Its last answer, or when it was first asked.
    pub(super) since: Timestamp,
    /// The cause.
    pub(super) why: String,
}

/// By the second, between the last two readings; absent after a restart of the server.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Rates {
    /// Bytes of writes received.
    pub(super) ingest: Option<f64>,
    /// Bytes of deltas published.
    pub(super) published: Option<f64>,
    pub(super) retries: Option<f64>,
    /// Cores that a stage keeps busy.
    pub(super) cores: [Option<f64>; Stage::ALL.len()],
    /// Bytes that came out of a stage.
    pub(super) out: [Option<f64>; Stage::ALL.len()],
    /// Bytes of writes received from a machine.
    pub(super) machines: BTreeMap<String, f64>,
}

/// What has a sparkline.
#[derive(Debug, Default)]
pub(super) struct Histories {
    pub(super) ingest: History,
    pub(super) published: History,
    pub(super) rpo: History,
    pub(super) backlog: History,
}

impl Model {
    /// Nothing is known yet; `began` is now.
    pub(super) fn new(address: String, began: Timestamp) -> Self {
        let (rates, histories) = (Rates::default(), Histories::default());
        Self { address, last: None, rates, histories, lost: None, began }
    }

    /// The server said `reading`.
    pub(super) fn take(&mut self, reading: Reading, at: Duration, wall: Timestamp) {
        self.rates = match &self.last {
            Some(before) if before.reading.started == reading.started => {
                Rates::between(&before.reading, &reading, at.saturating_sub(before.at))
            }
            _ => Rates::default(),
        };
        self.histories.ingest.push(self.rates.ingest);
        self.histories.published.push(self.rates.published);
        self.histories.rpo.push(reading.rpo_worst_seconds);
        self.histories.backlog.push(reading.backlog_bytes);
        self.lost = None;
        self.last = Some(Taken { at, wall, reading });
    }

    /// The server did not answer. What it said last stays.
    pub(super) fn lose(&mut self, why: String) {
        let Histories { ingest, published, rpo, backlog } = &mut self.histories;
        [ingest, published, rpo, backlog].into_iter().for_each(|history| history.push(None));
        let since = self.last.as_ref().map_or(self.began, |last| last.wall);
        self.lost = Some(Lost { since, why });
    }

    /// What the server said last.
    pub(super) fn reading(&self) -> Option<&Reading> {
        self.last.as_ref().map(|last| &last.reading)
    }
}

impl Rates {
    fn between(before: &Reading, after: &Reading, elapsed: Duration) -> Self {
        let rate = |was: Option<f64>, is: Option<f64>| rate(was?, is?, elapsed.as_secs_f64());
        let stage = |at: usize| (&before.stages[at], &after.stages[at]);
        let cores = std::array::from_fn(|at| {
            let (was, is) = stage(at);
            rate(was.cpu_seconds, is.cpu_seconds)
        });
        let out: [_; Stage::ALL.len()] = std::array::from_fn(|at| {
            let (was, is) = stage(at);
            rate(was.out_bytes, is.out_bytes)
        });
        let machines = after.machines.iter().filter_map(|(name, is)| {
            let was = before.machines.get(name)?;
            Some((name.clone(), rate(was.source_bytes, is.source_bytes)?))
        });
        Self {
            ingest: out[Stage::Ingest as usize],
            published: out[Stage::Upload as usize],
            retries: rate(before.retries, after.retries),
            cores,
            out,
            machines: machines.collect(),
        }
    }
}

/// Growth by the second; `None` when the counter began again or no time went by.
fn rate(was: f64, is: f64, seconds: f64) -> Option<f64> {
    (seconds > 0.0 && is >= was).then(|| (is - was) / seconds)
}
