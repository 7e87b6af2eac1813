//! The machines of this process server: claimed when their agent comes or their records are found.
//!
//! Owns: who is served, how many are claimed at once, and that a machine is let go when its pipeline
//! has ended. Does not own: who shall serve it (`ownership`), sessions (ingest), the way of a durable
//! record (`routes`), publishing (pipeline).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared as Claiming};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::applying::News;
use super::ownership::Insisting;
use super::peers::Peers;
use super::pipeline::{Ended, Pipeline};
use super::recovered::Kept;
use super::routes::{Route, Routes};
use super::vital::Vital;
use crate::budget::Slots;
use crate::cache::Durable;
use crate::clock::{Clock, Entropy};
use crate::cloud_log::{ENTRIES_MAX, LogStore};
use crate::format::manifest::Manifest;
use crate::format::wire::{Refusal, Refuse};
use crate::ingest::{
    Admitted, CreditTerms, Fingerprint, LinkSetup, MachineLink, Machines, OpenError, StreamState,
};
use crate::model::{Generation, MachineId, MachineKey, ServerId};
use crate::observe::{Metrics, error_chain};
use crate::seal::{KeyEncryptionKey, KeyRing, SealPool};
use crate::settings::Tuning;
use crate::store::StoreError;
use crate::upload::{self, Uplink, UploadContext, UploadError};
use crate::vault::{MachineDocument, Policy, Vault, VaultError};

/// How long an agent waits for its machine to be claimed before it is told to come again: less
/// than it waits itself for an answer to its hello (3 × `server_timeout_ms`, 15 s unless it is set).
const OPEN_MAX: Duration = Duration::from_secs(10);
/// Machines that are claimed at once. A claim is two reads and a write of the store: when ten
/// thousand agents come back together, more of them at once would each take longer, and the uploads
/// of those that are served already would wait behind all of them.
const CLAIMS_MAX: u32 = 64;
/// How long a claim counts. One that waits for its own broken corner of the store must not keep the
/// others out; what it still asks is bounded by the uplink's budget for retries.
const CLAIM_COUNTS_MAX: Duration = Duration::from_secs(5);

/// What all machines share.
pub(super) struct Shared {
    pub(super) server: ServerId,
    pub(super) vault: Vault,
    pub(super) kek: Arc<KeyEncryptionKey>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) pool: Arc<SealPool>,
    pub(super) uplink: Arc<Uplink>,
    pub(super) block_bytes: Arc<AtomicU32>,
    pub(super) tuning: Tuning,
    pub(super) drain: watch::Receiver<bool>,
    /// One log a shard.
    pub(super) shards: Vec<ShardQueue>,
    /// Tells the applier what was published.
    pub(super) news: Arc<News>,
    /// This server among the others.
    pub(super) peers: Arc<Peers>,
}

impl Shared {
    pub(super) fn upload_context(&self, machine: &MachineId, keys: KeyRing) -> UploadContext {
        let store = Arc::clone(self.vault.store());
        UploadContext {
            log: Arc::new(LogStore::new(store, machine.clone(), keys)),
            clock: Arc::clone(&self.clock),
            entropy: Arc::clone(&self.entropy),
            metrics: Arc::clone(&self.metrics),
            uplink: Arc::clone(&self.uplink),
            block_bytes: Arc::clone(&self.block_bytes),
            entries_max: ENTRIES_MAX,
        }
    }
}

/// The way into one shard's log.
pub(super) struct ShardQueue {
    /// Taken away when the server drains: then only links keep the log open.
    pub(super) appends: Mutex<Option<mpsc::Sender<Admitted>>>,
    pub(super) credit: watch::Receiver<CreditTerms>,
}

impl ShardQueue {
    fn appends(&self) -> Option<mpsc::Sender<Admitted>> {
        self.appends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One claimed machine. It stays until its pipeline has ended: records of its generation may be on
/// their way through the log as long.
pub(super) struct Served {
    pub(super) link: Arc<MachineLink>,
    pub(super) generation: Generation,
    pub(super) context: UploadContext,
    /// It is being given up: whoever does that lets it go.
    pub(super) moving: AtomicBool,
    /// Its uploads stopped for good: it stays as it is until the server is restarted.
    stuck: Arc<AtomicBool>,
    pub(super) state: watch::Sender<State>,
    keep_every_write: Arc<AtomicBool>,
}

/// How far a machine has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its pipeline runs.
    Running,
    /// Its pipeline has ended, and everything admitted is published.
    Published,
    /// Its pipeline has ended otherwise.
    Stopped,
    /// It can be claimed anew.
    Gone,
}

impl Served {
    /// Takes a changed policy over.
    pub(super) fn follow(&self, policy: &Policy) {
        self.keep_every_write.store(policy.keep_every_write, Ordering::Relaxed);
        self.link.set_bookmark_interval_ms(interval_ms(policy));
    }
}

/// A claim under way, or what became of it. It runs as a task of its own: once begun it ends,
/// whoever stops waiting for it, so that records it took from the cache are never let go half-way.
pub(super) type Claimed = Claiming<BoxFuture<'static, Result<Arc<Served>, OpenError>>>;

/// All machines of this process server.
pub(super) struct Registry {
    this: Weak<Self>,
    /// Where claims and pipelines run: agents are served on the shards' threads.
    runtime: Handle,
    shared: Arc<Shared>,
    kept: Mutex<Kept>,
    served: Mutex<HashMap<MachineId, Claimed>>,
    routes: Routes,
    pipelines: tokio::sync::Mutex<JoinSet<()>>,
    /// First come, first served.
    claiming: Slots,
    insisting: Insisting,
    kept_changed: Notify,
}

impl Registry {
    /// On the present runtime everything behind the cache will run.
    pub(super) fn new(shared: Shared, kept: Kept) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            runtime: Handle::current(),
            shared: Arc::new(shared),
            kept: Mutex::new(kept),
            served: Mutex::default(),
            routes: Routes::default(),
            pipelines: tokio::sync::Mutex::default(),
            claiming: Slots::new(CLAIMS_MAX),
            insisting: Insisting::default(),
            kept_changed: Notify::new(),
        })
    }

    pub(super) fn routes(&self) -> Routes {
        self.routes.clone()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn insisting(&self) -> &Insisting {
        &self.insisting
    }

    pub(super) fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the cache log has records of a machine that nobody serves.
    pub(super) fn keeps(&self, machine: MachineKey) -> bool {
        self.kept().machines().contains(&machine)
    }

    /// Completes when records were added to those.
    pub(super) async fn kept_changed(&self) {
        self.kept_changed.notified().await;
    }

    /// All claims, made or being made.
    pub(super) fn all_claims(&self) -> Vec<Claimed> {
        self.claims().values().cloned().collect()
    }

    /// A machine that is claimed already.
    pub(super) fn served(&self, machine: &MachineId) -> Option<Arc<Served>> {
        let claimed = self.claims().get(machine).cloned()?;
        claimed.peek()?.as_ref().ok().cloned()
    }

    /// Lets go of all links: once the last session has ended, the shards' logs close.
    pub(super) fn close(&self) {
        self.claims().clear();
        for queue in &self.shared.shards {
            queue.appends.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Waits until every pipeline has published what it has.
    pub(super) async fn finish(&self) {
        self.routes.clear();
        let mut pipelines = self.pipelines.lock().await;
        while pipelines.join_next().await.is_some() {}
    }

    fn claims(&self) -> std::sync::MutexGuard<'_, HashMap<MachineId, Claimed>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine's claim, made unless there is one, and whether it was made within this call: then
    /// nobody can have taken it since unnoticed.
    pub(super) async fn claimed(
        &self,
        machine: &MachineId,
        document: &MachineDocument,
    ) -> Result<(Arc<Served>, bool), OpenError> {
        let claimed = {
            let mut claims = self.claims();
            let present = claims.get(machine).filter(|one| !matches!(one.peek(), Some(Err(_))));
            let claimed = present.cloned().unwrap_or_else(|| self.begin_claim(machine, document));
            claims.insert(machine.clone(), claimed.clone());
            claimed
        };
        let fresh = claimed.peek().is_none();
        let served = claimed.await;
        self.count();
        Ok((served?, fresh))
    }

    /// The machine, served here under the newest ownership. A claim of some time ago is compared with
    /// the manifest: whoever took the machine meanwhile was not seen by a pipeline that had nothing
    /// to publish, and a welcome that knows less than the agent is worse than none.
    async fn serving(
        &self,
        machine: &MachineId,
        document: &MachineDocument,
    ) -> Result<Arc<Served>, OpenError> {
        loop {
            let (served, fresh) = self.claimed(machine, document).await?;
            if served.stuck.load(Ordering::Acquire) {
                return Ok(served); // its words are the link's
            }
            if !served.link.has_ended() {
                match fresh {
                    true => return Ok(served),
                    false => match upload::resume(&served.context, served.generation).await {
                        Ok(_) => return Ok(served),
                        Err(UploadError::Fenced { .. }) => self.let_go(&served),
                        Err(error) => {
                            let (machine, reason) = (machine.clone(), error_chain(&error));
                            return Err(OpenError::NotOwner { machine, reason });
                        }
                    },
                }
            }
            let mut state = served.state.subscribe();
            drop(state.wait_for(|state| *state == State::Gone).await); // we hold the sender
        }
    }

    /// Another server has the machine.
    fn let_go(&self, served: &Arc<Served>) {
        let text = "another process server has the machine; connect again".to_owned();
        served.link.end(Refuse { code: Refusal::NotOwner, text });
        let (routes, link) = (self.routes.clone(), Arc::clone(&served.link));
        self.runtime.spawn(async move { detach(&routes, &link).await });
    }

    /// Once nothing more is admitted: closes the pipeline's queue behind the last record.
    pub(super) async fn detach(&self, link: &Arc<MachineLink>) {
        detach(&self.routes, link).await;
    }

    /// Lets a machine go whose pipeline has ended.
    pub(super) fn forget(&self, served: &Served) {
        let machine = served.link.machine();
        let present = |one: &Claimed| match one.peek() {
            Some(Ok(present)) => present.generation == served.generation,
            Some(Err(_)) | None => false,
        };
        let removed = {
            let mut claims = self.claims();
            let ours = claims.get(machine).is_some_and(present);
            ours && claims.remove(machine).is_some()
        };
        if removed {
            self.shared.metrics.forget_machine(machine);
            self.count();
        }
        served.state.send_replace(State::Gone);
    }

    fn count(&self) {
        let claims = self.claims();
        let served = claims.values().filter(|one| matches!(one.peek(), Some(Ok(_)))).count();
        self.shared.metrics.scale.machines_served.store(served as u64, Ordering::Relaxed);
    }

    /// Sees a machine's pipeline to its end.
    async fn tend(
        self: Arc<Self>,
        work: Pipeline,
        durable: mpsc::UnboundedReceiver<Durable>,
        served: Weak<Served>,
        generation: Generation,
    ) {
        let link = served.clone();
        let routes = self.routes.clone();
        let detached = async move {
            // Gone when the server drains: then all queues are closed anyway.
            if let Some(link) = link.upgrade().map(|served| Arc::clone(&served.link)) {
                detach(&routes, &link).await;
            }
        };
        let Ended { fenced, held } = work.run(durable, detached).await;
        if fenced {
            self.shared.metrics.scale.fenced.fetch_add(1, Ordering::Relaxed);
        }
        let all = held.is_empty() && !fenced;
        if !held.is_empty() {
            self.kept().hold(held, generation, fenced);
            self.kept_changed.notify_one();
        }
        let Some(served) = served.upgrade() else { return };
        served.state.send_replace(if all { State::Published } else { State::Stopped });
        if !served.moving.load(Ordering::Acquire) {
            self.forget(&served);
        }
    }

    fn begin_claim(&self, machine: &MachineId, document: &MachineDocument) -> Claimed {
        let this = self.this.upgrade().expect("whoever calls holds it");
        let (machine, document) = (machine.clone(), document.clone());
        let name = machine.clone();
        let task = self.runtime.spawn(async move {
            let claimed = this.claim_in_turn(&machine, &document).await;
            if claimed.is_err() {
                this.claims().remove(&machine); // the only one of it: nobody begins another before
            }
            claimed
        });
        let ended = async move {
            task.await.unwrap_or_else(|gone| {
                Err(OpenError::NotOwner { machine: name, reason: gone.to_string() })
            })
        };
        ended.boxed().shared()
    }

    async fn claim_in_turn(
        &self,
        machine: &MachineId,
        document: &MachineDocument,
    ) -> Result<Arc<Served>, OpenError> {
        let turn = self.claiming.acquire(1).await;
        // Who waited until the server drained must not take the machine from its next owner.
        if *self.shared.drain.borrow() {
            return Err(draining(machine));
        }
        let mut claim = std::pin::pin!(self.claim(machine, document));
        tokio::select! {
            claimed = &mut claim => return claimed,
            () = self.shared.clock.sleep(CLAIM_COUNTS_MAX) => drop(turn),
        }
        claim.await
    }

    /// Where the machine's stream goes on: behind what is published and what the cache log kept.
    fn resume(&self, machine: &MachineId, claimed: &Manifest) -> (StreamState, Vec<Durable>) {
        let mut state = StreamState::published(claimed);
        let (records, given_up) = self.kept().take(claimed, &mut state);
        if let Some(why) = given_up {
            tracing::error!(%machine, error = error_chain(&why),
                "records of the cache log are given up; the agent sends them again");
        }
        (state, records)
    }

    async fn claim(
        &self,
        machine: &MachineId,
        document: &MachineDocument,
    ) -> Result<Arc<Served>, OpenError> {
        let shared = &self.shared;
        let refused = |reason: &dyn std::error::Error| OpenError::NotOwner {
            machine: machine.clone(),
            reason: error_chain(reason),
        };
        let keys = KeyRing::unwrap(&shared.kek, document).map_err(|error| refused(&error))?;
        let key = keys.newest().clone();
        let context = shared.upload_context(machine, keys);
        let mut drain = shared.drain.clone();
        let claim = tokio::select! {
            claim = self.own(&context) => claim?,
            // After an outage it would take the machine from its next owner.
            _ = drain.wait_for(|drain| *drain) => return Err(draining(machine)),
        };
        let metrics = shared.metrics.machine(machine);
        metrics.served.store(true, Ordering::Relaxed); // until it is forgotten
        let machine_key = MachineKey::of(machine);
        let queue = &shared.shards[shard_of(machine_key, shared.shards.len())];
        // Before the kept records are taken: it keeps the log open, and only while nobody holds
        // a record may its segment be written anew.
        let appends = queue.appends().ok_or_else(|| draining(machine))?;
        let (state, records) = self.resume(machine, &claim.manifest);
        let link = MachineLink::new(LinkSetup {
            machine: machine.clone(),
            server: shared.server.clone(),
            generation: claim.manifest.generation,
            stream: state,
            published: claim.manifest.published,
            bookmark_interval_ms: interval_ms(&document.policy),
            appends,
            credit: queue.credit.clone(),
            metrics: Arc::clone(&metrics),
        });
        let keep_every_write = Arc::new(AtomicBool::new(document.policy.keep_every_write));
        let (pipeline, durable) = mpsc::unbounded_channel();
        let route = Route { link: Arc::downgrade(&link), pipeline, metrics: Arc::clone(&metrics) };
        self.routes.add(machine_key, route);
        self.routes.durable(records);
        let stuck = Arc::default();
        let served = Arc::new(Served {
            link: Arc::clone(&link),
            generation: claim.manifest.generation,
            context: context.clone(),
            moving: AtomicBool::new(false),
            stuck: Arc::clone(&stuck),
            state: watch::Sender::new(State::Running),
            keep_every_write: Arc::clone(&keep_every_write),
        });
        let work = Pipeline {
            context,
            generation: claim.manifest.generation,
            published: AtomicU64::new(claim.manifest.published.0),
            key,
            pool: Arc::clone(&shared.pool),
            settings: shared.tuning.subscribe(),
            keep_every_write: Arc::clone(&keep_every_write),
            link: Arc::downgrade(&link),
            metrics,
            news: Arc::clone(&shared.news),
            stuck: Arc::clone(&stuck),
        };
        // The owner before us may have left something to apply.
        shared.news.published(machine);
        self.begin_pipeline(work, durable, &served).await;
        Ok(served)
    }

    async fn begin_pipeline(
        &self,
        work: Pipeline,
        durable: mpsc::UnboundedReceiver<Durable>,
        served: &Arc<Served>,
    ) {
        let this = self.this.upgrade().expect("whoever calls holds it");
        let mut pipelines = self.pipelines.lock().await;
        while pipelines.try_join_next().is_some() {} // those of machines that went
        let tended = this.tend(work, durable, Arc::downgrade(served), served.generation);
        pipelines.spawn_on(Vital::new(tended), &self.runtime);
    }
}

/// Once nothing more is admitted: closes the pipeline's queue behind the last record.
async fn detach(routes: &Routes, link: &Arc<MachineLink>) {
    link.settled().await;
    routes.remove(link.key(), link);
}

fn interval_ms(policy: &Policy) -> u32 {
    policy.bookmark_interval_s.saturating_mul(1000)
}

/// A machine's shard: fixed by its name, so that its records always lie in one log.
fn shard_of(machine: MachineKey, shards: usize) -> usize {
    usize::from(u16::from_le_bytes([machine.0[0], machine.0[1]])) % shards
}

#[async_trait]
impl Machines for Registry {
    async fn open(
        &self,
        machine: &MachineId,
        certificate: &Fingerprint,
    ) -> Result<Arc<MachineLink>, OpenError> {
        if *self.shared.drain.borrow() {
            return Err(draining(machine));
        }
        let document = self.shared.spoken_for(machine, certificate).await?;
        let served = tokio::select! {
            served = self.serving(machine, &document) => served?,
            () = self.shared.clock.sleep(OPEN_MAX) => {
                let trouble = self.shared.metrics.machine(machine);
                let trouble = trouble.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                let reason = trouble.clone().unwrap_or_else(|| "the store is slow".to_owned());
                return Err(OpenError::Late { machine: machine.clone(), reason });
            }
        };
        served.follow(&document.policy);
        let shown = certificate.to_string();
        if let Some(entry) = document.certificates.iter().find(|entry| entry.fingerprint == shown) {
            let end = &served.link.metrics().certificate_end;
            end.store(entry.not_after.0, Ordering::Relaxed);
        }
        Ok(Arc::clone(&served.link))
    }

    async fn knows(&self, machine: &MachineId, certificate: &Fingerprint) -> Result<(), OpenError> {
        self.shared.spoken_for(machine, certificate).await.map(drop)
    }
}

impl Shared {
    /// The document of a machine for which this certificate speaks.
    async fn spoken_for(
        &self,
        machine: &MachineId,
        certificate: &Fingerprint,
    ) -> Result<MachineDocument, OpenError> {
        let document = match self.vault.machine(machine).await {
            Ok(Some(document)) => document,
            Ok(None) => return Err(OpenError::Unknown { machine: machine.clone() }),
            Err(error) => return Err(unreadable(machine, error)),
        };
        let shown = certificate.to_string();
        let issued = document.certificates.iter().find(|entry| entry.fingerprint == shown);
        if issued.is_none_or(|entry| entry.revoked) {
            let (machine, certificate) = (machine.clone(), *certificate);
            return Err(OpenError::Revoked { machine, certificate });
        }
        Ok(document)
    }
}

fn draining(machine: &MachineId) -> OpenError {
    OpenError::NotOwner { machine: machine.clone(), reason: "the server drains".to_owned() }
}

pub(super) fn unreadable(machine: &MachineId, error: VaultError) -> OpenError {
    let machine = machine.clone();
    match error {
        VaultError::Store { source, .. } => OpenError::Store { machine, source },
        other => {
            let (store, name) = ("vault".to_owned(), machine.to_string());
            let source = StoreError::Damaged { store, name, detail: error_chain(&other) };
            OpenError::Store { machine, source }
        }
    }
}

#[cfg(test)]
#[path = "machines_tests.rs"]
mod tests;
