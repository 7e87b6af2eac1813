//! Who waits for whom: the workload for us, or all of us for a disk or a server.
//!
//! Owns: counting that. Does not own: what is made of it ([`super::watchdog`]). All is counted before
//! it happens: whoever reads `steps` last, and finds it where it was, saw no count half changed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::medium::{Gate, Medium};
use super::source_identity::{Changed, SourceIdentity};

/// The requests of one disk.
#[derive(Debug, Default)]
pub(super) struct Turnover {
    steps: AtomicU64,
    under_way: AtomicU64,
    outside: AtomicU64,
}

/// What is under way at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnderWay {
    /// Moves whenever anything begins or ends.
    pub(super) steps: u64,
    /// Somebody waits for an answer of ours.
    pub(super) asked: bool,
    /// We wait for the answer of a disk or of the process server.
    pub(super) asking: bool,
}

/// Something that is under way until this is dropped.
#[derive(Debug)]
pub(super) struct Going<'a> {
    turnover: &'a Turnover,
    count: &'a AtomicU64,
}

impl Turnover {
    /// Somebody waits for us from here on.
    pub(super) fn asked(&self) -> Going<'_> {
        self.begin(&self.under_way)
    }

    /// We wait for somebody else from here on.
    pub(super) fn asking(&self) -> Going<'_> {
        self.begin(&self.outside)
    }

    fn begin<'a>(&'a self, count: &'a AtomicU64) -> Going<'a> {
        self.steps.fetch_add(1, Ordering::SeqCst);
        count.fetch_add(1, Ordering::SeqCst);
        Going { turnover: self, count }
    }

    pub(super) fn now(&self) -> UnderWay {
        let asked = self.under_way.load(Ordering::SeqCst) > 0;
        let asking = self.outside.load(Ordering::SeqCst) > 0;
        UnderWay { asked, asking, steps: self.steps.load(Ordering::SeqCst) }
    }
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        self.turnover.steps.fetch_add(1, Ordering::SeqCst);
        self.count.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A medium of whose calls is known which are not answered.
pub(super) struct Awaited {
    medium: Box<dyn Medium>,
    turnover: Arc<Turnover>,
}

impl Awaited {
    pub(super) fn new(medium: Box<dyn Medium>, turnover: &Arc<Turnover>) -> Self {
        Self { medium, turnover: Arc::clone(turnover) }
    }
}

impl Medium for Awaited {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let _asking = self.turnover.asking();
        self.medium.read_at(offset, target)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let _asking = self.turnover.asking();
        self.medium.write_at(offset, bytes)
    }

    fn zero_at(&self, offset: u64, length: u64, release: bool) -> io::Result<()> {
        let _asking = self.turnover.asking();
        self.medium.zero_at(offset, length, release)
    }

    fn sync(&self) -> io::Result<()> {
        let _asking = self.turnover.asking();
        self.medium.sync()
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<u64> {
        let _asking = self.turnover.asking();
        self.medium.next_data(offset, end)
    }

    fn next_hole(&self, offset: u64, end: u64) -> io::Result<u64> {
        let _asking = self.turnover.asking();
        self.medium.next_hole(offset, end)
    }

    fn identity(&self) -> SourceIdentity {
        self.medium.identity()
    }

    fn changed(&self) -> io::Result<Option<Changed>> {
        let _asking = self.turnover.asking();
        self.medium.changed()
    }

    fn guard(&self, gate: Arc<dyn Gate>) {
        self.medium.guard(gate);
    }

    fn connect(&self, anew: bool) -> io::Result<()> {
        let _asking = self.turnover.asking();
        self.medium.connect(anew)
    }
}
