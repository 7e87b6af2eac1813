//! Claims, over a store that counts and can be held, under a clock that the test moves.

use bytes::Bytes;

use super::*;
use crate::cache::Survivor;
use crate::clock::System;
use crate::format::names;
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, Change, DiskIndex, DiskSpec, Epoch, EpochBegin,
    Generation, Record, Sequence, Timestamp,
};
use crate::server::keeping::{LOOK_MAX, LOOKS_MAX, Left};
use crate::server::testing::{Hands, Network, peers, settings, uplink};
use crate::store::faulty::{Fault, Gate, Op, Rule};
use crate::store::{Condition, Faulty, Memory, Store};
use crate::turns::Turns;
use crate::vault::CertificateEntry;

const CERTIFICATE: Fingerprint = Fingerprint([7; 32]);

struct Site {
    server: String,
    network: Arc<Network>,
    registry: Arc<Registry>,
    faulty: Arc<Faulty>,
    clock: Arc<Hands>,
    metrics: Arc<Metrics>,
    drain: watch::Sender<bool>,
    admitted: mpsc::Receiver<Admitted>,
}

fn id(name: &str) -> MachineId {
    name.parse().unwrap()
}

impl Site {
    /// The registry of `ps-1`, which has no machine yet.
    async fn new(kept: Kept) -> Self {
        let clock = Arc::new(Hands::default());
        let memory: Arc<dyn Store> = Arc::new(Memory::new(Arc::clone(&clock) as _));
        let faulty = Arc::new(Faulty::new(memory));
        Self::on("ps-1", (clock, faulty, Arc::default()), kept).await
    }

    /// Another process server on the same store.
    async fn beside(&self, server: &str, kept: Kept) -> Self {
        let ground = (Arc::clone(&self.clock), Arc::clone(&self.faulty), Arc::clone(&self.network));
        Self::on(server, ground, kept).await
    }

    async fn on(
        server: &str,
        (clock, faulty, network): (Arc<Hands>, Arc<Faulty>, Arc<Network>),
        kept: Kept,
    ) -> Self {
        let kek = Arc::new(KeyEncryptionKey::of([7; 32].into()));
        let metrics = Arc::new(Metrics::default());
        let (drain, settings) = (watch::Sender::new(false), settings());
        let (appends, admitted) = mpsc::channel(64);
        let credit = watch::channel(CreditTerms::FREE).1;
        let (room, entropy) = (Turns::new(64 << 20, 0), System::entropy());
        let (pool_clock, shared) = (Arc::clone(&clock) as _, Arc::clone(&metrics));
        let pool = SealPool::new(settings.seal.clone(), room, shared, pool_clock, entropy);
        let vault = Vault::new(Arc::clone(&faulty) as _, kek.derive("holdfast vault 1"));
        let shared = Shared {
            server: server.parse().unwrap(),
            vault: vault.clone(),
            kek,
            clock: Arc::clone(&clock) as _,
            entropy: System::entropy(),
            metrics: Arc::clone(&metrics),
            pool: Arc::new(pool.unwrap()),
            uplink: uplink(&clock, &metrics),
            block_bytes: Arc::new((1 << 20).into()),
            tuning: Tuning::from(settings),
            drain: drain.subscribe(),
            shards: vec![ShardQueue { appends: Some(appends).into(), credit }],
            news: Arc::default(),
            peers: peers(server, vault, &clock, &metrics, &network).await,
        };
        let registry = Registry::new(shared, kept);
        let server = server.to_owned();
        Self { server, network, registry, faulty, clock, metrics, drain, admitted }
    }

    async fn enroll(&self, machine: &MachineId) -> MachineDocument {
        let shared = self.registry.shared();
        let (_, wrapped) = shared.kek.make_data_key(machine, 1, &System, Timestamp(0));
        let certificate = CertificateEntry {
            fingerprint: CERTIFICATE.to_string(),
            not_after: Timestamp(i64::MAX),
            revoked: false,
        };
        let document = MachineDocument {
            machine: machine.clone(),
            created: Timestamp(0),
            data_keys: vec![wrapped],
            certificates: vec![certificate],
            policy: Policy::default(),
        };
        shared.vault.create_machine(&document).await.unwrap();
        document
    }

    /// An opener that somebody waits for.
    fn opener(
        &self,
        document: &MachineDocument,
    ) -> tokio::task::JoinHandle<Result<Arc<Served>, OpenError>> {
        let (registry, document) = (Arc::clone(&self.registry), document.clone());
        tokio::spawn(async move { Ok(registry.claimed(&document.machine, &document).await?.0) })
    }

    /// The machine is `owner`'s, as of some earlier time.
    async fn owned_by(&self, owner: &str, document: &MachineDocument) {
        let shared = self.registry.shared();
        let keys = KeyRing::unwrap(&shared.kek, document).unwrap();
        let context = shared.upload_context(&document.machine, keys);
        upload::claim(&context, &owner.parse().unwrap()).await.unwrap();
    }

    /// Lets everything that needs no time happen.
    async fn settle(&self) {
        self.clock.advance(Duration::ZERO).await;
    }

    /// Sealing threads know nothing of this clock: what is due gets to its end before it goes on.
    async fn settles(&self, is_done: impl Fn() -> bool) {
        for _ in 0..2_000 {
            if is_done() {
                return;
            }
            self.settle().await;
        }
    }

    fn reads(&self) -> u64 {
        self.faulty.calls(Op::Read, "/manifest")
    }

    fn claims(&self) -> u64 {
        self.faulty.calls(Op::Put, "/manifest")
    }

    fn hold_claims(&self) -> Gate {
        let gate = Gate::new();
        self.faulty.add(Rule::on(Op::Read, Fault::Hold(gate.clone())).named("/manifest"));
        gate
    }
}

#[tokio::test]
async fn many_openers_at_once_share_one_claim() {
    let site = Site::new(Kept::default()).await;
    let document = site.enroll(&id("web")).await;
    let gate = site.hold_claims();
    let openers: Vec<_> = (0..20).map(|_| site.opener(&document)).collect();
    gate.arrived(1).await;
    gate.open();
    let (first, _) = site.registry.claimed(&document.machine, &document).await.unwrap();
    for opener in openers {
        assert!(Arc::ptr_eq(&first, &opener.await.unwrap().unwrap()));
    }
    let again = site.registry.open(&document.machine, &CERTIFICATE).await.unwrap();
    assert!(Arc::ptr_eq(&first.link, &again));
    assert_eq!(site.claims(), 1);
}

#[tokio::test]
async fn a_claim_that_failed_is_made_anew_for_the_next_opener() {
    let site = Site::new(Kept::default()).await;
    let document = site.enroll(&id("web")).await;
    let manifest = names::manifest(&document.machine);
    site.faulty.put(&manifest, Bytes::from_static(b"damaged"), Condition::Absent).await.unwrap();
    let refused = site.registry.open(&document.machine, &CERTIFICATE).await.unwrap_err();
    assert!(matches!(refused, OpenError::NotOwner { .. }), "{refused}");
    assert!(site.registry.served(&document.machine).is_none());
    site.faulty.delete(&manifest, Condition::Always).await.unwrap();
    site.registry.open(&document.machine, &CERTIFICATE).await.unwrap();
    assert!(site.registry.served(&document.machine).is_some());
    assert_eq!(site.claims() - 1, 1, "beside the damaged one");
}

#[tokio::test]
async fn a_claim_goes_on_when_whoever_wanted_it_has_gone() {
    let site = Site::new(Kept::default()).await;
    let document = site.enroll(&id("web")).await;
    let gate = site.hold_claims();
    let opener = site.opener(&document);
    gate.arrived(1).await;
    opener.abort();
    assert!(opener.await.is_err_and(|gone| gone.is_cancelled()));
    gate.open();
    site.settle().await;
    assert_eq!(site.claims(), 1, "nobody waits for it");
    site.registry.claimed(&document.machine, &document).await.unwrap();
    assert_eq!(site.claims(), 1, "it was not begun anew");
}

/// The stream's first records and a bookmark, as the cache log kept them.
fn kept(machine: &MachineId) -> Vec<Durable> {
    let disk = DiskSpec { index: DiskIndex(0), name: "root".parse().unwrap(), size_bytes: 4096 };
    let changes = [
        Change::EpochBegin(EpochBegin { epoch: Epoch(1), disks: vec![disk] }),
        Change::CatchUpBegin(CatchUp::InitialReplication),
        Change::CatchUpEnd,
        Change::Bookmark(Bookmark {
            id: BookmarkId([1; 16]),
            kind: BookmarkKind::CrashConsistent,
            time: Timestamp(1),
            name: String::new(),
        }),
    ];
    let key = MachineKey::of(machine);
    let records = (1..).map(Sequence).zip(changes);
    let records = records.map(|(sequence, change)| Record { sequence, change });
    records.map(|record| Durable::never_written(key, record)).collect()
}

fn found(machine: &MachineId) -> (Vec<Durable>, Kept) {
    let records = kept(machine);
    let mut found = Kept::default();
    let survived =
        |record: &Durable| Survivor { record: record.clone(), generation: Generation(1) };
    found.add(records.iter().map(survived).collect());
    (records, found)
}

impl Site {
    async fn published(&self, machine: &MachineId, through: u64) {
        let metrics = self.metrics.machine(machine);
        let mut steps = 0..100_000;
        let published = || metrics.watermarks().published >= Sequence(through);
        while !published() {
            steps.next().expect("it comes to an end");
            self.clock.advance(Duration::from_secs(1)).await;
            self.settles(published).await;
        }
    }

    /// Until nobody holds them any more.
    async fn let_go(&self, records: &[Durable]) {
        let mut steps = 0..100_000;
        while records.iter().any(|record| record.holders() > 1) {
            steps.next().expect("it comes to an end");
            self.settle().await;
        }
    }
}

#[tokio::test]
async fn kept_records_are_published_when_nobody_else_had_the_machine() {
    let machine = id("web");
    let (records, found) = found(&machine);
    let site = Site::new(found).await;
    let document = site.enroll(&machine).await;
    site.owned_by("ps-1", &document).await;
    assert_eq!(site.registry.look_after_kept().await.unwrap(), Left::Nothing);
    assert_eq!(site.metrics.machine(&machine).watermarks().durable, Sequence(4));
    site.published(&machine, 4).await;
    site.let_go(&records).await;
    assert_eq!(site.registry.look_after_kept().await.unwrap(), Left::Nothing);
}

/// The agent may be gone for good: what it did not send to the other server is held as long.
#[tokio::test]
async fn kept_records_are_held_until_another_server_has_published_them() {
    let machine = id("web");
    let (records, ours) = found(&machine);
    let site = Site::new(ours).await;
    let document = site.enroll(&machine).await;
    site.owned_by("ps-2", &document).await;
    for _ in 0..3 {
        assert_eq!(site.registry.look_after_kept().await.unwrap(), Left::Held);
    }
    assert_eq!(site.metrics.scale.held_records.load(Ordering::Relaxed), 4);
    assert!(records.iter().all(|record| record.holders() > 1), "their segment may be recycled");
    assert!(site.registry.served(&machine).is_none(), "nothing is taken from the other");
    let (_, theirs) = found(&machine);
    let other = site.beside("ps-2", theirs).await;
    assert_eq!(other.registry.look_after_kept().await.unwrap(), Left::Nothing);
    other.published(&machine, 4).await;
    assert_eq!(site.registry.look_after_kept().await.unwrap(), Left::Nothing);
    site.let_go(&records).await;
    assert_eq!(site.metrics.scale.held_records.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_machine_that_cannot_be_read_keeps_no_others_records() {
    let (damaged, web) = (id("a-damaged"), id("web"));
    let mut found = Kept::default();
    for machine in [&damaged, &web] {
        let survived = |record| Survivor { record, generation: Generation(1) };
        found.add(kept(machine).into_iter().map(survived).collect());
    }
    let site = Site::new(found).await;
    for machine in [&damaged, &web] {
        site.enroll(machine).await;
    }
    let (name, body) = (names::machine_document(&damaged), Bytes::from_static(b"damaged"));
    site.faulty.put(&name, body, Condition::Always).await.unwrap();
    let left = site.registry.look_after_kept().await.unwrap();
    assert_eq!(left, Left::Waiting, "one of them waits");
    assert!(site.registry.served(&web).is_some());
    assert!(site.registry.served(&damaged).is_none());
}

#[tokio::test]
async fn so_many_looks_at_once_and_one_that_is_stuck_ends() {
    let mut found = Kept::default();
    let names: Vec<_> = (0..=LOOKS_MAX).map(|number| id(&format!("m-{number}"))).collect();
    for machine in &names {
        let survived = |record| Survivor { record, generation: Generation(1) };
        found.add(kept(machine).into_iter().map(survived).collect());
    }
    let site = Site::new(found).await;
    for machine in &names {
        site.enroll(machine).await;
    }
    let _gate = site.hold_claims();
    let registry = Arc::clone(&site.registry);
    let looking = tokio::spawn(async move { registry.look_after_kept().await });
    site.settle().await;
    assert_eq!(site.reads(), LOOKS_MAX as u64);
    site.clock.advance(LOOK_MAX).await;
    assert_eq!(site.reads(), LOOKS_MAX as u64 + 1, "the last one has its turn");
    site.clock.advance(LOOK_MAX).await;
    assert!(looking.is_finished(), "a look ends whatever the store does");
    assert_eq!(looking.await.unwrap().unwrap(), Left::Waiting);
}

#[tokio::test]
async fn looks_at_all_of_them_are_a_second_apart_however_often_records_are_added() {
    let machine = id("web");
    let (_, ours) = found(&machine);
    let site = Site::new(ours).await;
    let document = site.enroll(&machine).await;
    site.owned_by("ps-2", &document).await;
    let before = site.reads();
    let keeping = tokio::spawn(Arc::clone(&site.registry).keep());
    for _ in 0..9 {
        site.registry.kept_changed.notify_one();
        site.clock.advance(Duration::from_millis(100)).await;
    }
    assert_eq!(site.reads() - before, 1);
    site.clock.advance(Duration::from_millis(100)).await;
    assert_eq!(site.reads() - before, 2, "then what was added is looked at");
    site.drain.send_replace(true);
    keeping.await.unwrap();
}

#[tokio::test]
async fn records_of_a_machine_that_is_not_enrolled_are_counted() {
    let (_, found) = found(&id("gone"));
    let site = Site::new(found).await;
    assert_eq!(site.registry.look_after_kept().await.unwrap(), Left::Held);
    assert_eq!(site.metrics.scale.held_unenrolled.load(Ordering::Relaxed), 1);
    assert_eq!(site.metrics.scale.held_records.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn so_many_claims_at_once_and_a_stuck_one_counts_for_a_while_only() {
    let site = Site::new(Kept::default()).await;
    let gate = site.hold_claims();
    let mut openers = Vec::new();
    for number in 0..u64::from(CLAIMS_MAX) + 40 {
        let document = site.enroll(&id(&format!("m-{number}"))).await;
        openers.push(site.opener(&document));
    }
    let late = site.enroll(&id("late")).await;
    let registry = Arc::clone(&site.registry);
    let late = tokio::spawn(async move { registry.open(&late.machine, &CERTIFICATE).await });
    site.settle().await;
    assert_eq!(site.reads(), u64::from(CLAIMS_MAX));
    site.clock.advance(CLAIM_COUNTS_MAX - Duration::from_millis(1)).await;
    assert_eq!(site.reads(), u64::from(CLAIMS_MAX));
    site.clock.advance(Duration::from_millis(1)).await;
    assert_eq!(site.reads(), u64::from(CLAIMS_MAX) + 41, "nobody is kept out by who is stuck");
    site.clock.advance(OPEN_MAX - CLAIM_COUNTS_MAX).await;
    let told = late.await.unwrap().unwrap_err();
    assert!(matches!(told, OpenError::Late { .. }), "its wait for a turn counts: {told}");
    gate.open();
    for opener in openers {
        opener.await.unwrap().unwrap();
    }
}

/// Neither one that waits for its turn nor one that waits for the store: the machine's next owner may
/// have it already.
#[tokio::test]
async fn a_claim_that_is_not_made_when_the_server_drains_takes_no_machine() {
    let site = Site::new(Kept::default()).await;
    let gate = site.hold_claims();
    let mut openers = Vec::new();
    for number in 0..=CLAIMS_MAX {
        let document = site.enroll(&id(&format!("m-{number}"))).await;
        openers.push(site.opener(&document));
        site.settle().await;
    }
    site.drain.send_replace(true);
    site.settle().await;
    gate.open();
    for opener in openers {
        assert!(matches!(opener.await.unwrap(), Err(OpenError::NotOwner { .. })));
    }
    assert_eq!(site.claims(), 0);
}

#[path = "full_log_tests.rs"]
mod full_log;
#[path = "ownership_tests.rs"]
mod ownership;
