//! Keeping connected: to one server after the other, with an answer for each refusal.
//!
//! Owns: what follows the end of a connection. Does not own: which server is next and when
//! ([`super::route`]), what is said there ([`super::session`]).

use std::sync::Arc;
use std::time::Duration;

use crate::clock::fraction;
use crate::format::wire::{Redirect, Refusal};
use crate::observe::error_chain;

use super::dial::{Connection, Way};
use super::error::AgentError;
use super::route::Route;
use super::run::Shared;
use super::session::{self, End};

/// Pause after a refusal that only a human can lift.
const PAUSE_SLOW: Duration = Duration::from_secs(120);

/// What follows the end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// The next server.
    Retry,
    /// One of these first.
    Follow(Vec<String>),
    /// The next server after a long pause.
    Slowly,
    /// Never: only bitmaps are kept until the agent is restarted.
    Halt,
    /// The same, and the next life begins a new epoch.
    Disown,
}

/// The one answer to each refusal.
fn next(code: Refusal) -> Next {
    match code {
        Refusal::Version => Next::Halt,
        Refusal::Foreign => Next::Disown,
        Refusal::Identity | Refusal::Superseded => Next::Slowly,
        Refusal::Protocol | Refusal::NotOwner | Refusal::Busy => Next::Retry,
    }
}

/// The answer to the end of a connection to `server`, and why it ended.
fn answer(server: &str, outcome: Result<End, AgentError>) -> Option<(Next, String)> {
    Some(match outcome {
        Ok(End::Left) => return None,
        Ok(End::Refused(refuse)) => {
            let why = format!("{server} refused ({:?}): {}", refuse.code, refuse.text);
            (next(refuse.code), why)
        }
        Ok(End::Redirected(Redirect { addresses, reason })) => {
            let why = format!("{server} sent us to {}: {reason}", addresses.join(", "));
            (Next::Follow(addresses), why)
        }
        Ok(End::Foreign(why)) => (Next::Disown, format!("{server}: {why}")),
        Err(error) => (Next::Retry, error_chain(&error)),
    })
}

/// Connects, serves the connection, goes on with the next server; returns when the agent leaves or
/// must stop.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut route = Route::new(&shared.settings.servers);
    while !shared.leaving() {
        let server = route.server().to_owned();
        let mut welcomed = None;
        let outcome = connect(&shared, &server, &mut welcomed).await;
        shared.disconnected();
        let Some((next, why)) = answer(&server, outcome) else { return };
        shared.failed(&why);
        let now = shared.clock.monotonic();
        let lasted = welcomed.map(|at| now.saturating_sub(at));
        let (redirected, pause) = match next {
            Next::Retry => (None, None),
            Next::Follow(servers) => (Some(servers), None),
            Next::Slowly => {
                let pause = PAUSE_SLOW.mul_f64(0.5 + fraction(shared.entropy.as_ref()));
                (None, Some(pause))
            }
            Next::Halt | Next::Disown => {
                if next == Next::Disown {
                    disown(&shared).await;
                }
                tracing::error!(
                    why,
                    "replication stopped; the workload goes on, changes are kept in the bitmap"
                );
                shared.halt(&why);
                return;
            }
        };
        route.ended(lasted, redirected);
        let pause = pause.unwrap_or_else(|| route.pause(shared.entropy.as_ref()));
        let (pause_ms, next) = (pause.as_millis() as u64, route.server());
        tracing::warn!(why, next, pause_ms, "not connected");
        tokio::select! {
            () = shared.clock.sleep(pause) => {}
            () = shared.left.notified() => return,
        }
    }
}

/// Before anything is said: an operator who reads of it restarts the agent.
async fn disown(shared: &Shared) {
    let stream = Arc::clone(&shared.stream);
    let forgotten = tokio::task::spawn_blocking(move || stream.forget_epoch()).await;
    let Err(error) = forgotten.unwrap_or_else(|stopped| Err(std::io::Error::other(stopped))) else {
        return;
    };
    let directory = shared.settings.state_directory.display();
    tracing::error!(%error, %directory,
        "the bitmaps could not be told that somebody else writes the stream: remove the *.bitmap files \
         there before the agent is restarted");
}

/// Connects, by the other way when the first one does not get through, and serves the connection.
/// `welcomed` becomes the moment from which on it carried records.
async fn connect(
    shared: &Shared,
    server: &str,
    welcomed: &mut Option<Duration>,
) -> Result<End, AgentError> {
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
        *welcomed = Some(shared.clock.monotonic());
        shared.ways.worked(server, way);
        shared.connected_to(server, welcome.server.as_str(), way);
    })
    .await;
    // A path that lets a handshake through and nothing behind it is no path.
    if end.is_err() && welcomed.is_none() {
        shared.ways.failed(server, way);
    }
    end
}

async fn dial(shared: &Shared, server: &str, way: Way) -> Result<Connection, AgentError> {
    tokio::select! {
        connection = shared.dial.dial(server, way) => connection,
        () = shared.clock.sleep(shared.settings.server_timeout) => {
            let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time");
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
            (Refusal::Foreign, Next::Disown),
            (Refusal::Identity, Next::Slowly),
            (Refusal::Superseded, Next::Slowly),
            (Refusal::Protocol, Next::Retry),
            (Refusal::NotOwner, Next::Retry),
            (Refusal::Busy, Next::Retry),
        ] {
            assert_eq!(next(code), expected);
        }
    }

    #[test]
    fn a_redirect_is_followed_and_says_why() {
        let redirect = Redirect { addresses: vec!["b:1".into()], reason: "ps-1 drains".into() };
        let (next, why) = answer("a:1", Ok(End::Redirected(redirect))).unwrap();
        assert_eq!(next, Next::Follow(vec!["b:1".into()]));
        assert_eq!(why, "a:1 sent us to b:1: ps-1 drains");
    }

    #[test]
    fn a_stream_that_somebody_else_writes_is_disowned_whoever_noticed() {
        let (next, why) = answer("a:1", Ok(End::Foreign("another agent".into()))).unwrap();
        assert_eq!((next, why.as_str()), (Next::Disown, "a:1: another agent"));
    }
}
