//! Accepts clients on a Unix socket and ends them together.
//!
//! Owns: the socket file, the list of connections, stopping. Does not own: what a client may ask.

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::connection;
use super::export::Export;
use super::negotiate::Offer;

/// Most clients of one server at a time. Each holds at most 32 MiB of payload and five threads, so
/// one server takes at most 512 MiB, and less than 1 MiB a client as a rule.
pub const CONNECTIONS_MAX: usize = 16;
/// Time that clients have to take the replies of running requests when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the system refused a connection (no descriptors left, for one).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One disk offered over NBD at one Unix socket. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listener: UnixStream,
    socket: PathBuf,
    inode: (u64, u64),
    accept: Option<JoinHandle<()>>,
}

struct Shared {
    offer: Offer,
    /// A new client ends the one before, and waits until nothing of it runs any more.
    one_client: bool,
    export: Arc<dyn Export>,
    stopping: AtomicBool,
    clients: Mutex<BTreeMap<u64, UnixStream>>,
    left: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("offer", &self.offer).finish_non_exhaustive()
    }
}

impl Server {
    /// Serves `export` under `name` (and as the default export) at `socket`. The file of a server
    /// that is dead is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when another server answers there; `AlreadyExists` when the path is something
    /// else than a socket; what the system says otherwise. All name the path.
    pub fn bind(socket: &Path, name: &str, export: Arc<dyn Export>) -> io::Result<Self> {
        Self::bind_with(socket, name, export, false)
    }

    /// The same for one client at a time: a client that comes again after its connection broke repeats
    /// what was not answered, so nothing of the connection before may be carried out later.
    ///
    /// # Errors
    /// As there.
    pub fn bind_for_one(socket: &Path, name: &str, export: Arc<dyn Export>) -> io::Result<Self> {
        Self::bind_with(socket, name, export, true)
    }

    fn bind_with(
        socket: &Path,
        name: &str,
        export: Arc<dyn Export>,
        one_client: bool,
    ) -> io::Result<Self> {
        remove_stale(socket)?;
        let named = |error| at(socket, "listening", &error);
        let listener = UnixListener::bind(socket).map_err(named)?;
        let metadata = socket.symlink_metadata().map_err(named)?;
        let shared = Arc::new(Shared {
            offer: Offer {
                name: name.to_owned(),
                size_bytes: export.size_bytes(),
                read_only: export.read_only(),
            },
            one_client,
            export,
            stopping: AtomicBool::new(false),
            clients: Mutex::default(),
            left: Condvar::new(),
        });
        // The same socket once more: shutting it down is what wakes the thread that accepts.
        let handle = UnixStream::from(OwnedFd::from(listener.try_clone().map_err(named)?));
        let accept = {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name("nbd-accept".to_owned());
            thread.spawn(move || shared.accept(&listener)).map_err(named)?
        };
        Ok(Self {
            shared,
            listener: handle,
            socket: socket.to_owned(),
            inode: (metadata.dev(), metadata.ino()),
            accept: Some(accept),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Clients that are connected now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.lock().len()
    }

    /// Ends every connection after its running requests were answered (or 5 s have passed), joins
    /// all threads and removes the socket.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        let Some(accept) = self.accept.take() else {
            return;
        };
        self.shared.stopping.store(true, Ordering::Release);
        // Failing shutdowns are those of sockets that are shut already.
        let _woken = self.listener.shutdown(Shutdown::Both);
        let clients = self.shared.lock();
        for client in clients.values() {
            let _ended = client.shutdown(Shutdown::Read);
        }
        let drained = |clients: &mut BTreeMap<u64, UnixStream>| !clients.is_empty();
        let (clients, _) = self
            .shared
            .left
            .wait_timeout_while(clients, DRAIN_TIMEOUT, drained)
            .unwrap_or_else(PoisonError::into_inner);
        for client in clients.values() {
            let _ended = client.shutdown(Shutdown::Both);
        }
        drop(clients);
        if accept.join().is_err() {
            tracing::error!(socket = %self.socket.display(), "nbd accept thread panicked");
        }
        let ours = self.socket.symlink_metadata();
        if ours.is_ok_and(|found| (found.dev(), found.ino()) == self.inode)
            && let Err(error) = std::fs::remove_file(&self.socket)
        {
            tracing::warn!(socket = %self.socket.display(), %error, "nbd socket file stays behind");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, UnixStream>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when stopping and all clients are gone.
    fn accept(&self, listener: &UnixListener) {
        thread::scope(|scope| {
            for number in 0.. {
                let accepted = listener.accept();
                if self.stopping.load(Ordering::Acquire) {
                    return;
                }
                let admitted = accepted.and_then(|(stream, _)| self.admit(number, stream));
                let spawned = admitted.and_then(|stream| {
                    let thread = thread::Builder::new().name("nbd-reader".to_owned());
                    thread.spawn_scoped(scope, move || self.serve(number, &stream))
                });
                if let Err(error) = spawned {
                    tracing::warn!(export = self.offer.name, %error, "nbd client not served");
                    self.forget(number);
                    self.pause();
                }
            }
        });
    }

    fn admit(&self, number: u64, stream: UnixStream) -> io::Result<UnixStream> {
        let mut clients = self.lock();
        if self.one_client {
            for before in clients.values() {
                let _ended = before.shutdown(Shutdown::Both); // fails when it has ended already
            }
            let left = self.left.wait_while(clients, |clients| !clients.is_empty());
            clients = left.unwrap_or_else(PoisonError::into_inner);
        }
        if clients.len() >= CONNECTIONS_MAX {
            let text = format!("{CONNECTIONS_MAX} clients are connected, no more are served");
            return Err(io::Error::other(text));
        }
        clients.insert(number, stream.try_clone()?);
        drop(clients);
        // A stop that looked at the list before this client was in it has set the flag before.
        if self.stopping.load(Ordering::Acquire) {
            stream.shutdown(Shutdown::Both)?;
        }
        Ok(stream)
    }

    fn serve(&self, number: u64, stream: &UnixStream) {
        let served = connection::serve(stream, &self.offer, &*self.export, &self.stopping);
        if let Err(error) = served {
            tracing::info!(export = self.offer.name, %error, "nbd client ended without a goodbye");
        }
        let _ended = stream.shutdown(Shutdown::Both);
        self.forget(number);
    }

    fn forget(&self, number: u64) {
        self.lock().remove(&number);
        self.left.notify_all();
    }

    /// Waits a moment, or until a client leaves or the server stops.
    fn pause(&self) {
        let clients = self.lock();
        let waited = self.left.wait_timeout(clients, ACCEPT_PAUSE);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Removes the socket of a server that no longer answers.
fn remove_stale(socket: &Path) -> io::Result<()> {
    let metadata = match socket.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(socket, "looking for an older socket", &error)),
    };
    let path = socket.display();
    if !metadata.file_type().is_socket() {
        let text = format!("{path} exists and is no socket; choose another path");
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    match UnixStream::connect(socket) {
        Ok(_) => {
            let text = format!("another nbd server answers at {path}; stop it first");
            Err(io::Error::new(io::ErrorKind::AddrInUse, text))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(socket).map_err(|e| at(socket, "removing a stale socket", &e))
        }
        Err(error) => Err(at(socket, "asking whether a server answers", &error)),
    }
}

fn at(socket: &Path, action: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {action}: {error}", socket.display()))
}
