//! Wall-clock labels. Correctness never rests on them: order comes from sequences and generations.

use std::fmt;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// A text that is no RFC 3339 time.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not an RFC 3339 time such as 2026-01-31T12:00:00Z")]
pub struct TimeError {
    text: String,
    #[source]
    source: time::error::Parse,
}

impl Timestamp {
    /// 0000-01-01T00:00:00Z: the first moment that RFC 3339 can say.
    pub const EARLIEST: Self = Self(-62_167_219_200_000_000);
    /// 9999-12-31T23:59:59.999999Z: the last one.
    pub const LATEST: Self = Self(253_402_300_799_999_999);

    /// Whether a calendar has this moment: what comes from outside must be one.
    #[must_use]
    pub fn is_on_calendar(self) -> bool {
        (Self::EARLIEST..=Self::LATEST).contains(&self)
    }

    /// Seconds from `earlier` to here; negative when `earlier` is later.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / 1e6
    }

    /// This moment shifted by whole seconds.
    #[must_use]
    pub fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1_000_000)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000)
            .ok()
            .and_then(|moment| moment.format(&Rfc3339).ok());
        match text {
            Some(text) => f.write_str(&text),
            None => write!(f, "{}us", self.0), // off the calendar: a peer's nonsense, shown as sent
        }
    }
}

impl std::str::FromStr for Timestamp {
    type Err = TimeError;

    /// Reads back whatever [`fmt::Display`] writes: a document with a moment off the calendar in it
    /// must stay readable.
    fn from_str(text: &str) -> Result<Self, TimeError> {
        if let Some(micros) = text.strip_suffix("us").and_then(|number| number.parse().ok()) {
            return Ok(Self(micros));
        }
        let moment = OffsetDateTime::parse(text, &Rfc3339)
            .map_err(|source| TimeError { text: text.chars().take(80).collect(), source })?;
        let micros = moment.unix_timestamp_nanos() / 1_000;
        Ok(Self(i64::try_from(micros).unwrap_or(i64::MAX)))
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let moment: Timestamp = "2026-01-31T12:00:00.25Z".parse().unwrap();
        assert_eq!(moment.to_string(), "2026-01-31T12:00:00.25Z");
        assert!("yesterday".parse::<Timestamp>().is_err());
    }

    #[test]
    fn every_moment_survives_a_document() {
        let edges = [Timestamp::EARLIEST.0, Timestamp::LATEST.0];
        let around = edges.into_iter().flat_map(|edge| [edge - 1, edge, edge + 1]);
        for micros in around.chain([i64::MIN, -1, 0, 1, i64::MAX]) {
            let text = serde_json::to_string(&Timestamp(micros)).unwrap();
            let back: Timestamp = serde_json::from_str(&text).unwrap();
            assert_eq!(back, Timestamp(micros), "{text}");
            assert_eq!(back.is_on_calendar(), !text.ends_with("us\""), "{text}");
        }
    }
}
