//! The sidecar: HTTPS on its own port, bounded in connections and time.
//!
//! Owns: the listener and what all requests share. Does not own: any state; that is in the vault.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::auth::Peer;
use super::limiter::Limiter;
use super::{Client, ControlError, Registrar, Sources, routes, tls};
use crate::clock::Clock;
use crate::settings::{ServerSettings, SidecarSettings};

/// Most connections at once: 256 × a few dozen KiB.
const CONNECTIONS_MAX: usize = 256;
/// Longest life of a connection; a client simply connects again.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// Time that running requests get when the sidecar stops.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Longest request line and headers, bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// What all requests share.
pub(super) struct Shared {
    pub(super) sources: Sources,
    pub(super) registrar: Registrar,
    pub(super) client: Client,
    pub(super) settings: SidecarSettings,
    pub(super) limiter: Limiter,
    pub(super) clock: Arc<dyn Clock>,
}

/// A sidecar that listens.
pub struct Sidecar {
    listener: TcpListener,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    router: Router,
    clock: Arc<dyn Clock>,
    handshake_timeout: Duration,
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sidecar({})", self.address)
    }
}

impl Sidecar {
    /// Listens where the settings say.
    ///
    /// # Errors
    /// When certificates cannot be used, the port is taken, or the store belongs to another site.
    pub async fn listen(
        settings: &ServerSettings,
        sources: Sources,
        registrar: Registrar,
        client: Client,
    ) -> Result<Self, ControlError> {
        sources.vault.expect_site(&settings.site).await?;
        let config = tls::server(&settings.tls)?;
        let listen = settings.sidecar.listen;
        let failed = |source| ControlError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let clock = Arc::clone(&registrar.clock);
        let shared = Shared {
            sources,
            registrar,
            client,
            settings: settings.sidecar.clone(),
            limiter: Limiter::default(),
            clock: Arc::clone(&clock),
        };
        Ok(Self {
            listener,
            address,
            config,
            router: routes::router(Arc::new(shared)),
            clock,
            handshake_timeout: settings.limits.handshake_timeout,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` completes, then lets running requests end.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let (draining, drained) = watch::channel(false);
        let mut stop = std::pin::pin!(stop);
        loop {
            let place = Arc::clone(&places).acquire_owned();
            let accepted = async {
                let place = place.await.expect("the semaphore is never closed");
                (self.listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                accepted = accepted => accepted,
                () = &mut stop => break,
            };
            match accepted {
                Ok((socket, peer)) => {
                    let connection = self.connection(socket, peer, drained.clone(), place);
                    tokio::spawn(connection);
                }
                Err(error) => {
                    // Out of file descriptors, or a client that left at once: neither ends the API.
                    tracing::warn!(%error, "a connection could not be accepted");
                    self.clock.sleep(Duration::from_millis(100)).await;
                }
            }
        }
        draining.send_replace(true);
        let all = u32::try_from(CONNECTIONS_MAX).expect("a small constant");
        tokio::select! {
            _ = places.acquire_many(all) => {}
            () = self.clock.sleep(DRAIN_TIME) => {}
        }
    }

    /// One connection from handshake to end. Whatever breaks it concerns its client alone.
    fn connection(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
        mut drained: watch::Receiver<bool>,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + 'static {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.config));
        let (router, clock) = (self.router.clone(), Arc::clone(&self.clock));
        let handshake_timeout = self.handshake_timeout;
        async move {
            let _place = place;
            let stream = tokio::select! {
                stream = acceptor.accept(socket) => stream,
                () = clock.sleep(handshake_timeout) => return,
            };
            let Ok(stream) = stream else { return };
            let service = hyper::service::service_fn(move |request: hyper::Request<_>| {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(Peer(peer.ip()));
                router.clone().oneshot(request)
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(handshake_timeout)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            let mut serving = std::pin::pin!(serving);
            let ended = tokio::select! {
                ended = &mut serving => ended,
                _ = drained.changed() => {
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
}
