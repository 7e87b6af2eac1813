//! Waiting for the shards' logs to close when the server drains.
//!
//! Owns: how long that may take. Does not own: what closes them (`process`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::cache::CacheError;
use crate::clock::Clock;

/// How long a log may take to write what was received. One that is full of records that another
/// server's machines hold (row K5 of docs/scale-out.md) gets no room however long it waits.
pub(super) const LOG_MAX: Duration = Duration::from_secs(30);

/// What each shard's log tells when it has ended.
pub(super) type LogEnded = oneshot::Receiver<Result<(), CacheError>>;

/// How the logs closed.
pub(super) struct Closed {
    /// One did not in time: what it had not written was never acknowledged, its agent has it.
    pub(super) late: bool,
    pub(super) result: Result<(), CacheError>,
}

/// Waits for all of them, for a while.
pub(super) async fn close(logs: Vec<LogEnded>, clock: &Arc<dyn Clock>) -> Closed {
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
}
