//! The sidecar: HTTPS on its own port.
//!
//! Owns: the listener and what all requests share. Does not own: any state; that is in the vault.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::limiter::Limiter;
use super::{Client, ControlError, Registrar, Sources, routes, tls};
use crate::bounded_http::{self, Bounds};
use crate::clock::Clock;
use crate::settings::{ServerSettings, SidecarSettings};

/// Most connections at once: 256 × a few dozen KiB.
const CONNECTIONS_MAX: usize = 256;

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
    bounds: Bounds,
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
            bounds: Bounds {
                connections_max: CONNECTIONS_MAX,
                head_timeout: settings.limits.handshake_timeout,
            },
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` completes, then lets running requests end.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let acceptor = TlsAcceptor::from(self.config);
        let open = move |socket| acceptor.accept(socket);
        bounded_http::serve(self.listener, self.clock, self.bounds, self.router, open, stop).await;
    }
}
