//! The thread of QUIC: its own runtime, started again when the endpoint ends by itself.
//!
//! Owns: that nothing which happens on UDP ends the process or TCP's shards, and that it is not
//! overlooked. Does not own: what is served ([`crate::ingest`]).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt;

use super::error::ServerError;
use crate::clock::Clock;
use crate::ingest::{Ingest, QuicConfig, QuicEnd};
use crate::observe::Metrics;

/// Datagrams that the system keeps while the thread is busy; it may give less.
const SOCKET_BYTES: usize = 4 << 20;
/// Pause before an endpoint that ended is started again.
const PAUSE: Duration = Duration::from_millis(200);

/// Opens the data port over UDP.
pub(super) fn listen(address: SocketAddr) -> Result<UdpSocket, ServerError> {
    let bound = UdpSocket::bind(address).and_then(|socket| {
        sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BYTES)?;
        sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES)?;
        Ok(socket)
    });
    bound.map_err(|source| ServerError::Listen { address, source })
}

/// Starts the thread; it ends when the server drains.
pub(super) fn start(
    ingest: Arc<Ingest>,
    socket: UdpSocket,
    config: QuicConfig,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
) -> Result<JoinHandle<()>, ServerError> {
    let failed =
        |source| ServerError::Io { path: "quic".into(), action: "starting its thread", source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = Arc::new(runtime.map_err(failed)?);
    let waits = Arc::clone(&runtime);
    let serve = move || {
        let (ingest, config) = (Arc::clone(&ingest), config.clone());
        let socket = socket.try_clone()?;
        runtime.block_on(ingest.serve_quic(socket, config))
    };
    let pause = move || {
        metrics.quic_restarts.fetch_add(1, Ordering::Relaxed);
        waits.block_on(clock.sleep(PAUSE));
    };
    std::thread::Builder::new()
        .name("quic".to_owned())
        .spawn(move || keep_up(serve, pause))
        .map_err(failed)
}

/// Serves again and again until the server drains.
fn keep_up(mut serve: impl FnMut() -> io::Result<QuicEnd>, mut pause: impl FnMut()) {
    loop {
        match catch_unwind(AssertUnwindSafe(&mut serve)) {
            Ok(Ok(QuicEnd::Drained)) => return,
            Ok(Ok(QuicEnd::Died)) => {
                tracing::error!("the QUIC endpoint ended by itself; it is started again");
            }
            Ok(Err(error)) => tracing::error!(%error, "QUIC cannot be served; trying again"),
            Err(_) => tracing::error!("the QUIC thread panicked; it is started again"),
        }
        pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_ends_it_but_a_drain_starts_it_again() {
        let (mut calls, mut pauses) = (0, 0);
        let serve = || {
            calls += 1;
            match calls {
                1 => Ok(QuicEnd::Died),
                2 => Err(io::ErrorKind::AddrNotAvailable.into()),
                3 => panic!("a panic of the endpoint"),
                _ => Ok(QuicEnd::Drained),
            }
        };
        keep_up(serve, || pauses += 1);
        assert_eq!((calls, pauses), (4, 3));
    }
}
