//! The client's end of a connection: a Unix socket, or TLS over TCP.
//!
//! Owns: that nothing goes over TCP before the server's certificate was checked, but what NBD says before
//! TLS. Does not own: what is spoken over it; QEMU's monitor is reached the same way.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Stream};

use super::socket::{Deadline, Socket};

/// Longest wait for one address of a host to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most addresses of a host that are tried.
const ADDRESSES_MAX: usize = 4;
/// Time for TLS's whole handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a server is.
#[derive(Clone, Debug)]
pub enum Peer {
    /// At a Unix socket.
    Socket(PathBuf),
    /// At a port of a host whose certificate carries the host's name. TLS only.
    Tls {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// CA, and what is shown to the server.
        config: Arc<ClientConfig>,
    },
}

impl From<&Path> for Peer {
    fn from(socket: &Path) -> Self {
        Self::Socket(socket.to_owned())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Tls { host, port, .. } if host.contains(':') => write!(f, "tls:[{host}]:{port}"),
            Self::Tls { host, port, .. } => write!(f, "tls:{host}:{port}"),
        }
    }
}

/// A connection to a [`Peer`].
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    tls: Option<Box<ClientConnection>>,
}

impl Channel {
    /// Connects, over TCP with TLS at once.
    ///
    /// # Errors
    /// When nobody answers there, or not who should.
    pub fn open(peer: &Peer) -> io::Result<Self> {
        let mut channel = Self::dial(peer)?;
        channel.secure(peer)?;
        Ok(channel)
    }

    /// Connects. Over TCP, [`Self::secure`] must follow before anything is said that matters.
    pub(super) fn dial(peer: &Peer) -> io::Result<Self> {
        let socket = match peer {
            Peer::Socket(path) => Socket::from(UnixStream::connect(path)?),
            Peer::Tls { host, port, .. } => dial(host, *port)?,
        };
        Ok(Self { socket, tls: None })
    }

    /// Begins TLS where the peer is one that is reached over it.
    pub(super) fn secure(&mut self, peer: &Peer) -> io::Result<()> {
        let Peer::Tls { host, config, .. } = peer else { return Ok(()) };
        let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(Arc::clone(config), name);
        let mut connection = connection.map_err(io::Error::other)?;
        let mut handshake = Deadline::within(&self.socket, HANDSHAKE_TIMEOUT);
        while connection.is_handshaking() {
            connection.complete_io(&mut handshake)?;
        }
        self.tls = Some(Box::new(connection));
        Ok(())
    }

    /// No read and no write waits longer than this.
    ///
    /// # Errors
    /// What the system says.
    pub fn within(&self, patience: Option<Duration>) -> io::Result<()> {
        self.socket.read_within(patience)?;
        self.socket.write_within(patience)
    }
}

fn dial(host: &str, port: u16) -> io::Result<Socket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()?.take(ADDRESSES_MAX) {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                let socket = Socket::from(stream);
                // Who waits has a limit of his own, and closes then: the system repeats that for minutes. A path that
                // TCP gave up is never closed, and QEMU would keep its one place for a client that is gone.
                socket.hurry()?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Read for Channel {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let mut socket = &self.socket;
        match &mut self.tls {
            None => socket.read(target),
            Some(connection) => Stream::new(connection.as_mut(), &mut socket).read(target),
        }
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut socket = &self.socket;
        match &mut self.tls {
            None => socket.write(bytes),
            Some(connection) => Stream::new(connection.as_mut(), &mut socket).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut socket = &self.socket;
        match &mut self.tls {
            None => Ok(()),
            Some(connection) => Stream::new(connection.as_mut(), &mut socket).flush(),
        }
    }
}
