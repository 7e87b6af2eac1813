//! Every setting that can change while the server runs: the one home of its bounds.
//!
//! `holdfast.toml` is checked by the same rows.

use super::super::ServerSettings;
use super::super::raw::RawServer;
use super::super::server::{BLOCK_BYTES_MAX, GIB, KIB, MIB};
use super::super::uplink::{RATE_MAX, RATE_MIN, WINDOWS_MAX};
use super::value::{Bounds, Field, Unit, Value};
use crate::model::WRITE_BYTES_MAX;

/// One setting.
#[derive(Debug)]
pub(in super::super) struct Row {
    /// Its key, as in `holdfast.toml`.
    pub(in super::super) key: &'static str,
    pub(in super::super) unit: Unit,
    pub(in super::super) bounds: Bounds,
    /// What it does and costs, in words.
    pub(super) cost: &'static str,
    /// Its value in checked settings.
    pub(super) shown: fn(&ServerSettings) -> Value,
    /// Puts a value within its bounds.
    pub(in super::super) put: fn(&mut ServerSettings, Value),
    /// As the file has it; windows are read by `uplink`.
    pub(in super::super) raw: fn(&RawServer) -> Option<Value>,
}

macro_rules! row {
    ($table:ident.$raw:ident => $field:ident: $unit:ident, $kind:ident, $bounds:expr, $cost:literal) => {
        Row {
            key: concat!(stringify!($table), ".", stringify!($raw)),
            unit: Unit::$unit,
            bounds: $bounds,
            cost: $cost,
            shown: |settings| Field::shown(&settings.$table.$field, Unit::$unit),
            put: |settings, value| Field::put(&mut settings.$table.$field, value, Unit::$unit),
            raw: |file| file.$table.$raw.map(Value::$kind),
        }
    };
}

/// Where the checked settings have it in another place than the file.
macro_rules! row_at {
    ($table:ident.$raw:ident => $($path:ident).+: $unit:ident, $bounds:expr, $cost:literal) => {
        Row {
            key: concat!(stringify!($table), ".", stringify!($raw)),
            unit: Unit::$unit,
            bounds: $bounds,
            cost: $cost,
            shown: |settings| Field::shown(&settings.$($path).+, Unit::$unit),
            put: |settings, value| Field::put(&mut settings.$($path).+, value, Unit::$unit),
            raw: |file| file.$table.$raw.map(Value::Whole),
        }
    };
}

const fn whole(default: u64, least: u64, most: u64) -> Bounds {
    Bounds::Whole { default: default as i64, least: least as i64, most: most as i64 }
}

const fn share(default: f64) -> Bounds {
    Bounds::Fraction { default, least: 0.05, most: 0.95 }
}

const WRITE_MAX: u64 = WRITE_BYTES_MAX as u64;

/// All of them, in the order of docs/configuration.md.
#[rustfmt::skip]
pub(in super::super) const TABLE: &[Row] = &[
    row!(cache.warn_fill => warn_fill: Share, Fraction, share(0.5),
        "above it status, log and metrics say that uploads are behind; nothing is slowed"),
    row!(cache.slow_fill => slow_fill: Share, Fraction, share(0.65),
        "above it the credit of agents shrinks with the room that is left below stop_fill: acks of writes in flight wait longer"),
    row!(cache.stop_fill => stop_fill: Share, Fraction, share(0.85),
        "at it agents get no more credit and remember dirty extents instead: order, and so recovery points, are lost until the catch-up"),
    row!(batch.bytes_max => bytes_max: Bytes, Whole, whole(8 * MIB, WRITE_MAX, 256 * MIB),
        "memory: upload.streams_max × this, 2 × this a seal thread; smaller means more requests to the store"),
    row!(batch.age_max_ms => age_max: Milliseconds, Whole, whole(6_000, 10, 60_000),
        "what the agent sends again when the server is lost with its disk (a bookmark closes its delta at once); shorter means more requests to the store"),
    row!(seal.compress => compress: Switch, Switch, Bounds::Switch { default: true },
        "off: zeros are still left out, all else is stored as it is: for disks that are encrypted; store space and traffic"),
    row!(seal.level => level: Level, Whole, Bounds::Whole { default: 1, least: -7, most: 19 },
        "the usual level; CPU: level 3 takes about 1.7 × the time of level 1"),
    row_at!(seal.level_min => levels.min: Level, Bounds::Whole { default: -5, least: -7, most: 19 },
        "used while batches wait for the CPU: store space and traffic"),
    row_at!(seal.level_max => levels.max: Level, Bounds::Whole { default: 6, least: -7, most: 19 },
        "used while uploads wait for the line and the CPU idles: CPU that nobody else wants"),
    row_at!(upload.streams_min => upload.streams.min: Count, whole(2, 1, 256),
        "fewest objects in flight at once"),
    row_at!(upload.streams_max => upload.streams.max: Count, whole(8, 1, 256),
        "most objects in flight at once; memory: this × batch.bytes_max"),
    row_at!(upload.bytes_per_s => upload.rate.default: BytesPerSecond, whole(0, 0, RATE_MAX),
        "rate of all uploads together outside upload.window; 0 is no limit; RPO once machines write more than that"),
    Row {
        key: "upload.window",
        unit: Unit::BytesPerSecond,
        bounds: Bounds::Windows { most: WINDOWS_MAX, rate_least: RATE_MIN, rate_most: RATE_MAX },
        cost: "other rates at other hours of the week, UTC; the first window that contains the moment decides; a change replaces the whole list; RPO while machines write more than the rate",
        shown: |settings| Field::shown(&settings.upload.rate.windows, Unit::BytesPerSecond),
        put: |settings, value| Field::put(&mut settings.upload.rate.windows, value, Unit::BytesPerSecond),
        raw: |_| None,
    },
    row!(upload.block_bytes => block_bytes: Bytes, Whole, whole(16 * MIB, 64 * KIB, BLOCK_BYTES_MAX),
        "one request to the store for each block"),
    row!(upload.orphan_grace_s => orphan_grace: Seconds, Whole, whole(3_600, 1, 30 * 86_400),
        "store space of deltas that no manifest names, until then"),
    row!(apply.enabled => enabled: Switch, Switch, Bounds::Switch { default: true },
        "off: seed disks and snapshots stand still unless `holdfast apply` runs elsewhere"),
    row!(apply.interval_ms => interval: Milliseconds, Whole, whole(5_000, 10, 600_000),
        "shortest pause between two turns of a machine; shorter: more requests, less coalescing"),
    row!(apply.idle_interval_max_s => idle_interval_max: Seconds, Whole, whole(300, 1, 86_400),
        "longest pause between looks at an idle machine, `holdfast apply` only: a read each"),
    row!(apply.streams => streams: Count, Whole, whole(4, 1, 64),
        "page writes in flight for one machine: a request each"),
    row!(limits.idle_timeout_ms => idle_timeout: Milliseconds, Whole, whole(30_000, 15_000, 3_600_000),
        "silence after which a connection is closed; longer keeps dead ones"),
    row!(limits.credit_bytes => credit_bytes: Bytes, Whole, whole(16 * MIB, 2 * WRITE_MAX, GIB),
        "bounds one machine's share of limits.receive_bytes_max; what was granted stays granted"),
];

/// The row of `key`.
pub(in super::super) fn row(key: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.key == key)
}
