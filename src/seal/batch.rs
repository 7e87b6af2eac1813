//! `Durable` → `Batch`: which records go into one delta. Sans-io; time is an argument.
//!
//! Owns: when a batch closes (bytes, records, age, a bookmark, a new epoch, a drain), that
//! the records of a machine are gapless, which epoch they belong to, whether a catch-up runs.
//! Does not own: what becomes of a batch; where records come from.

use std::collections::VecDeque;
use std::time::Duration;

use super::error::SealError;
use super::fold::Coverage;
use crate::cache::{Durable, DurableChange};
use crate::format::manifest::Manifest;
use crate::model::{Change, Epoch, MachineKey, Sequence};
use crate::settings::BatchSettings;

/// Most records of one batch: bounds a delta's index, as bytes do not bound zeros and marks.
pub const BATCH_RECORDS_MAX: usize = 1 << 16;
/// Most payload bytes of one batch, whatever the settings say.
pub const BATCH_BYTES_MAX: u64 = 256 << 20;
/// Most payload bytes of one batch as a multiple of what it may keep: they stay in the cache log
/// until it is published, however well they fold.
const FOLDED_MAX: u64 = 8;

/// Where a machine's stream stands before the next record; as the manifest says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// The record that must come next.
    pub next: Sequence,
    /// Its epoch, unless it begins another; 0 before the first epoch.
    pub epoch: Epoch,
    /// Whether a catch-up runs.
    pub catching_up: bool,
}

/// Why a batch was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// It keeps as many bytes as it may, or has folded as many.
    Bytes,
    /// It has as many records as it may.
    Records,
    /// Its first record is as old as it may be.
    Age,
    /// Its last record is a bookmark.
    Bookmark,
    /// The next record begins an epoch.
    EpochBegin,
    /// From the next record on writes are folded, or no longer.
    Granularity,
    /// The server drains.
    Drain,
}

/// Consecutive records of one machine and one epoch, to become one delta.
#[derive(Clone, Debug)]
pub struct Batch {
    machine: MachineKey,
    epoch: Epoch,
    items: Vec<Durable>, // never empty
    payload_bytes: u64,
    coverage: Option<Coverage>, // `None`: every write is kept
    catch_up: bool,
    ends_catching_up: bool,
    opened_at: Duration,
    closed_by: ClosedBy,
}

/// Collects one machine's records into batches.
#[derive(Debug)]
pub struct Batcher {
    machine: MachineKey,
    settings: BatchSettings,
    keep_every_write: bool,
    state: StreamState,
    open: Option<Batch>,
    closed: VecDeque<Batch>,
    refused: Option<Durable>,
}

impl StreamState {
    /// Before the first record of a machine.
    pub const BEGINNING: Self = Self { next: Sequence(1), epoch: Epoch(0), catching_up: false };

    /// After everything that a manifest names.
    #[must_use]
    pub fn after(manifest: &Manifest) -> Self {
        Self {
            next: manifest.published.next(),
            epoch: manifest.epochs.last().map_or(Epoch(0), |entry| entry.epoch),
            catching_up: manifest.catching_up,
        }
    }
}

impl Batcher {
    /// A batcher that goes on where the stream stands.
    #[must_use]
    pub fn new(machine: MachineKey, state: StreamState, settings: BatchSettings) -> Self {
        let (open, closed, refused) = (None, VecDeque::new(), None);
        Self { machine, settings, keep_every_write: false, state, open, closed, refused }
    }

    /// Whether writes from now on are all kept, or folded where they overlap.
    pub fn keep_every_write(&mut self, keep: bool) {
        if self.keep_every_write != keep {
            self.close(ClosedBy::Granularity);
            self.keep_every_write = keep;
        }
    }

    /// Changes when batches close; holds for the open one, too.
    pub fn tune(&mut self, settings: BatchSettings) {
        self.settings = settings;
    }

    /// Where the stream stands after the last record pushed.
    #[must_use]
    pub fn state(&self) -> StreamState {
        self.state
    }

    /// Takes the next record. Batches that it closes come out of [`Batcher::poll`].
    ///
    /// # Errors
    /// When it is another machine's, not the next of its stream, or may not stand where it does;
    /// the batcher is as before. The newest such record is held with the others: it may be the only
    /// copy.
    pub fn push(&mut self, item: Durable, now: Duration) -> Result<(), SealError> {
        let state = match self.state_after(&item) {
            Ok(state) => state,
            Err(error) => {
                self.refused = Some(item);
                return Err(error);
            }
        };
        let payload_bytes = item.payload_bytes();
        if state.epoch != self.state.epoch {
            self.close(ClosedBy::EpochBegin);
        }
        let bytes_max = self.settings.bytes_max.min(BATCH_BYTES_MAX);
        let payload_max = bytes_max.saturating_mul(FOLDED_MAX).min(BATCH_BYTES_MAX);
        let over = |open: &Batch| {
            open.kept_bytes() + open.added_by(&item) > bytes_max
                || open.payload_bytes + payload_bytes > payload_max
        };
        if self.open.as_ref().is_some_and(over) {
            self.close(ClosedBy::Bytes);
        }
        let bookmark = matches!(mark_of(&item), Some(Change::Bookmark(_)));
        let open = self.open.get_or_insert_with(|| Batch {
            machine: self.machine,
            epoch: state.epoch,
            items: Vec::new(),
            payload_bytes: 0,
            coverage: (!self.keep_every_write).then(Coverage::default),
            catch_up: self.state.catching_up && state.epoch == self.state.epoch,
            ends_catching_up: false,
            opened_at: now,
            closed_by: ClosedBy::Drain,
        });
        open.take(item);
        open.catch_up |= state.catching_up;
        open.ends_catching_up = state.catching_up;
        let full = open.kept_bytes() >= bytes_max || open.payload_bytes >= payload_max;
        let many = open.items.len() >= BATCH_RECORDS_MAX;
        self.state = state;
        if bookmark {
            self.close(ClosedBy::Bookmark);
        } else if full {
            self.close(ClosedBy::Bytes);
        } else if many {
            self.close(ClosedBy::Records);
        }
        Ok(())
    }

    /// The next closed batch, in order. Closes the open one when it is old enough.
    pub fn poll(&mut self, now: Duration) -> Option<Batch> {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.close(ClosedBy::Age);
        }
        self.closed.pop_front()
    }

    /// When [`Batcher::poll`] would close the open batch by its age; `None` when none is open.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let open = self.open.as_ref()?;
        Some(open.opened_at.saturating_add(self.settings.age_max))
    }

    /// Closes the open batch now.
    pub fn drain(&mut self) {
        self.close(ClosedBy::Drain);
    }

    /// All records that it holds, in order: they may be the only copies.
    #[must_use]
    pub fn into_items(mut self) -> Vec<Durable> {
        self.drain();
        self.closed.into_iter().flat_map(|batch| batch.items).chain(self.refused).collect()
    }

    fn close(&mut self, closed_by: ClosedBy) {
        if let Some(open) = self.open.take() {
            let coverage = open.coverage.map(Coverage::closed);
            self.closed.push_back(Batch { closed_by, coverage, ..open });
        }
    }

    fn state_after(&self, item: &Durable) -> Result<StreamState, SealError> {
        let (machine, found) = (self.machine, item.sequence());
        let order = |rule| SealError::OutOfOrder { machine, sequence: found, rule };
        if item.machine() != machine {
            let found = item.machine();
            return Err(SealError::ForeignRecord { machine, found });
        }
        let StreamState { next: expected, mut epoch, mut catching_up } = self.state;
        if found != expected {
            return Err(SealError::Gap { machine, expected, found });
        }
        match mark_of(item) {
            Some(Change::EpochBegin(begin)) => {
                if begin.epoch <= epoch {
                    return Err(order("an epoch begin must be of a later epoch"));
                }
                (epoch, catching_up) = (begin.epoch, false);
            }
            _ if epoch == Epoch(0) => return Err(order("the first record must begin an epoch")),
            Some(Change::Bookmark(_)) if catching_up => {
                return Err(order("a bookmark may not stand inside a catch-up"));
            }
            Some(Change::CatchUpEnd) if !catching_up => {
                return Err(order("a catch-up ends that did not begin"));
            }
            Some(Change::CatchUpEnd) => catching_up = false,
            Some(Change::CatchUpBegin(_)) => catching_up = true,
            Some(_) | None => {}
        }
        Ok(StreamState { next: expected.next(), epoch, catching_up })
    }
}

impl Batch {
    /// Whose.
    #[must_use]
    pub fn machine(&self) -> MachineKey {
        self.machine
    }

    /// The epoch of all its records.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Its records, gapless; at least one.
    #[must_use]
    pub fn items(&self) -> &[Durable] {
        &self.items
    }

    /// Its first record's place.
    #[must_use]
    pub fn first(&self) -> Sequence {
        self.items.first().map_or(Sequence::ZERO, Durable::sequence)
    }

    /// Its last record's place.
    #[must_use]
    pub fn last(&self) -> Sequence {
        self.items.last().map_or(Sequence::ZERO, Durable::sequence)
    }

    /// Whether every write is kept, or folded where they overlap.
    #[must_use]
    pub fn keeps_every_write(&self) -> bool {
        self.coverage.is_none()
    }

    /// Most bytes that its delta can hold: those of its writes, without what folding takes away.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.coverage.as_ref().map_or(self.payload_bytes, Coverage::bytes)
    }

    fn added_by(&self, item: &Durable) -> u64 {
        match (item.change(), &self.coverage) {
            (DurableChange::Write { disk, extent }, Some(map)) => map.added_by(*disk, *extent),
            _ => item.payload_bytes(),
        }
    }

    fn take(&mut self, item: Durable) {
        if let Some(coverage) = &mut self.coverage {
            match item.change() {
                DurableChange::Write { disk, extent } => coverage.write(*disk, *extent),
                DurableChange::Zero { disk, extent } => coverage.zero(*disk, *extent),
                DurableChange::Mark(_) => {}
            }
        }
        self.payload_bytes += item.payload_bytes();
        self.items.push(item);
    }

    /// Bytes of its writes.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Whether a catch-up begins or runs anywhere in it.
    #[must_use]
    pub fn catch_up(&self) -> bool {
        self.catch_up
    }

    /// Whether a catch-up runs after its last record.
    #[must_use]
    pub fn ends_catching_up(&self) -> bool {
        self.ends_catching_up
    }

    /// Monotonic time at which its first record was pushed.
    #[must_use]
    pub fn opened_at(&self) -> Duration {
        self.opened_at
    }

    /// Why it was closed.
    #[must_use]
    pub fn closed_by(&self) -> ClosedBy {
        self.closed_by
    }
}

fn mark_of(item: &Durable) -> Option<&Change> {
    match item.change() {
        DurableChange::Mark(mark) => Some(mark),
        DurableChange::Write { .. } | DurableChange::Zero { .. } => None,
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
