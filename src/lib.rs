//! Holdfast keeps running machines recoverable.
//!
//! > Writes flow right, watermarks flow left, and nothing else flows left.
//!
//! ```text
//! agent ──▶ ingest ──▶ cache ──▶ seal ──▶ upload ──▶ [cloud log] ──▶ apply ──▶ seed disk + recovery points
//!           received  ≥ durable            ≥ published              ≥ applied  ≥ recoverable
//! ```
//!
//! The tour, in flow order: [`agent`] tees a disk's writes into a stream; [`ingest`] admits them;
//! [`cache`] makes them durable; [`seal`] compresses and encrypts; [`upload`] publishes; the
//! [`cloud_log`] is what stands in the [`store`]; [`apply`] turns it into seed disks and recovery
//! points; [`recover`] turns a point back into a disk.

pub mod agent;
pub mod apply;
pub mod bounded_http;
pub mod budget;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod cloud_log;
pub mod control;
pub mod demo;
pub mod format;
pub mod ingest;
pub mod model;
pub mod nbd;
pub mod notify;
pub mod observe;
pub mod places;
pub mod recover;
pub mod seal;
pub mod server;
pub mod settings;
pub mod store;
pub mod top;
pub mod turns;
pub mod upload;
pub mod vault;
