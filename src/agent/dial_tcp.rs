//! The way over TCP.
//!
//! Owns: TCP, TLS 1.3 with client certificate, the HTTP upgrade. Does not own: what is said.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::format::wire::PROTOCOL;
use crate::settings::AgentSettings;

use super::dial::Connection;
use super::error::AgentError;
use super::tls;

/// Path of the request that turns into wire frames.
const PATH: &str = "/v1/replicate";

/// Silence of the other system, in timeouts, after which TCP gives up. More than one: TCP counts it as
/// silence, too, when the server's system answers and the server takes nothing for so long, and a
/// server that is short of memory may do that (tcp(7), `TCP_USER_TIMEOUT`).
const SYSTEM_SILENT: u32 = 3;

/// HTTP/1.1 upgrade over TLS 1.3 over TCP.
pub(super) struct TcpDial {
    connector: TlsConnector,
    name: Option<String>,
    timeout: Duration,
}

impl TcpDial {
    /// Reads certificates and key.
    pub(super) fn new(settings: &AgentSettings) -> Result<Self, AgentError> {
        let connector = TlsConnector::from(Arc::new(tls::client_config(settings)?));
        let name = settings.server_name.clone();
        Ok(Self { connector, name, timeout: settings.server_timeout })
    }

    pub(super) async fn dial(&self, server: &str) -> Result<Connection, AgentError> {
        let tcp =
            TcpStream::connect(server).await.map_err(AgentError::dial(server, "connecting"))?;
        tcp.set_nodelay(true).map_err(AgentError::dial(server, "setting TCP_NODELAY"))?;
        notice(&tcp, self.timeout).map_err(AgentError::dial(server, "setting TCP timeouts"))?;
        let name = tls::expected_name(self.name.as_deref(), server)?;
        let tls = self.connector.connect(name, tcp).await;
        let tls = tls.map_err(AgentError::dial(server, "TLS handshake"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(AgentError::dial(server, "HTTP"))?;
        // Ends by itself: after the upgrade it has handed the socket over.
        tokio::spawn(connection.with_upgrades());
        let request = Request::builder()
            .method(Method::GET)
            .uri(PATH)
            .header(HOST, server)
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

/// Makes TCP notice that the other system or the path is gone, also while nothing is sent.
fn notice(tcp: &TcpStream, timeout: Duration) -> rustix::io::Result<()> {
    let seconds = timeout.max(Duration::from_secs(1));
    sockopt::set_tcp_keepidle(tcp, seconds)?;
    sockopt::set_tcp_keepintvl(tcp, seconds)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    let most = (timeout * SYSTEM_SILENT).as_millis();
    sockopt::set_tcp_user_timeout(tcp, u32::try_from(most).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_that_is_gone_is_noticed_while_nothing_is_sent() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        notice(&tcp, Duration::from_millis(1500)).unwrap();
        assert!(sockopt::socket_keepalive(&tcp).unwrap());
        assert_eq!(sockopt::tcp_user_timeout(&tcp).unwrap(), 4500);
        assert!(sockopt::tcp_keepidle(&tcp).unwrap() <= Duration::from_secs(2));
        assert!(sockopt::tcp_keepintvl(&tcp).unwrap() <= Duration::from_secs(2));
    }
}
