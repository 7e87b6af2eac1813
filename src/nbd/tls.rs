//! TLS of a server's connection: who may speak, and both directions at once.
//!
//! Owns: that the certificate of a client is looked at before anything of it is carried out. Does not own:
//! certificates and their files (whoever binds the server), when TLS begins ([`super::negotiate`]).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, ServerConfig, ServerConnection};

use super::socket::Socket;

/// Bytes that are read from a socket at a time: a few of TLS's records.
const RECEIVE_BYTES: usize = 64 << 10;

/// What a server shows, and whom it lets in.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    client: ServerName<'static>,
}

impl ServerTls {
    /// `config` must demand a certificate of its clients. It must carry the name `client` as well: one CA
    /// may have signed those of several hosts.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>, client: ServerName<'static>) -> Self {
        Self { config, client }
    }

    /// The handshake, and the look at the client's certificate.
    ///
    /// # Errors
    /// In words with the cure, when the client is not one that may speak.
    pub(super) fn accept(&self, stream: &mut (impl Read + Write)) -> io::Result<ServerConnection> {
        let mut connection = ServerConnection::new(Arc::clone(&self.config)).map_err(told)?;
        while connection.is_handshaking() {
            if let Err(error) = connection.complete_io(stream) {
                return Err(match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                    Some(inner) => told(Error::clone(inner)),
                    None => error,
                });
            }
        }
        let shown = connection.peer_certificates().and_then(|chain| chain.first());
        let shown = shown.ok_or(Error::NoCertificatesPresented).map_err(told)?;
        let parsed = ParsedCertificate::try_from(shown).map_err(told)?;
        verify_server_name(&parsed, &self.client).map_err(told)?;
        Ok(connection)
    }
}

/// Why a client was refused, and what to do about it.
fn told(error: Error) -> io::Error {
    let cure = match &error {
        Error::NoCertificatesPresented => {
            "it shows no certificate (GnuTLS shows none of another CA); give its tls-creds-x509 object a \
             client-cert.pem and client-key.pem of the CA that the agent's settings name"
        }
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "its certificate is of another CA; let the CA that the agent's settings name sign it",
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "its certificate is that of another host; name QEMU's host in it as `qmp` in the agent's \
             settings does"
        }
        Error::InvalidCertificate(_) => "its certificate does not count; make it a new one",
        Error::AlertReceived(_) => "it does not take the agent's certificate; see its own log",
        _ => "it speaks no TLS 1.3; GnuTLS does as of 3.6",
    };
    io::Error::new(io::ErrorKind::PermissionDenied, format!("{cure} ({error})"))
}

/// A connection that one thread reads while others write.
///
/// A read waits for the socket without the lock; nothing is written for its sake: what TLS itself has to
/// say (to a request for new keys) goes out before the next reply.
pub(super) struct Secured<'a> {
    connection: Mutex<ServerConnection>,
    socket: &'a Socket,
}

impl<'a> Secured<'a> {
    pub(super) fn new(connection: ServerConnection, socket: &'a Socket) -> Self {
        Self { connection: Mutex::new(connection), socket }
    }

    fn lock(&self) -> MutexGuard<'_, ServerConnection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn input(&self) -> Input<'_> {
        Input { secured: self, received: BufReader::with_capacity(RECEIVE_BYTES, self.socket) }
    }

    /// There must be one: its records leave in the order in which they were sealed.
    pub(super) fn output(&self) -> Output<'_> {
        Output(self)
    }
}

/// What the client says.
pub(super) struct Input<'a> {
    secured: &'a Secured<'a>,
    received: BufReader<&'a Socket>,
}

impl Read for Input<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.secured.lock().reader().read(target) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            let mut received = self.received.fill_buf()?;
            let mut connection = self.secured.lock();
            let taken = connection.read_tls(&mut received)?;
            let opened = connection.process_new_packets();
            opened.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.received.consume(taken);
        }
    }
}

/// What it is answered.
pub(super) struct Output<'a>(&'a Secured<'a>);

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut sealed = Vec::new();
        let mut connection = self.0.lock();
        let taken = connection.writer().write(bytes)?;
        while connection.wants_write() {
            connection.write_tls(&mut sealed)?;
        }
        drop(connection);
        let mut socket = self.0.socket;
        socket.write_all(&sealed)?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
