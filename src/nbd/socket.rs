//! A socket, whatever its family, as far as this room needs one.
//!
//! Owns: its limits of time. Does not own: what is spoken over it.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};
use rustix::net::{SendFlags, Shutdown, SocketFlags};

use crate::clock::{Clock, System};

/// A path that has been silent for so long is taken for lost.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// One that listens, or one end of a connection.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl<T: Into<OwnedFd>> From<T> for Socket {
    fn from(socket: T) -> Self {
        Self(socket.into())
    }
}

impl Socket {
    /// The next client of one that listens.
    pub(super) fn accept(&self) -> io::Result<Self> {
        Ok(Self(rustix::net::accept_with(&self.0, SocketFlags::CLOEXEC)?))
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Fails when the other end hung up first.
    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.0, how)?)
    }

    pub(super) fn read_within(&self, patience: Option<Duration>) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(&self.0, Timeout::Recv, patience)?)
    }

    pub(super) fn write_within(&self, patience: Option<Duration>) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(&self.0, Timeout::Send, patience)?)
    }

    /// Has TCP send what it has at once.
    pub(super) fn hurry(&self) -> io::Result<()> {
        Ok(sockopt::set_tcp_nodelay(&self.0, true)?)
    }

    /// Makes TCP tell of a path that is lost without a word, also while nothing is sent. The other end does not
    /// hear of it.
    pub(super) fn watch_path(&self) -> io::Result<()> {
        let millis = u32::try_from(SILENCE_MAX.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(&self.0, millis)?;
        sockopt::set_tcp_keepidle(&self.0, SILENCE_MAX / 2)?;
        sockopt::set_tcp_keepintvl(&self.0, Duration::from_secs(1))?;
        sockopt::set_tcp_keepcnt(&self.0, 3)?;
        Ok(sockopt::set_socket_keepalive(&self.0, true)?)
    }

    /// Who is at the other end, for messages.
    pub(super) fn peer(&self) -> String {
        let address = rustix::net::getpeername(&self.0).ok().flatten();
        let address = address.and_then(|address| SocketAddr::try_from(address).ok());
        address.map_or_else(|| "a local client".to_owned(), |address| address.to_string())
    }
}

impl Read for &Socket {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, target)?)
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket whose reads and writes all end by one moment: a trickling peer is as bad as a silent one.
pub(super) struct Deadline<'a> {
    socket: &'a Socket,
    until: Duration,
}

impl<'a> Deadline<'a> {
    pub(super) fn within(socket: &'a Socket, patience: Duration) -> Self {
        Self { socket, until: System.monotonic() + patience }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_sub(System.monotonic());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }
}

impl Read for Deadline<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.socket.read_within(self.left()?)?;
        self.socket.read(target)
    }
}

impl Write for Deadline<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write_within(self.left()?)?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
