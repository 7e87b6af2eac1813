//! The rules of `[upload]`: streams, blocks, and the rate by the hour of the week.

use super::check::Check;
use super::rate::{self, Rate, RateSchedule, RateWindow};
use super::raw::{RawUpload, RawWindow};
use super::server::seconds;
use super::{StreamBounds, UploadSettings};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Longest block that every store takes.
const BLOCK_BYTES_MAX: u64 = 64 * MIB;
/// Slowest rate: below it a batch would take longer than people wait.
const RATE_MIN: u64 = 64 * KIB;
const RATE_MAX: u64 = 1 << 40;
/// Windows of a schedule: one for every hour of a week.
const WINDOWS_MAX: usize = 168;

pub(super) fn upload(c: &mut Check, raw: &RawUpload) -> UploadSettings {
    let streams = StreamBounds {
        min: c.narrow("upload.streams_min", raw.streams_min, 2, 1..=256),
        max: c.narrow("upload.streams_max", raw.streams_max, 8, 1..=256),
    };
    c.relation(
        streams.min <= streams.max,
        "upload.streams_min",
        streams.min,
        &format!("must not be more than upload.streams_max = {}", streams.max),
        "lower it, or raise upload.streams_max",
    );
    UploadSettings {
        streams,
        rate: schedule(c, raw),
        block_bytes: c.narrow(
            "upload.block_bytes",
            raw.block_bytes,
            4 * MIB,
            64 * KIB..=BLOCK_BYTES_MAX,
        ),
        orphan_grace: seconds(
            c,
            "upload.orphan_grace_s",
            raw.orphan_grace_s,
            3_600,
            1,
            30 * 86_400,
        ),
    }
}

fn schedule(c: &mut Check, raw: &RawUpload) -> RateSchedule {
    let count = raw.window.len();
    let rule = format!("must be at most {WINDOWS_MAX} windows");
    c.relation(count <= WINDOWS_MAX, "upload.window", count, &rule, "join some");
    let windows = raw.window.iter().take(WINDOWS_MAX).enumerate();
    RateSchedule {
        default: rate(c, "upload.bytes_per_s", raw.bytes_per_s),
        windows: windows.map(|(n, window)| one(c, n, window)).collect(),
    }
}

fn one(c: &mut Check, number: usize, raw: &RawWindow) -> RateWindow {
    let key = |name: &str| format!("upload.window[{number}].{name}");
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (days_text, hours_text) = (text(&raw.days), text(&raw.hours));
    let days = rate::days(&days_text);
    let rule = "must name days: mon tue wed thu fri sat sun, ranges, lists, or daily";
    let cure = "write it like \"mon-fri\" or \"sat,sun\"";
    c.relation(days.is_some(), &key("days"), format!("{days_text:?}"), rule, cure);
    let hours = rate::hours(&hours_text);
    let rule = "must be HH:MM-HH:MM, in UTC, not empty";
    let cure = "write it like \"08:00-18:00\" or \"22:00-06:00\"";
    c.relation(hours.is_some(), &key("hours"), format!("{hours_text:?}"), rule, cure);
    let (from, to) = hours.unwrap_or((0, 1));
    let rate = rate(c, &key("bytes_per_s"), raw.bytes_per_s);
    RateWindow { days: days.unwrap_or_default(), from, to, rate }
}

/// 0 and absent: no limit.
fn rate(c: &mut Check, key: &str, value: Option<i64>) -> Rate {
    match value {
        None | Some(0) => None,
        Some(rate) => {
            let legal = u64::try_from(rate).ok().filter(|rate| (RATE_MIN..=RATE_MAX).contains(rate));
            let rule = format!("must be 0 (no limit) or {RATE_MIN} to {RATE_MAX}");
            c.relation(legal.is_some(), key, rate, &rule, "leave it out for no limit");
            legal
        }
    }
}
