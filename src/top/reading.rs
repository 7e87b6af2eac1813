//! A metrics page as values with names.
//!
//! What the page does not have is absent, never nought.

use std::collections::BTreeMap;

use crate::observe::{Sample, SampleError, Stage, samples};

/// What a process server said at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Reading {
    pub(super) version: Option<String>,
    /// Seconds since 1970.
    pub(super) started: Option<f64>,
    pub(super) memory_bytes: Option<f64>,
    pub(super) connected: Option<f64>,
    pub(super) away: Option<f64>,
    pub(super) cache_used_bytes: Option<f64>,
    pub(super) cache_max_bytes: Option<f64>,
    /// The level that is 1.
    pub(super) pressure: Option<String>,
    /// Level and the fill at which it begins, in the page's order.
    pub(super) marks: Vec<(String, f64)>,
    pub(super) credit_share: Option<f64>,
    pub(super) full_seconds: Option<f64>,
    pub(super) drain_seconds: Option<f64>,
    pub(super) streams: Option<f64>,
    pub(super) streams_busy: Option<f64>,
    pub(super) rate_limit: Option<f64>,
    /// 0 closed, 1 open, 2 probing.
    pub(super) breaker: Option<f64>,
    /// For whatever reason.
    pub(super) retries: Option<f64>,
    pub(super) backlog_bytes: Option<f64>,
    pub(super) rpo_worst_seconds: Option<f64>,
    pub(super) stages: [StageReading; Stage::ALL.len()],
    pub(super) machines: BTreeMap<String, MachineReading>,
}

/// What it said of a stage, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct StageReading {
    pub(super) in_bytes: Option<f64>,
    pub(super) out_bytes: Option<f64>,
    pub(super) cpu_seconds: Option<f64>,
    pub(super) p50_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
}

/// What it said of a machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct MachineReading {
    /// Received, durable, published, applied, recoverable: through these sequences.
    pub(super) watermarks: [Option<f64>; WATERMARKS.len()],
    pub(super) rpo_seconds: Option<f64>,
    pub(super) source_bytes: Option<f64>,
    pub(super) backlog_bytes: Option<f64>,
    pub(super) connected: Option<f64>,
    /// `ordered`, `catching-up`, `bitmap`.
    pub(super) tracking: Option<String>,
    pub(super) dirty_bytes: Option<f64>,
    pub(super) disk_bytes: Option<f64>,
}

/// In flow order, as label values and headings.
pub(super) const WATERMARKS: [&str; 5] =
    ["received", "durable", "published", "applied", "recoverable"];

impl Reading {
    /// What `page` says.
    ///
    /// # Errors
    /// Names the first line that is no sample.
    pub(super) fn of(page: &str) -> Result<Self, SampleError> {
        let mut reading = Self::default();
        for sample in samples(page) {
            let sample = sample?;
            if let Some(stage) = sample.label("stage") {
                reading.of_stage(stage, &sample);
            } else if let Some(machine) = sample.label("machine") {
                reading.of_machine(machine, &sample);
            } else {
                reading.of_server(&sample);
            }
        }
        Ok(reading)
    }

    fn of_server(&mut self, sample: &Sample<'_>) {
        let label = |name| sample.label(name).map(str::to_owned);
        let value = Some(sample.value);
        match sample.name {
            "holdfast_build_info" => self.version = label("version"),
            "process_start_time_seconds" => self.started = value,
            "process_resident_memory_bytes" => self.memory_bytes = value,
            "holdfast_machines" => match sample.label("agent") {
                Some("connected") => self.connected = value,
                Some("away") => self.away = value,
                _ => {}
            },
            "holdfast_cache_used_bytes" => self.cache_used_bytes = value,
            "holdfast_cache_max_bytes" => self.cache_max_bytes = value,
            "holdfast_cache_pressure" if sample.value == 1.0 => self.pressure = label("level"),
            "holdfast_cache_mark_ratio" => {
                self.marks.extend(label("level").map(|level| (level, sample.value)));
            }
            "holdfast_credit_share_ratio" => self.credit_share = value,
            "holdfast_cache_full_seconds" => self.full_seconds = value,
            "holdfast_backlog_drain_seconds" => self.drain_seconds = value,
            "holdfast_upload_streams" => self.streams = value,
            "holdfast_upload_streams_busy" => self.streams_busy = value,
            "holdfast_upload_rate_limit_bytes_per_second" => self.rate_limit = value,
            "holdfast_store_breaker_state" => self.breaker = value,
            "holdfast_store_retries_total" => {
                self.retries = Some(self.retries.unwrap_or(0.0) + sample.value);
            }
            "holdfast_backlog_all_bytes" => self.backlog_bytes = value,
            "holdfast_rpo_worst_seconds" => self.rpo_worst_seconds = value,
            _ => {}
        }
    }

    fn of_stage(&mut self, stage: &str, sample: &Sample<'_>) {
        let Some(at) = Stage::ALL.into_iter().position(|one| one.as_str() == stage) else { return };
        let (stage, value) = (&mut self.stages[at], Some(sample.value));
        match (sample.name, sample.label("quantile")) {
            ("holdfast_stage_in_bytes_total", _) => stage.in_bytes = value,
            ("holdfast_stage_out_bytes_total", _) => stage.out_bytes = value,
            ("holdfast_stage_cpu_seconds_total", _) => stage.cpu_seconds = value,
            ("holdfast_stage_latency_quantile_seconds", Some("0.5")) => stage.p50_seconds = value,
            ("holdfast_stage_latency_quantile_seconds", Some("0.99")) => stage.p99_seconds = value,
            _ => {}
        }
    }

    fn of_machine(&mut self, machine: &str, sample: &Sample<'_>) {
        if !self.machines.contains_key(machine) {
            self.machines.insert(machine.to_owned(), MachineReading::default());
        }
        let Some(of) = self.machines.get_mut(machine) else { return };
        let value = Some(sample.value);
        match sample.name {
            "holdfast_watermark_sequence" => {
                let watermark = sample.label("watermark");
                let at = WATERMARKS.iter().position(|name| watermark == Some(name));
                at.into_iter().for_each(|at| of.watermarks[at] = value);
            }
            "holdfast_rpo_seconds" => of.rpo_seconds = value,
            "holdfast_source_bytes_total" => of.source_bytes = value,
            "holdfast_backlog_bytes" => of.backlog_bytes = value,
            "holdfast_agent_connected" => of.connected = value,
            "holdfast_agent_tracking" if sample.value == 1.0 => {
                of.tracking = sample.label("mode").map(str::to_owned);
            }
            "holdfast_agent_dirty_bytes" => of.dirty_bytes = value,
            "holdfast_agent_disk_bytes" => of.disk_bytes = value,
            _ => {}
        }
    }
}
