//! Port 9443 over UDP: QUIC connections become the same sessions as TLS over TCP.
//!
//! Owns: the endpoint, who may begin a handshake when many do, the orderly end. Does not own: the
//! bounds themselves (they are the process's, shared with TCP), identity, the session, and how
//! several streams become one ([`streams`]).
//!
//! The endpoint runs on a thread of its own: it decrypts for all its connections, and must not slow
//! TCP's shards.

mod config;
mod order;
mod streams;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming, TokioRuntime, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::task::JoinSet;

use super::connection::{self, Agent};
use super::credit::CreditShare;
use super::handshakes::Handshake;
use super::identity::{Identity, IdentityError, Role};
use super::listener::{Counted, DRAIN_MAX, Ingest, Stranger, drained, note_panic, within};
use super::patience::Patience;
use crate::budget::Budget;
use crate::observe::{CpuTimer, Metrics, Queue, Stage};
pub use config::{QuicConfig, QuicError, quic_config};
use streams::Streams;

/// Application codes with which we end a connection.
const ENDED: VarInt = VarInt::from_u32(0);
const NOT_FOR_YOU: VarInt = VarInt::from_u32(1);
const DRAINS: VarInt = VarInt::from_u32(2);
/// How often the endpoint's CPU time is counted.
const METER_INTERVAL: Duration = Duration::from_secs(1);

/// How an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuicEnd {
    /// The server drains.
    Drained,
    /// By itself: its socket cannot be used any more. Start it again.
    Died,
}

/// The memory of QUIC, over all connections.
#[derive(Clone, Debug)]
pub(super) struct QuicBudgets {
    /// What waits in streams.
    windows: Budget,
    /// What is received and not yet durable.
    received: Budget,
}

impl QuicBudgets {
    /// A record stays in a stream until it is its turn, and in memory until it is durable, which is
    /// sooner.
    pub(super) fn new(bytes_max: u64) -> Self {
        let received = bytes_max / 3;
        Self { windows: Budget::new(bytes_max - received), received: Budget::new(received) }
    }

    /// Lets everybody see what is taken of them.
    pub(super) fn show(&self, metrics: &Metrics) {
        for (name, budget) in [("quic-windows", &self.windows), ("quic-received", &self.received)] {
            let budget = budget.clone();
            metrics.show_queue(Queue::bytes(name, move || (budget.taken(), budget.bytes())));
        }
    }
}

impl Ingest {
    /// Serves QUIC on `socket` until the server drains. Must run on a runtime with one thread of
    /// its own, whose whole CPU time is counted to ingest.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub async fn serve_quic(
        self: Arc<Self>,
        socket: std::net::UdpSocket,
        config: QuicConfig,
    ) -> std::io::Result<QuicEnd> {
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new(config::endpoint()?, Some(config.0), socket, runtime)?;
        Ok(tokio::select! {
            end = Arc::clone(&self).serve_endpoint(endpoint) => end,
            never = self.meter_thread() => never,
        })
    }

    async fn meter_thread(&self) -> QuicEnd {
        loop {
            let timer = CpuTimer::start();
            self.clock.sleep(METER_INTERVAL).await;
            self.metrics.cpu(Stage::Ingest, timer.spent());
        }
    }

    async fn serve_endpoint(self: Arc<Self>, endpoint: Endpoint) -> QuicEnd {
        let mut tasks = JoinSet::new();
        let end = loop {
            tokio::select! {
                () = drained(self.drain.clone()) => break QuicEnd::Drained,
                Some(ended) = tasks.join_next() => note_panic(ended),
                incoming = endpoint.accept() => match incoming {
                    Some(incoming) => self.begin_quic(&mut tasks, incoming),
                    None => break QuicEnd::Died,
                },
            }
        };
        endpoint.set_server_config(None);
        if end == QuicEnd::Drained {
            let rest = async {
                while let Some(ended) = tasks.join_next().await {
                    note_panic(ended);
                }
                endpoint.close(DRAINS, b"this process server drains");
                endpoint.wait_idle().await;
            };
            within(&*self.clock, DRAIN_MAX, rest).await;
        }
        tasks.shutdown().await;
        end
    }

    fn begin_quic(self: &Arc<Self>, tasks: &mut JoinSet<()>, incoming: Incoming) {
        let peer = incoming.remote_address();
        let refused = &self.metrics.connections_refused;
        // Whoever cannot hear us at the address that it sends from takes no place from those who
        // can: addresses are proven once half of the places are taken.
        if self.handshakes.crowded() && !incoming.remote_address_validated() {
            if incoming.may_retry() {
                drop(incoming.retry()); // it can be retried: this was just asked
            }
            return;
        }
        let Ok(place) = Arc::clone(&self.connections).try_acquire_owned() else {
            refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%peer, max = self.limits.connections_max, "too many connections");
            incoming.refuse();
            return;
        };
        let evicted = self.handshakes.begin(|handshake| {
            let ingest = Arc::clone(self);
            tasks.spawn(async move {
                let _counted = Counted::new(Arc::clone(&ingest.metrics));
                if let Err(error) = ingest.quic_connection(incoming, handshake).await {
                    ingest.metrics.connections_refused.fetch_add(1, Ordering::Relaxed);
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(%peer, error, "refused");
                }
                drop(place);
            })
        });
        if evicted {
            refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn quic_connection(
        &self,
        incoming: Incoming,
        handshake: Handshake,
    ) -> Result<(), Stranger> {
        // Everything up to the stream that carries the hello is one wait: a peer that proves who it
        // is and then says nothing is a stranger, too.
        let begun = async {
            let connection = incoming.await.map_err(|error| Stranger::Quic(error.into()))?;
            let identity = self.quic_identity(&connection);
            let identity = identity.inspect_err(|_| {
                connection.close(NOT_FOR_YOU, b"the certificate names nobody of this site");
            })?;
            let Role::Machine(machine) = identity.role else {
                connection.close(NOT_FOR_YOU, b"operators use HTTPS over TCP");
                return Ok(None);
            };
            let (writer, reader) =
                connection.accept_bi().await.map_err(|error| Stranger::Quic(error.into()))?;
            Ok(Some((connection, machine, identity.certificate, writer, reader)))
        };
        let begun = within(&*self.clock, self.limits.handshake_timeout, begun).await;
        let Some((connection, machine, certificate, writer, reader)) =
            begun.unwrap_or(Err(Stranger::TooLong))?
        else {
            return Ok(());
        };
        drop(handshake);
        let peer = connection.remote_address();
        let agent = Agent { machine: &machine, certificate: &certificate, peer };
        let wanted = self.window(CreditShare::WHOLE);
        let streams = Streams::new(connection.clone(), reader, self.quic.clone(), wanted);
        let patience = Patience::new(self.idle_timeout());
        let serving = async {
            connection::serve(self, agent, &patience, streams, writer).await;
            Ok(())
        };
        let ended = self.among(&machine, serving).await;
        connection.close(ENDED, b"");
        ended
    }

    fn quic_identity(&self, connection: &Connection) -> Result<Identity, IdentityError> {
        let shown = connection.peer_identity().and_then(|shown| shown.downcast().ok());
        let shown: Box<Vec<CertificateDer<'static>>> = shown.ok_or(IdentityError::Absent)?;
        Identity::of(shown.first().ok_or(IdentityError::Absent)?, &self.site)
    }
}
