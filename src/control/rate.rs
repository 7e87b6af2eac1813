//! How fast a machine's stream is published, from its newest deltas.

use crate::format::manifest::DeltaEntry;
use crate::model::Timestamp;

/// Deltas older than this say nothing about now, seconds.
const WINDOW_S: f64 = 300.0;

/// Source bytes published per second; `None` while there is too little to tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate(Option<f64>);

impl Rate {
    /// Over the deltas of the last minutes before `now`. The first one only marks the start: when
    /// its bytes began to flow is not known.
    pub(super) fn of(entries: &[DeltaEntry], now: Timestamp) -> Self {
        let recent = entries.iter().rev();
        let recent: Vec<_> =
            recent.take_while(|entry| now.seconds_since(entry.created) <= WINDOW_S).collect();
        let (Some(newest), Some(oldest)) = (recent.first(), recent.last()) else {
            return Self(None);
        };
        let seconds = newest.created.seconds_since(oldest.created);
        let counted = &recent[..recent.len() - 1];
        let bytes: u64 = counted.iter().map(|entry| entry.source_bytes).sum();
        Self((seconds > 0.0 && bytes > 0).then(|| bytes as f64 / seconds))
    }

    /// How long `bytes` take.
    pub(super) fn seconds_for(self, bytes: u64) -> Option<f64> {
        self.0.map(|rate| bytes as f64 / rate)
    }
}
