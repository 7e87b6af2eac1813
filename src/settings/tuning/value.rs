//! One value of a run-time setting, its bounds and its unit.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::super::check::Check;
use super::super::rate::RateWindow;
use super::super::raw::RawWindow;
use super::super::uplink;

/// What a run-time setting can hold, as it stands in TOML and JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// `true` or `false`.
    Switch(bool),
    /// A whole number.
    Whole(i64),
    /// A number that need not be whole.
    Fraction(f64),
    /// Hours of the week and their rates.
    #[serde(serialize_with = "windows_json")]
    Windows(Vec<RateWindow>),
}

/// Each as it is written: days, hours, rate.
fn windows_json<S: Serializer>(windows: &[RateWindow], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(windows.iter().map(|window| {
        json!({
            "days": window.days_text(),
            "hours": window.hours_text(),
            "bytes_per_s": window.rate.unwrap_or(0),
        })
    }))
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(value) => value.fmt(f),
            Self::Whole(value) => value.fmt(f),
            Self::Fraction(value) => value.fmt(f),
            Self::Windows(windows) if windows.is_empty() => f.write_str("none"),
            Self::Windows(windows) => {
                let words: Vec<_> = windows.iter().map(ToString::to_string).collect();
                f.write_str(&words.join("; "))
            }
        }
    }
}

/// What a value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Bytes a second.
    BytesPerSecond,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Things.
    Count,
    /// A part of the whole, 0 to 1.
    Share,
    /// A zstd level.
    Level,
    /// On or off.
    Switch,
}

/// What a value must hold, and what it is when nobody says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Bounds {
    /// A whole number.
    Whole {
        /// When the file does not say.
        default: i64,
        /// Least.
        least: i64,
        /// Most.
        most: i64,
    },
    /// A number.
    Fraction {
        /// When the file does not say.
        default: f64,
        /// Least.
        least: f64,
        /// Most.
        most: f64,
    },
    /// Either.
    Switch {
        /// When the file does not say.
        default: bool,
    },
    /// A list of hours of the week; none when the file does not say.
    Windows {
        /// Most of them.
        most: usize,
        /// Slowest rate of one; 0 is no limit.
        rate_least: u64,
        /// Fastest.
        rate_most: u64,
    },
}

impl Bounds {
    /// What holds when nobody says.
    #[must_use]
    pub fn default(self) -> Value {
        match self {
            Self::Whole { default, .. } => Value::Whole(default),
            Self::Fraction { default, .. } => Value::Fraction(default),
            Self::Switch { default } => Value::Switch(default),
            Self::Windows { .. } => Value::Windows(Vec::new()),
        }
    }

    /// `value` as this setting takes it; `None` outside the bounds or of another kind.
    pub(in super::super) fn take(self, value: &Value) -> Option<Value> {
        match (self, value) {
            (Self::Whole { least, most, .. }, Value::Whole(number)) => {
                (least..=most).contains(number).then(|| value.clone())
            }
            (Self::Fraction { least, most, .. }, Value::Fraction(number)) => {
                (least..=most).contains(number).then(|| value.clone())
            }
            // 1 stands for 1.0.
            (Self::Fraction { .. }, Value::Whole(number)) => {
                self.take(&Value::Fraction(*number as f64))
            }
            (Self::Switch { .. }, Value::Switch(_)) => Some(value.clone()),
            (Self::Windows { most, .. }, Value::Windows(windows)) => {
                (windows.len() <= most).then(|| value.clone())
            }
            _ => None,
        }
    }

    /// What a change or a kept file says for `key`, checked; what is wrong goes to `check`.
    pub(super) fn read(self, key: &str, json: &Json, check: &mut Check) -> Option<Value> {
        let cure = || format!("the default is {}", self.default());
        let value = match self {
            Self::Windows { .. } => match serde_json::from_value::<Vec<RawWindow>>(json.clone()) {
                Ok(raw) => {
                    let before = check.count();
                    let windows = uplink::windows(check, &raw);
                    return (check.count() == before).then_some(Value::Windows(windows));
                }
                Err(error) => {
                    let rule = format!("{}: {error}", self.rule());
                    check.violation(key, json, &rule, &cure());
                    return None;
                }
            },
            _ => scalar(json).and_then(|value| self.take(&value)),
        };
        if value.is_none() {
            check.violation(key, json, &self.rule(), &cure());
        }
        value
    }

    /// In words: the rule.
    pub(in super::super) fn rule(self) -> String {
        match self {
            Self::Whole { least, most, .. } => format!("must be a whole number, {least} to {most}"),
            Self::Fraction { least, most, .. } => format!("must be {least} to {most}"),
            Self::Switch { .. } => "must be true or false".to_owned(),
            Self::Windows { most, .. } => format!(
                "must be a list of at most {most} windows like \
                 {{\"days\": \"mon-fri\", \"hours\": \"08:00-18:00\", \"bytes_per_s\": 2000000}}"
            ),
        }
    }
}

fn scalar(json: &Json) -> Option<Value> {
    match json {
        Json::Bool(on) => Some(Value::Switch(*on)),
        Json::Number(number) => {
            let whole = number.as_i64().map(Value::Whole);
            whole.or_else(|| number.as_f64().map(Value::Fraction))
        }
        _ => None,
    }
}

/// A field of the checked settings that a [`Value`] goes into and comes out of.
pub(super) trait Field {
    /// As value, in `unit`.
    fn shown(&self, unit: Unit) -> Value;
    /// Takes a value within its bounds.
    fn put(&mut self, value: Value, unit: Unit);
}

macro_rules! whole_field {
    ($($kind:ty),+) => {$(
        impl Field for $kind {
            fn shown(&self, _: Unit) -> Value {
                Value::Whole(i64::try_from(*self).unwrap_or(i64::MAX))
            }

            fn put(&mut self, value: Value, _: Unit) {
                if let Value::Whole(number) = value {
                    *self = <$kind>::try_from(number).expect("bounds fit the field: tests hold it");
                }
            }
        }
    )+};
}

whole_field!(u64, u32, usize, i32);

/// A bound; 0 for none.
impl Field for Option<u64> {
    fn shown(&self, unit: Unit) -> Value {
        self.unwrap_or(0).shown(unit)
    }

    fn put(&mut self, value: Value, unit: Unit) {
        let mut number = 0;
        number.put(value, unit);
        *self = Some(number).filter(|number| *number > 0);
    }
}

impl Field for f64 {
    fn shown(&self, _: Unit) -> Value {
        Value::Fraction(*self)
    }

    fn put(&mut self, value: Value, _: Unit) {
        if let Value::Fraction(number) = value {
            *self = number;
        }
    }
}

impl Field for bool {
    fn shown(&self, _: Unit) -> Value {
        Value::Switch(*self)
    }

    fn put(&mut self, value: Value, _: Unit) {
        if let Value::Switch(on) = value {
            *self = on;
        }
    }
}

impl Field for Vec<RateWindow> {
    fn shown(&self, _: Unit) -> Value {
        Value::Windows(self.clone())
    }

    fn put(&mut self, value: Value, _: Unit) {
        if let Value::Windows(windows) = value {
            *self = windows;
        }
    }
}

impl Field for Duration {
    fn shown(&self, unit: Unit) -> Value {
        let number = if unit == Unit::Seconds { self.as_secs().into() } else { self.as_millis() };
        Value::Whole(i64::try_from(number).unwrap_or(i64::MAX))
    }

    fn put(&mut self, value: Value, unit: Unit) {
        if let Value::Whole(number) = value {
            let number = u64::try_from(number).expect("bounds fit the field: tests hold it");
            *self = match unit {
                Unit::Seconds => Self::from_secs(number),
                _ => Self::from_millis(number),
            };
        }
    }
}
