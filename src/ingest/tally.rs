//! What one connection received since it was last told to the metrics.
//!
//! Owns: that many small records cost the shared counters one visit. Does not own: the counters.

use std::time::Duration;

use crate::observe::{Metrics, Stage};

/// Records after which the metrics are told, however busy the connection is.
const RECORDS_MAX: usize = 64;

/// Told when it is full, when the connection has nothing more to read, and at its end.
pub(super) struct Tally<'a> {
    metrics: &'a Metrics,
    frame_bytes: u64,
    payload_bytes: u64,
    latencies: Vec<Duration>,
}

impl<'a> Tally<'a> {
    pub(super) fn new(metrics: &'a Metrics) -> Self {
        Self { metrics, frame_bytes: 0, payload_bytes: 0, latencies: Vec::new() }
    }

    pub(super) fn count(&mut self, frame_bytes: u64, payload_bytes: u64, latency: Duration) {
        self.frame_bytes += frame_bytes;
        self.payload_bytes += payload_bytes;
        self.latencies.push(latency);
        if self.latencies.len() >= RECORDS_MAX {
            self.tell();
        }
    }

    pub(super) fn tell(&mut self) {
        if !self.latencies.is_empty() {
            self.metrics.moved(Stage::Ingest, self.frame_bytes, self.payload_bytes);
            self.metrics.latencies(Stage::Ingest, self.latencies.drain(..));
            (self.frame_bytes, self.payload_bytes) = (0, 0);
        }
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        self.tell();
    }
}
