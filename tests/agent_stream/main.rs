//! The agent against a process server that checks the stream: kills, reconnects, overflow, restart.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod bandwidth;
mod machine;
mod replaced;
mod scanned;
mod server;
mod stream;
mod takeover;
mod transport;
