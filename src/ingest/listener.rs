//! Port 9443: accepted sockets become connections with an identity.
//!
//! Owns: the bound on all connections, the time for TLS and the HTTP request, the orderly end. Does
//! not own: routes ([`super::http`]) and what agents say ([`super::connection`]).

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinError, JoinSet};

use super::arena::Arena;
use super::connection::{self, Agent};
use super::credit::CreditShare;
use super::handshakes::{Handshake, Handshakes};
use super::http;
use super::identity::{Identity, IdentityError, Role};
use super::machines::Machines;
use super::patience::Patience;
use super::present::{CONNECTIONS_OF_ONE_MAX, Present};
use super::quic::QuicBudgets;
use super::tls::{self, Handshaken};
use crate::clock::Clock;
use crate::model::{MachineId, SiteId};
use crate::observe::{Meter, Metrics, Queue, Stage};
use crate::settings::{LimitSettings, ServerSettings};

/// Pause after accept failed (out of file descriptors, mostly): it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections may take to end when the server drains.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(5);

/// What ingest is made of.
pub struct IngestSetup {
    /// Whose certificates are good here.
    pub site: SiteId,
    /// TLS; see [`super::server_config`].
    pub tls: Arc<ServerConfig>,
    /// Bounds against peers.
    pub limits: LimitSettings,
    /// Threads that serve; what is received is bounded for each.
    pub shards: u16,
    /// The settings in force: those of the limits that may change.
    pub settings: watch::Receiver<Arc<ServerSettings>>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
    /// The machines served here.
    pub machines: Arc<dyn Machines>,
    /// How often the certificate of a live session is looked at again: how long one that was revoked
    /// may go on.
    pub certificates_every: Duration,
    /// Routes for operators; paths that are not in it get a 404.
    pub operator: axum::Router,
    /// Turns true once: no connection is accepted any more, those that are open end.
    pub drain: watch::Receiver<bool>,
}

/// The data port of a process server. Shared by all shards: the bounds are those of the process.
pub struct Ingest {
    pub(super) site: SiteId,
    pub(super) limits: LimitSettings,
    pub(super) settings: watch::Receiver<Arc<ServerSettings>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) machines: Arc<dyn Machines>,
    pub(super) certificates_every: Duration,
    pub(super) operator: axum::Router,
    pub(super) drain: watch::Receiver<bool>,
    shards: u16,
    tls: Arc<ServerConfig>,
    pub(super) connections: Arc<Semaphore>,
    pub(super) handshakes: Handshakes,
    pub(super) present: Present,
    pub(super) quic: QuicBudgets,
}

/// Why a connection never became one.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stranger {
    #[error("no TLS 1.3 with a certificate of this site")]
    Tls(#[source] std::io::Error),
    #[error("no QUIC with a certificate of this site")]
    Quic(#[source] std::io::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("no request")]
    Http(#[source] hyper::Error),
    #[error("TLS and the request took too long")]
    TooLong,
    #[error(
        "machine {machine} has more than {CONNECTIONS_OF_ONE_MAX} connections: the oldest goes; does \
         one agent alone use its certificate?"
    )]
    CrowdedOut { machine: MachineId },
}

impl Ingest {
    /// The data port; [`Ingest::serve`] opens it.
    #[must_use]
    pub fn new(setup: IngestSetup) -> Arc<Self> {
        let quic = QuicBudgets::new(setup.limits.quic_bytes_max);
        quic.show(&setup.metrics);
        let connections = Arc::new(Semaphore::new(setup.limits.connections_max));
        let (places, most) = (Arc::clone(&connections), setup.limits.connections_max);
        setup.metrics.show_queue(Queue::items("connections", move || {
            (most.saturating_sub(places.available_permits()) as u64, most as u64)
        }));
        Arc::new(Self {
            quic,
            shards: setup.shards.max(1),
            connections,
            handshakes: Handshakes::new(setup.limits.handshakes_max),
            present: Present::default(),
            tls: setup.tls,
            operator: setup.operator.fallback(http::not_found),
            site: setup.site,
            limits: setup.limits,
            settings: setup.settings,
            clock: setup.clock,
            metrics: setup.metrics,
            machines: setup.machines,
            certificates_every: setup.certificates_every,
            drain: setup.drain,
        })
    }

    /// Silence that a peer is allowed.
    pub(super) fn idle_timeout(&self) -> Duration {
        self.settings.borrow().limits.idle_timeout
    }

    /// What an agent may have in flight when it gets `share` of its credit.
    pub(super) fn window(&self, share: CreditShare) -> u64 {
        share.of(self.settings.borrow().limits.credit_bytes)
    }

    /// Accepts connections until the server drains; returns when the last has ended. May run on
    /// several threads at once, each with its own listener.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let bytes = self.limits.receive_bytes_max / u64::from(self.shards);
        let arena = Arena::new(bytes, Arc::clone(&self.metrics));
        let mut tasks = JoinSet::new();
        let mut draining = pin!(drained(self.drain.clone()));
        loop {
            tokio::select! {
                () = &mut draining => break,
                Some(ended) = tasks.join_next() => note_panic(ended),
                accepted = listener.accept() => match accepted {
                    Ok((socket, peer)) => self.begin(&mut tasks, &arena, socket, peer),
                    Err(error) => {
                        tracing::warn!(%error, "no connection can be accepted now");
                        self.clock.sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        let rest = async {
            while let Some(ended) = tasks.join_next().await {
                note_panic(ended);
            }
        };
        if within(&*self.clock, DRAIN_MAX, rest).await.is_none() {
            tracing::warn!(left = tasks.len(), "connections did not end in time and are cut");
            tasks.shutdown().await;
        }
    }

    fn begin(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        arena: &Arc<Arena>,
        socket: TcpStream,
        peer: SocketAddr,
    ) {
        let refused = &self.metrics.connections_refused;
        let Ok(place) = Arc::clone(&self.connections).try_acquire_owned() else {
            refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%peer, max = self.limits.connections_max, "too many connections");
            return;
        };
        let evicted = self.handshakes.begin(|handshake| {
            let (ingest, arena) = (Arc::clone(self), Arc::clone(arena));
            tasks.spawn(async move {
                let _counted = Counted::new(Arc::clone(&ingest.metrics));
                let connection = ingest.connection(arena, (socket, peer), handshake);
                let meter = Meter::new(&ingest.metrics, Stage::Ingest);
                // TLS, framing and session together.
                if let Err(error) = meter.run(connection).await {
                    ingest.metrics.connections_refused.fetch_add(1, Ordering::Relaxed);
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(%peer, error, "refused");
                }
                drop(place);
            })
        });
        if evicted {
            refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(
                max = self.limits.handshakes_max,
                "too many handshakes; the oldest goes"
            );
        }
    }

    async fn connection(
        &self,
        arena: Arc<Arena>,
        (socket, peer): (TcpStream, SocketAddr),
        handshake: Handshake,
    ) -> Result<(), Stranger> {
        let deadline = self.clock.monotonic() + self.limits.handshake_timeout;
        // Acks are small and somebody waits for each.
        socket.set_nodelay(true).map_err(Stranger::Tls)?;
        let accepting = Handshaken::accept(socket, Arc::clone(&self.tls));
        let tls = within(&*self.clock, self.limits.handshake_timeout, accepting)
            .await
            .ok_or(Stranger::TooLong)?
            .map_err(Stranger::Tls)?;
        let certificate = tls.peer_certificate().ok_or(IdentityError::Absent)?;
        let identity = Identity::of(certificate, &self.site)?;
        let serving = self.identified(arena, (tls, peer), &identity, handshake, deadline);
        match &identity.role {
            Role::Machine(machine) => self.among(machine, serving).await,
            Role::Operator => serving.await,
        }
    }

    /// Serves one of a machine's connections, as long as it is none too many.
    pub(super) async fn among(
        &self,
        machine: &MachineId,
        serving: impl Future<Output = Result<(), Stranger>>,
    ) -> Result<(), Stranger> {
        let presence = self.present.enter(machine);
        tokio::select! {
            biased;
            () = presence.crowded_out() => Err(Stranger::CrowdedOut { machine: machine.clone() }),
            ended = serving => ended,
        }
    }

    async fn identified(
        &self,
        arena: Arc<Arena>,
        (tls, peer): (Handshaken, SocketAddr),
        identity: &Identity,
        handshake: Handshake,
        deadline: Duration,
    ) -> Result<(), Stranger> {
        let requests = http::Requests { ingest: self, identity };
        let upgraded = requests.serve(tls, handshake, deadline).await?;
        let (Some((tls, early)), Role::Machine(machine)) = (upgraded, &identity.role) else {
            return Ok(());
        };
        let patience = Arc::new(Patience::new(self.idle_timeout()));
        let shared = (Arc::clone(&patience), Arc::clone(&self.clock));
        let (reader, writer) =
            tls::take_over(tls, early, arena, shared.0, shared.1).await.map_err(Stranger::Tls)?;
        let agent = Agent { machine, certificate: &identity.certificate, peer };
        connection::serve(self, agent, &patience, reader, writer).await;
        Ok(())
    }
}

impl From<http::RequestError> for Stranger {
    fn from(error: http::RequestError) -> Self {
        match error {
            http::RequestError::TooLong => Self::TooLong,
            http::RequestError::Http(source) => Self::Http(source),
        }
    }
}

/// Waits until the server drains; for ever when nobody is left who could say so.
pub(super) async fn drained(mut drain: watch::Receiver<bool>) {
    if drain.wait_for(|drain| *drain).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What `future` gives, unless it takes longer than `time`.
pub(super) async fn within<T>(
    clock: &dyn Clock,
    time: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = clock.sleep(time) => None,
    }
}

/// A connection in the gauge.
pub(super) struct Counted(Arc<Metrics>);

impl Counted {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        metrics.connections.fetch_add(1, Ordering::Relaxed);
        Self(metrics)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A panic ends one connection, not the process; it is our bug all the same.
pub(super) fn note_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}
