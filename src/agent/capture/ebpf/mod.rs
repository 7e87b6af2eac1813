//! Sees the block requests of a running machine's disks by a program in the kernel: no module, no
//! remount, no reboot. `docs/capture.md`, "eBPF", has the rules.
//!
//! `starting` loads the program (`kernel`) where `facts` and `proof` let it and takes over what `pins`
//! kept; `reader` tells the stream what the rings hold (`record`, `batch`), now and then (`naps`), `shared` is what others wait for, and
//! `medium` reads devices (`device`) for the catch-up.

mod batch;
mod device;
mod facts;
mod kernel;
mod medium;
mod naps;
mod pins;
#[cfg(test)]
mod program_tests;
mod proof;
mod reader;
#[cfg(test)]
mod reader_tests;
mod record;
mod shared;
mod starting;
#[cfg(test)]
mod starting_tests;
mod walk;

pub use pins::release;
pub(super) use starting::{open, start};
