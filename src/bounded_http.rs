//! HTTP/1.1 on a port of its own, bounded in connections and time.
//!
//! Owns: how many connections there are, how long each may take, and that a stop waits for none of
//! them without end. Does not own: routes, TLS, and the data port, whose connections become agents'
//! streams (ingest).

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tower::ServiceExt;

use crate::clock::Clock;

/// Longest life of a connection; a client simply connects again.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// Time that running requests get when the port closes.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Longest request line and headers, bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Pause after accept failed (out of file descriptors, mostly): it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What peers may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once, a few dozen KiB each. Further ones wait to be accepted.
    pub connections_max: usize,
    /// Time for what stands before a request (TLS), and for its line and headers. A connection that
    /// asks nothing more for so long is closed as well.
    pub head_timeout: Duration,
}

/// Answers on `listener` until `stop` completes, then lets running requests end for [`DRAIN_MAX`] and
/// cuts them. `open` makes of a socket what is spoken over. Routes find their peer as
/// `ConnectInfo<SocketAddr>`.
pub async fn serve<O, F, S>(
    listener: TcpListener,
    clock: Arc<dyn Clock>,
    bounds: Bounds,
    router: Router,
    open: O,
    stop: impl Future<Output = ()>,
) where
    O: Fn(TcpStream) -> F,
    F: Future<Output = std::io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(bounds.connections_max));
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place.expect("the semaphore is never closed"))
        };
        let (accepted, place) = tokio::select! {
            () = &mut stop => break,
            Some(ended) = connections.join_next() => {
                note_panic(ended);
                continue;
            }
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                let visit =
                    Visit { peer, bounds, router: router.clone(), clock: Arc::clone(&clock) };
                let visit = visit.serve(open(socket), stopped.clone());
                connections.spawn(async move {
                    visit.await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, or a client that left at once: neither ends the port.
                tracing::warn!(%error, "a connection could not be accepted");
                clock.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stopping.send_replace(true);
    let rest = async {
        while let Some(ended) = connections.join_next().await {
            note_panic(ended);
        }
    };
    tokio::select! {
        () = rest => return,
        () = clock.sleep(DRAIN_MAX) => {}
    }
    tracing::info!(left = connections.len(), "requests did not end in time and are cut");
    connections.shutdown().await;
}

/// One connection.
struct Visit {
    peer: SocketAddr,
    bounds: Bounds,
    router: Router,
    clock: Arc<dyn Clock>,
}

impl Visit {
    /// From its first byte to its end. Whatever breaks it concerns its client alone.
    async fn serve<S>(
        self,
        opening: impl Future<Output = std::io::Result<S>>,
        mut stopped: watch::Receiver<bool>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { peer, bounds, router, clock } = self;
        let opened = tokio::select! {
            opened = opening => opened,
            () = clock.sleep(bounds.head_timeout) => return,
        };
        let Ok(stream) = opened else { return };
        let service = hyper::service::service_fn(|request: hyper::Request<_>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            router.clone().oneshot(request)
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.head_timeout)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut serving = pin!(serving);
        let ended = tokio::select! {
            ended = &mut serving => ended,
            () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
            () = clock.sleep(CONNECTION_LIFE) => return,
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection ended early");
        }
    }
}

/// A panic ends one connection, not the port; it is our bug all the same.
fn note_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;
    use crate::clock::System;

    const SECOND: Duration = Duration::from_secs(1);

    /// A port that is never asked to stop.
    async fn start(connections_max: usize, head_timeout: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bounds = Bounds { connections_max, head_timeout };
        let router = Router::new().route("/", get(|| async { "ok" }));
        let open = |socket| std::future::ready(Ok(socket));
        let stop = std::future::pending();
        tokio::spawn(serve(listener, System::clock(), bounds, router, open, stop));
        address
    }

    async fn sent(address: SocketAddr, text: &str) -> TcpStream {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(text.as_bytes()).await.unwrap();
        socket
    }

    async fn answered(socket: &mut TcpStream) -> String {
        let mut answer = [0; 12];
        timeout(60 * SECOND, socket.read_exact(&mut answer)).await.unwrap().unwrap();
        String::from_utf8(answer.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_connection_too_many_waits_for_a_place() {
        let address = start(1, 3600 * SECOND).await;
        let whole = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        let mut first = sent(address, whole).await;
        assert_eq!(answered(&mut first).await, "HTTP/1.1 200");
        let mut second = sent(address, whole).await;
        assert!(timeout(SECOND / 4, second.readable()).await.is_err(), "two at once");
        drop(first);
        assert_eq!(answered(&mut second).await, "HTTP/1.1 200");
    }

    #[tokio::test]
    async fn half_a_request_is_not_waited_for() {
        let address = start(1, SECOND / 4).await;
        let mut half = sent(address, "GET /").await;
        let mut rest = Vec::new();
        // hyper's own limit would be 30 s.
        let ended = timeout(20 * SECOND, half.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "still open");
    }
}
