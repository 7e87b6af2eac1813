//! Segments, preallocated ahead of need and recycled afterwards, in a thread of their own.
//!
//! Owns: which slot is blank, prepared or retired; ordinals; the bound on segments; what happens
//! when there is no space. Does not own: what stands in a segment.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::error::CacheError;
use super::file::{SegmentDirectory, Slot};
use super::fill::Fill;
use crate::clock::{Clock, Entropy, random16};
use crate::format::segment::{SEGMENT_HEADER_SECTOR, SegmentHeader};
use crate::model::Incarnation;
use crate::observe::error_chain;

/// Blank segments that are kept back, so that a full cache can still be recovered.
pub(super) const RESERVE: u32 = 1;
/// How long no space is believed without a segment coming back.
const RETRY: Duration = Duration::from_secs(1);

/// Size and number of segments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) segment_bytes: u64,
    pub(super) segments_max: u32,
}

/// A segment whose header is on the disk and in which nothing stands yet.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) slot: Slot,
    pub(super) header: SegmentHeader,
}

/// All slots that hold no record anybody needs, and how to get more of them.
pub(super) struct Keeper {
    pub(super) directory: Arc<dyn SegmentDirectory>,
    pub(super) geometry: Geometry,
    pub(super) shard: u16,
    pub(super) entropy: Arc<dyn Entropy>,
    /// Blank, of the right size.
    pub(super) blank: Vec<Slot>,
    /// Files there are, whatever their state.
    pub(super) files: u32,
    pub(super) next_slot: u32,
    pub(super) next_ordinal: u64,
    /// A header could not be written or synced. What the disk holds of it is unknown, so nothing is
    /// prepared or recycled after it.
    pub(super) broken: Option<CacheError>,
}

impl Keeper {
    /// The next segment of the log, or why there is none now.
    pub(super) fn prepare(&mut self) -> Result<Prepared, String> {
        if let Some(cause) = &self.broken {
            return Err(error_chain(cause));
        }
        while self.blank.len() <= RESERVE as usize {
            if self.files >= self.geometry.segments_max {
                return Err("all segments are in use".to_owned());
            }
            let slot = self.create(self.geometry.segment_bytes);
            self.blank.push(slot.map_err(|cause| cause.to_string())?);
        }
        let slot = self.blank.swap_remove(0);
        match self.begin(&slot, None) {
            Ok(header) => Ok(Prepared { slot, header }),
            Err(cause) => Err(error_chain(self.breaks(&slot, cause))),
        }
    }

    /// Makes a blank segment.
    pub(super) fn create(&mut self, bytes: u64) -> io::Result<Slot> {
        let slot = self.directory.create(self.next_slot, bytes)?;
        self.next_slot += 1;
        self.files += 1;
        Ok(slot)
    }

    /// Gives a blank slot its next life.
    pub(super) fn begin(&mut self, slot: &Slot, copy_of: Option<u64>) -> io::Result<SegmentHeader> {
        let header = SegmentHeader {
            shard: self.shard,
            ordinal: self.next_ordinal,
            incarnation: Incarnation(random16(&*self.entropy)),
            segment_bytes: slot.file.bytes(),
            copy_of,
        };
        self.next_ordinal += 1;
        slot.file.write(&header.encode(), 0)?;
        slot.file.sync()?;
        Ok(header)
    }

    /// Takes a slot whose records nobody needs. One that is surplus, or of another size than the
    /// settings ask for, is removed.
    pub(super) fn take_back(&mut self, slot: Slot) {
        if self.broken.is_some() {
            return;
        }
        let surplus = self.files > self.geometry.segments_max;
        let done = if surplus || slot.file.bytes() != self.geometry.segment_bytes {
            self.files -= 1;
            self.directory.remove(&slot)
        } else {
            blank(&slot).map(|()| self.blank.push(slot.clone()))
        };
        if let Err(cause) = done {
            self.breaks(&slot, cause);
        }
    }

    fn breaks(&mut self, slot: &Slot, source: io::Error) -> &CacheError {
        let path = slot.file.path().to_owned();
        tracing::error!(path = %path.display(), %source, "segments cannot be recycled any more");
        self.broken.insert(CacheError::Header { path, source })
    }
}

/// Makes a segment blank, on the disk.
pub(super) fn blank(slot: &Slot) -> io::Result<()> {
    slot.file.write(&[0; SEGMENT_HEADER_SECTOR], 0)?;
    slot.file.sync()
}

/// Whether segments that nobody holds any more are written anew. It begins when its holder says so, and
/// ends for good when that is dropped: a process that ends, or does not come to its start, drops records
/// that nobody has published, and the next one must find them.
#[derive(Debug)]
pub struct Recycling(watch::Sender<Phase>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    NotYet,
    Now,
    Over,
}

impl Recycling {
    pub(super) fn not_yet() -> Self {
        Self(watch::Sender::new(Phase::NotYet))
    }

    /// From now on who drops a record says that it is not needed.
    pub fn begin(&self) {
        self.0.send_replace(Phase::Now);
    }
}

impl Drop for Recycling {
    fn drop(&mut self) {
        self.0.send_replace(Phase::Over);
    }
}

/// The writer's end of the thread.
#[derive(Debug)]
pub(super) struct Pool {
    /// For messages.
    directory: PathBuf,
    /// Segments in log order.
    prepared: mpsc::Receiver<Prepared>,
    /// Why there will be none any more.
    broken: oneshot::Receiver<CacheError>,
    /// Where segments go when nobody needs them.
    pub(super) freed: mpsc::UnboundedSender<Slot>,
    thread: Option<JoinHandle<()>>,
    fill: Arc<Fill>,
}

impl Pool {
    /// Starts the thread. `stale` are slots that nobody needs but that are not blank yet.
    pub(super) fn start(
        keeper: Keeper,
        stale: Vec<Slot>,
        freed: (mpsc::UnboundedSender<Slot>, mpsc::UnboundedReceiver<Slot>),
        recycling: &Recycling,
        fill: Arc<Fill>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CacheError> {
        let (sender, prepared) = mpsc::channel(1);
        let (breaks, broken) = oneshot::channel();
        let (freed, returned) = freed;
        let returned = Returned { slots: returned, phase: recycling.0.subscribe() };
        let directory = keeper.directory.path().to_owned();
        let action = "starting the thread that prepares segments";
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(CacheError::io(&directory, action))?;
        let to = Arc::clone(&fill);
        let thread = std::thread::Builder::new()
            .name(format!("cache-pool-{}", keeper.shard))
            .spawn(move || {
                let kept = keep(keeper, stale, returned, &sender, &to, &*clock);
                if let Some(broken) = runtime.block_on(kept) {
                    drop(breaks.send(broken)); // before `sender` is dropped, which is what is waited for
                }
                drop(sender);
            })
            .map_err(CacheError::io(&directory, action))?;
        Ok(Self { directory, prepared, broken, freed, thread: Some(thread), fill })
    }

    /// Waits for the next segment. What was prepared before something failed is as good as ever.
    pub(super) async fn next(&mut self) -> Result<Prepared, CacheError> {
        match self.prepared.recv().await {
            Some(prepared) => {
                self.fill.take(prepared.header.segment_bytes);
                Ok(prepared)
            }
            None => {
                let directory = self.directory.clone();
                Err(self.broken.try_recv().unwrap_or(CacheError::NoPool { directory }))
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.prepared.close();
        while self.prepared.try_recv().is_ok() {} // prepared and never used: recovery's row C
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that prepares segments panicked");
        }
    }
}

/// Slots that come back, while they are recycled.
struct Returned {
    slots: mpsc::UnboundedReceiver<Slot>,
    phase: watch::Receiver<Phase>,
}

impl Returned {
    /// The next one; never again once recycling is over.
    async fn next(&mut self) -> Option<Slot> {
        self.phase.wait_for(|phase| *phase == Phase::Now).await.ok()?;
        let slot = self.slots.recv().await?;
        // Looked at behind the slot: whoever ended it did so before anything was let go for that.
        (*self.phase.borrow() == Phase::Now).then_some(slot)
    }
}

/// Until the writer's end is gone, or something failed: then it says what.
async fn keep(
    mut keeper: Keeper,
    stale: Vec<Slot>,
    mut returned: Returned,
    prepared: &mpsc::Sender<Prepared>,
    fill: &Fill,
    clock: &dyn Clock,
) -> Option<CacheError> {
    for slot in stale {
        keeper.take_back(slot);
    }
    let mut refused = false;
    while keeper.broken.is_none() {
        tokio::select! {
            biased;
            () = prepared.closed() => return None,
            Some(slot) = returned.next() => {
                let bytes = slot.file.bytes();
                keeper.take_back(slot);
                fill.give(bytes);
                refused = false;
            }
            room = prepared.reserve(), if !refused => {
                let Ok(room) = room else { return None };
                match keeper.prepare() {
                    Ok(segment) => {
                        fill.accept();
                        room.send(segment);
                    }
                    Err(cause) => {
                        fill.refuse(&cause);
                        refused = true;
                    }
                }
            }
            () = clock.sleep(RETRY), if refused => refused = false,
        }
    }
    keeper.broken
}
