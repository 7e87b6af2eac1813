//! What the process says about itself: metrics (every name in one place), the endpoint, the log.

mod alarms;
mod chain;
pub mod endpoint;
mod exposition;
mod facts;
mod idle;
mod log;
mod meter;
mod metrics;
mod pacing;
mod pressure;
mod process;
mod queues;
mod requests;
mod samples;
mod scale;
mod stage;
mod tuning;

pub use chain::error_chain;
pub use facts::{AgentTracking, HeldFacts, MachineFacts, ServerFacts, StageFacts};
pub use idle::IdleMeter;
pub use log::{LogError, start_log};
pub use meter::Meter;
pub use metrics::{CpuTimer, MachineMetrics, Metrics};
pub use pacing::{PacingMetrics, RetryReason};
pub use pressure::{CacheOutlook, OutlookCell, Pressure};
pub use queues::{Queue, QueueFacts};
pub use requests::{RequestCounts, RequestFacts, StoreMetrics, StoreRequest};
pub use samples::{Sample, SampleError, samples};
pub use scale::ScaleMetrics;
pub use stage::Stage;
