//! fdatasync of one file for all who ask at once, and never believed again after it failed once.
//!
//! Owns: which sync answers whom. Does not own: what is written before. The kernel reports a failed
//! write-back once, to whichever caller happens to sync next, and shows the lost bytes from its
//! page cache from then on: so every call, from whatever part of the agent, goes through here, one
//! at a time, and the first failure is the answer to all later ones.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::medium::Medium;

/// The syncs of one file.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    started: u64,
    done: u64,
    running: bool,
    failed: Option<Arc<io::Error>>,
}

impl Syncs {
    /// Everything written to `medium` before this call is on the disk when it returns `Ok`.
    ///
    /// # Errors
    /// When this sync, or any before it, failed.
    pub(super) fn sync(&self, medium: &dyn Medium) -> io::Result<()> {
        let mut state = self.lock();
        // One that runs now may have begun before the caller wrote.
        let ticket = state.started + 1;
        loop {
            if let Some(cause) = &state.failed {
                return Err(io::Error::new(cause.kind(), Arc::clone(cause)));
            }
            if state.done >= ticket {
                return Ok(());
            }
            if state.running {
                state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.running = true;
            state.started += 1;
            drop(state);
            let outcome = medium.sync();
            state = self.lock();
            state.running = false;
            match outcome {
                Ok(()) => state.done = state.started,
                Err(error) => state.failed = Some(Arc::new(error)),
            }
            self.ended.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Fails its n-th sync, once, as the kernel does.
    struct Once(AtomicU32);

    impl Medium for Once {
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn zero_at(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            match self.0.fetch_sub(1, Ordering::Relaxed) {
                0 => Err(io::Error::other("write-back failed")),
                _ => Ok(()),
            }
        }
        fn next_data(&self, offset: u64, _: u64) -> io::Result<u64> {
            Ok(offset)
        }
        fn next_hole(&self, _: u64, end: u64) -> io::Result<u64> {
            Ok(end)
        }
    }

    #[test]
    fn the_first_failure_is_everybodys_for_good() {
        let (syncs, medium) = (Syncs::default(), Once(AtomicU32::new(1)));
        syncs.sync(&medium).unwrap();
        for _ in 0..3 {
            let error = syncs.sync(&medium).unwrap_err();
            assert!(error.to_string().contains("write-back failed"), "{error}");
        }
    }

    #[test]
    fn callers_share_a_sync_that_begins_after_them() {
        let (syncs, medium) = (Syncs::default(), Once(AtomicU32::new(u32::MAX)));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..100).for_each(|_| syncs.sync(&medium).unwrap()));
            }
        });
        let called = u32::MAX - medium.0.load(Ordering::Relaxed);
        assert!((100..=800).contains(&called), "{called} syncs for 800 callers");
        let state = syncs.lock();
        assert_eq!(u64::from(called), state.done);
        assert_eq!(state.done, state.started);
    }
}
