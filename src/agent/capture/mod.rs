//! How the writes of a disk come to be known. One stream behind all ways; `docs/capture.md` says
//! which way promises what.
//!
//! NBD and [`fuse`] stand in the way of a write (`super::disk`): they give a sequence before the
//! workload has its answer. An [`Observer`] hears of a write after the fact.
//!
//! Owns: what an observer is; opening, starting and stopping the ways (`captures`). Does not own: the
//! stream.

mod captures;
mod ebpf;
mod fuse;
pub(super) mod mirror;
mod scan;

use std::time::Duration;

use crate::model::DiskIndex;

pub(super) use crate::model::CaptureMode;
pub(super) use captures::{Captures, Opening, open, start};
pub use ebpf::release;
pub(super) use scan::Scanned;

/// How old what a point of a disk shows is, where that is not the moment of its bookmark.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Age {
    /// Of the newest state that a point can show.
    pub(super) now: Option<Duration>,
    /// As old as the state before was when the newest one took its place.
    pub(super) max: Option<Duration>,
}

/// Somebody who sees writes that were made without asking the agent. It tells the stream of them with
/// [`super::stream::Stream::observed`] and [`super::stream::Stream::unordered`].
pub(super) trait Observer: Send + Sync {
    /// Blocks until everything that the workload did before this call is in the stream, or its bits are
    /// set. A bookmark that is placed after that stands behind all of it.
    ///
    /// # Errors
    /// In words, when that cannot be had: then no bookmark is placed.
    fn settle(&self) -> Result<(), String>;
    /// Asked when a bookmark stands in the stream and is not sent: whether nothing was missed before this
    /// moment. Only who can miss something without noticing it at once has to look.
    ///
    /// # Errors
    /// In words, what was missed: order is lost, and the bookmark with it.
    fn confirm(&self) -> Result<(), String> {
        Ok(())
    }
    /// How well each of its disks is known now, and why not better.
    fn modes(&self) -> Vec<(DiskIndex, CaptureMode, String)>;
    /// How old the states of its disks are that points show. Nothing to say: as old as their bookmarks.
    /// Asked under the stream's lock, too.
    fn ages(&self) -> Vec<(DiskIndex, Age)> {
        Vec::new()
    }
    /// Ends it in order: what was seen is in the stream when this returns, and nothing follows.
    fn stop(&self);
}
