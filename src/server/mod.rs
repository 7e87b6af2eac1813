//! Shards, limits, drain and the wiring of all stages: the only room that names them all.
//!
//! ```text
//! shard (thread, tokio-uring)         backend (tokio)                       CPU threads
//!   ingest ─▶ cache log ─▶ routes ─▶ pipeline: batcher ─▶ (seal pool) ─▶ ─▶ seal
//!      ▲                               upload ◀── sealed ◀────────────────────┘
//!      └── MachineLink ◀── durable, published
//!                                     applying: manifest ─▶ seed disks, points, retention
//! ```
//!
//! Stopping is a cascade and needs no list of what to stop: the data port drains, the links to the
//! machines are dropped, so the shards' logs see their queues close, write everything and close
//! cleanly; then the pipelines' queues close, and they publish what is left.

mod announce;
mod applying;
mod closing;
mod error;
mod garbage;
mod handover;
mod keeping;
mod logs;
mod machines;
mod operator;
mod ownership;
mod pacing;
mod peers;
mod pipeline;
mod pressure;
mod process;
mod quic;
mod recovered;
mod retune;
mod routes;
mod sealing;
mod shard;
mod standalone;
#[cfg(test)]
mod testing;
mod vital;

pub use error::ServerError;
pub use garbage::{Garbage, collect_garbage};
pub use process::{Addresses, ProcessServer};
pub use standalone::apply;
