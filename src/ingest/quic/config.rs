//! QUIC's settings: what a connection may cost before and after it has proven anything.
//!
//! Owns: the transport parameters and why. Does not own: certificates ([`super::super::tls`]).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn::{
    EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, ValidationTokenConfig, VarInt,
};

use super::streams::{CONTROL_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::format::wire::PROTOCOL;
use crate::settings::LimitSettings;

/// Connection attempts that wait for the accept loop, which takes them at once.
const INCOMING_MAX: usize = 1024;
/// Packets kept for one of them: a ClientHello and some more.
const INCOMING_BYTES: u64 = 16 << 10;
/// For all of them.
const INCOMING_BYTES_ALL: u64 = 4 << 20;
/// How long a proof of address is good. It is used at once or not at all.
const RETRY_LIFETIME: Duration = Duration::from_secs(10);
/// Handshake bytes out of order; a certificate chain has a few KiB.
const CRYPTO_BYTES: usize = 16 << 10;
/// Longest datagram that agents may find to fit: what an Ethernet with jumbo frames carries.
const DATAGRAM_BYTES_MAX: u16 = 8952;
/// What we send and the peer has not acknowledged: acks and requests, all small.
const SEND_WINDOW_BYTES: u64 = 256 << 10;

/// Certificates and bounds of QUIC on port 9443.
#[derive(Clone, Debug)]
pub struct QuicConfig(pub(super) ServerConfig);

/// Why QUIC cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// Not this program's build.
    #[error("the cryptographic provider lacks the cipher suite of QUIC's first packets")]
    Provider(#[source] NoInitialCipherSuite),
}

/// The configuration of QUIC on port 9443, from that of TLS over TCP: the same certificates, the
/// same demands on clients, another protocol name.
///
/// # Errors
/// When the cryptographic provider cannot do QUIC.
pub fn quic_config(
    tls: &rustls::ServerConfig,
    limits: &LimitSettings,
) -> Result<QuicConfig, QuicError> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![PROTOCOL.as_bytes().to_vec()];
    // Early data could be replayed; a ticket would outlive a revoked certificate.
    assert!(tls.max_early_data_size == 0, "early data is off");
    assert!(tls.send_tls13_tickets == 0, "tickets are off");
    let crypto = QuicServerConfig::try_from(tls).map_err(QuicError::Provider)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    // Tokens for later connections would let an address count as proven; see docs/decisions/0012.
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    config
        .validation_token_config(tokens)
        .retry_token_lifetime(RETRY_LIFETIME)
        .max_incoming(limits.handshakes_max.min(INCOMING_MAX))
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_ALL)
        .migration(true)
        .transport_config(Arc::new(transport(limits)));
    Ok(QuicConfig(config))
}

/// What packets the endpoint takes.
pub(super) fn endpoint() -> io::Result<EndpointConfig> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(DATAGRAM_BYTES_MAX).map_err(io::Error::other)?;
    Ok(config)
}

fn transport(limits: &LimitSettings) -> TransportConfig {
    let idle = IdleTimeout::try_from(limits.idle_timeout).unwrap_or(IdleTimeout::from(VarInt::MAX));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        // Nobody sends records before the welcome: it opens the streams for them.
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(CONTROL_WINDOW_BYTES))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .crypto_buffer_size(CRYPTO_BYTES)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(idle));
    transport
}
