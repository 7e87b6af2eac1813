//! How long the reader of the rings rests.
//!
//! Owns: that it is not woken for each record, which would cost the workload more than the copy does,
//! and that it wakes in time all the same. Does not own: reading.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{Timespec, epoll};

/// Between two looks while records come: so many are read and told in one go.
const SHORT_MS: i64 = 5;
/// While none come.
const LONG_MS: i64 = 40;

/// The rests between looks at a ring.
pub(super) struct Naps {
    epoll: OwnedFd,
    ms: i64,
}

impl Naps {
    /// Of a ring whose program wakes whoever waits when much is in it, or somebody cannot wait.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub(super) fn new(ring: impl AsFd) -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // By edge: that something is in the ring ends no rest, that the program wakes us does.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, ring, epoll::EventData::new_u64(0), flags)?;
        Ok(Self { epoll, ms: SHORT_MS })
    }

    /// Rests until the program wakes us, or it is time to look; longer each time that nothing came.
    pub(super) fn rest(&mut self, came: bool) {
        self.ms = if came { SHORT_MS } else { (2 * self.ms).min(LONG_MS) };
        // Whatever ends it, a signal too: the ring is looked at.
        let _woken = self.woken_within(&Timespec { tv_sec: 0, tv_nsec: self.ms * 1_000_000 });
    }

    /// Whether the program woke us, before that time was over or since the last rest.
    pub(super) fn woken_within(&self, time: &Timespec) -> bool {
        let mut events = [MaybeUninit::uninit(); 1];
        let woken = epoll::wait(&self.epoll, &mut events, Some(time));
        woken.is_ok_and(|(woken, _)| !woken.is_empty())
    }
}
