//! The way over TCP.
//!
//! Owns: TCP, TLS 1.3 with client certificate, the HTTP upgrade. Does not own: what is said.

use std::sync::Arc;

use http_body_util::Empty;
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::format::wire::PROTOCOL;
use crate::settings::AgentSettings;

use super::dial::Connection;
use super::error::AgentError;
use super::tls;

/// Path of the request that turns into wire frames.
const PATH: &str = "/v1/replicate";

/// HTTP/1.1 upgrade over TLS 1.3 over TCP.
pub(super) struct TcpDial {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl TcpDial {
    /// Reads certificates and key.
    pub(super) fn new(settings: &AgentSettings) -> Result<Self, AgentError> {
        let text = settings.server_name.clone();
        let name = ServerName::try_from(text.clone()).map_err(|error| {
            AgentError::Settings(format!("server_name {text:?} is no host name: {error}"))
        })?;
        let connector = TlsConnector::from(Arc::new(tls::client_config(settings)?));
        Ok(Self { connector, name })
    }

    pub(super) async fn dial(&self, server: &str) -> Result<Connection, AgentError> {
        let tcp =
            TcpStream::connect(server).await.map_err(AgentError::dial(server, "connecting"))?;
        tcp.set_nodelay(true).map_err(AgentError::dial(server, "setting TCP_NODELAY"))?;
        let tls = self.connector.connect(self.name.clone(), tcp).await;
        let tls = tls.map_err(AgentError::dial(server, "TLS handshake"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(AgentError::dial(server, "HTTP"))?;
        // Ends by itself: after the upgrade it has handed the socket over.
        tokio::spawn(connection.with_upgrades());
        let request = Request::builder()
            .method(Method::GET)
            .uri(PATH)
            .header(HOST, self.name.to_str().as_ref())
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, PROTOCOL)
            .body(Empty::<bytes::Bytes>::new())
            .map_err(AgentError::dial(server, "HTTP request"))?;
        let response =
            sender.send_request(request).await.map_err(AgentError::dial(server, "HTTP request"))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let detail = format!("HTTP status {} instead of 101 for {PATH}", response.status());
            let server = server.to_owned();
            return Err(AgentError::Protocol { server, detail });
        }
        let upgraded =
            hyper::upgrade::on(response).await.map_err(AgentError::dial(server, "HTTP upgrade"))?;
        Ok(Connection::over(TokioIo::new(upgraded)))
    }
}
