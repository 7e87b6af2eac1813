//! Accepts clients and ends them together: at a Unix socket, or at a port where each has to begin TLS.
//!
//! Owns: the socket file, the list of connections, stopping. Does not own: what a client may ask.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::Shutdown;

use super::connection;
use super::export::Export;
use super::negotiate::Offer;
use super::socket::Socket;
use super::tls::ServerTls;

/// Most clients of one server at a time. Each holds at most 32 MiB of payload and five threads, so
/// one server takes at most 512 MiB, and less than 1 MiB a client as a rule.
pub const CONNECTIONS_MAX: usize = 16;
/// Most clients of a port of which it is not known yet who they are. For one more the oldest of them has to go.
const STRANGERS_MAX: usize = 16;
/// Time that clients have to take the replies of running requests when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the system refused a connection (no descriptors left, for one).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One disk offered over NBD at one place. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listener: Socket,
    socket: PathBuf,
    inode: Option<(u64, u64)>,
    accept: Option<JoinHandle<()>>,
}

/// One connection.
struct Connected {
    socket: Socket,
    /// It is known who that is.
    admitted: bool,
}

type Clients = BTreeMap<u64, Connected>;

struct Shared {
    offer: Offer,
    /// A new client ends the one before, and waits until nothing of it runs any more.
    one_client: bool,
    tls: Option<ServerTls>,
    export: Arc<dyn Export>,
    stopping: AtomicBool,
    clients: Mutex<Clients>,
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

    /// The same at a port, for one client of those whom `tls` lets in. Before TLS nothing is served.
    ///
    /// # Errors
    /// What the system says.
    pub fn start_for_one(
        listener: TcpListener,
        name: &str,
        export: Arc<dyn Export>,
        tls: ServerTls,
    ) -> io::Result<Self> {
        let shared = Shared::new(name, export, true, Some(tls));
        Self::start(shared, listener.into(), (PathBuf::new(), None))
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
        let file = (socket.to_owned(), Some((metadata.dev(), metadata.ino())));
        let shared = Shared::new(name, export, one_client, None);
        Self::start(shared, listener.into(), file).map_err(named)
    }

    fn start(
        shared: Shared,
        listener: Socket,
        (socket, inode): (PathBuf, Option<(u64, u64)>),
    ) -> io::Result<Self> {
        let shared = Arc::new(shared);
        // The same socket once more: shutting it down is what wakes the thread that accepts.
        let handle = listener.try_clone()?;
        let accept = {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name("nbd-accept".to_owned());
            thread.spawn(move || shared.accept(&listener))?
        };
        Ok(Self { shared, listener: handle, socket, inode, accept: Some(accept) })
    }

    /// The Unix socket where it listens; empty when that is a port.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Clients that are connected now, and let in.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.lock().values().filter(|client| client.admitted).count()
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
            let _ended = client.socket.shutdown(Shutdown::Read);
        }
        let drained = |clients: &mut Clients| !clients.is_empty();
        let (clients, _) = self
            .shared
            .left
            .wait_timeout_while(clients, DRAIN_TIMEOUT, drained)
            .unwrap_or_else(PoisonError::into_inner);
        for client in clients.values() {
            let _ended = client.socket.shutdown(Shutdown::Both);
        }
        drop(clients);
        if accept.join().is_err() {
            tracing::error!(socket = %self.socket.display(), "nbd accept thread panicked");
        }
        let found = self.socket.symlink_metadata().ok();
        if self.inode.is_some()
            && found.map(|found| (found.dev(), found.ino())) == self.inode
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
    fn new(name: &str, export: Arc<dyn Export>, one_client: bool, tls: Option<ServerTls>) -> Self {
        let (size_bytes, read_only) = (export.size_bytes(), export.read_only());
        Self {
            offer: Offer { name: name.to_owned(), size_bytes, read_only },
            one_client,
            tls,
            export,
            stopping: AtomicBool::new(false),
            clients: Mutex::default(),
            left: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when stopping and all clients are gone.
    fn accept(&self, listener: &Socket) {
        thread::scope(|scope| {
            for number in 0.. {
                let accepted = listener.accept();
                if self.stopping.load(Ordering::Acquire) {
                    return;
                }
                let admitted = accepted.and_then(|socket| self.note(number, socket));
                let spawned = admitted.and_then(|socket| {
                    let thread = thread::Builder::new().name("nbd-reader".to_owned());
                    thread.spawn_scoped(scope, move || self.serve(number, &socket))
                });
                if let Err(error) = spawned {
                    tracing::warn!(export = self.offer.name, %error, "nbd client not served");
                    self.forget(number);
                    self.pause();
                }
            }
        });
    }

    /// Has a stop find the connection. Whoever could open a socket's file is let in.
    fn note(&self, number: u64, socket: Socket) -> io::Result<Socket> {
        let mut clients = self.lock();
        if self.tls.is_some() {
            socket.hurry()?;
            socket.watch_path()?;
            let strangers = |clients: &Clients| clients.values().filter(|c| !c.admitted).count();
            if strangers(&clients) >= STRANGERS_MAX {
                let oldest = clients.values().find(|client| !client.admitted);
                let _ended = oldest.map(|oldest| oldest.socket.shutdown(Shutdown::Both));
                let full = |clients: &mut Clients| strangers(clients) >= STRANGERS_MAX;
                let left = self.left.wait_while(clients, full);
                clients = left.unwrap_or_else(PoisonError::into_inner);
            }
        }
        clients.insert(number, Connected { socket: socket.try_clone()?, admitted: false });
        drop(clients);
        if self.tls.is_none() {
            self.admit(number)?;
        }
        // A stop that looked at the list before this client was in it has set the flag before.
        if self.stopping.load(Ordering::Acquire) {
            socket.shutdown(Shutdown::Both)?;
        }
        Ok(socket)
    }

    /// Lets a client in, when nothing of one before it runs any more where there may be but one.
    fn admit(&self, number: u64) -> io::Result<()> {
        let mut clients = self.lock();
        while self.one_client && clients.values().any(|client| client.admitted) {
            for before in clients.values().filter(|client| client.admitted) {
                let _ended = before.socket.shutdown(Shutdown::Both); // fails when it has ended already
            }
            clients = self.left.wait(clients).unwrap_or_else(PoisonError::into_inner);
        }
        if clients.values().filter(|client| client.admitted).count() >= CONNECTIONS_MAX {
            let text = format!("{CONNECTIONS_MAX} clients are connected, no more are served");
            return Err(io::Error::other(text));
        }
        if let Some(client) = clients.get_mut(&number) {
            client.admitted = true;
        }
        Ok(())
    }

    fn serve(&self, number: u64, socket: &Socket) {
        let disk = (&self.offer, &*self.export);
        let admit = || self.admit(number);
        let (export, client) = (&self.offer.name, socket.peer());
        let served = connection::serve(socket, disk, &self.stopping, self.tls.as_ref(), admit);
        match served {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::warn!(export, client, %error, "nbd client refused");
            }
            Err(error) => {
                tracing::info!(export, client, %error, "nbd client ended without a goodbye");
            }
        }
        let _ended = socket.shutdown(Shutdown::Both);
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
