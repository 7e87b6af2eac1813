//! Ways to a process server: frames in both directions, whatever carries them.
//!
//! Owns: what a fresh connection is to the session, and which way is tried first. Does not own: how
//! each way is opened ([`super::dial_tcp`], [`super::dial_quic`]) and what is said on it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use super::dial_quic::QuicDial;
use super::dial_tcp::TcpDial;
use super::error::AgentError;
use super::outgoing::Outgoing;
use crate::observe::error_chain;
use crate::settings::{AgentSettings, TransportChoice};

/// What carries the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// TLS over TCP.
    Tcp,
    /// QUIC over UDP.
    Quic,
}

/// A fresh connection on which the first frame is the Hello.
pub struct Connection {
    pub(super) reader: Box<dyn AsyncRead + Send + Unpin>,
    pub(super) outgoing: Outgoing,
}

/// Makes connections. The real one is `Network`; tests bring their own.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// A fresh connection.
    ///
    /// # Errors
    /// Names the server and what was being done.
    async fn dial(&self, server: &str, way: Way) -> Result<Connection, AgentError>;
}

/// Over the network, with the certificates of the settings as they are when it connects: renewing one is
/// writing its files anew.
pub(super) struct Network {
    settings: AgentSettings,
    /// With the last files that could be used.
    usable: Mutex<Arc<Dials>>,
}

struct Dials {
    tcp: TcpDial,
    quic: QuicDial,
}

impl Dials {
    fn new(settings: &AgentSettings) -> Result<Self, AgentError> {
        Ok(Self { tcp: TcpDial::new(settings)?, quic: QuicDial::new(settings)? })
    }
}

impl Network {
    /// Reads certificates and key.
    pub(super) fn new(settings: &AgentSettings) -> Result<Self, AgentError> {
        let usable = Mutex::new(Arc::new(Dials::new(settings)?));
        Ok(Self { settings: settings.clone(), usable })
    }

    /// Reads them again. Files that cannot be used, or are just being written, replace nothing.
    fn fresh(&self) -> Arc<Dials> {
        let read = Dials::new(&self.settings);
        let mut usable = self.usable.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(dials) => *usable = Arc::new(dials),
            Err(error) => tracing::warn!(
                error = error_chain(&error),
                "the certificates cannot be read again: those before are used"
            ),
        }
        Arc::clone(&usable)
    }
}

#[async_trait]
impl Dial for Network {
    async fn dial(&self, server: &str, way: Way) -> Result<Connection, AgentError> {
        let dials = self.fresh();
        match way {
            Way::Tcp => dials.tcp.dial(server).await,
            Way::Quic => dials.quic.dial(server).await,
        }
    }
}

impl Connection {
    /// Frames in both directions of one byte stream.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader: Box::new(reader), outgoing: Outgoing::bytes(Box::new(writer)) }
    }

    /// Both directions: frames from the server, frames to it.
    pub fn split(self) -> (Box<dyn AsyncRead + Send + Unpin>, Outgoing) {
        (self.reader, self.outgoing)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Way {
    /// As in the settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Tcp => Self::Quic,
            Self::Quic => Self::Tcp,
        }
    }
}

/// The way to try to each server.
#[derive(Debug)]
pub(super) struct Ways {
    choice: TransportChoice,
    /// What `auto` remembers of this life: the way that carried a welcome last, or the one that is
    /// due because the other failed.
    first: Mutex<HashMap<String, Way>>,
}

impl Ways {
    pub(super) fn new(choice: TransportChoice) -> Self {
        Self { choice, first: Mutex::default() }
    }

    /// The way to try now.
    pub(super) fn to(&self, server: &str) -> Way {
        match self.choice {
            TransportChoice::Tcp => Way::Tcp,
            TransportChoice::Quic => Way::Quic,
            // Five times cheaper, and the faster one on every path without loss: docs/agent.md.
            TransportChoice::Auto => self.first().get(server).copied().unwrap_or(Way::Tcp),
        }
    }

    /// It did not come to a welcome. The other way, when it is worth trying at once.
    pub(super) fn failed(&self, server: &str, way: Way) -> Option<Way> {
        let auto = self.choice == TransportChoice::Auto;
        auto.then(|| {
            self.first().insert(server.to_owned(), way.other());
            way.other()
        })
    }

    /// It carried a welcome.
    pub(super) fn worked(&self, server: &str, way: Way) {
        self.first().insert(server.to_owned(), way);
    }

    fn first(&self) -> MutexGuard<'_, HashMap<String, Way>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_falls_back_and_remembers_what_worked() {
        let ways = Ways::new(TransportChoice::Auto);
        assert_eq!(ways.to("a:1"), Way::Tcp);
        assert_eq!(ways.failed("a:1", Way::Tcp), Some(Way::Quic));
        assert_eq!(ways.to("a:1"), Way::Quic);
        ways.worked("a:1", Way::Quic);
        assert_eq!(ways.to("a:1"), Way::Quic);
        assert_eq!(ways.to("b:1"), Way::Tcp, "each server has its own path");
        assert_eq!(ways.failed("a:1", Way::Quic), Some(Way::Tcp));
        assert_eq!(ways.to("a:1"), Way::Tcp);
    }

    #[test]
    fn a_chosen_way_is_never_left() {
        for (choice, way) in [(TransportChoice::Tcp, Way::Tcp), (TransportChoice::Quic, Way::Quic)]
        {
            let ways = Ways::new(choice);
            assert_eq!(ways.to("a:1"), way);
            assert_eq!(ways.failed("a:1", way), None);
            ways.worked("a:1", way);
            assert_eq!(ways.to("a:1"), way);
        }
    }
}
