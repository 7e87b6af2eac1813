//! What the process says about itself: metrics (every name in one place), the endpoint, the log.

mod metrics;

pub use metrics::{CpuTimer, MachineMetrics, Metrics, Stage};
