//! A whole process server: made, run, drained.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle as Task;

use super::applying::{Applying, News};
use super::error::ServerError;
use super::machines::{Registry, ShardQueue, Shared};
use super::operator;
use super::pressure::Pressures;
use super::recovered::Kept;
use super::retune::{Retune, sealed_bytes, streams};
use super::shard::Shard;
use crate::budget::{Budget, Slots};
use crate::cache::{self, CacheError, Opened};
use crate::clock::{Clock, Entropy};
use crate::ingest::{self, Ingest, IngestSetup};
use crate::observe::{self, Metrics};
use crate::seal::{KeyEncryptionKey, SealPool};
use crate::settings::{ServerSettings, Tuning};
use crate::store;
use crate::vault::{ServerDocument, Vault};

/// Records between the sessions and one shard's log.
const APPENDS_QUEUED: usize = 1024;
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
    addresses: Addresses,
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
    clock: Arc<dyn Clock>,
    drain: watch::Sender<bool>,
    shards: Vec<(u16, JoinHandle<()>)>,
    logs: Vec<oneshot::Receiver<Result<(), CacheError>>>,
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
        let settings = ServerSettings::clone(&tuning.now());
        let metrics = Arc::new(Metrics::default());
        let tls = ingest::server_config(&settings.tls, clock.wall())?;
        let kek = Arc::new(KeyEncryptionKey::load(&settings.key_file)?);
        let data = listen(settings.listen)?;
        let observed = listen(settings.metrics_listen)?;
        let vault = open_vault(&settings, &kek).await?;
        let opened = open_logs(&settings, &clock, &entropy, &metrics).await?;
        let addresses = Addresses {
            data: address(&data, settings.listen)?,
            metrics: address(&observed, settings.metrics_listen)?,
            pid: std::process::id(),
        };
        announce(&settings, &vault, &addresses, clock.as_ref()).await?;
        let drain = watch::Sender::new(false);
        let mut server = Building { settings, tuning, clock, entropy, metrics, vault, drain };
        server.run(kek, tls, opened, data, observed, addresses)
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
    /// process must end so that recovery reads what is really on the disk.
    ///
    /// # Errors
    /// What the log ended with.
    pub async fn failed(&mut self) -> ServerError {
        let ended = futures_util::future::select_all(self.logs.iter_mut());
        let (ended, shard, _) = ended.await;
        let shard = u16::try_from(shard).unwrap_or(u16::MAX);
        match ended {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => ServerError::Shard { shard },
        }
    }

    /// Stops in an orderly way: nothing more is accepted, everything received becomes durable,
    /// what can be published within half a minute is.
    ///
    /// # Errors
    /// When a log could not be closed.
    pub async fn drain(self) -> Result<(), ServerError> {
        self.drain.send_replace(true);
        self.registry.close();
        let mut result = Ok(());
        for log in self.logs {
            if let Ok(Err(error)) = log.await {
                result = Err(error.into());
            }
        }
        tokio::select! {
            () = self.registry.finish() => {}
            () = self.clock.sleep(PUBLISH_MAX) => {
                tracing::warn!("not everything could be published; the cache log keeps it");
            }
        }
        for task in self.tasks {
            drop(task.await);
        }
        let joined = tokio::task::spawn_blocking(move || {
            self.shards.into_iter().find_map(|(shard, thread)| thread.join().err().map(|_| shard))
        });
        match joined.await {
            Ok(Some(shard)) => result.and(Err(ServerError::Shard { shard })),
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
    drain: watch::Sender<bool>,
}

impl Building {
    fn run(
        &mut self,
        kek: Arc<KeyEncryptionKey>,
        tls: Arc<rustls::ServerConfig>,
        opened: Vec<Opened>,
        data: TcpListener,
        observed: TcpListener,
        addresses: Addresses,
    ) -> Result<ProcessServer, ServerError> {
        let mut kept = Kept::default();
        let mut tasks = Vec::new();
        let mut queues = Vec::new();
        let mut writers = Vec::new();
        let mut pressure = self.pressure();
        for log in opened {
            let (appends, admitted) = mpsc::channel(APPENDS_QUEUED);
            let credit = pressure.watch(log.fill);
            kept.add(log.recovered);
            queues.push(ShardQueue { appends: Some(appends).into(), credit });
            writers.push((log.writer, admitted));
        }
        tasks.push(tokio::spawn(pressure.run()));
        let news = Arc::new(News::default());
        let shared = self.shared(Arc::clone(&kek), queues, Arc::clone(&news))?;
        tasks.push(tokio::spawn(self.retune(&shared).run()));
        let registry = Registry::new(shared, kept);
        let ingest = Ingest::new(IngestSetup {
            site: self.settings.site.clone(),
            tls,
            limits: self.settings.limits.clone(),
            settings: self.tuning.subscribe(),
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
            machines: Arc::clone(&registry) as Arc<dyn ingest::Machines>,
            operator: operator::router(&registry),
            drain: self.drain.subscribe(),
        });
        let (mut shards, mut logs) = (Vec::new(), Vec::new());
        for (number, (writer, admitted)) in writers.into_iter().enumerate() {
            let number = u16::try_from(number).unwrap_or(u16::MAX);
            let (ended, log) = oneshot::channel();
            let (routes, ingest) = (registry.routes(), Arc::clone(&ingest));
            let listener = data
                .try_clone()
                .map_err(|source| ServerError::Listen { address: addresses.data, source })?;
            let shard = Shard { number, writer, admitted, routes, ingest, listener, ended };
            shards.push((number, shard.start()?));
            logs.push(log);
        }
        tasks.push(tokio::spawn(claim_kept(Arc::clone(&registry), Arc::clone(&self.clock))));
        tasks.push(self.endpoint(observed, addresses.metrics)?);
        tasks.push(tokio::spawn(self.applying(kek, news).run()));
        let clock = Arc::clone(&self.clock);
        let drain = self.drain.clone();
        let metrics = Arc::clone(&self.metrics);
        Ok(ProcessServer { addresses, metrics, registry, clock, drain, shards, logs, tasks })
    }

    fn shared(
        &self,
        kek: Arc<KeyEncryptionKey>,
        shards: Vec<ShardQueue>,
        news: Arc<News>,
    ) -> Result<Shared, ServerError> {
        let settings = &self.settings;
        let pool = SealPool::new(
            settings.seal.clone(),
            Budget::new(sealed_bytes(settings)),
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
            streams: Slots::new(streams(settings)),
            block_bytes: Arc::new(settings.upload.block_bytes.into()),
            tuning: self.tuning.clone(),
            drain: self.drain.subscribe(),
            shards,
            news,
        })
    }

    fn applying(&self, kek: Arc<KeyEncryptionKey>, news: Arc<News>) -> Arc<Applying> {
        Arc::new(Applying {
            vault: self.vault.clone(),
            kek,
            clock: Arc::clone(&self.clock),
            entropy: Arc::clone(&self.entropy),
            metrics: Arc::clone(&self.metrics),
            tuning: self.tuning.clone(),
            drain: self.drain.subscribe(),
            publisher: Some(self.settings.server.clone()),
            news,
        })
    }

    fn endpoint(
        &self,
        listener: TcpListener,
        address: SocketAddr,
    ) -> Result<Task<()>, ServerError> {
        let listener = tokio::net::TcpListener::from_std(listener)
            .map_err(|source| ServerError::Listen { address, source })?;
        let router = observe::endpoint::router(Arc::clone(&self.metrics), Arc::clone(&self.clock));
        let mut drain = self.drain.subscribe();
        let stop = async move { drop(drain.wait_for(|drain| *drain).await) };
        Ok(tokio::spawn(async move {
            if let Err(error) = observe::endpoint::serve(listener, router, stop).await {
                tracing::error!(%error, "the metrics listener ended");
            }
        }))
    }

    fn pressure(&self) -> Pressures {
        let (clock, metrics) = (Arc::clone(&self.clock), Arc::clone(&self.metrics));
        Pressures::new(self.tuning.subscribe(), clock, metrics, self.drain.subscribe())
    }

    fn retune(&self, shared: &Shared) -> Retune {
        Retune {
            settings: self.tuning.subscribe(),
            drain: self.drain.subscribe(),
            pool: Arc::clone(&shared.pool),
            streams: shared.streams.clone(),
            block_bytes: Arc::clone(&shared.block_bytes),
        }
    }
}

/// Claims machines with kept records; repeated until the vault could be read.
async fn claim_kept(registry: Arc<Registry>, clock: Arc<dyn Clock>) {
    let mut drain = registry.shared().drain.clone();
    while !*drain.borrow_and_update() {
        match registry.claim_kept().await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(error = observe::error_chain(&error), "kept records wait");
            }
        }
        tokio::select! {
            _ = drain.changed() => {}
            () = clock.sleep(Duration::from_secs(1)) => {}
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

fn address(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, ServerError> {
    listener.local_addr().map_err(|source| ServerError::Listen { address, source })
}

/// The vault of the settings' store, which must be this site's.
pub(super) async fn open_vault(
    settings: &ServerSettings,
    kek: &KeyEncryptionKey,
) -> Result<Vault, ServerError> {
    let url = settings.store.clone();
    let opened = tokio::task::spawn_blocking(move || store::open(&url)).await;
    let store = opened.map_err(|error| ServerError::Io {
        path: settings.run_directory.clone(),
        action: "opening the store",
        source: std::io::Error::other(error),
    })??;
    let vault = Vault::new(Arc::clone(&store), kek.derive("holdfast vault 1"));
    vault.expect_site(&settings.site).await?;
    Ok(vault)
}

async fn open_logs(
    settings: &ServerSettings,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
    metrics: &Arc<Metrics>,
) -> Result<Vec<Opened>, ServerError> {
    let mut opened = Vec::new();
    for shard in 0..settings.shards {
        let (cache, shards) = (settings.cache.clone(), settings.shards);
        let (clock, entropy) = (Arc::clone(clock), Arc::clone(entropy));
        let metrics = Arc::clone(metrics);
        let open = move || cache::open(&cache, shard, shards, clock, entropy, metrics);
        let log =
            tokio::task::spawn_blocking(open).await.map_err(|_| ServerError::Shard { shard })??;
        for damage in &log.damage {
            tracing::error!(shard, %damage, "damage in the cache log");
        }
        opened.push(log);
    }
    Ok(opened)
}

/// Tells where this server is: in the vault for the sidecar, in a file for scripts.
async fn announce(
    settings: &ServerSettings,
    vault: &Vault,
    addresses: &Addresses,
    clock: &dyn Clock,
) -> Result<(), ServerError> {
    let advertised = settings.advertise.clone();
    let document = ServerDocument {
        server: settings.server.clone(),
        address: match advertised.strip_suffix(":0") {
            Some(host) => format!("{host}:{}", addresses.data.port()),
            None => advertised,
        },
        started: clock.wall(),
    };
    vault.record_server(&document).await?;
    let path = settings.run_directory.join("addresses.json");
    let body = serde_json::to_vec_pretty(addresses).expect("plain values are JSON");
    let written =
        std::fs::create_dir_all(&settings.run_directory).and_then(|()| std::fs::write(&path, body));
    written.map_err(|source| ServerError::Io { path, action: "writing it", source })
}
