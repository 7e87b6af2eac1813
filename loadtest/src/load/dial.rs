//! From an address to a connection that was welcomed: TCP, TLS 1.3 with a machine's certificate, the
//! HTTP upgrade, hello and welcome.
//!
//! Owns: everything before the first record, waited for. The handshake is rustls'; its keys are then
//! taken over, see [`crate::tls`].

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use holdfast::format::wire::{FromServer, PROTOCOL};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ConnectionTrafficSecrets, RootCertStore};

use super::link::{Link, LinkError};
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
    provider: Arc<rustls::crypto::CryptoProvider>,
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
        let mut tls = ClientConnection::new(self.config(certificate)?, self.name.clone())?;
        upgrade(&mut tls, &mut socket, self.address)?;
        let secrets = tls.dangerous_extract_secrets()?;
        let (sealing, opening) = (record_key(secrets.tx)?, record_key(secrets.rx)?);
        let mut link = Link::new(socket, sealing, opening);
        link.push(&machine.hello())?;
        link.flush()?;
        loop {
            let more = link.receive()?;
            match link.next_message()? {
                Some(FromServer::Welcome(welcome)) => {
                    machine.welcome(&welcome)?;
                    break;
                }
                Some(FromServer::Refuse(refuse)) => {
                    return Err(Nonsense::Refused(refuse.text).into());
                }
                Some(_) => return Err(DialError::NoWelcome),
                None if !more => return Err(LinkError::Late.into()),
                None => {}
            }
        }
        link.set_nonblocking().map_err(io("making the socket nonblocking"))?;
        Ok(link)
    }

    fn config(&self, certificate: CertificateDer<'static>) -> Result<Arc<ClientConfig>, DialError> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut config = builder
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(vec![certificate], self.key.clone_key())?;
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_secret_extraction = true;
        Ok(Arc::new(config))
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
