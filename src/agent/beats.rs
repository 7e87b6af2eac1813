//! A sign of life from the middle of a task.
//!
//! Owns: that a task which blocks, or whose runtime does not run it, gives none. Does not own: what
//! follows from that ([`super::watchdog`]).

use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinError;

use crate::clock::Clock;

/// Between two beats of a task.
pub(super) const BEAT: Duration = Duration::from_secs(1);

/// The beats of one task.
#[derive(Debug)]
pub(super) struct Beat {
    pub(super) name: &'static str,
    count: AtomicU64,
    /// It ended as it may.
    ended: AtomicBool,
}

impl Beat {
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    pub(super) fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

/// The beats of all tasks of an agent.
#[derive(Debug, Default)]
pub(super) struct Beats(Mutex<Vec<Arc<Beat>>>);

/// What a blocking call of a task gave; `None` when the runtime ends. A panic of the call goes on in its task, which
/// would otherwise seem to have ended as it may.
pub(super) fn returned<T>(call: Result<T, JoinError>) -> Option<T> {
    match call {
        Ok(given) => Some(given),
        Err(stopped) if stopped.is_panic() => resume_unwind(stopped.into_panic()),
        Err(_cancelled) => None,
    }
}

impl Beats {
    /// `work`, beating in the same task: a call that blocks in there, a dead lock for one, stops the
    /// beats, and so does a panic. What it awaits does not: that is somebody else's to answer.
    pub(super) fn of<W: Future<Output: Send> + Send>(
        &self,
        name: &'static str,
        clock: &Arc<dyn Clock>,
        work: W,
    ) -> impl Future<Output = W::Output> + Send + use<W> {
        let beat = Arc::new(Beat { name, count: AtomicU64::new(0), ended: AtomicBool::new(false) });
        self.lock().push(Arc::clone(&beat));
        let clock = Arc::clone(clock);
        async move {
            let mut work = pin!(work);
            loop {
                tokio::select! {
                    biased;
                    done = &mut work => {
                        beat.ended.store(true, Ordering::SeqCst);
                        return done;
                    }
                    () = clock.sleep(BEAT) => {}
                }
                beat.count.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<Beat>> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Beat>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
