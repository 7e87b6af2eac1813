//! Keeping connected: servers in turn, back-off with full jitter, an answer for each refusal.
//!
//! Owns: which server is tried when. Does not own: what is said there ([`super::session`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::{back_off, fraction};
use crate::format::wire::Refusal;
use crate::observe::error_chain;

use super::dial::{Connection, Way};
use super::error::AgentError;
use super::run::Shared;
use super::session::{self, End};

/// First pause; doubles with each attempt in vain.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Pause after a refusal that only a human can lift.
const PAUSE_SLOW: Duration = Duration::from_secs(120);
/// Time for TCP, TLS and HTTP together, or for QUIC.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// What follows the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Again, with a pause that grows.
    Retry,
    /// Again after a long pause.
    Slowly,
    /// Never: only bitmaps are kept until the agent is restarted.
    Halt,
}

/// The one answer to each refusal.
pub(super) fn next(code: Refusal) -> Next {
    match code {
        Refusal::Version | Refusal::Foreign => Next::Halt,
        Refusal::Identity | Refusal::Superseded => Next::Slowly,
        Refusal::Protocol | Refusal::NotOwner | Refusal::Busy => Next::Retry,
    }
}

/// Connects, serves the connection, reconnects; returns when the agent leaves or must stop.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut attempt = 0;
    for server in shared.settings.servers.iter().cycle() {
        if shared.leaving() {
            return;
        }
        let welcomed = AtomicBool::new(false);
        let outcome = connect(&shared, server, &welcomed).await;
        shared.connected_to(None);
        let (next, why) = match outcome {
            Ok(End::Left) => return,
            Ok(End::Refused(refuse)) => {
                let why = format!("{server} refused ({:?}): {}", refuse.code, refuse.text);
                (next(refuse.code), why)
            }
            Ok(End::Foreign(why)) => (Next::Halt, format!("{server}: {why}")),
            Err(error) => (Next::Retry, error_chain(&error)),
        };
        shared.failed(&why);
        if welcomed.into_inner() {
            attempt = 0;
        }
        let pause = match next {
            Next::Retry => back_off(attempt, PAUSE_MIN, PAUSE_MAX, shared.entropy.as_ref()),
            Next::Slowly => PAUSE_SLOW.mul_f64(0.5 + fraction(shared.entropy.as_ref())),
            Next::Halt => {
                tracing::error!(
                    why,
                    "replication stopped; the workload goes on, changes are kept in the bitmap"
                );
                shared.halt(&why);
                return;
            }
        };
        tracing::warn!(why, pause_ms = pause.as_millis() as u64, attempt, "not connected");
        attempt += 1;
        tokio::select! {
            () = shared.clock.sleep(pause) => {}
            () = shared.left.notified() => return,
        }
    }
}

/// Connects, by the other way when the first one does not get through, and serves the connection.
async fn connect(shared: &Shared, server: &str, welcomed: &AtomicBool) -> Result<End, AgentError> {
    let mut way = shared.ways.to(server);
    let connection = match dial(shared, server, way).await {
        Ok(connection) => connection,
        Err(error) => match shared.ways.failed(server, way) {
            None => return Err(error),
            Some(other) => {
                tracing::info!(error = error_chain(&error), "trying {} instead", other.as_str());
                way = other;
                dial(shared, server, way).await.inspect_err(|_| {
                    shared.ways.failed(server, way);
                })?
            }
        },
    };
    let end = session::run(shared, server, connection, |welcome| {
        welcomed.store(true, Ordering::Relaxed);
        shared.ways.worked(server, way);
        shared.connected_to(Some((format!("{server} ({})", welcome.server), way)));
    })
    .await;
    // A path that lets a handshake through and nothing behind it is no path.
    if end.is_err() && !welcomed.load(Ordering::Relaxed) {
        shared.ways.failed(server, way);
    }
    end
}

async fn dial(shared: &Shared, server: &str, way: Way) -> Result<Connection, AgentError> {
    tokio::select! {
        connection = shared.dial.dial(server, way) => connection,
        () = shared.clock.sleep(DIAL_TIMEOUT) => {
            let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in 15 s");
            Err(AgentError::dial(server, "connecting")(late))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_answer() {
        for (code, expected) in [
            (Refusal::Version, Next::Halt),
            (Refusal::Foreign, Next::Halt),
            (Refusal::Identity, Next::Slowly),
            (Refusal::Superseded, Next::Slowly),
            (Refusal::Protocol, Next::Retry),
            (Refusal::NotOwner, Next::Retry),
            (Refusal::Busy, Next::Retry),
        ] {
            assert_eq!(next(code), expected);
        }
    }
}
