//! Time that passes only when nothing else can happen: runs many tasks in one thread, always in
//! the same order, as long as they wait for nothing but each other and this clock.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::Clock;
use crate::model::Timestamp;

#[derive(Default)]
pub(super) struct Virtual(Mutex<Time>);

#[derive(Default)]
struct Time {
    now: Duration,
    count: u64,
    sleepers: BTreeMap<(Duration, u64), Waker>,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Virtual {
    /// Runs `future` to its end; whenever it can do nothing, the earliest sleeper wakes.
    pub(super) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut future = pin!(future);
        loop {
            while woken.0.swap(false, Ordering::SeqCst) {
                let mut context = Context::from_waker(&waker);
                if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
                    return result;
                }
            }
            let mut time = self.0.lock().unwrap();
            let ((at, _), sleeper) = time.sleepers.pop_first().expect("nobody waits for time");
            time.now = time.now.max(at);
            drop(time);
            sleeper.wake();
        }
    }
}

#[async_trait]
impl Clock for Virtual {
    fn wall(&self) -> Timestamp {
        Timestamp(1_000_000_000 + self.monotonic().as_micros() as i64)
    }

    fn monotonic(&self) -> Duration {
        self.0.lock().unwrap().now
    }

    async fn sleep(&self, duration: Duration) {
        let (key, until) = {
            let mut time = self.0.lock().unwrap();
            time.count += 1;
            let until = time.now + duration;
            ((until, time.count), until)
        };
        let _gone = Sleeper { clock: self, key };
        poll_fn(|context| {
            let mut time = self.0.lock().unwrap();
            if time.now >= until {
                return Poll::Ready(());
            }
            time.sleepers.insert(key, context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A sleep that was given up must not wake anybody.
struct Sleeper<'a> {
    clock: &'a Virtual,
    key: (Duration, u64),
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.clock.0.lock().unwrap().sleepers.remove(&self.key);
    }
}
