//! Every byte that leaves the process, sans-io: hand-written little-endian codecs.
//!
//! Layouts stand in `docs/formats/`, one page each; the two agree at every commit.

#![forbid(unsafe_code)]

pub mod bytes;
pub mod change;
pub mod delta;
pub mod manifest;
pub mod names;
pub mod seed_disk;
pub mod segment;
pub mod wire;
