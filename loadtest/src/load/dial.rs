//! From an address to a connection that was welcomed: TCP, TLS 1.3 with a machine's certificate, the
//! HTTP upgrade, or QUIC as the product's agent dials it; hello and welcome.
//!
//! Owns: everything before the first record, waited for. TCP's handshake is rustls'; its keys are then
//! taken over, see [`crate::tls`].

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use holdfast::agent::{AgentError, Outgoing, QuicDial};
use holdfast::format::wire::{FromServer, PROTOCOL};
use holdfast::settings::Congestion;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ConnectionTrafficSecrets, RootCertStore};

use tokio::io::{AsyncRead, AsyncReadExt};

use super::link::{Inbox, Link, LinkError};
use super::machine::{Machine, Nonsense};
use crate::tls::RecordKey;

/// Longest wait for one answer: a thousand machines may be claimed before this one.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest head of the answer to the upgrade.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// A connection that was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("{action}")]
    Io {
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("TLS")]
    Tls(#[from] rustls::Error),
    #[error("the handshake chose {0}; this program seals AES-256-GCM alone")]
    Cipher(String),
    #[error("the answer to the upgrade is {0:?}, not 101")]
    Upgrade(String),
    #[error(transparent)]
    Quic(#[from] AgentError),
    #[error("no welcome within {} s", PATIENCE.as_secs())]
    Late,
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Nonsense(#[from] Nonsense),
    #[error("the first message is no welcome")]
    NoWelcome,
}

/// What all machines of a site share.
pub(crate) struct Dialer {
    address: SocketAddr,
    name: ServerName<'static>,
    roots: Arc<RootCertStore>,
    key: PrivateKeyDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl Dialer {
    /// Machines that hold `key` (all of them the same) and trust `roots`.
    pub(crate) fn new(
        address: SocketAddr,
        roots: RootCertStore,
        key: PrivateKeyDer<'static>,
    ) -> Self {
        let mut provider = rustls::crypto::ring::default_provider();
        let wanted = rustls::CipherSuite::TLS13_AES_256_GCM_SHA384;
        provider.cipher_suites.retain(|suite| suite.suite() == wanted);
        let name = ServerName::IpAddress(address.ip().into());
        Self { address, name, roots: Arc::new(roots), key, provider: Arc::new(provider) }
    }

    /// Connects `machine`, whose certificate is `certificate`; its link is ready for records.
    pub(crate) fn dial(
        &self,
        machine: &mut Machine,
        certificate: CertificateDer<'static>,
    ) -> Result<Link, DialError> {
        let io = |action| move |source| DialError::Io { action, source };
        let mut socket =
            TcpStream::connect_timeout(&self.address, PATIENCE).map_err(io("connecting"))?;
        socket.set_nodelay(true).map_err(io("setting TCP_NODELAY"))?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(io("setting a time limit"))?;
        let mut tls = {
            let mut config = self.config(&self.provider, certificate)?;
            config.enable_secret_extraction = true;
            ClientConnection::new(Arc::new(config), self.name.clone())?
        };
        upgrade(&mut tls, &mut socket, self.address)?;
        let secrets = tls.dangerous_extract_secrets()?;
        let (sealing, opening) = (record_key(secrets.tx)?, record_key(secrets.rx)?);
        let mut link = Link::new(socket, sealing, opening);
        link.push(&machine.hello())?;
        link.flush()?;
        loop {
            let more = link.receive()?;
            match link.next_message()? {
                Some(first) => {
                    welcomed(machine, first)?;
                    break;
                }
                None if !more => return Err(LinkError::Late.into()),
                None => {}
            }
        }
        link.set_nonblocking().map_err(io("making the socket nonblocking"))?;
        Ok(link)
    }

    /// The same over QUIC, as the product's agent does it. The connection lives on the runtime that
    /// this is awaited in.
    pub(crate) async fn dial_quic(
        &self,
        machine: &mut Machine,
        certificate: CertificateDer<'static>,
    ) -> Result<QuicLink, DialError> {
        // QUIC begins with AES-128, whatever is agreed on: all suites.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = self.config(&provider, certificate)?;
        let name = self.address.ip().to_string();
        let dial = QuicDial::with(config, name, Congestion::Bbr)?;
        let greeting = async {
            let (mut reader, mut outgoing) = dial.dial(&self.address.to_string()).await?.split();
            let broken = |error: std::io::Error| LinkError::from(error);
            outgoing.send(machine.hello()).await.map_err(broken)?;
            let mut inbox = Inbox::default();
            let first = loop {
                if let Some(first) = inbox.next_message()? {
                    break first;
                }
                if reader.read_buf(&mut inbox.plain).await.map_err(broken)? == 0 {
                    return Err(LinkError::Closed.into());
                }
            };
            welcomed(machine, first)?;
            Ok(QuicLink { reader, outgoing, inbox })
        };
        tokio::time::timeout(PATIENCE, greeting).await.unwrap_or(Err(DialError::Late))
    }

    fn config(
        &self,
        provider: &Arc<CryptoProvider>,
        certificate: CertificateDer<'static>,
    ) -> Result<ClientConfig, DialError> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut config = builder
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(vec![certificate], self.key.clone_key())?;
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    }
}

/// A welcomed connection over QUIC: the product's own sending half, and what was received behind the
/// welcome.
pub(crate) struct QuicLink {
    pub(crate) reader: Box<dyn AsyncRead + Send + Unpin>,
    pub(crate) outgoing: Outgoing,
    pub(crate) inbox: Inbox,
}

fn welcomed(machine: &mut Machine, first: FromServer) -> Result<(), DialError> {
    match first {
        FromServer::Welcome(welcome) => Ok(machine.welcome(&welcome)?),
        FromServer::Refuse(refuse) => Err(Nonsense::Refused(refuse.text).into()),
        FromServer::Redirect(redirect) => Err(Nonsense::Refused(redirect.reason).into()),
        FromServer::Ack(_) | FromServer::BookmarkRequest(_) => Err(DialError::NoWelcome),
    }
}

fn record_key(
    (sequence, secrets): (u64, ConnectionTrafficSecrets),
) -> Result<RecordKey, DialError> {
    let key = match &secrets {
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
            RecordKey::new(key.as_ref(), iv.as_ref(), sequence)
        }
        _ => None,
    };
    key.ok_or_else(|| DialError::Cipher("another cipher".to_owned()))
}

/// Asks for wire frames; the server says nothing behind its 101 before it has heard the hello, so
/// nothing is left in the connection's buffers.
fn upgrade(
    tls: &mut ClientConnection,
    socket: &mut TcpStream,
    address: SocketAddr,
) -> Result<(), DialError> {
    let io = |source| DialError::Io { action: "asking for the upgrade", source };
    let mut stream = rustls::Stream::new(tls, socket);
    let request = format!(
        "GET /v1/replicate HTTP/1.1\r\nhost: {address}\r\nconnection: Upgrade\r\n\
         upgrade: {PROTOCOL}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).map_err(io)?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_BYTES_MAX || stream.read(&mut byte).map_err(io)? == 0 {
            break;
        }
        head.push(byte[0]);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        let first = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        return Err(DialError::Upgrade(String::from_utf8_lossy(first).into_owned()));
    }
    Ok(())
}
