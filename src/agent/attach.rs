//! A connection begins and ends: where the stream goes on.
//!
//! Owns: carrying out what [`super::welcome`] decided. Does not own: the connection itself.

use std::sync::PoisonError;

use crate::format::wire::Welcome;
use crate::model::{Epoch, Sequence, TrackingMode};

use super::stream::{Core, Stream};
use super::welcome::{Decision, Known, decide};

/// Why a welcomed connection cannot be used.
#[derive(Debug)]
pub(super) enum Unwelcome {
    /// The server contradicts itself: reconnect.
    Nonsense(String),
    /// Somebody else writes the stream: stop.
    Foreign(String),
    /// The bitmap of the new epoch could not be written.
    Bitmap(std::io::Error),
}

impl Core {
    fn known(&self) -> Known {
        let first = self.buffer.first().unwrap_or(self.last.next());
        Known {
            epoch: self.epoch,
            resync: self.resync.clone(),
            clean: self.clean,
            witnessed: self.witnessed,
            durable: self.durable,
            sent: self.sent_before,
            held: (self.mode != TrackingMode::Bitmap).then_some((first, self.last)),
            epoch_placed: self.epoch_placed,
        }
    }
}

impl Stream {
    /// Goes on where the server says. Blocks: a new epoch writes bitmaps.
    ///
    /// # Errors
    /// When this connection must not be used.
    pub(super) fn attach(&self, welcome: &Welcome) -> Result<(), Unwelcome> {
        let mut core = self.lock();
        let decision = decide(&core.known(), welcome);
        let at = welcome.durable;
        tracing::info!(server = %welcome.server, durable = %at, published = %welcome.published,
            epoch = %welcome.epoch, ?decision, "welcomed");
        match decision {
            Decision::Nonsense(why) => return Err(Unwelcome::Nonsense(why)),
            Decision::Foreign(why) => return Err(Unwelcome::Foreign(why)),
            Decision::Resend => {
                core.sent = at;
                core.durable = at;
                core.buffer.rewind(at);
            }
            Decision::CatchUp => self.restart(&mut core, at, "order was lost"),
            Decision::CatchUpAll => {
                let why = "the server has less than it had acknowledged";
                self.restart(&mut core, at, why);
                self.disks.iter().for_each(|disk| disk.bitmap.lost_all());
            }
            Decision::NewEpoch { why, alarm } => {
                if alarm {
                    tracing::error!(why, "everything is sent again in a new epoch");
                } else {
                    tracing::warn!(why, "everything is sent again in a new epoch");
                }
                // The stream's next, even if the bitmap had begun one that never got there.
                let next = Epoch(welcome.epoch.0.saturating_add(1));
                self.restart(&mut core, at, &why);
                core.because = Some(why.clone());
                // Stays if this life ends before the epoch is on disk: the next tries again.
                core.resync = Some(why);
                drop(core);
                self.begin_epoch(next, welcome.published)?;
                core = self.lock();
            }
        }
        core.raise(at, welcome.published);
        core.connected = true;
        drop(core);
        self.to_repair.notify_one();
        Ok(())
    }

    /// The connection is gone; what was sent may have to be sent again.
    pub(super) fn detach(&self) {
        self.lock().connected = false;
        self.to_tell.notify_one();
    }

    /// Somebody else writes the stream. Only this life knows what it gave out itself; the next one would
    /// take the other's records for its own, so it finds no epoch to continue. Blocks.
    ///
    /// # Errors
    /// When a bitmap file cannot be written; the others are.
    pub(super) fn forget_epoch(&self) -> std::io::Result<()> {
        let forgotten: Vec<_> = self.disks.iter().map(|disk| disk.bitmap.forget_epoch()).collect();
        forgotten.into_iter().collect()
    }

    /// Bitmap mode at a position that the server named; nothing is held any more.
    fn restart(&self, core: &mut Core, at: Sequence, why: &str) {
        if core.mode != TrackingMode::Bitmap {
            self.lose(core, why);
        }
        core.round = None;
        core.last = at;
        core.sent = at;
        core.sent_before = Some(at);
        core.durable = at;
    }

    fn begin_epoch(&self, epoch: Epoch, published: Sequence) -> Result<(), Unwelcome> {
        let _alone = self.clearing.lock().unwrap_or_else(PoisonError::into_inner);
        for disk in &self.disks {
            disk.bitmap.begin_epoch(epoch, published).map_err(Unwelcome::Bitmap)?;
        }
        let mut core = self.lock();
        core.epoch = epoch;
        core.epoch_due = true;
        core.epoch_placed = None;
        core.resync = None;
        core.clean = false;
        core.witnessed = published;
        Ok(())
    }
}
