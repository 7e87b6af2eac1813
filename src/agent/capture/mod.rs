//! Ways to see what a workload writes: each has a room of its own, and `docs/capture.md` a section.
//!
//! Owns: what stands in front of a disk, or looks at it. Does not own: what becomes of a change
//! ([`super::stream`]).

pub(super) mod fuse;
pub(super) mod scan;
