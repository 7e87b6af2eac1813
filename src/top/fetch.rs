//! One metrics page from a process server.
//!
//! Owns: one bounded request, plain HTTP as the metrics listener speaks it. Does not own: when it is
//! asked again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::header::{ACCEPT, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::TopError;
use super::reading::Reading;
use crate::clock::Clock;

/// Longest page: some ten thousand machines.
const PAGE_BYTES_MAX: usize = 64 << 20;
/// Time that a page may take: with thousands of machines it is megabytes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where metrics come from.
#[derive(Clone)]
pub struct Source {
    /// `HOST:PORT` of the metrics listener.
    pub address: String,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Source {
    /// What the server says now.
    pub(super) async fn reading(&self) -> Result<Reading, TopError> {
        let page = tokio::select! {
            page = self.page() => page?,
            () = self.clock.sleep(PATIENCE) => {
                let (address, seconds) = (self.address.clone(), PATIENCE.as_secs());
                return Err(TopError::Late { address, seconds });
            }
        };
        let reading = Reading::of(&String::from_utf8_lossy(&page));
        let reading =
            reading.map_err(|source| TopError::Page { address: self.address.clone(), source })?;
        match reading.version {
            Some(_) => Ok(reading),
            None => Err(self.other("a page of metrics without holdfast_build_info")),
        }
    }

    fn other(&self, what: impl Into<String>) -> TopError {
        TopError::NotMetrics { address: self.address.clone(), what: what.into() }
    }

    async fn page(&self) -> Result<Bytes, TopError> {
        let address = &self.address;
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| TopError::Broken {
            address: address.clone(),
            source,
        };
        let socket = TcpStream::connect(address)
            .await
            .map_err(|source| TopError::Unreachable { address: address.clone(), source })?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(socket));
        let (mut sender, connection) = handshake.await.map_err(|error| broken(error.into()))?;
        let request = Request::get("/metrics")
            .header(HOST, address)
            .header(ACCEPT, "application/openmetrics-text; version=1.0.0")
            .body(Empty::<Bytes>::new())
            .map_err(|error| broken(error.into()))?;
        let answered = async {
            let response =
                sender.send_request(request).await.map_err(|error| broken(error.into()))?;
            if !response.status().is_success() {
                return Err(self.other(format!("answered with status {}", response.status())));
            }
            let body = Limited::new(response.into_body(), PAGE_BYTES_MAX);
            Ok(body.collect().await.map_err(broken)?.to_bytes())
        };
        // The connection future drives the exchange; both live and end within this call.
        let (mut connection, mut answered) = (std::pin::pin!(connection), std::pin::pin!(answered));
        tokio::select! {
            outcome = &mut answered => outcome,
            ended = &mut connection => match ended {
                Ok(()) => answered.await,
                Err(error) => Err(broken(error.into())),
            },
        }
    }
}
