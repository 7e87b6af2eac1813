//! `capture = "scan"`: a disk that is written where nobody sees it is read again and again, and what
//! differs from what is published is sent. The rules are in `docs/capture.md`.
//!
//! Owns: passes over the disk, hashes, what a point means here. Does not own: the stream.

mod device;
mod hashes;
#[cfg(test)]
mod hashes_tests;
mod hooks;
mod pass;
#[cfg(test)]
mod pass_tests;
mod pauses;
mod report;
#[cfg(test)]
mod scan_tests;
mod start;
mod watched;

pub(in crate::agent) use start::{Running, Scanned};
