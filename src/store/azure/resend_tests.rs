use super::*;
use crate::clock::System;
use crate::model::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Time passes when somebody sleeps, and at once.
#[derive(Default)]
struct Quick(AtomicU64);

#[async_trait::async_trait]
impl Clock for Quick {
    fn wall(&self) -> Timestamp {
        Timestamp(0)
    }
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(SeqCst))
    }
    async fn sleep(&self, duration: Duration) {
        self.0.fetch_add(u64::try_from(duration.as_millis()).unwrap(), SeqCst);
    }
}

fn names() -> (String, String) {
    ("azure:acct/box".to_owned(), "seed/a".to_owned())
}

fn busy(retry_after: Option<Duration>) -> StoreError {
    let (store, name) = names();
    StoreError::Throttled { store, name, retry_after }
}

fn never_sent() -> StoreError {
    let (store, name) = names();
    StoreError::Transient { store, name, source: Arc::new(std::io::Error::other("refused")) }
}

fn lost() -> StoreError {
    let (store, name) = names();
    StoreError::Ambiguous { store, name, source: Arc::new(std::io::Error::other("reset")) }
}

fn fenced() -> StoreError {
    let (store, name) = names();
    StoreError::Fenced { store, name, detail: "a newer owner".to_owned() }
}

/// How often was sent, how long it took, whether it succeeded. The first `failures` sends fail.
async fn sent(failures: u32, with: fn() -> StoreError, stopped: bool) -> (u32, Duration, bool) {
    let clock = Quick::default();
    let mut sends = 0;
    let done = resend(
        &clock,
        &System,
        || stopped,
        || {
            sends += 1;
            let fails = sends <= failures;
            async move { if fails { Err(with()) } else { Ok(()) } }
        },
    );
    let done = done.await.is_ok();
    (sends, clock.monotonic(), done)
}

#[tokio::test]
async fn what_had_no_effect_is_sent_again_a_few_times() {
    for with in [|| busy(None), never_sent as fn() -> StoreError] {
        let (sends, _, done) = sent(0, with, false).await;
        assert_eq!((sends, done), (1, true));
        let (sends, _, done) = sent(RESENDS, with, false).await;
        assert_eq!((sends, done), (RESENDS + 1, true));
        let (sends, took, done) = sent(u32::MAX, with, false).await;
        assert_eq!((sends, done), (RESENDS + 1, false));
        assert!(took <= PATIENCE, "{took:?}");
    }
}

/// The lost one may still arrive: after the next write to these pages it would undo that.
#[tokio::test]
async fn what_may_have_had_its_effect_is_never_sent_again() {
    for with in [lost as fn() -> StoreError, fenced] {
        assert_eq!(sent(1, with, false).await, (1, Duration::ZERO, false));
    }
}

#[tokio::test]
async fn the_store_says_for_how_long_and_a_lease_does_not_wait_for_ever() {
    let second = || busy(Some(Duration::from_secs(1)));
    assert_eq!(sent(2, second, false).await, (3, Duration::from_secs(2), true));
    let three = || busy(Some(Duration::from_secs(3)));
    assert_eq!(sent(u32::MAX, three, false).await, (3, Duration::from_secs(6), false));
    let ages = || busy(Some(Duration::MAX));
    assert_eq!(sent(1, ages, false).await, (1, Duration::ZERO, false), "the caller waits for it");
}

#[tokio::test]
async fn a_call_that_has_failed_sends_nothing_more() {
    let (sends, _, done) = sent(1, never_sent, true).await;
    assert_eq!((sends, done), (1, false));
}
