//! Where a machine's stream stands, and which record may come next.
//!
//! Owns: the rules of the stream that need nothing but the stream: gapless sequences, epochs,
//! catch-ups, disks and their sizes. Does not own: who sends (the session) and what is kept (the
//! cache). The same rules read a stream back at start: the records that recovery found are followed
//! from where the manifest ends.

use crate::cache::DurableChange;
use crate::format::manifest::Manifest;
use crate::model::{CatchUp, Change, DiskIndex, DiskSpec, Epoch, Extent, ExtentError, Sequence};

/// The state of a stream behind its last record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Its last record.
    pub sequence: Sequence,
    /// The epoch of that record; `Epoch(0)` before the first.
    pub epoch: Epoch,
    /// The disks of that epoch, ascending by index.
    pub disks: Vec<DiskSpec>,
    /// Whether it is in write order there.
    pub order: Order,
}

/// Whether a prefix that ends here is the machine at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The epoch was begun, nothing of it copied: only the initial replication may begin.
    #[default]
    Blank,
    /// Extents are sent that changed at moments nobody knows: no bookmark may stand here.
    CatchingUp,
    /// Every write so far is here, in order.
    Ordered,
}

/// A record that cannot be the next one of a stream.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StreamError {
    /// Not the sequence after the last.
    #[error("record {found} follows record {last}: a gap or a repetition")]
    Sequence {
        /// What came.
        found: Sequence,
        /// What it came after.
        last: Sequence,
    },
    /// Anything but an epoch begin at the start of the stream.
    #[error("record {sequence} stands before the first epoch begin")]
    NoEpoch {
        /// Where.
        sequence: Sequence,
    },
    /// An epoch that does not follow the last one.
    #[error("record {sequence} begins epoch {found} after epoch {last}")]
    Epoch {
        /// Where.
        sequence: Sequence,
        /// What came.
        found: Epoch,
        /// What it came after.
        last: Epoch,
    },
    /// Something else than the initial replication behind an epoch begin.
    #[error(
        "record {sequence} stands between the begin of epoch {epoch} and its initial replication"
    )]
    NoCopy {
        /// Where.
        sequence: Sequence,
        /// The epoch that was begun.
        epoch: Epoch,
    },
    /// A bookmark where no prefix is consistent.
    #[error("record {sequence} is a bookmark inside a catch-up")]
    BookmarkInCatchUp {
        /// Where.
        sequence: Sequence,
    },
    /// The end of a catch-up that was not begun.
    #[error("record {sequence} ends a catch-up that was not begun")]
    NoCatchUp {
        /// Where.
        sequence: Sequence,
    },
    /// A disk that the epoch does not have.
    #[error("record {sequence} is for disk {disk}, which epoch {epoch} does not have")]
    Disk {
        /// Where.
        sequence: Sequence,
        /// Which.
        disk: DiskIndex,
        /// The epoch.
        epoch: Epoch,
    },
    /// A place that the disk does not have.
    #[error("record {sequence} for disk {disk}")]
    Extent {
        /// Where.
        sequence: Sequence,
        /// Which disk.
        disk: DiskIndex,
        /// What is wrong.
        #[source]
        source: ExtentError,
    },
}

/// What of a change the rules look at.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// A write or zero.
    Touch(DiskIndex, Extent),
    /// Any other change.
    Mark(&'a Change),
}

impl<'a> From<&'a Change> for Step<'a> {
    fn from(change: &'a Change) -> Self {
        match change {
            Change::Write { disk, extent, .. } | Change::Zero { disk, extent } => {
                Self::Touch(*disk, *extent)
            }
            mark => Self::Mark(mark),
        }
    }
}

impl<'a> From<&'a DurableChange> for Step<'a> {
    fn from(change: &'a DurableChange) -> Self {
        match change {
            DurableChange::Write { disk, extent } | DurableChange::Zero { disk, extent } => {
                Self::Touch(*disk, *extent)
            }
            DurableChange::Mark(mark) => (&**mark).into(),
        }
    }
}

impl StreamState {
    /// Where the published part of a stream ends.
    #[must_use]
    pub fn published(manifest: &Manifest) -> Self {
        let Some(epoch) = manifest.epochs.last() else {
            return Self::default();
        };
        let order = if manifest.catching_up {
            Order::CatchingUp
        } else if epoch.first == manifest.published {
            Order::Blank
        } else {
            Order::Ordered
        };
        Self { sequence: manifest.published, epoch: epoch.epoch, disks: epoch.disks.clone(), order }
    }

    /// Takes the next record; an error leaves the state as it was.
    ///
    /// # Errors
    /// When the record cannot be the next one.
    pub fn follow<'a>(
        &mut self,
        sequence: Sequence,
        step: impl Into<Step<'a>>,
    ) -> Result<(), StreamError> {
        // `next` saturates: at the very end the last sequence would be its own successor.
        if sequence != self.sequence.next() || sequence == self.sequence {
            let last = self.sequence;
            return Err(StreamError::Sequence { found: sequence, last });
        }
        match step.into() {
            Step::Mark(Change::EpochBegin(begin)) => {
                if self.epoch.0.checked_add(1) != Some(begin.epoch.0) {
                    return Err(StreamError::Epoch {
                        sequence,
                        found: begin.epoch,
                        last: self.epoch,
                    });
                }
                self.epoch = begin.epoch;
                self.disks.clone_from(&begin.disks);
                self.order = Order::Blank;
            }
            _ if self.epoch == Epoch(0) => return Err(StreamError::NoEpoch { sequence }),
            Step::Mark(Change::CatchUpBegin(CatchUp::InitialReplication)) => {
                self.order = Order::CatchingUp;
            }
            _ if self.order == Order::Blank => {
                let epoch = self.epoch;
                return Err(StreamError::NoCopy { sequence, epoch });
            }
            Step::Touch(disk, extent) => self.check_place(sequence, disk, extent)?,
            Step::Mark(mark) => self.order = self.order_after(sequence, mark)?,
        }
        self.sequence = sequence;
        Ok(())
    }

    fn order_after(&self, sequence: Sequence, mark: &Change) -> Result<Order, StreamError> {
        let catching_up = self.order == Order::CatchingUp;
        match mark {
            Change::Bookmark(_) if catching_up => Err(StreamError::BookmarkInCatchUp { sequence }),
            Change::CatchUpEnd if !catching_up => Err(StreamError::NoCatchUp { sequence }),
            Change::CatchUpBegin(_) => Ok(Order::CatchingUp),
            Change::CatchUpEnd => Ok(Order::Ordered),
            Change::Bookmark(_)
            | Change::EpochBegin(_)
            | Change::Write { .. }
            | Change::Zero { .. } => Ok(self.order),
        }
    }

    fn check_place(
        &self,
        sequence: Sequence,
        disk: DiskIndex,
        extent: Extent,
    ) -> Result<(), StreamError> {
        let found = self.disks.binary_search_by_key(&disk, |spec| spec.index);
        let Some(spec) = found.ok().and_then(|at| self.disks.get(at)) else {
            let epoch = self.epoch;
            return Err(StreamError::Disk { sequence, disk, epoch });
        };
        match extent.within(spec.size_bytes) {
            Ok(_) => Ok(()),
            Err(source) => Err(StreamError::Extent { sequence, disk, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::manifest::EpochEntry;
    use crate::model::Generation;

    fn manifest(published: u64, epochs: Vec<EpochEntry>, catching_up: bool) -> Manifest {
        Manifest {
            machine: "web-1".parse().unwrap(),
            generation: Generation(1),
            owner: "ps-1".parse().unwrap(),
            owned_since: Generation(1),
            version: 1,
            truncated: Sequence::ZERO,
            published: Sequence(published),
            last_delta: None,
            catching_up,
            epochs,
            pages: Vec::new(),
            entries: Vec::new(),
        }
    }

    #[test]
    fn a_stream_is_read_back_from_its_manifest_and_what_recovery_found() {
        let nothing = StreamState::published(&manifest(0, Vec::new(), false));
        assert_eq!(nothing, StreamState::default());
        let begun_at = |first| EpochEntry {
            epoch: Epoch(2),
            first: Sequence(first),
            disks: vec![DiskSpec {
                index: DiskIndex(1),
                name: "root".parse().unwrap(),
                size_bytes: 4096,
            }],
        };
        let order = |first, catching_up| {
            StreamState::published(&manifest(9, vec![begun_at(first)], catching_up)).order
        };
        assert_eq!(order(9, false), Order::Blank, "the copy is still to begin");
        assert_eq!(order(5, true), Order::CatchingUp);
        assert_eq!(order(5, false), Order::Ordered);

        let mut stream = StreamState::published(&manifest(9, vec![begun_at(9)], false));
        let copy = Change::CatchUpBegin(CatchUp::InitialReplication);
        let extent = Extent::new(0, 4096, 4096).unwrap();
        let disk = DiskIndex(1);
        let found = [
            DurableChange::mark(copy),
            DurableChange::Write { disk, extent },
            DurableChange::mark(Change::CatchUpEnd),
        ];
        for (sequence, change) in (10..).zip(&found) {
            assert_eq!(stream.follow(Sequence(sequence), change), Ok(()));
        }
        assert_eq!((stream.sequence, stream.order), (Sequence(12), Order::Ordered));
    }
}
