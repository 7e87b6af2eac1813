//! A whole process server: made, run, drained.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle as Task;

use super::announce::announce;
use super::applying::{Applying, News};
use super::closing::{self, Closed, LogEnded};
use super::error::ServerError;
use super::handover::GIVE_UP_MAX;
use super::machines::{Registry, ShardQueue, Shared};
use super::operator;
use super::pacing::Pacing;
use super::peers::reach::Line;
use super::peers::{Peers, PeersSetup};
use super::pressure::Pressures;
use super::quic;
use super::recovered::Kept;
use super::retune::{Retune, sealed_bytes};
use super::shard::{self, Shard};
use crate::apply::Bodies;
use crate::cache::{self, CacheError, Opened, Recycling};
use crate::clock::{Clock, Entropy};
use crate::ingest::{self, Admitted, Ingest, IngestSetup, QuicConfig};
use crate::observe::endpoint::{Door, Observed};
use crate::observe::{self, Metrics, Queue};
use crate::seal::{KeyEncryptionKey, LevelControl, SealPool};
use crate::settings::{ServerSettings, Tuning};
use crate::store;
use crate::turns::Turns;
use crate::upload::Uplink;
use crate::vault::Vault;

/// Connections of one shard that wait to be accepted; the system's own bound may be lower.
const WAITING_MAX: u32 = 1024;
/// Records between the sessions and one shard's log.
const APPENDS_QUEUED: usize = 1024;
/// Ports that are tried when the system chooses one.
const PORT_TRIES: u32 = 16;
/// How long the others may take to be told that this server leaves, and its lease to be given back.
const TELL_MAX: Duration = Duration::from_secs(2);
/// How often the certificate of a live session is looked at again: one read of its machine's document.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(3600);
/// How long publishing what is left may take when the server drains.
const PUBLISH_MAX: Duration = Duration::from_secs(30);

/// Where a running process server can be reached; written to `RUN_DIRECTORY/addresses.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Addresses {
    /// Data port.
    pub data: SocketAddr,
    /// Metrics and status.
    pub metrics: SocketAddr,
    /// Its process.
    pub pid: u32,
}

/// A running process server. Dropping it does not stop it: call [`ProcessServer::drain`].
pub struct ProcessServer {
    /// Dropped before all else: what the others let go of then is kept for the next start.
    recycling: Vec<Recycling>,
    addresses: Addresses,
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
    peers: Arc<Peers>,
    clock: Arc<dyn Clock>,
    drain: watch::Sender<bool>,
    /// Told when another process took the name.
    name_lost: oneshot::Receiver<ServerError>,
    /// Ends the renewal of the lease.
    drained: watch::Sender<bool>,
    shards: Vec<(u16, JoinHandle<()>)>,
    quic: JoinHandle<()>,
    logs: Vec<LogEnded>,
    tasks: Vec<Task<()>>,
}

impl ProcessServer {
    /// Starts everything. Must be called on a multi-threaded tokio runtime. Settings that come from
    /// [`crate::settings::load_tuning`] can keep changes over a restart.
    ///
    /// # Errors
    /// Before anything is listened on: settings, certificates, keys, the store, the cache log.
    pub async fn start(
        settings: impl Into<Tuning>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, ServerError> {
        let tuning = settings.into();
        let probed = tokio::task::spawn_blocking(shard::probe).await;
        probed.map_err(|_| ServerError::Shard { shard: 0 })??;
        let settings = ServerSettings::clone(&tuning.now());
        let metrics = Arc::new(Metrics::default());
        let tls = ingest::server_config(&settings.tls, clock.wall())?;
        metrics.set_certificates(ingest::certificate_ends(&settings.tls, clock.wall())?.into());
        let kek = Arc::new(KeyEncryptionKey::load(&settings.key_file)?);
        let quic = ingest::quic_config(&tls, &settings.limits)?;
        let (data, datagrams) = listen_both(settings.listen, settings.shards)?;
        let observed = listen(settings.metrics_listen)?;
        let vault = open_vault(&settings, &kek, &metrics).await?;
        let opened = open_logs(&settings, &clock, &entropy, &metrics).await?;
        let addresses = Addresses {
            data: address(&data[0], settings.listen)?,
            metrics: address(&observed, settings.metrics_listen)?,
            pid: std::process::id(),
        };
        let kept = opened.iter().any(|log| !log.recovered.is_empty());
        let time = (clock.as_ref(), entropy.as_ref());
        let (document, lease) = announce(&settings, &vault, &addresses, time, kept).await?;
        let peers = Peers::new(PeersSetup {
            vault: vault.clone(),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(&metrics),
            reach: Arc::new(Line::new(&settings.tls, Arc::clone(&clock))),
            document,
            lease,
        });
        let drain = watch::Sender::new(false);
        let mut server =
            Building { settings, tuning, clock, entropy, metrics, vault, peers, drain };
        server.run(kek, tls, opened, Ports { data, datagrams, quic, observed, addresses })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// What it measures.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Waits until a shard's log ends by itself: the cache can no longer be trusted, and the
    /// process must end so that recovery reads what is really on the disk. Or until another process
    /// has this one's name.
    ///
    /// # Errors
    /// What the log ended with.
    pub async fn failed(&mut self) -> ServerError {
        let ended = futures_util::future::select_all(self.logs.iter_mut());
        let (ended, shard, _) = tokio::select! {
            ended = ended => ended,
            Ok(lost) = &mut self.name_lost => return lost,
        };
        let shard = u16::try_from(shard).unwrap_or(u16::MAX);
        match ended {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => ServerError::Shard { shard },
        }
    }

    /// Stops in an orderly way: machines are given up to other process servers as far as there are
    /// any; then nothing more is accepted, everything received becomes durable, what can be published
    /// within half a minute is. A log that gets no room is not waited for.
    ///
    /// # Errors
    /// When a log could not be closed.
    pub async fn drain(self) -> Result<(), ServerError> {
        let clock = Arc::clone(&self.clock);
        within(&clock, TELL_MAX, self.peers.leave()).await;
        if self.peers.has_others() {
            within(&clock, GIVE_UP_MAX, self.registry.hand_over_all()).await;
        }
        self.drain.send_replace(true);
        self.registry.close();
        let Closed { late, result } = closing::close(self.logs, &clock).await;
        let result = result.map_err(ServerError::from);
        tokio::select! {
            () = self.registry.finish() => {}
            () = self.clock.sleep(PUBLISH_MAX) => {
                tracing::warn!("not everything could be published; the cache log keeps it");
            }
        }
        drop(self.recycling); // a log that is late is open yet, and what is kept is let go from here on
        self.drained.send_replace(true);
        closing::end(self.tasks, &clock).await;
        within(&clock, TELL_MAX, self.peers.release()).await;
        if late {
            return result; // its threads wait for room still, and end with the process
        }
        let joined = tokio::task::spawn_blocking(move || {
            let failed = self.quic.join().err().map(|_| ServerError::QuicThread);
            self.shards.into_iter().fold(failed, |failed, (shard, thread)| {
                failed.or(thread.join().err().map(|_| ServerError::Shard { shard }))
            })
        });
        match joined.await {
            Ok(Some(failed)) => result.and(Err(failed)),
            Ok(None) | Err(_) => result,
        }
    }
}

/// What the parts are made from.
struct Building {
    /// As they were at the start.
    settings: ServerSettings,
    tuning: Tuning,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    metrics: Arc<Metrics>,
    vault: Vault,
    peers: Arc<Peers>,
    drain: watch::Sender<bool>,
}

/// What it listens on; bound before anything is claimed.
struct Ports {
    /// One a shard.
    data: Vec<TcpListener>,
    datagrams: UdpSocket,
    quic: QuicConfig,
    observed: TcpListener,
    addresses: Addresses,
}

impl Building {
    fn run(
        &mut self,
        kek: Arc<KeyEncryptionKey>,
        tls: Arc<rustls::ServerConfig>,
        opened: Vec<Opened>,
        ports: Ports,
    ) -> Result<ProcessServer, ServerError> {
        let Ports { data, datagrams, quic, observed, addresses } = ports;
        let mut kept = Kept::default();
        let mut tasks = Vec::new();
        let mut queues = Vec::new();
        let mut writers = Vec::new();
        let mut appending = Vec::new();
        let mut pressure = self.pressure();
        let mut recycling = Vec::new();
        for log in opened {
            let (appends, admitted) = mpsc::channel(APPENDS_QUEUED);
            appending.push(appends.downgrade());
            let credit = pressure.watch(log.fill);
            kept.add(log.recovered);
            queues.push(ShardQueue { appends: Some(appends).into(), credit });
            writers.push((log.writer, admitted));
            recycling.push(log.recycling);
        }
        tasks.push(tokio::spawn(pressure.run()));
        let news = Arc::new(News::default());
        let shared = self.shared(Arc::clone(&kek), queues, Arc::clone(&news))?;
        let uplink = Arc::clone(&shared.uplink);
        tasks.push(tokio::spawn(self.retune(&shared).run()));
        tasks.push(tokio::spawn(self.pacing(&shared).run()));
        self.show_queues(appending);
        let registry = Registry::new(shared, kept);
        let ingest = self.ingest(tls, &registry);
        let (mut shards, mut logs) = (Vec::new(), Vec::new());
        for (number, ((writer, admitted), listener)) in writers.into_iter().zip(data).enumerate() {
            let number = u16::try_from(number).unwrap_or(u16::MAX);
            let (ended, log) = oneshot::channel();
            let (routes, ingest) = (registry.routes(), Arc::clone(&ingest));
            let shard = Shard { number, writer, admitted, routes, ingest, listener, ended };
            shards.push((number, shard.start()?));
            logs.push(log);
        }
        let clock = Arc::clone(&self.clock);
        let quic = quic::start(ingest, datagrams, quic, clock, Arc::clone(&self.metrics))?;
        tasks.push(tokio::spawn(Arc::clone(&registry).keep()));
        let (name_lost, drained) = self.renewing(&mut tasks);
        tasks.push(self.endpoint(observed, addresses.metrics)?);
        tasks.push(tokio::spawn(self.applying(kek, uplink, news).run()));
        let clock = Arc::clone(&self.clock);
        let drain = self.drain.clone();
        let metrics = Arc::clone(&self.metrics);
        let peers = Arc::clone(&self.peers);
        recycling.iter().for_each(Recycling::begin);
        Ok(ProcessServer {
            recycling,
            addresses,
            metrics,
            registry,
            peers,
            clock,
            drain,
            name_lost,
            drained,
            shards,
            quic,
            logs,
            tasks,
        })
    }

    fn ingest(&self, tls: Arc<rustls::ServerConfig>, registry: &Arc<Registry>) -> Arc<Ingest> {
        Ingest::new(IngestSetup {
            site: self.settings.site.clone(),
            tls,
            limits: self.settings.limits.clone(),
            shards: self.settings.shards,
            settings: self.tuning.subscribe(),
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
            machines: Arc::clone(registry) as Arc<dyn ingest::Machines>,
            certificates_every: CERTIFICATES_EVERY,
            operator: operator::router(registry),
            drain: self.drain.subscribe(),
        })
    }

    /// Keeps the server's name until it has drained.
    fn renewing(
        &self,
        tasks: &mut Vec<Task<()>>,
    ) -> (oneshot::Receiver<ServerError>, watch::Sender<bool>) {
        let (tell, lost) = oneshot::channel();
        let drained = watch::Sender::new(false);
        let (peers, stop) = (Arc::clone(&self.peers), drained.subscribe());
        tasks.push(tokio::spawn(async move {
            if let Err(error) = peers.run(stop).await {
                drop(tell.send(error)); // whoever would hear it is draining
            }
        }));
        (lost, drained)
    }

    fn shared(
        &self,
        kek: Arc<KeyEncryptionKey>,
        shards: Vec<ShardQueue>,
        news: Arc<News>,
    ) -> Result<Shared, ServerError> {
        let settings = &self.settings;
        let (bytes, reserve) = sealed_bytes(settings);
        let pool = SealPool::new(
            settings.seal.clone(),
            Turns::new(bytes, reserve),
            Arc::clone(&self.metrics),
            Arc::clone(&self.clock),
            Arc::clone(&self.entropy),
        )?;
        Ok(Shared {
            server: settings.server.clone(),
            vault: self.vault.clone(),
            kek,
            clock: Arc::clone(&self.clock),
            entropy: Arc::clone(&self.entropy),
            metrics: Arc::clone(&self.metrics),
            pool: Arc::new(pool),
            uplink: Uplink::new(
                settings.upload.streams,
                settings.upload.rate.clone(),
                Arc::clone(&self.clock),
                Arc::clone(&self.entropy),
                Arc::clone(&self.metrics),
            ),
            block_bytes: Arc::new(settings.upload.block_bytes.into()),
            tuning: self.tuning.clone(),
            drain: self.drain.subscribe(),
            shards,
            news,
            peers: Arc::clone(&self.peers),
        })
    }

    fn pacing(&self, shared: &Shared) -> Pacing {
        let (seal, bounds) = (&self.settings.seal, self.settings.levels);
        Pacing {
            pool: Arc::clone(&shared.pool),
            uplink: Arc::clone(&shared.uplink),
            level: LevelControl::new(seal.level, bounds, seal.threads),
            tuning: self.tuning.clone(),
            metrics: Arc::clone(&self.metrics),
            clock: Arc::clone(&self.clock),
            drain: self.drain.subscribe(),
        }
    }

    fn applying(
        &self,
        kek: Arc<KeyEncryptionKey>,
        uplink: Arc<Uplink>,
        news: Arc<News>,
    ) -> Arc<Applying> {
        Arc::new(Applying {
            uplink,
            vault: self.vault.clone(),
            kek,
            clock: Arc::clone(&self.clock),
            entropy: Arc::clone(&self.entropy),
            metrics: Arc::clone(&self.metrics),
            tuning: self.tuning.clone(),
            drain: self.drain.subscribe(),
            publisher: Some(self.settings.server.clone()),
            peers: Some(Arc::clone(&self.peers)),
            news,
            bodies: Bodies::default(),
        })
    }

    fn endpoint(
        &self,
        listener: TcpListener,
        address: SocketAddr,
    ) -> Result<Task<()>, ServerError> {
        let listener = tokio::net::TcpListener::from_std(listener)
            .map_err(|source| ServerError::Listen { address, source })?;
        let observed = Observed {
            metrics: Arc::clone(&self.metrics),
            clock: Arc::clone(&self.clock),
            tuning: self.tuning.clone(),
            door: Door::Loopback,
        };
        let head_timeout = self.settings.limits.handshake_timeout;
        let mut drain = self.drain.subscribe();
        let stop = async move { drop(drain.wait_for(|drain| *drain).await) };
        Ok(tokio::spawn(observe::endpoint::serve(listener, observed, head_timeout, stop)))
    }

    fn pressure(&self) -> Pressures {
        let (clock, metrics) = (Arc::clone(&self.clock), Arc::clone(&self.metrics));
        Pressures::new(self.tuning.subscribe(), clock, metrics, self.drain.subscribe())
    }

    /// What is taken of the logs' queues, for who looks.
    fn show_queues(&self, appends: Vec<mpsc::WeakSender<Admitted>>) {
        self.metrics.show_queue(Queue::items("appends", move || {
            let taken = |sender: mpsc::Sender<Admitted>| sender.max_capacity() - sender.capacity();
            let taken: usize =
                appends.iter().filter_map(mpsc::WeakSender::upgrade).map(taken).sum();
            (taken as u64, (appends.len() * APPENDS_QUEUED) as u64)
        }));
    }

    fn retune(&self, shared: &Shared) -> Retune {
        Retune {
            settings: self.tuning.subscribe(),
            drain: self.drain.subscribe(),
            pool: Arc::clone(&shared.pool),
            uplink: Arc::clone(&shared.uplink),
            block_bytes: Arc::clone(&shared.block_bytes),
        }
    }
}

async fn within(clock: &Arc<dyn Clock>, time: Duration, future: impl Future<Output = ()>) {
    tokio::select! {
        () = future => {}
        () = clock.sleep(time) => {}
    }
}

/// The data port: TCP and UDP under one number. When the system chooses it, it knows of TCP only.
fn listen_both(
    address: SocketAddr,
    shards: u16,
) -> Result<(Vec<TcpListener>, UdpSocket), ServerError> {
    let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        let streams = listen_shared(address, shards)?;
        let chosen = self::address(&streams[0], address)?;
        tries -= 1;
        match quic::listen(chosen) {
            Ok(datagrams) => return Ok((streams, datagrams)),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| ServerError::Listen { address, source })
}

/// A socket for each shard on one address: the kernel spreads connections over them, and no shard
/// waits for another to accept. Nobody else may listen there, which sharing the address would allow:
/// that is tried first.
fn listen_shared(address: SocketAddr, shards: u16) -> Result<Vec<TcpListener>, ServerError> {
    let first = listen(address)?;
    if shards <= 1 {
        return Ok(vec![first]);
    }
    let address = self::address(&first, address)?;
    drop(first);
    let shared = |_| listen_beside(address);
    let listeners: std::io::Result<_> = (0..shards).map(shared).collect();
    listeners.map_err(|source| ServerError::Listen { address, source })
}

fn listen_beside(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(WAITING_MAX)?.into_std()
}

fn address(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, ServerError> {
    listener.local_addr().map_err(|source| ServerError::Listen { address, source })
}

/// The vault of the settings' store, which must be this site's.
pub(super) async fn open_vault(
    settings: &ServerSettings,
    kek: &KeyEncryptionKey,
    metrics: &Arc<Metrics>,
) -> Result<Vault, ServerError> {
    let url = settings.store.clone();
    let opened = tokio::task::spawn_blocking(move || store::open(&url)).await;
    let store = opened.map_err(|error| ServerError::Io {
        path: settings.run_directory.clone(),
        action: "opening the store",
        source: std::io::Error::other(error),
    })??;
    let store = Arc::new(store::Counted::new(store, Arc::clone(metrics)));
    let vault = Vault::new(store, kek.derive("holdfast vault 1"));
    vault.expect_site(&settings.site).await?;
    Ok(vault)
}

async fn open_logs(
    settings: &ServerSettings,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
    metrics: &Arc<Metrics>,
) -> Result<Vec<Opened>, ServerError> {
    let mut opened: Vec<Opened> = Vec::new();
    let found = cache::shards_found(&settings.cache.directory)?;
    for shard in 0..settings.shards {
        // Before a log is added: a machine's shard depends on how many there are.
        if shard == found && opened.iter().any(|log| !log.recovered.is_empty()) {
            let (directory, shards) = (settings.cache.directory.clone(), settings.shards);
            return Err(CacheError::MoreShards { directory, found, shards }.into());
        }
        let (cache, shards) = (settings.cache.clone(), settings.shards);
        let (clock, entropy) = (Arc::clone(clock), Arc::clone(entropy));
        let measured = Arc::clone(metrics);
        let open = move || cache::open(&cache, shard, shards, clock, entropy, measured);
        let log =
            tokio::task::spawn_blocking(open).await.map_err(|_| ServerError::Shard { shard })??;
        for damage in &log.damage {
            tracing::error!(shard, %damage, "damage in the cache log");
            metrics.note_cache_damage(damage);
        }
        opened.push(log);
    }
    Ok(opened)
}
