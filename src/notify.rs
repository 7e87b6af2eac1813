//! What a service tells its manager: sd_notify(3), without a crate for the one datagram that it is.
//!
//! Owns: the datagram, and what systemd said in the environment. Does not own: when what is told.

use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service is what it is for.
pub const READY: &str = "READY=1";
/// It ends in order.
pub const STOPPING: &str = "STOPPING=1";
/// It is alive.
pub const ALIVE: &str = "WATCHDOG=1";

/// The way to the service manager; where there is none, nothing is told.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// As the environment says: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID.
    #[must_use]
    pub fn of_environment() -> Self {
        let text = |name| std::env::var(name).ok();
        let ours = text("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let interval = text("WATCHDOG_USEC").and_then(|us| us.parse().ok()).filter(|us| *us > 0);
        let watchdog = interval.filter(|_| ours).map(Duration::from_micros);
        let Some(named) = std::env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        match connected(named.as_bytes()) {
            Ok(socket) => Self { socket: Some(socket), watchdog },
            Err(error) => {
                tracing::warn!(?named, %error, "the service manager cannot be told anything");
                Self::default()
            }
        }
    }

    /// Whether anybody hears.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.socket.is_some()
    }

    /// How long the manager waits for [`ALIVE`] before it ends the service.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.is_heard())
    }

    /// Tells something. A manager that takes nothing now holds up nobody.
    pub fn tell(&self, what: impl fmt::Display) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(what.to_string().as_bytes()) {
            tracing::debug!(%error, "the service manager did not take a word");
        }
    }
}

/// How it is, on one line of a datagram.
#[must_use]
pub fn status(words: &str) -> String {
    format!("STATUS={}", words.replace('\n', " "))
}

fn connected(name: &[u8]) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_path_or_an_abstract_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let heard = UnixDatagram::bind(&path).unwrap();
        let hidden = format!("holdfast-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&hidden).unwrap();
        let too = UnixDatagram::bind_addr(&address).unwrap();
        for (name, heard) in [(path.display().to_string(), heard), (format!("@{hidden}"), too)] {
            let socket = Some(connected(name.as_bytes()).unwrap());
            let notify = Notify { socket, watchdog: None };
            notify.tell(status("one\ntwo"));
            let mut bytes = [0; 64];
            let length = heard.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"STATUS=one two");
            assert_eq!(notify.watchdog(), None);
        }
        Notify::default().tell(READY);
    }
}
