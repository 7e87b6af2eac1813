//! JSON over HTTPS with the operator's certificate: what command line and sidecar ask process
//! servers.
//!
//! Owns: one bounded request. Does not own: which server to ask, retries.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::answer::ErrorBody;
use super::{ControlError, tls};
use crate::clock::Clock;
use crate::settings::TlsFiles;

/// Longest answer, bytes: a status of a few thousand machines.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Asks process servers as the operator.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    clock: Arc<dyn Clock>,
    timeout: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Client {
    /// With the operator's certificate of `files`; a request takes at most `timeout`.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn operator(
        files: &TlsFiles,
        clock: Arc<dyn Clock>,
        timeout: Duration,
    ) -> Result<Self, ControlError> {
        Ok(Self { config: tls::operator(files)?, clock, timeout })
    }

    /// The same with another time limit.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Whether a process server answers at `address`.
    ///
    /// # Errors
    /// Names the URL and what happened instead.
    pub async fn healthy(&self, address: &str) -> Result<(), ControlError> {
        let path = "/healthz";
        let url = url(address, path);
        let (status, answer) = tokio::select! {
            answered = self.exchange(Method::GET, address, path, &url, Bytes::new()) => answered?,
            () = self.clock.sleep(self.timeout) => {
                let seconds = self.timeout.as_secs();
                return Err(ControlError::Timeout { url, seconds });
            }
        };
        if status.is_success() { Ok(()) } else { Err(refused(url, status, &answer)) }
    }

    /// `GET https://<address><path>`.
    ///
    /// # Errors
    /// Names the URL and what to do.
    pub async fn get<A: DeserializeOwned>(
        &self,
        address: &str,
        path: &str,
    ) -> Result<A, ControlError> {
        self.ask(Method::GET, address, path, Bytes::new()).await
    }

    /// `POST https://<address><path>` with a JSON body.
    ///
    /// # Errors
    /// Names the URL and what to do.
    pub async fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        address: &str,
        path: &str,
        question: &Q,
    ) -> Result<A, ControlError> {
        let body = serde_json::to_vec(question)
            .map_err(|source| ControlError::Answer { url: url(address, path), source })?;
        self.ask(Method::POST, address, path, body.into()).await
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        address: &str,
        path: &str,
        body: Bytes,
    ) -> Result<A, ControlError> {
        let url = url(address, path);
        let (status, answer) = tokio::select! {
            answered = self.exchange(method, address, path, &url, body) => answered?,
            () = self.clock.sleep(self.timeout) => {
                let seconds = self.timeout.as_secs();
                return Err(ControlError::Timeout { url, seconds });
            }
        };
        if status.is_success() {
            return serde_json::from_slice(&answer)
                .map_err(|source| ControlError::Answer { url, source });
        }
        Err(refused(url, status, &answer))
    }

    async fn exchange(
        &self,
        method: Method,
        address: &str,
        path: &str,
        url: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let unreachable = |source| ControlError::Unreachable { url: url.to_owned(), source };
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| ControlError::Broken {
            url: url.to_owned(),
            source,
        };
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|error| broken(error.into()))?;
        let socket = TcpStream::connect(address).await.map_err(unreachable)?;
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(name, socket).await.map_err(unreachable)?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(|error| broken(error.into()))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, address)
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| broken(error.into()))?;
        let answered = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
            Ok((status, body.collect().await?.to_bytes()))
        };
        // The connection future drives the exchange; both live and end within this call.
        let mut connection = std::pin::pin!(connection);
        let mut answered = std::pin::pin!(answered);
        let outcome = tokio::select! {
            outcome = &mut answered => outcome,
            ended = &mut connection => match ended {
                Ok(()) => answered.await,
                Err(error) => return Err(broken(error.into())),
            },
        };
        outcome.map_err(broken)
    }
}

fn refused(url: String, status: StatusCode, answer: &[u8]) -> ControlError {
    let error = serde_json::from_slice::<ErrorBody>(answer).map(|body| body.error);
    let error = error.unwrap_or_else(|_| super::answer::ErrorDetail {
        code: "unexpected".to_owned(),
        message: String::from_utf8_lossy(answer).chars().take(200).collect(),
        cure: "is this the address of a process server?".to_owned(),
    });
    ControlError::Refused {
        url,
        status: status.as_u16(),
        code: error.code,
        message: error.message,
        cure: error.cure,
    }
}

fn url(address: &str, path: &str) -> String {
    format!("https://{address}{path}")
}
