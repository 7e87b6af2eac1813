//! The rules of pacing: windows of the rate, and how bounds stand to what they bound.

use super::ServerSettings;
use super::check::Check;
use super::rate::{self, RateWindow};
use super::raw::RawWindow;

/// Slowest rate: below it a batch would take longer than people wait.
pub(super) const RATE_MIN: u64 = 64 << 10;
/// Fastest rate that can be meant.
pub(super) const RATE_MAX: u64 = 1 << 40;
/// Windows of a schedule: one for every hour of a week.
pub(super) const WINDOWS_MAX: usize = 168;

/// The windows of the rate, as the file or a change has them.
pub(super) fn windows(c: &mut Check, raw: &[RawWindow]) -> Vec<RateWindow> {
    let count = raw.len();
    let rule = format!("must be at most {WINDOWS_MAX} windows");
    c.relation(count <= WINDOWS_MAX, "upload.window", count, &rule, "join some");
    let windows = raw.iter().take(WINDOWS_MAX).enumerate();
    windows.map(|(n, window)| one(c, n, window)).collect()
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
    let written = raw.bytes_per_s.unwrap_or(0);
    let bytes = u64::try_from(written).ok().filter(|bytes| *bytes <= RATE_MAX);
    legal_rate(c, &key("bytes_per_s"), written, bytes.is_some_and(legal));
    RateWindow { days: days.unwrap_or_default(), from, to, rate: bytes.filter(|bytes| *bytes > 0) }
}

fn legal(bytes: u64) -> bool {
    bytes == 0 || bytes >= RATE_MIN
}

fn legal_rate(c: &mut Check, key: &str, value: impl std::fmt::Display, legal: bool) {
    let rule = format!("must be 0 (no limit) or {RATE_MIN} to {RATE_MAX}");
    c.relation(legal, key, value, &rule, "leave it out for no limit");
}

/// Held over the file and over every change at run time.
pub(super) fn relations(c: &mut Check, s: &ServerSettings) {
    let (level, bounds, streams) = (s.seal.level, s.levels, s.upload.streams);
    for (key, value) in
        [("seal.level", level), ("seal.level_min", bounds.min), ("seal.level_max", bounds.max)]
    {
        // Who reads 0 expects something else.
        c.relation(value != 0, key, value, "must not be 0, which zstd takes for 3", "write 3");
    }
    c.relation(
        bounds.min <= level,
        "seal.level_min",
        bounds.min,
        &format!("must not be above seal.level = {level}"),
        "lower it, or raise seal.level",
    );
    c.relation(
        bounds.max >= level,
        "seal.level_max",
        bounds.max,
        &format!("must not be below seal.level = {level}"),
        "raise it, or lower seal.level",
    );
    c.relation(
        streams.min <= streams.max,
        "upload.streams_min",
        streams.min,
        &format!("must not be more than upload.streams_max = {}", streams.max),
        "lower it, or raise upload.streams_max",
    );
    let rate = s.upload.rate.default.unwrap_or(0);
    legal_rate(c, "upload.bytes_per_s", rate, legal(rate));
}
