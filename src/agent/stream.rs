//! The one write stream of the machine, over all its disks.
//!
//! Owns: sequences, tracking mode, the resend buffer, watermarks. One lock covers them, so that a
//! bookmark cuts all disks at one number. Does not own: sockets, reading disks, clearing bits.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;

use crate::model::{
    Bookmark, CatchUp, Change, DiskIndex, DiskSpec, Epoch, EpochBegin, Record, Sequence,
    TrackingMode,
};

use super::buffer::{Buffer, cost};
use super::capture::Observer;
use super::disk::Disk;
use super::readings::Reading;
use super::resumption::Resumption;

/// The machine's stream. Called from several threads at once.
pub(super) struct Stream {
    pub(super) disks: Vec<Arc<Disk>>,
    core: Mutex<Core>,
    /// Durable position or mode moved: wakes writers in mode sync.
    moved: Condvar,
    /// Something to send, or a reason to look.
    pub(super) to_send: Notify,
    /// Catching up may go on.
    pub(super) to_repair: Notify,
    /// The mode changed.
    pub(super) to_tell: Notify,
    /// Held while a round of clearing ends or an epoch begins: never both.
    pub(super) clearing: Mutex<()>,
    /// Who tells of writes after the fact.
    pub(super) observers: Mutex<Arc<[Arc<dyn Observer>]>>,
    /// Written while observers are asked for one bookmark; read by who must not come between.
    pub(super) bookmarking: RwLock<()>,
    closed: AtomicBool,
}

/// Everything under the one lock.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) mode: TrackingMode,
    /// Why it is in this mode, for people.
    pub(super) why: String,
    pub(super) epoch: Epoch,
    /// Why the bitmap cannot continue its epoch.
    pub(super) resync: Option<String>,
    /// Why so much is read again, for people, until that is over.
    pub(super) because: Option<String>,
    /// The last life stopped in order and nothing was given out since.
    pub(super) clean: bool,
    pub(super) witnessed: Sequence,
    pub(super) durable: Sequence,
    pub(super) last: Sequence,
    pub(super) highest: Sequence,
    pub(super) sent: Sequence,
    /// The most that the server can have: the last record of this order that was ever sent, or what the
    /// server named. What is sent up to it is sent again. `None` before the first Welcome.
    pub(super) sent_before: Option<Sequence>,
    /// Payload that was sent again in this life.
    pub(super) resent_bytes: u64,
    pub(super) connected: bool,
    /// An epoch was begun on disk and its first record is not in the stream yet.
    pub(super) epoch_due: bool,
    pub(super) epoch_placed: Option<Sequence>,
    pub(super) buffer: Buffer,
    /// How often order was lost in this life; tells stale waits from live ones.
    pub(super) losses: u64,
    /// Something was written since the last bookmark.
    pub(super) bookmark_due: bool,
    /// A round of clearing waits until this is published.
    pub(super) round: Option<Sequence>,
    /// Writers that wait for a durable ack now.
    pub(super) waiters: u64,
    /// Bytes of the disks that catch-ups have placed in this life.
    pub(super) repaired_bytes: u64,
    /// What keeps the source from being read, in words.
    pub(super) trouble: Option<String>,
    /// Disks whose observer does not know everything in order, and why: no catch-up ends.
    pub(super) withheld: BTreeMap<DiskIndex, String>,
    /// The read of the catch-up that is not placed yet.
    pub(super) reading: Option<Reading>,
    /// A bookmark that is not sent yet, nor anything behind it: observers have not confirmed it.
    pub(super) unconfirmed: Option<Sequence>,
    /// When the next catch-up may begin, after the load was too much.
    resumption: Resumption,
}

/// Where a change was placed: its last sequence, and the count of losses then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) sequence: Sequence,
    pub(super) losses: u64,
}

impl Stream {
    /// A stream in bitmap mode: nothing can be given a sequence before the first Welcome.
    pub(super) fn new(
        disks: Vec<Arc<Disk>>,
        bytes_max: u64,
        epoch: Epoch,
        witnessed: Sequence,
        clean: bool,
        resync: Option<String>,
    ) -> Self {
        let core = Core {
            mode: TrackingMode::Bitmap,
            why: "no process server has answered yet".to_owned(),
            epoch,
            resync,
            because: None,
            clean,
            witnessed,
            durable: Sequence::ZERO,
            last: Sequence::ZERO,
            highest: Sequence::ZERO,
            sent: Sequence::ZERO,
            sent_before: None,
            resent_bytes: 0,
            connected: false,
            epoch_due: false,
            epoch_placed: None,
            buffer: Buffer::new(bytes_max),
            losses: 0,
            bookmark_due: false,
            round: None,
            waiters: 0,
            repaired_bytes: 0,
            trouble: None,
            withheld: BTreeMap::new(),
            reading: None,
            unconfirmed: None,
            resumption: Resumption::default(),
        };
        Self {
            disks,
            core: Mutex::new(core),
            moved: Condvar::new(),
            to_send: Notify::new(),
            to_repair: Notify::new(),
            to_tell: Notify::new(),
            clearing: Mutex::new(()),
            observers: Mutex::new(Arc::default()),
            bookmarking: RwLock::new(()),
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn disk(&self, disk: DiskIndex) -> &Disk {
        &self.disks[usize::from(disk.0)]
    }

    /// What the stream's epoch names.
    pub(super) fn specs(&self) -> Vec<DiskSpec> {
        let spec = |disk: &Arc<Disk>| DiskSpec {
            index: disk.index,
            name: disk.name.clone(),
            size_bytes: disk.size_bytes,
        };
        self.disks.iter().map(spec).collect()
    }

    /// Whether the agent has stopped: no write may reach a disk that nobody tracks.
    pub(super) fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Refuses every write and bookmark from here on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        drop(self.lock()); // a waiter is either before its check or waiting
        self.moved.notify_all();
    }

    /// Gives sequences to a change that is on the source disk, before it is acknowledged to the
    /// workload. The caller holds the range. `None`: only the bitmap knows of it.
    pub(super) fn tee(
        &self,
        disk: DiskIndex,
        range: Range<u64>,
        changes: Vec<Change>,
    ) -> Option<Placed> {
        self.place(&mut self.lock(), disk, range, changes)
    }

    /// [`Stream::tee`] by whoever holds the lock. The range's bits are on disk.
    pub(super) fn place(
        &self,
        core: &mut Core,
        disk: DiskIndex,
        range: Range<u64>,
        changes: Vec<Change>,
    ) -> Option<Placed> {
        let whole = changes.into_iter().all(|change| self.put(core, disk, &range, change));
        self.to_send.notify_one();
        whole.then(|| core.placed())
    }

    /// One change of a write of `range`; `false`: only the bitmap knows of the range. Wakes nobody.
    pub(super) fn put(
        &self,
        core: &mut Core,
        disk: DiskIndex,
        range: &Range<u64>,
        change: Change,
    ) -> bool {
        let bitmap = core.mode == TrackingMode::Bitmap;
        if bitmap || !core.make_room(cost(change.payload_bytes())) {
            if !bitmap {
                self.overloaded(core);
            }
            // A read may have begun after order was lost, and be placed when a catch-up runs again.
            if let Some(reading) = &mut core.reading {
                reading.spoiled(disk, range);
            }
            self.disk(disk).bitmap.lost(range.clone());
            return false;
        }
        core.push(change);
        if let Some(reading) = &mut core.reading {
            reading.written(disk, range);
        }
        core.bookmark_due = true;
        true
    }

    /// A write failed half-way: nobody knows what stands there until it is read again.
    pub(super) fn unknown(&self, disk: DiskIndex, range: Range<u64>, error: &io::Error) {
        let name = &self.disk(disk).name;
        tracing::warn!(disk = %name, ?range, %error, "a source write did not succeed; its chunks are read again");
        let why = "a write of the source disk did not succeed";
        self.disorder(&mut self.lock(), disk, range, why);
    }

    /// The range is dirty from here on; its bits are set.
    pub(super) fn disorder(&self, core: &mut Core, disk: DiskIndex, range: Range<u64>, why: &str) {
        self.spoil(core, disk, range, why);
        self.to_repair.notify_one();
    }

    /// The same; wakes nobody.
    pub(super) fn spoil(&self, core: &mut Core, disk: DiskIndex, range: Range<u64>, why: &str) {
        if let Some(reading) = &mut core.reading {
            reading.spoiled(disk, &range);
        }
        self.disk(disk).bitmap.lost(range);
        if core.mode == TrackingMode::Ordered {
            self.begin_catch_up(core, why);
        }
    }

    /// A read of the catch-up begins: what changes meanwhile is known when it is placed.
    pub(super) fn begin_reading(&self, disk: DiskIndex, range: Range<u64>) {
        let mut core = self.lock();
        core.reading = Some(Reading::new(disk, range, core.losses));
    }

    /// Says (or no longer says) what keeps a catch-up from going on.
    pub(super) fn note_trouble(&self, trouble: Option<String>) {
        self.lock().trouble = trouble;
        self.to_tell.notify_one();
    }

    /// Places re-read changes; the reading of the range began, and all of its chunks were read. `false`
    /// when there is no room or no catch-up, or the range changed meanwhile nobody knows how: its
    /// chunks are still dirty.
    pub(super) fn tee_repair(
        &self,
        disk: DiskIndex,
        range: Range<u64>,
        changes: Vec<Change>,
    ) -> bool {
        let mut core = self.lock();
        let losses = core.losses;
        let read = core.reading.take().and_then(|reading| reading.end(losses, changes));
        let Some(changes) = read else {
            return false;
        };
        let bytes = changes.iter().map(|change| cost(change.payload_bytes())).sum();
        if core.mode != TrackingMode::CatchingUp || !core.make_room(bytes) {
            return false;
        }
        for change in changes {
            core.push(change);
        }
        core.repaired_bytes += range.end - range.start;
        self.disk(disk).bitmap.repaired(range);
        self.to_send.notify_one();
        true
    }

    /// Whether a catch-up runs that may read now: it leaves half of the buffer to live writes.
    pub(super) fn may_repair(&self, bytes: u64) -> bool {
        let core = self.lock();
        core.mode == TrackingMode::CatchingUp
            && core.buffer.waiting_bytes() + bytes <= core.buffer.bytes_max() / 2
    }

    /// Ends a catch-up when nothing is dirty any more; `false` when something is.
    pub(super) fn end_catch_up(&self) -> bool {
        let mut core = self.lock();
        let dirty = self.disks.iter().any(|disk| disk.bitmap.dirty_bytes() > 0);
        let held = dirty || !core.withheld.is_empty();
        if held || core.mode != TrackingMode::CatchingUp || !core.make_room(cost(0)) {
            return false;
        }
        core.push(Change::CatchUpEnd);
        core.bookmark_due = true;
        core.because = None;
        self.enter(&mut core, TrackingMode::Ordered, "every write goes into the stream in order");
        self.to_send.notify_one();
        true
    }

    /// Puts a bookmark behind every write that was acknowledged so far, on all disks at once.
    ///
    /// # Errors
    /// In words, when no consistent point is possible now.
    pub(super) fn bookmark(&self, bookmark: Bookmark) -> Result<Placed, String> {
        self.place_bookmark(&mut self.lock(), bookmark)
    }

    /// The same by whoever holds the lock.
    ///
    /// # Errors
    /// As there.
    pub(super) fn place_bookmark(
        &self,
        core: &mut Core,
        bookmark: Bookmark,
    ) -> Result<Placed, String> {
        if self.closed() {
            return Err("the agent is stopping".to_owned()); // it waits for what is placed already
        }
        core.ordered()?;
        if !core.make_room(cost(0)) {
            return Err("the resend buffer is full".to_owned());
        }
        core.push(Change::Bookmark(bookmark));
        core.bookmark_due = false;
        self.to_send.notify_one();
        Ok(core.placed())
    }

    /// Takes the next records to send, as many as `credit` pays for at `price`, about `most` bytes;
    /// returns them with what they cost.
    pub(super) fn take(
        &self,
        credit: u64,
        most: u64,
        price: impl Fn(&Record) -> u64,
    ) -> (Vec<Record>, u64) {
        let mut core = self.lock();
        let (mut taken, mut spent, mut again) = (Vec::new(), 0, 0);
        for record in core.buffer.after(core.sent) {
            if core.unconfirmed == Some(record.sequence) {
                break;
            }
            let price = price(record);
            if spent + price > credit || spent >= most {
                break;
            }
            spent += price;
            if Some(record.sequence) <= core.sent_before {
                again += record.change.payload_bytes();
            }
            taken.push(record.clone());
        }
        core.sent = taken.last().map_or(core.sent, |record| record.sequence);
        core.sent_before = core.sent_before.max(Some(core.sent));
        core.resent_bytes += again;
        (taken, spent)
    }

    /// New watermarks from the server.
    ///
    /// # Errors
    /// In words, when they cannot be true.
    pub(super) fn acked(&self, durable: Sequence, published: Sequence) -> Result<(), String> {
        let mut core = self.lock();
        if durable > core.sent || published > durable || durable < core.durable {
            let (sent, before) = (core.sent, core.durable);
            return Err(format!(
                "acknowledged durable {durable}, published {published}; sent was {sent}, durable before {before}"
            ));
        }
        core.raise(durable, published);
        drop(core);
        self.moved.notify_all();
        self.to_repair.notify_one();
        Ok(())
    }

    /// Waits until a change is durable at the server, or order was lost, or the agent stops.
    pub(super) fn wait_durable(&self, placed: Placed) {
        let mut core = self.lock();
        core.waiters += 1;
        while core.durable < placed.sequence && core.losses == placed.losses && !self.closed() {
            core = self.moved.wait(core).unwrap_or_else(PoisonError::into_inner);
        }
        core.waiters -= 1;
    }

    /// Leaves bitmap mode if the connection can take records, and if the load that was too much for it
    /// may be another by now.
    pub(super) fn resume(&self, now: Duration, credit: u64, credit_needed: u64) {
        let mut core = self.lock();
        let drained = core.durable >= core.sent;
        let mode = core.mode;
        if !core.resumption.may_begin(now, mode)
            || !core.connected
            || !drained
            || credit < credit_needed
        {
            return;
        }
        let dirty = self.disks.iter().any(|disk| disk.bitmap.dirty_bytes() > 0);
        if core.epoch_due {
            let epoch = core.epoch;
            let disks = self.specs();
            if !core.make_room(2 * cost(0)) {
                return;
            }
            core.push(Change::EpochBegin(EpochBegin { epoch, disks }));
            core.epoch_placed = Some(core.last);
            core.epoch_due = false;
            let why = core.caused("initial replication runs");
            self.begin_catch_up(&mut core, &why);
        } else if core.clean && !dirty && core.withheld.is_empty() {
            let why = "nothing was missed since the last orderly stop";
            self.enter(&mut core, TrackingMode::Ordered, why);
        } else {
            let why = core.caused("what changed unseen is read again");
            self.begin_catch_up(&mut core, &why);
        }
        core.clean = false;
    }

    /// Order is lost on purpose: the server does not answer in time, or is not to be used.
    pub(super) fn give_up_order(&self, why: &str) {
        let mut core = self.lock();
        if core.mode == TrackingMode::Bitmap {
            why.clone_into(&mut core.why);
        } else {
            self.lose(&mut core, why);
        }
    }

    fn overloaded(&self, core: &mut Core) {
        core.resumption.overloaded();
        self.lose(core, "the resend buffer is full: the server takes less than is written");
    }

    /// Throws the buffer away. What it held and the server does not have is dirty from now on; its
    /// sequences were never seen by the server and are given again.
    pub(super) fn lose(&self, core: &mut Core, why: &str) {
        for record in core.buffer.after(core.durable) {
            if let Change::Write { disk, extent, .. } | Change::Zero { disk, extent } =
                record.change
            {
                self.disk(disk).bitmap.lost(extent.range());
            }
        }
        core.last = core.sent;
        core.sent_before = Some(core.sent); // other records get the numbers behind it
        core.epoch_due |= core.epoch_placed.is_some_and(|placed| placed > core.sent);
        core.buffer.clear();
        core.unconfirmed = None;
        core.losses += 1;
        core.round = None;
        self.enter(core, TrackingMode::Bitmap, why);
        self.moved.notify_all();
    }

    /// While every bit is set nothing of the epoch is published, perhaps not even the begin of its
    /// initial replication, without which the stream may not go on: then it is that once more.
    pub(super) fn begin_catch_up(&self, core: &mut Core, why: &str) {
        let kind = match self.disks.iter().all(|disk| disk.bitmap.is_full()) {
            true => CatchUp::InitialReplication,
            false => CatchUp::Dirty,
        };
        if !core.make_room(cost(0)) {
            self.overloaded(core);
            return;
        }
        core.push(Change::CatchUpBegin(kind));
        self.enter(core, TrackingMode::CatchingUp, why);
        self.to_send.notify_one();
    }

    fn enter(&self, core: &mut Core, mode: TrackingMode, why: &str) {
        if core.mode != mode {
            let dirty_bytes: u64 = self.disks.iter().map(|disk| disk.bitmap.dirty_bytes()).sum();
            tracing::info!(from = ?core.mode, to = ?mode, why, dirty_bytes, last = %core.last, "tracking mode");
        }
        core.mode = mode;
        why.clone_into(&mut core.why);
        self.to_repair.notify_one();
        self.to_tell.notify_one();
    }
}

impl Core {
    /// Whether a bookmark can be placed.
    ///
    /// # Errors
    /// In words, why not.
    pub(super) fn ordered(&self) -> Result<(), String> {
        if self.mode == TrackingMode::Ordered {
            return Ok(());
        }
        Err(format!("no consistent point is possible now: {}", self.why))
    }

    fn make_room(&mut self, bytes: u64) -> bool {
        self.buffer.make_room(bytes, self.durable)
    }

    fn push(&mut self, change: Change) {
        self.last = self.last.next();
        self.highest = self.highest.max(self.last);
        let sequence = self.last;
        self.buffer.push(Record { sequence, change });
    }

    /// Payload of the record whose acknowledgement the server owes next; `None` when it owes none.
    pub(super) fn due_bytes(&self) -> Option<u64> {
        let due = (self.durable < self.sent).then(|| self.buffer.after(self.durable).next());
        due.map(|record| record.map_or(0, |record| record.change.payload_bytes()))
    }

    fn caused(&self, what: &str) -> String {
        let because = self.because.as_ref().map(|why| format!(": {why}"));
        format!("{what}{}", because.unwrap_or_default())
    }

    fn placed(&self) -> Placed {
        Placed { sequence: self.last, losses: self.losses }
    }

    /// Moves the watermarks of this connection up.
    pub(super) fn raise(&mut self, durable: Sequence, published: Sequence) {
        self.buffer.durable(self.durable, durable);
        self.durable = durable;
        self.buffer.published(published);
        self.witnessed = self.witnessed.max(published);
    }
}
