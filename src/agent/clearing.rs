//! Clearing bits, in rounds: everything in the stream when the round began is published, then the
//! source is synced, then bits of chunks that nobody touched since the begin are cleared.
//!
//! Owns: when a bit may go. Does not own: how it goes ([`super::bitmap`]).

use std::io;
use std::sync::PoisonError;

use super::stream::Stream;

/// What one look at the round did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// Nothing could be cleared, so none was begun.
    Idle,
    /// It began, or waits until the stream is published far enough.
    Waits,
    /// It ended; so many bytes of the disks are known to be safe now.
    Cleared(u64),
}

impl Stream {
    /// Begins a round, or ends it when its part of the stream is published. Blocks on fdatasync.
    ///
    /// # Errors
    /// When a bitmap file cannot be written; what can be cleared on other disks is.
    pub(super) fn clear_step(&self) -> io::Result<Round> {
        let _alone = self.clearing.lock().unwrap_or_else(PoisonError::into_inner);
        let (through, witnessed) = {
            let mut core = self.lock();
            let Some(through) = core.round else {
                let idle =
                    !core.connected || !self.disks.iter().any(|disk| disk.bitmap.clearable());
                if idle {
                    return Ok(Round::Idle);
                }
                // Under the stream's lock: no write gets a sequence between the two lines.
                core.round = Some(core.last);
                for disk in &self.disks {
                    disk.bitmap.begin_clearing(|| disk.locks.ranges());
                }
                return Ok(Round::Waits);
            };
            (through, core.witnessed)
        };
        if witnessed < through {
            return Ok(Round::Waits);
        }
        let (mut cleared, mut broken) = (0, None);
        for disk in &self.disks {
            if !disk.bitmap.clearable() {
                continue;
            }
            match disk.sync() {
                // One disk's file is no reason to keep the bits of the others.
                Ok(()) => match disk.bitmap.finish_clearing(witnessed) {
                    Ok(bytes) => cleared += bytes,
                    Err(error) => broken = broken.or(Some(error)),
                },
                Err(error) => tracing::error!(disk = %disk.name, %error, "the source disk did not \
                    sync; no bit of its bitmap is cleared until the agent restarts"),
            }
        }
        self.lock().round = None;
        broken.map_or(Ok(Round::Cleared(cleared)), Err)
    }
}
