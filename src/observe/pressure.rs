//! How full the cache is, as levels with names, and what is to come.

use std::sync::Mutex;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

/// How the fill of the cache stands to its marks.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Pressure {
    /// Below all marks.
    #[default]
    Free,
    /// Above `cache.warn_fill`: uploads are behind.
    Warn,
    /// Above `cache.slow_fill`: agents get less credit.
    Slow,
    /// At `cache.stop_fill`, or no segment can be had: agents get none.
    Stop,
}

impl Pressure {
    /// All, from free to full.
    pub const ALL: [Self; 4] = [Self::Free, Self::Warn, Self::Slow, Self::Stop];

    /// As label value and in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Warn => "warn",
            Self::Slow => "slow",
            Self::Stop => "stop",
        }
    }
}

/// The cache at one moment, and where it is going.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheOutlook {
    /// The worst over all shards.
    pub pressure: Pressure,
    /// The least part of its credit that an agent gets, 0 to 1.
    pub credit_share: f64,
    /// Seconds until the stop mark is reached if all goes on like this; `None` when it will not.
    pub full_in_seconds: Option<f64>,
    /// Seconds until the backlog is published if all goes on like this; `None` when it grows or
    /// there is none.
    pub drained_in_seconds: Option<f64>,
}

impl Default for CacheOutlook {
    fn default() -> Self {
        Self {
            pressure: Pressure::Free,
            credit_share: 1.0,
            full_in_seconds: None,
            drained_in_seconds: None,
        }
    }
}

/// Where the one that watches leaves what it saw, for those who ask.
#[derive(Debug, Default)]
pub struct OutlookCell {
    outlook: Mutex<CacheOutlook>,
}

impl OutlookCell {
    /// What was seen last.
    #[must_use]
    pub fn now(&self) -> CacheOutlook {
        self.outlook.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Leaves what is seen.
    pub fn set(&self, outlook: CacheOutlook) {
        *self.outlook.lock().unwrap_or_else(PoisonError::into_inner) = outlook;
    }
}
