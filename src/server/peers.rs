//! The process servers of the site: this one shows that it is alive, and knows of the others.
//!
//! Owns: the own lease and document, the view of the others, whether one of them is well, where a
//! machine is placed. Does not own: ownership. Everything here is liveness: a wrong answer costs
//! time, never a write (docs/scale-out.md).

pub(super) mod name;
pub(super) mod reach;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use self::reach::Reach;
use self::view::View;
use super::error::ServerError;
use crate::clock::Clock;
use crate::model::{MachineId, ServerId};
use crate::observe::{Metrics, error_chain};
use crate::places;
use crate::store::{LeaseId, StoreError};
use crate::vault::{ServerDocument, ServerLoad, Vault, VaultError};

/// Between renewals, and between looks at the others.
const RENEW_INTERVAL: Duration = Duration::from_secs(5);
/// How often servers are looked for that were not known, or whose lease had run out.
const SEARCH_EVERY: u32 = 6;
/// Servers that are looked at side by side.
const LOOKS_MAX: usize = 16;
/// How long a server that did not answer is not dialled again: all its agents come together.
const SILENT: Duration = Duration::from_secs(2);
/// Part of the newest measurement in the churn that is told: about a minute is remembered.
const CHURN_WEIGHT: f64 = 0.1;

/// What a server is made known with.
pub(super) struct PeersSetup {
    pub(super) vault: Vault,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) reach: Arc<dyn Reach>,
    /// As it was written last.
    pub(super) document: ServerDocument,
    pub(super) lease: LeaseId,
}

/// This server among the others.
pub(super) struct Peers {
    server: ServerId,
    vault: Vault,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    reach: Arc<dyn Reach>,
    lease: LeaseId,
    own: Mutex<ServerDocument>,
    leaving: AtomicBool,
    view: Mutex<View>,
    /// Servers that did not answer: when, and what was found.
    silent: Mutex<BTreeMap<ServerId, (Duration, String)>>,
    /// Those whose lease runs.
    living: watch::Sender<BTreeSet<ServerId>>,
}

/// What is found of the owner of a machine whose agent came here.
#[derive(Debug)]
pub(super) enum Found {
    /// It serves.
    Well(ServerDocument),
    /// It does not, and how that is known.
    Gone(String),
}

/// Where a machine is placed.
#[derive(Debug)]
pub(super) enum Place {
    Here,
    There(ServerDocument),
}

impl Peers {
    pub(super) fn new(setup: PeersSetup) -> Arc<Self> {
        Arc::new(Self {
            server: setup.document.server.clone(),
            vault: setup.vault,
            clock: setup.clock,
            metrics: setup.metrics,
            reach: setup.reach,
            lease: setup.lease,
            own: Mutex::new(setup.document),
            leaving: AtomicBool::new(false),
            view: Mutex::default(),
            silent: Mutex::default(),
            living: watch::Sender::new(BTreeSet::new()),
        })
    }

    /// Those whose lease runs, whenever that changes.
    pub(super) fn living(&self) -> watch::Receiver<BTreeSet<ServerId>> {
        self.living.subscribe()
    }

    /// Renews and tells its load, and beside that looks at the others, until the server has drained: a
    /// lease does not wait for documents that are slow to read.
    ///
    /// # Errors
    /// When another process has the name.
    pub(super) async fn run(&self, mut stop: watch::Receiver<bool>) -> Result<(), ServerError> {
        tokio::select! {
            lost = self.keep_lease() => Err(lost),
            () = self.look_around() => Ok(()),
            _ = stop.wait_for(|stop| *stop) => Ok(()),
        }
    }

    /// Until another process has the name.
    async fn keep_lease(&self) -> ServerError {
        let mut churn = Churn::default();
        loop {
            // A store that hangs must not keep a lease from being renewed when it answers again.
            let renewed = tokio::select! {
                renewed = self.renew(&mut churn) => renewed,
                () = self.clock.sleep(2 * RENEW_INTERVAL) => Ok(()),
            };
            if let Err(error) = renewed {
                self.metrics.scale.lease_failures.fetch_add(1, Ordering::Relaxed);
                if is_fenced(&error) {
                    let server = self.server.clone();
                    return ServerError::NameLost { server, source: error };
                }
                tracing::warn!(error = error_chain(&error), "the own lease cannot be renewed now");
            }
            self.clock.sleep(RENEW_INTERVAL).await;
        }
    }

    /// For ever.
    async fn look_around(&self) {
        for round in (0..SEARCH_EVERY).cycle() {
            let looked = tokio::select! {
                looked = self.look(round == 0) => looked,
                () = self.clock.sleep(2 * RENEW_INTERVAL) => Ok(()),
            };
            if let Err(error) = looked {
                tracing::warn!(error = error_chain(&error), "the other servers cannot be listed");
            }
            self.compare();
            self.clock.sleep(RENEW_INTERVAL).await;
        }
    }

    /// Nothing is placed here any more; the others learn it at once.
    pub(super) async fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        let told = self.tell(None).await;
        if let Err(error) = told {
            tracing::debug!(error = error_chain(&error), "the others learn it by the lease");
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Gives the name back.
    pub(super) async fn release(&self) {
        if let Err(error) = self.vault.release_server(&self.server, self.lease).await {
            tracing::debug!(error = error_chain(&error), "the lease runs out by itself");
        }
    }

    async fn renew(&self, churn: &mut Churn) -> Result<(), VaultError> {
        let sent = self.clock.boot();
        places::reached(places::Place::Renew);
        self.vault.renew_server(&self.server, self.lease).await?;
        self.view().renewed(sent);
        self.metrics.scale.lease_renewals.fetch_add(1, Ordering::Relaxed);
        let load = churn.load(&self.metrics, sent);
        self.tell(Some(load)).await
    }

    async fn look(&self, search: bool) -> Result<(), VaultError> {
        let looks = stream::iter(self.to_look_at(search).await?).map(|server| async move {
            // One that cannot be read keeps nobody from seeing the others.
            if let Err(error) = self.look_at(&server).await {
                tracing::warn!(%server, error = error_chain(&error), "cannot be looked at");
            }
        });
        looks.buffer_unordered(LOOKS_MAX).collect::<()>().await;
        Ok(())
    }

    async fn tell(&self, load: Option<ServerLoad>) -> Result<(), VaultError> {
        let now = || {
            let mut own = self.own();
            own.leaving = self.is_leaving();
            own.load = load.unwrap_or(own.load);
            own.clone()
        };
        self.vault.write_server(&self.server, self.lease, now).await
    }

    async fn to_look_at(&self, search: bool) -> Result<Vec<ServerId>, VaultError> {
        if !search {
            let view = self.view();
            return Ok(view.living().map(|peer| peer.document.server.clone()).collect());
        }
        let mut names = self.vault.server_names().await?;
        names.retain(|name| *name != self.server);
        Ok(names)
    }

    async fn look_at(&self, server: &ServerId) -> Result<(), VaultError> {
        let now = self.clock.boot();
        let state = self.vault.server_state(server).await?;
        let mut view = self.view();
        match state {
            Some((document, leased)) => view.saw(document, leased, now),
            None => drop(view.peers.remove(server)),
        }
        Ok(())
    }

    /// Tells who waits for it when somebody came or went.
    fn compare(&self) {
        let now: BTreeSet<_> =
            self.view().living().map(|peer| peer.document.server.clone()).collect();
        self.metrics.scale.peers_alive.store(now.len() as u64, Ordering::Relaxed);
        self.living.send_if_modified(|before| {
            for server in now.difference(before) {
                tracing::info!(%server, "a process server is there");
            }
            for server in before.difference(&now) {
                tracing::warn!(%server, "the lease of a process server has run out");
            }
            let changed = now != *before;
            *before = now;
            changed
        });
    }

    /// Whether the owner of a machine serves: by its lease and a dial.
    ///
    /// # Errors
    /// When its document cannot be read.
    pub(super) async fn find(&self, owner: &ServerId) -> Result<Found, VaultError> {
        let now = self.clock.boot();
        let known = self.view().peers.get(owner).cloned();
        if known.is_none_or(|peer| !peer.leased || !peer.is_fresh(now)) {
            self.look_at(owner).await?;
        }
        let (peer, believed) = {
            let view = self.view();
            (view.peers.get(owner).cloned(), view.believes_expiry(now))
        };
        let Some(peer) = peer else {
            return Ok(Found::Gone(format!("process server {owner} never started on this store")));
        };
        if !peer.leased && believed {
            return Ok(Found::Gone(format!("the lease of {owner} has run out")));
        }
        let address = &peer.document.address;
        Ok(match self.dial(&peer.document).await {
            Ok(()) => Found::Well(peer.document),
            Err(why) => Found::Gone(format!("{owner} does not answer at {address}: {why}")),
        })
    }

    /// Where a machine goes that nobody alive owns, by the wish and by load.
    ///
    /// # Errors
    /// When the wish cannot be read.
    pub(super) async fn place(
        &self,
        machine: &MachineId,
        gone: Option<&ServerId>,
    ) -> Result<Place, VaultError> {
        let wish = self.vault.assignment(machine).await?;
        let here = (!self.is_leaving()).then(|| self.own().clone());
        let there = self.choose(here, wish, gone.cloned().into_iter().collect()).await;
        Ok(there.map_or(Place::Here, Place::There))
    }

    /// One that answers: a server that was just killed has its lease for a while.
    async fn choose(
        &self,
        here: Option<ServerDocument>,
        wish: Option<ServerId>,
        mut gone: BTreeSet<ServerId>,
    ) -> Option<ServerDocument> {
        loop {
            let there = self.view().place(here.as_ref(), wish.as_ref(), &gone)?;
            if self.dial(&there).await.is_ok() {
                return Some(there);
            }
            gone.insert(there.server);
        }
    }

    async fn dial(&self, document: &ServerDocument) -> Result<(), String> {
        let ServerDocument { server, address, .. } = document;
        let now = self.clock.boot();
        if let Some((at, why)) = self.silent().get(server)
            && now.saturating_sub(*at) < SILENT
        {
            return Err(why.clone());
        }
        let dialled = self.reach.dial(address).await;
        match &dialled {
            Ok(()) => self.silent().remove(server),
            Err(why) => self.silent().insert(server.clone(), (self.clock.boot(), why.clone())),
        };
        dialled
    }

    /// Who takes a machine that this server gives up; `None` when nobody is there.
    ///
    /// # Errors
    /// When the wish cannot be read.
    pub(super) async fn successor(
        &self,
        machine: &MachineId,
    ) -> Result<Option<ServerDocument>, VaultError> {
        let wish = self.vault.assignment(machine).await?;
        Ok(self.choose(None, wish, BTreeSet::new()).await)
    }

    /// Whether anybody could take machines.
    pub(super) fn has_others(&self) -> bool {
        self.view().taking().next().is_some()
    }

    /// A server that takes machines and answers.
    ///
    /// # Errors
    /// Why it does not, in words.
    pub(super) async fn target(&self, server: &ServerId) -> Result<ServerDocument, String> {
        match self.find(server).await {
            Ok(Found::Well(document)) if document.leaving => Err(format!("{server} drains")),
            Ok(Found::Well(document)) => Ok(document),
            Ok(Found::Gone(why)) => Err(why),
            Err(error) => Err(error_chain(&error)),
        }
    }

    /// Asks the owner of a machine to give it to this server.
    pub(super) async fn ask_for(
        &self,
        owner: &ServerDocument,
        machine: &MachineId,
    ) -> Result<(), String> {
        self.reach.ask_for(&owner.address, machine, &self.server).await
    }

    /// Who applies a machine.
    pub(super) fn steward(&self, machine: &MachineId, owner: &ServerId) -> ServerId {
        let view = self.view();
        if view.believes_expiry(self.clock.boot()) {
            return view.steward(machine, owner, &self.server);
        }
        owner.clone()
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silent(&self) -> MutexGuard<'_, BTreeMap<ServerId, (Duration, String)>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> MutexGuard<'_, ServerDocument> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_fenced(error: &VaultError) -> bool {
    matches!(error, VaultError::Store { source: StoreError::Fenced { .. }, .. })
}

/// Bytes a second that all machines send, remembered for about a minute.
#[derive(Debug, Default)]
struct Churn {
    before: Option<(u64, Duration)>,
    bytes_per_s: f64,
}

impl Churn {
    fn load(&mut self, metrics: &Metrics, now: Duration) -> ServerLoad {
        let bytes = metrics.source_bytes();
        if let Some((before, at)) = self.before.replace((bytes, now)) {
            let seconds = now.saturating_sub(at).as_secs_f64().max(0.001);
            let rate = bytes.saturating_sub(before) as f64 / seconds;
            self.bytes_per_s += CHURN_WEIGHT * (rate - self.bytes_per_s);
        }
        let load = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
        let (used, most) = (load(&metrics.cache_used_bytes), load(&metrics.cache_max_bytes));
        ServerLoad {
            churn_bytes_per_s: self.bytes_per_s as u64,
            machines: load(&metrics.scale.machines_served),
            cache_fill: if most == 0 { 0.0 } else { used as f64 / most as f64 },
        }
    }
}
