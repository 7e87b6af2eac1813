//! A site of many machines in a store that counts, under a clock that the test moves.

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::apply::Bodies;
use crate::cache::Durable;
use crate::clock::{System, random16};
use crate::cloud_log::{ENTRIES_MAX, LogStore};
use crate::format::names;
use crate::model::{
    Bookmark, BookmarkId, BookmarkKind, CatchUp, Change, DeltaId, DiskIndex, DiskSpec, Epoch,
    EpochBegin, Extent, MachineKey, Record, Sequence, Timestamp,
};
use crate::observe::ServerFacts;
use crate::seal::{Batcher, KeyRing, Lineage, StreamState, seal};
use crate::server::testing::{Hands, Network, peers, settings, uplink};
use crate::settings::{BatchSettings, SealSettings};
use crate::store::faulty::{Fault, Op, Rule};
use crate::store::{Condition, Faulty, Memory, Store};
use crate::upload::{Upload, UploadContext, claim};
use crate::vault::{MachineDocument, PointsDocument, Policy};

struct Site {
    faulty: Arc<Faulty>,
    vault: Vault,
    kek: Arc<KeyEncryptionKey>,
    clock: Arc<Hands>,
    drain: watch::Sender<bool>,
    /// Entries of a manifest before some move to a page.
    entries_max: usize,
}

/// An applier at work.
struct Running {
    news: Arc<News>,
    task: JoinHandle<()>,
}

fn id(number: usize) -> MachineId {
    format!("m-{number}").parse().unwrap()
}

impl Site {
    /// A site of `count` machines, published by `ps-1` through a first bookmark.
    async fn of(count: usize) -> Self {
        let clock = Arc::new(Hands::default());
        let memory: Arc<dyn Store> = Arc::new(Memory::new(Arc::clone(&clock) as _));
        let faulty = Arc::new(Faulty::new(memory));
        let kek = Arc::new(KeyEncryptionKey::of([7; 32].into()));
        let vault = Vault::new(Arc::clone(&faulty) as _, kek.derive("holdfast vault 1"));
        let (drain, entries_max) = (watch::Sender::new(false), ENTRIES_MAX);
        let site = Self { faulty, vault, kek, clock, drain, entries_max };
        for number in 0..count {
            let machine = id(number);
            let (_, wrapped) = site.kek.make_data_key(&machine, 1, &System, Timestamp(0));
            let document = MachineDocument {
                machine: machine.clone(),
                created: Timestamp(0),
                data_keys: vec![wrapped],
                certificates: Vec::new(),
                policy: Policy::default(),
            };
            site.vault.create_machine(&document).await.unwrap();
            site.publish(&machine, "ps-1").await;
        }
        site
    }

    /// A write and a bookmark more, as the pipeline of `server` would publish them.
    async fn publish(&self, machine: &MachineId, server: &str) -> u64 {
        let document = self.vault.machine(machine).await.unwrap().unwrap();
        let keys = KeyRing::unwrap(&self.kek, &document).unwrap();
        let key = keys.newest().clone();
        let context = UploadContext {
            log: Arc::new(LogStore::new(Arc::clone(&self.faulty) as _, machine.clone(), keys)),
            clock: Arc::clone(&self.clock) as _,
            entropy: System::entropy(),
            metrics: Arc::default(),
            uplink: uplink(&self.clock, &Arc::default()),
            block_bytes: Arc::new((1 << 20).into()),
            entries_max: self.entries_max,
        };
        let claimed = claim(&context, &server.parse().unwrap()).await.unwrap();
        let manifest = &claimed.manifest;
        let settings = BatchSettings { bytes_max: 1 << 20, age_max: Duration::from_secs(1) };
        let machine_key = MachineKey::of(machine);
        let mut batcher = Batcher::new(machine_key, StreamState::after(manifest), settings);
        let next = manifest.published.0 + 1;
        for (sequence, change) in (next..).zip(self.changes(next)) {
            let record = Record { sequence: Sequence(sequence), change };
            batcher.push(Durable::never_written(machine_key, record), Duration::ZERO).unwrap();
        }
        batcher.drain();
        let (to, mut sealed) = mpsc::channel(8);
        let mut previous = manifest.last_delta;
        while let Some(batch) = batcher.poll(Duration::ZERO) {
            let made = DeltaId(random16(&System));
            let lineage = Lineage {
                machine: machine.clone(),
                generation: manifest.generation,
                id: made,
                previous: previous.replace(made),
                created: self.clock.wall(),
            };
            let settings =
                SealSettings { threads: 1, compress: true, level: 1, frame_bytes: 64 << 10 };
            let delta = seal(batch, lineage, &key, &settings, false, &System);
            to.send(delta.unwrap_or_else(|error| panic!("{error}"))).await.unwrap();
        }
        drop(to);
        let ended = Upload::new(context, claimed).run(&mut sealed, |_| ()).await;
        ended.unwrap().manifest.published.0
    }

    fn changes(&self, next: u64) -> Vec<Change> {
        let disk = DiskIndex(0);
        let spec = DiskSpec { index: disk, name: "root".parse().unwrap(), size_bytes: 1 << 20 };
        let extent = Extent::new(next % 64 * 4096, 4096, 1 << 20).unwrap();
        let work = [
            Change::Write { disk, extent, payload: vec![next as u8; 4096].into() },
            Change::Bookmark(Bookmark {
                id: BookmarkId(random16(&System)),
                kind: BookmarkKind::CrashConsistent,
                time: self.clock.wall(),
                name: String::new(),
            }),
        ];
        let begin = [
            Change::EpochBegin(EpochBegin { epoch: Epoch(1), disks: vec![spec] }),
            Change::CatchUpBegin(CatchUp::InitialReplication),
            Change::CatchUpEnd,
        ];
        match next {
            1 => begin.into_iter().chain(work).collect(),
            _ => work.into(),
        }
    }

    /// Starts the applier of a process server, or with `None` of `holdfast apply`.
    fn start(&self, publisher: Option<&str>) -> Running {
        let news = Arc::new(News::default());
        let publisher = publisher.map(|name| name.parse().unwrap());
        let applying = Applying { publisher, ..self.applying(&news) };
        Running { news, task: tokio::spawn(Arc::new(applying).run()) }
    }

    fn applying(&self, news: &Arc<News>) -> Applying {
        Applying {
            vault: self.vault.clone(),
            kek: Arc::clone(&self.kek),
            clock: Arc::clone(&self.clock) as _,
            entropy: System::entropy(),
            metrics: Arc::default(),
            tuning: Tuning::from(settings()),
            uplink: uplink(&self.clock, &Arc::default()),
            drain: self.drain.subscribe(),
            publisher: None,
            peers: None,
            news: Arc::clone(news),
            bodies: Bodies::default(),
        }
    }

    async fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds)).await;
    }

    async fn points(&self, number: usize) -> PointsDocument {
        self.vault.points(&id(number)).await.unwrap().unwrap().0
    }

    fn requests(&self) -> u64 {
        let all = [
            Op::StageBlock,
            Op::CommitBlocks,
            Op::Put,
            Op::Read,
            Op::ReadRange,
            Op::Properties,
            Op::List,
            Op::Delete,
            Op::CreatePages,
            Op::WritePages,
            Op::FlushPages,
            Op::Snapshot,
            Op::ListSnapshots,
            Op::ReadPages,
            Op::PageRanges,
            Op::PageProperties,
            Op::DeleteSnapshot,
            Op::DeletePages,
            Op::RaiseSequenceNumber,
            Op::AcquireLease,
            Op::RenewLease,
            Op::BreakLease,
            Op::ReleaseLease,
        ];
        all.into_iter().map(|op| self.faulty.calls(op, "")).sum()
    }

    async fn end(&self, running: Running) {
        self.drain.send_replace(true);
        self.advance(1).await;
        running.task.await.unwrap();
    }
}

#[tokio::test]
async fn idle_machines_cost_almost_no_requests_and_wake_at_once() {
    const MACHINES: usize = 100;
    let site = Site::of(MACHINES).await;
    let running = site.start(Some("ps-1"));
    site.advance(600).await;
    for number in 0..MACHINES {
        assert_eq!(site.points(number).await.snapshots.len(), 1, "m-{number} was caught up");
    }
    let before = site.requests();
    site.advance(12 * 3600).await;
    let requests = site.requests() - before;
    let each = requests as f64 / (12 * MACHINES) as f64;
    assert!(each <= 3.0, "{each} requests for an idle machine an hour");
    println!("{each} requests for an idle machine an hour");

    // News of one: it is applied without any time going by, the others are not touched.
    let published = site.publish(&id(7), "ps-1").await;
    running.news.published(&id(7));
    site.advance(0).await;
    assert_eq!(site.points(7).await.applied, published);
    // More of it within the pause is gathered, and applied at its end.
    let more = site.publish(&id(7), "ps-1").await;
    running.news.published(&id(7));
    site.advance(4).await;
    assert_eq!(site.points(7).await.applied, published);
    site.advance(1).await;
    assert_eq!(site.points(7).await.applied, more);
    site.end(running).await;
}

#[tokio::test]
async fn alone_it_looks_less_and_less_often_and_never_stops_looking() {
    let site = Site::of(10).await;
    let running = site.start(None);
    site.advance(3600).await;
    let before = site.requests();
    site.advance(3600).await;
    let looks = (site.requests() - before) / 10;
    // A read in five minutes, the list in ten seconds, at most one tidying.
    assert!(looks <= 12 + 36 + 25, "{looks} requests for an idle machine an hour");
    let published = site.publish(&id(3), "ps-1").await;
    site.advance(300).await;
    assert_eq!(site.points(3).await.applied, published, "nobody said so");
    site.end(running).await;
}

#[tokio::test]
async fn only_who_publishes_applies_unless_he_stands_still() {
    let site = Site::of(1).await;
    let ours = site.start(Some("ps-1"));
    let other = site.start(Some("ps-2"));
    site.advance(600).await;
    let generation = site.points(0).await.applier_generation;
    for _ in 0..20 {
        site.publish(&id(0), "ps-1").await;
        ours.news.published(&id(0));
        site.advance(600).await;
    }
    // The seed disks were let go in each pause and taken again, by the same server alone.
    let points = site.points(0).await;
    assert_eq!(points.applier_generation, generation + 20);
    assert_eq!(points.applied, 5 + 20 * 2);
    // ps-2 gets the machine: it applies from then on.
    let published = site.publish(&id(0), "ps-2").await;
    other.news.published(&id(0));
    site.advance(1).await;
    assert_eq!(site.points(0).await.applied, published);
    // Nobody applies for ps-2 any more: ps-1 notices when it would tidy.
    other.task.abort();
    let published = site.publish(&id(0), "ps-2").await;
    site.advance(7 * 3600).await;
    assert_eq!(site.points(0).await.applied, published);
    site.end(ours).await;
}

#[tokio::test]
async fn a_machine_is_shown_by_its_owner_alone() {
    let site = Site::of(1).await;
    let start = |server: &str| {
        let (news, metrics) = (Arc::new(News::default()), Arc::new(Metrics::default()));
        let publisher = Some(server.parse().unwrap());
        let shown = Arc::clone(&metrics);
        let applying = Applying { publisher, metrics, ..site.applying(&news) };
        (shown, Running { news, task: tokio::spawn(Arc::new(applying).run()) })
    };
    let ((ours, one), (theirs, two)) = (start("ps-1"), start("ps-2"));
    site.advance(600).await;
    let shown = |metrics: &Metrics| {
        let machines = ServerFacts::of(metrics, Timestamp(0)).machines.into_iter();
        machines.map(|machine| (machine.ours, machine.applies)).collect::<Vec<_>>()
    };
    assert_eq!((shown(&ours), shown(&theirs)), (vec![(true, true)], vec![]));
    // It is given to the other server.
    site.publish(&id(0), "ps-2").await;
    for running in [&one, &two] {
        running.news.published(&id(0));
    }
    site.advance(60).await;
    assert_eq!((shown(&ours), shown(&theirs)), (vec![], vec![(true, true)]));
    // That one applies no more, and this one stands in for it: as an applier and no more.
    two.task.abort();
    site.publish(&id(0), "ps-2").await;
    site.advance(7 * 3600).await;
    assert_eq!(shown(&ours), [(false, true)]);
    let machine = |metrics: &Metrics| ServerFacts::of(metrics, Timestamp(0)).machines.remove(0);
    assert!(machine(&ours).snapshot_time.is_some() && machine(&ours).troubles.is_empty());
    one.task.abort();
    let stops = |points| Ok(PointsDocument { quarantine: Some("it differs".to_owned()), ..points });
    site.vault.update_points(&id(0), stops).await.unwrap();
    let (owner, three) = start("ps-2");
    site.advance(60).await;
    let quarantined = [("quarantine".to_owned(), "it differs".to_owned())];
    assert_eq!(machine(&owner).troubles, quarantined.into());
    site.end(three).await;
}

#[tokio::test]
async fn retention_still_runs_for_idle_machines() {
    let site = Site::of(1).await;
    let running = site.start(Some("ps-1"));
    for _ in 0..3 {
        site.advance(400).await;
        site.publish(&id(0), "ps-1").await;
        running.news.published(&id(0));
    }
    site.advance(400).await;
    assert_eq!(site.points(0).await.snapshots.len(), 4);
    // Without new points the old ones stay, however much time goes by.
    site.advance(3 * 86_400).await;
    assert_eq!(site.points(0).await.snapshots.len(), 4);
    // A policy that keeps less is followed, though nothing happens on the machine.
    let change = |mut document: MachineDocument| {
        document.policy.journal_window_s = 300;
        document.policy.ladder = vec![crate::vault::LadderStep { age_s: 500, every_s: 0 }];
        Ok(document)
    };
    site.vault.update_machine(&id(0), change).await.unwrap();
    site.advance(6 * 3600).await;
    assert!(site.points(0).await.snapshots.len() < 4);
    site.end(running).await;
}

#[tokio::test]
async fn what_a_killed_applier_did_not_tidy_is_tidied_by_the_next_though_all_is_applied() {
    for publisher in [Some("ps-1"), None] {
        let site = Site::of(1).await;
        let killed = site.start(publisher);
        site.advance(20).await;
        assert_eq!(site.points(0).await.applied, 5, "all of it");
        killed.task.abort();
        let tidied = || site.faulty.calls(Op::ListSnapshots, "");
        let before = tidied();
        let next = site.start(publisher);
        site.advance(25).await;
        assert_eq!(tidied(), before, "there is nothing to apply");
        site.advance(10).await;
        assert!(tidied() > before, "its predecessor may have left something");
        site.end(next).await;
    }
}

#[tokio::test]
async fn a_server_that_came_is_not_forgotten_when_the_list_cannot_be_read() {
    let site = Site::of(1).await;
    let (metrics, network) = (Arc::new(Metrics::default()), Arc::new(Network::default()));
    let at = |name: &'static str| peers(name, site.vault.clone(), &site.clock, &metrics, &network);
    let (ours, _other) = (at("ps-1").await, at("ps-2").await);
    let news = Arc::new(News::default());
    let applying = Applying { peers: Some(Arc::clone(&ours)), ..site.applying(&news) };
    let watching = tokio::spawn(async move { applying.watch_peers().await });
    site.advance(0).await;
    site.faulty.add(Rule::on(Op::List, Fault::Unreachable).named(names::MACHINE_ROLL).times(2));
    let (_stop, stopped) = watch::channel(false);
    let looking = tokio::spawn(async move { ours.run(stopped).await });
    site.advance(0).await;
    assert_eq!(site.faulty.calls(Op::List, names::MACHINE_ROLL), 1);
    site.advance(2).await;
    assert_eq!(news.next().await.again, [id(0)]);
    watching.abort();
    looking.abort();
}

#[tokio::test]
async fn a_page_that_cannot_be_read_is_said_until_it_is_put_back() {
    let mut site = Site::of(1).await;
    site.entries_max = 1;
    let (metrics, news) = (Arc::new(Metrics::default()), Arc::new(News::default()));
    let publisher = Some("ps-1".parse().unwrap());
    let applying = Applying { publisher, metrics: Arc::clone(&metrics), ..site.applying(&news) };
    let running = Running { news, task: tokio::spawn(Arc::new(applying).run()) };
    let trouble = || metrics.machine(&id(0)).apply_trouble.lock().unwrap().clone();
    let publish = async || {
        let published = site.publish(&id(0), "ps-1").await;
        running.news.published(&id(0));
        site.advance(60).await; // applied, and tidied half a minute later
        assert_eq!(site.points(0).await.applied, published);
        trouble()
    };
    assert_eq!(publish().await, None);
    let page = site.faulty.list(&names::manifest_pages(&id(0))).await.unwrap().remove(0).name;
    let (whole, _) = site.faulty.read(&page).await.unwrap();
    site.faulty.delete(&page, Condition::Always).await.unwrap();
    for n in 0..3 {
        let said = publish().await.unwrap_or_else(|| panic!("{n}: a human should know"));
        assert!(said.contains(page.as_str()) && said.contains("put the object back"), "{said}");
        metrics.forget_machine(&id(0)); // it was another server's for a while
    }
    assert!(publish().await.is_some());
    // Another one applies it, and says so itself.
    site.publish(&id(0), "ps-2").await;
    running.news.published(&id(0));
    site.advance(5).await;
    assert_eq!(trouble(), None);
    assert!(publish().await.is_some(), "it is this server's again");
    site.faulty.put(&page, whole, Condition::Absent).await.unwrap();
    assert_eq!(publish().await, None);
    site.end(running).await;
}

#[tokio::test]
async fn a_manifest_that_was_set_back_is_noticed_though_nothing_is_to_be_applied() {
    let site = Site::of(1).await;
    let (name, running) = (names::manifest(&id(0)), site.start(Some("ps-1")));
    site.advance(20).await;
    let (older, _) = site.faulty.read(&name).await.unwrap();
    site.publish(&id(0), "ps-1").await;
    running.news.published(&id(0));
    site.advance(20).await;
    site.end(running).await;
    site.drain.send_replace(false);
    site.faulty.put(&name, older, Condition::Always).await.unwrap();
    let next = site.start(Some("ps-1"));
    site.advance(20).await;
    let why = site.points(0).await.quarantine.expect("it is on record");
    assert!(why.contains("was set back: record 7 was applied"), "{why}");
    site.end(next).await;
}
