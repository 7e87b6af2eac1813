//! The table by machine: state in words, order of the rows.

use super::model::Model;
use super::reading::{MachineReading, WATERMARKS};

/// One machine.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) machine: String,
    pub(super) state: State,
    pub(super) rpo_seconds: Option<f64>,
    pub(super) backlog_bytes: Option<f64>,
    /// Bytes of writes received by the second.
    pub(super) rate: Option<f64>,
    pub(super) watermarks: [Option<f64>; WATERMARKS.len()],
}

/// How a machine is, as far as the metrics tell; the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// Every write in order.
    InOrder,
    /// In order, and nothing to recover to yet.
    NoPoint,
    /// Connected; the agent has not said how it tracks.
    Connected,
    /// Percent of the first copy.
    FirstCopy(u8),
    /// Percent of what is repaired.
    CatchingUp(u8),
    /// Dirty extents only: no point until the catch-up is over.
    Bitmap,
    /// Another server's, and applied here.
    Applied,
    /// No agent.
    Away,
}

impl State {
    fn of(machine: &MachineReading) -> Self {
        match machine.connected {
            None => return Self::Applied,
            Some(0.0) => return Self::Away,
            Some(_) => {}
        }
        match (machine.tracking.as_deref(), machine.rpo_seconds) {
            (Some("ordered"), Some(_)) => Self::InOrder,
            (Some("ordered"), None) => Self::NoPoint,
            (Some("catching-up"), Some(_)) => Self::CatchingUp(copied_percent(machine)),
            (Some("catching-up"), None) => Self::FirstCopy(copied_percent(machine)),
            (Some("bitmap"), _) => Self::Bitmap,
            _ => Self::Connected,
        }
    }

    /// In words.
    pub(super) fn words(self) -> String {
        match self {
            Self::InOrder => "in order".to_owned(),
            Self::NoPoint => "in order, no point".to_owned(),
            Self::Connected => "connected".to_owned(),
            Self::FirstCopy(percent) => format!("first copy {percent} %"),
            Self::CatchingUp(percent) => format!("catching up {percent} %"),
            Self::Bitmap => "dirty extents only".to_owned(),
            Self::Applied => "applied here".to_owned(),
            Self::Away => "agent away".to_owned(),
        }
    }
}

/// Rounded down, so that 100 % is all.
fn copied_percent(machine: &MachineReading) -> u8 {
    let (dirty, all) = (machine.dirty_bytes.unwrap_or(0.0), machine.disk_bytes.unwrap_or(0.0));
    (100.0 - 100.0 * dirty / all.max(1.0)).clamp(0.0, 100.0) as u8
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// By name.
    #[default]
    Machine,
    /// The worst first.
    State,
    /// The oldest first, then those without one.
    Rpo,
    /// The largest first.
    Backlog,
    /// The fastest first.
    Rate,
}

impl Order {
    /// The one that the next key press gives.
    pub(super) fn next(self) -> Self {
        match self {
            Self::Machine => Self::State,
            Self::State => Self::Rpo,
            Self::Rpo => Self::Backlog,
            Self::Backlog => Self::Rate,
            Self::Rate => Self::Machine,
        }
    }

    /// Heading of its column.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Machine => "machine",
            Self::State => "state",
            Self::Rpo => "rpo",
            Self::Backlog => "backlog",
            Self::Rate => "rate",
        }
    }
}

/// All machines of the last reading in this order; equals by name.
pub(super) fn rows(model: &Model, order: Order) -> Vec<Row> {
    let machines = model.reading().into_iter().flat_map(|reading| &reading.machines);
    let mut rows: Vec<_> = machines
        .map(|(machine, of)| Row {
            machine: machine.clone(),
            state: State::of(of),
            rpo_seconds: of.rpo_seconds,
            backlog_bytes: of.backlog_bytes,
            rate: model.rates.machines.get(machine).copied(),
            watermarks: of.watermarks,
        })
        .collect();
    let largest_first = |value: fn(&Row) -> Option<f64>| {
        move |a: &Row, b: &Row| {
            let of = |row| value(row).unwrap_or(f64::NEG_INFINITY);
            of(b).total_cmp(&of(a))
        }
    };
    match order {
        Order::Machine => {} // the map is in this order
        Order::State => rows.sort_by_key(|row| std::cmp::Reverse(row.state)),
        Order::Rpo => rows.sort_by(largest_first(|row| row.rpo_seconds)),
        Order::Backlog => rows.sort_by(largest_first(|row| row.backlog_bytes)),
        Order::Rate => rows.sort_by(largest_first(|row| row.rate)),
    }
    rows
}
