//! The way over UDP: QUIC with the same certificates as TLS over TCP.
//!
//! Owns: the socket, the client's transport settings, the control stream. Does not own: what is
//! said, and how records are laid out over streams ([`super::outgoing`]).
//!
//! Each connection has a socket of its own. It is bound to no address, so a machine that moves to
//! another network keeps its connection: packets leave from the new address and the server follows.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, MtuDiscoveryConfig, TokioRuntime, TransportConfig,
    VarInt,
};
use rustix::net::sockopt;

use super::dial::Connection;
use super::error::AgentError;
use super::outgoing::Outgoing;
use super::tls;
use crate::format::wire::PROTOCOL;
use crate::settings::{AgentSettings, Congestion};

/// Bytes that were handed over and not acknowledged yet: what a second at 130 Mbit/s holds. The
/// resend buffer has them anyway; a stream's own copy is by reference.
const SEND_WINDOW_BYTES: u64 = 16 << 20;
/// Acks and bookmark requests are small.
const RECEIVE_WINDOW_BYTES: u32 = 256 << 10;
/// Longest datagram that is tried: what an Ethernet with jumbo frames carries over IPv6. A packet
/// costs what it costs, so longer ones are cheaper by the byte.
const DATAGRAM_BYTES_MAX: u16 = 8952;
/// Datagrams that the system keeps until the device takes them; it may give less.
const SOCKET_BYTES: usize = 1 << 20;
/// Of a timeout: pause without a word of ours before we ask whether the server is there. It also
/// keeps what stands between us and the server (NAT, firewalls) from forgetting the path.
const KEEP_ALIVE_PART: u32 = 3;

/// Connections over QUIC, of one machine.
pub struct QuicDial {
    config: ClientConfig,
    name: Option<String>,
}

impl QuicDial {
    /// Reads certificates and key.
    pub(super) fn new(settings: &AgentSettings) -> Result<Self, AgentError> {
        let tls = tls::client_config(settings)?;
        Self::with(
            tls,
            settings.server_name.clone(),
            settings.quic_congestion,
            settings.server_timeout,
        )
    }

    /// With a machine's certificate that is no file: `tls` has it, and whom to trust. `name` is what
    /// the server's certificate must say, if not its host. A server that says nothing for `timeout`
    /// is gone.
    ///
    /// # Errors
    /// When the cryptographic provider of `tls` has no suite that QUIC can use.
    pub fn with(
        mut tls: rustls::ClientConfig,
        name: Option<String>,
        congestion: Congestion,
        timeout: Duration,
    ) -> Result<Self, AgentError> {
        tls.alpn_protocols = vec![PROTOCOL.as_bytes().to_vec()];
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| {
            AgentError::Settings(format!("the cryptographic provider cannot do QUIC: {error}"))
        })?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport(congestion, timeout)));
        Ok(Self { config, name })
    }

    /// A fresh connection to `server`, an address or a name with a port.
    ///
    /// # Errors
    /// Names the server and what was being done.
    pub async fn dial(&self, server: &str) -> Result<Connection, AgentError> {
        let addresses = tokio::net::lookup_host(server).await;
        let addresses = addresses.map_err(AgentError::dial(server, "looking up the name"))?;
        let mut last = None;
        for address in addresses {
            match self.connect(server, address).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            let none = io::Error::new(io::ErrorKind::NotFound, "no address");
            AgentError::dial(server, "looking up the name")(none)
        }))
    }

    async fn connect(&self, server: &str, address: SocketAddr) -> Result<Connection, AgentError> {
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = endpoint(any).map_err(AgentError::dial(server, "opening UDP"))?;
        let name = tls::expected_name(self.name.as_deref(), server)?;
        let connecting = endpoint.connect_with(self.config.clone(), address, &name.to_str());
        let connecting = connecting.map_err(AgentError::dial(server, "QUIC"))?;
        let connection = connecting.await.map_err(AgentError::dial(server, "QUIC handshake"))?;
        let (control, reader) = connection
            .open_bi()
            .await
            .map_err(AgentError::dial(server, "opening a QUIC stream"))?;
        Ok(Connection { reader: Box::new(reader), outgoing: Outgoing::quic(connection, control) })
    }
}

impl fmt::Debug for QuicDial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicDial").field("name", &self.name).finish_non_exhaustive()
    }
}

fn endpoint(any: SocketAddr) -> io::Result<Endpoint> {
    let socket = UdpSocket::bind(any)?;
    sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES)?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(DATAGRAM_BYTES_MAX).map_err(io::Error::other)?;
    Endpoint::new(config, None, socket, Arc::new(TokioRuntime))
}

fn controller(congestion: Congestion) -> Arc<dyn ControllerFactory + Send + Sync> {
    match congestion {
        Congestion::Bbr => Arc::new(BbrConfig::default()),
        Congestion::Cubic => Arc::new(CubicConfig::default()),
    }
}

fn transport(congestion: Congestion, timeout: Duration) -> TransportConfig {
    // The last question leaves a part of the timeout before its end, and is waited for that long.
    let ask = timeout / KEEP_ALIVE_PART;
    let idle = u32::try_from((timeout - ask).as_millis()).unwrap_or(u32::MAX);
    let mut transport = TransportConfig::default();
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(DATAGRAM_BYTES_MAX);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        // The server puts records in order again: what was written first must arrive first.
        .send_fairness(false)
        .mtu_discovery_config(Some(mtu))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(VarInt::from_u32(idle).into()))
        .keep_alive_interval(Some(ask))
        .congestion_controller_factory(controller(congestion));
    transport
}
