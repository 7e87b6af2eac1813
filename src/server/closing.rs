//! Waiting for the shards' logs, the pipelines and everything else to end when the server drains.
//!
//! Owns: how long that may take, and when segments are recycled no more. Does not own: what makes them
//! end (`process`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::machines::Registry;
use crate::cache::{CacheError, Recycling};
use crate::clock::Clock;

/// How long a log may take to write what was received. One that is full of records that another
/// server's machines hold (row K5 of docs/scale-out.md) gets no room however long it waits.
pub(super) const LOG_MAX: Duration = Duration::from_secs(30);

/// How long publishing what is left may take.
pub(super) const PUBLISH_MAX: Duration = Duration::from_secs(30);

/// How long applying, requests and whatever else runs may take to end. Cut, each is as after a crash.
pub(super) const TASKS_MAX: Duration = Duration::from_secs(30);

/// What each shard's log tells when it has ended.
pub(super) type LogEnded = oneshot::Receiver<Result<(), CacheError>>;

/// How the logs closed.
pub(super) struct Closed {
    /// One did not in time: what it had not written was never acknowledged, its agent has it.
    pub(super) late: bool,
    pub(super) result: Result<(), CacheError>,
}

/// Everything received becomes durable, then what is durable is published, each for a while. What is left
/// over lies in the cache log as it is: the next start finds it.
pub(super) async fn finish(
    logs: Vec<LogEnded>,
    mut recycling: Vec<Recycling>,
    registry: &Registry,
    clock: &Arc<dyn Clock>,
) -> Closed {
    let closed = close(logs, clock).await;
    if closed.late {
        // Before the routes close: what a log that is late writes from then on nobody holds. Recycled, it would
        // leave a gap, and behind a gap the next start takes what stands before it for published.
        recycling.clear();
    }
    tokio::select! {
        () = registry.finish() => {}
        () = clock.sleep(PUBLISH_MAX) => {
            tracing::warn!("not everything could be published; the cache log keeps it");
        }
    }
    drop(recycling); // before anything that is kept is let go
    closed
}

/// Waits for all of them, for a while.
async fn close(logs: Vec<LogEnded>, clock: &Arc<dyn Clock>) -> Closed {
    let mut result = Ok(());
    let closing = async {
        for log in logs {
            if let Ok(Err(error)) = log.await {
                result = Err(error);
            }
        }
    };
    let late = tokio::select! {
        () = closing => false,
        () = clock.sleep(LOG_MAX) => true,
    };
    if late {
        tracing::warn!(
            "the cache log has no room for what was received last; it was not \
            acknowledged, and its agents send it again"
        );
    }
    Closed { late, result }
}

/// Waits for all of them, for a while; then cuts them.
pub(super) async fn end(tasks: Vec<JoinHandle<()>>, clock: &Arc<dyn Clock>) {
    let cuts: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
    let all = futures_util::future::join_all(tasks);
    tokio::select! {
        _ = all => return,
        () = clock.sleep(TASKS_MAX) => {}
    }
    let left = cuts.iter().filter(|task| !task.is_finished()).count();
    tracing::warn!(left, "not everything ended in time; the rest is cut");
    cuts.iter().for_each(tokio::task::AbortHandle::abort);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::Hands;

    #[tokio::test]
    async fn a_log_that_cannot_write_ends_no_wait_of_the_others_but_its_own() {
        let hands = Arc::new(Hands::default());
        let (full, waits) = oneshot::channel();
        let (written, done) = oneshot::channel();
        written.send(Ok(())).unwrap();
        let clock: Arc<dyn Clock> = Arc::clone(&hands) as _;
        let closing = tokio::spawn(async move { close(vec![done, waits], &clock).await });
        hands.advance(LOG_MAX - Duration::from_millis(1)).await;
        assert!(!closing.is_finished(), "it may get room yet");
        hands.advance(Duration::from_millis(1)).await;
        assert!(closing.is_finished(), "it waits no longer");
        let closed = closing.await.unwrap();
        assert!(closed.late && closed.result.is_ok());
        drop(full);
    }

    #[tokio::test]
    async fn a_task_that_does_not_end_is_cut() {
        let hands = Arc::new(Hands::default());
        let (held, cut) = oneshot::channel::<()>();
        let stuck = tokio::spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        let clock: Arc<dyn Clock> = Arc::clone(&hands) as _;
        let tasks = vec![tokio::spawn(async {}), stuck];
        let ending = tokio::spawn(async move { end(tasks, &clock).await });
        hands.advance(TASKS_MAX - Duration::from_millis(1)).await;
        assert!(!ending.is_finished(), "it may end yet");
        hands.advance(Duration::from_millis(1)).await;
        ending.await.unwrap();
        assert!(cut.await.is_err(), "what it held is given back");
    }
}
