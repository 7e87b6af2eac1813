//! Connections that have proven nothing yet.
//!
//! Owns: how many there may be, and who goes when there are too many: the oldest. A good agent is
//! through in a moment, so under a flood of connections that only sit there it is never the oldest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

/// All of a process server.
#[derive(Clone, Debug)]
pub(super) struct Handshakes {
    waiting: Arc<Mutex<Waiting>>,
    max: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// Without a task while it is being started.
    places: BTreeMap<u64, Option<AbortHandle>>,
}

/// One of them; dropped when it is through, or over.
#[derive(Debug)]
pub(super) struct Handshake {
    waiting: Arc<Mutex<Waiting>>,
    number: u64,
}

impl Handshakes {
    pub(super) fn new(max: usize) -> Self {
        Self { waiting: Arc::default(), max: max.max(1) }
    }

    /// Whether half of the places are taken.
    pub(super) fn crowded(&self) -> bool {
        lock(&self.waiting).places.len() >= self.max.div_ceil(2)
    }

    /// Starts the task of a new connection; whether an older one had to go for it.
    pub(super) fn begin(&self, start: impl FnOnce(Handshake) -> AbortHandle) -> bool {
        let (number, oldest) = {
            let mut waiting = lock(&self.waiting);
            let oldest = match waiting.places.len() >= self.max {
                true => waiting.take_oldest(),
                false => None,
            };
            let number = waiting.next;
            waiting.next += 1;
            waiting.places.insert(number, None);
            (number, oldest)
        };
        let evicted = oldest.is_some();
        if let Some(task) = oldest {
            task.abort();
        }
        // Not under the lock: a runtime that shuts down drops the task, and with it the handshake, at once.
        let task = start(Handshake { waiting: Arc::clone(&self.waiting), number });
        if let Some(place) = lock(&self.waiting).places.get_mut(&number) {
            *place = Some(task);
        }
        evicted
    }
}

impl Waiting {
    fn take_oldest(&mut self) -> Option<AbortHandle> {
        let number =
            self.places.iter().find_map(|(&number, task)| task.as_ref().map(|_| number))?;
        self.places.remove(&number).flatten()
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        lock(&self.waiting).places.remove(&self.number);
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_goes_first_and_the_ones_that_are_through_stay() {
        let handshakes = Handshakes::new(2);
        let mut tasks = Vec::new();
        let mut begin = |through: bool| {
            handshakes.begin(|handshake| {
                let task = tokio::spawn(async move {
                    let held = match through {
                        true => {
                            drop(handshake);
                            None
                        }
                        false => Some(handshake),
                    };
                    std::future::pending::<()>().await;
                    drop(held);
                });
                let abort = task.abort_handle();
                tasks.push(task);
                abort
            })
        };
        assert!(!begin(true));
        tokio::task::yield_now().await; // the first gives its place back
        assert!(!begin(false));
        assert!(!begin(false));
        assert!(begin(false), "the second had to go");
        let mut tasks = tasks.into_iter();
        let (first, second, third) = (tasks.next(), tasks.next(), tasks.next());
        assert!(second.unwrap().await.unwrap_err().is_cancelled());
        assert!(!first.unwrap().is_finished());
        assert!(!third.unwrap().is_finished());
    }

    /// What a runtime does with a task that comes while it shuts down.
    #[test]
    fn a_task_that_is_dropped_while_it_starts_gives_its_place_back() {
        let (ended, over) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let handshakes = Handshakes::new(1);
            let gone = runtime.spawn(async {}).abort_handle();
            let evicted = [(); 3].map(|()| {
                handshakes.begin(|handshake| {
                    drop(handshake);
                    gone.clone()
                })
            });
            ended.send((evicted, handshakes.crowded())).unwrap();
        });
        let ended = over.recv_timeout(std::time::Duration::from_secs(60));
        assert_eq!(ended, Ok(([false; 3], false)), "its own place was waited for");
    }
}
