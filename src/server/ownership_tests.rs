//! Several process servers on one store: rows A to H, fencing, moves.

use super::*;
use crate::ingest::LastWord;
use crate::server::handover::HandoverError;
use crate::server::peers::Found;
use crate::vault::ServerDocument;

impl Site {
    /// It renews its lease and looks at the others from now on.
    async fn watch(&self) -> watch::Sender<bool> {
        let stop = watch::Sender::new(false);
        let (peers, stopped) = (Arc::clone(&self.registry.shared().peers), stop.subscribe());
        tokio::spawn(async move { peers.run(stopped).await });
        self.settle().await;
        stop
    }

    async fn open(&self, machine: &MachineId) -> Result<Arc<MachineLink>, OpenError> {
        self.registry.open(machine, &CERTIFICATE).await
    }

    async fn opens(&self, machine: &MachineId) -> Arc<MachineLink> {
        let opened = self.open(machine).await;
        opened.unwrap_or_else(|why| panic!("{} does not serve {machine}: {why}", self.server))
    }

    /// The server that it sends the agent to.
    async fn sends(&self, machine: &MachineId) -> String {
        match self.open(machine).await {
            Err(OpenError::Elsewhere { addresses, .. }) => {
                addresses[0].trim_end_matches(":9443").to_owned()
            }
            Err(other) => panic!("{}: {other}", self.server),
            Ok(_) => panic!("{} serves {machine} itself", self.server),
        }
    }

    async fn manifest(&self, machine: &MachineId) -> Manifest {
        let shared = self.registry.shared();
        let document = shared.vault.machine(machine).await.unwrap().unwrap();
        let keys = KeyRing::unwrap(&shared.kek, &document).unwrap();
        let context = shared.upload_context(machine, keys);
        upload::look(&context).await.unwrap().unwrap().manifest
    }

    async fn owner(&self, machine: &MachineId) -> (String, u64) {
        let manifest = self.manifest(machine).await;
        (manifest.owner.to_string(), manifest.generation.0)
    }

    fn cut_off(&self, server: &str) {
        self.network.down.lock().unwrap().insert(format!("{server}:9443"));
    }

    async fn back(&self, server: &str) {
        self.network.down.lock().unwrap().remove(&format!("{server}:9443"));
        self.clock.advance(Duration::from_secs(3)).await; // it is dialled again
    }

    /// A move, while time passes.
    /// Until the pipeline has found out that it was fenced.
    async fn stops_serving(&self, machine: &MachineId) {
        let mut steps = 0..100_000;
        while self.registry.served(machine).is_some() {
            steps.next().expect("it comes to an end");
            self.clock.advance(Duration::from_millis(100)).await;
        }
    }

    async fn moves(&self, machine: &MachineId, to: &str) -> Result<(), HandoverError> {
        let document = self.registry.shared().peers.target(&to.parse().unwrap()).await.unwrap();
        self.moves_to(machine, document).await
    }

    async fn moves_to(&self, machine: &MachineId, to: ServerDocument) -> Result<(), HandoverError> {
        let (registry, machine) = (Arc::clone(&self.registry), machine.clone());
        let moving = tokio::spawn(async move { registry.hand_over(&machine, to).await });
        let mut steps = 0..100;
        while !moving.is_finished() {
            steps.next().expect("it comes to an end");
            self.settles(|| moving.is_finished()).await;
            self.clock.advance(Duration::from_secs(1)).await;
        }
        moving.await.unwrap()
    }

    fn counted(&self, counter: impl Fn(&crate::observe::ScaleMetrics) -> &AtomicU64) -> u64 {
        counter(&self.metrics.scale).load(Ordering::Relaxed)
    }
}

async fn two() -> (Site, Site, MachineId) {
    let first = Site::new(Kept::default()).await;
    let second = first.beside("ps-2", Kept::default()).await;
    let machine = id("web");
    first.enroll(&machine).await;
    (first, second, machine)
}

#[tokio::test]
async fn an_agent_is_sent_to_the_server_that_serves_its_machine() {
    let (first, second, machine) = two().await;
    first.opens(&machine).await;
    assert_eq!(second.sends(&machine).await, "ps-1");
    assert_eq!(first.owner(&machine).await, ("ps-1".to_owned(), 1));
    first.opens(&machine).await;
    assert_eq!(first.owner(&machine).await, ("ps-1".to_owned(), 1), "claimed once");
}

#[tokio::test]
async fn a_server_that_does_not_answer_loses_its_machine_at_once_and_can_have_it_again() {
    let (first, second, machine) = two().await;
    let link = first.opens(&machine).await;
    first.cut_off("ps-1");
    let theirs = second.opens(&machine).await;
    assert_eq!(second.owner(&machine).await, ("ps-2".to_owned(), 2));
    assert_eq!(second.counted(|scale| &scale.takeovers), 1);
    // It was only cut off. Its link is of an ownership that is over: nobody is welcomed by it.
    first.back("ps-1").await;
    assert_eq!(first.sends(&machine).await, "ps-2");
    assert!(link.has_ended() && !theirs.has_ended());
    assert!(first.registry.served(&machine).is_none());
    // The same process takes it back.
    first.cut_off("ps-2");
    first.opens(&machine).await;
    assert_eq!(first.owner(&machine).await, ("ps-1".to_owned(), 3));
    first.back("ps-2").await;
    assert_eq!(second.sends(&machine).await, "ps-1");
}

#[tokio::test]
async fn of_two_that_take_over_at_once_one_does() {
    let (first, second, machine) = two().await;
    let third = first.beside("ps-3", Kept::default()).await;
    first.opens(&machine).await;
    first.cut_off("ps-1");
    // Both have looked and decided, and neither has written.
    let gate = Gate::new();
    first.faulty.add(Rule::on(Op::Put, Fault::Hold(gate.clone())).named("/manifest"));
    let open = |site: &Site| {
        let (registry, machine) = (Arc::clone(&site.registry), machine.clone());
        tokio::spawn(async move { registry.open(&machine, &CERTIFICATE).await })
    };
    let both = [open(&second), open(&third)];
    gate.arrived(2).await;
    gate.open();
    let mut steps = 0..1000;
    while !both.iter().all(tokio::task::JoinHandle::is_finished) {
        steps.next().expect("it comes to an end");
        first.clock.advance(Duration::from_millis(100)).await; // who lost looks again
    }
    let mut served = 0;
    for opened in both {
        match opened.await.unwrap() {
            Ok(_) => served += 1,
            Err(OpenError::Elsewhere { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(served, 1);
    assert_eq!(first.manifest(&machine).await.generation, Generation(2));
    assert_eq!(second.counted(|s| &s.takeovers) + third.counted(|s| &s.takeovers), 1);
}

#[tokio::test]
async fn a_lease_that_ran_out_is_believed_by_who_saw_the_store_meanwhile() {
    let (first, second, machine) = two().await;
    first.opens(&machine).await;
    first.clock.advance(Duration::from_secs(20)).await; // nobody renews
    let owner = "ps-1".parse().unwrap();
    let peers = &second.registry.shared().peers;
    assert!(matches!(peers.find(&owner).await.unwrap(), Found::Well(_)), "row F: it answers");
    let _watching = second.watch().await;
    first.clock.advance(Duration::from_secs(16)).await;
    assert!(matches!(peers.find(&owner).await.unwrap(), Found::Gone(_)), "row E");
    second.opens(&machine).await;
    let unknown = "ps-9".parse().unwrap();
    assert!(matches!(peers.find(&unknown).await.unwrap(), Found::Gone(_)), "row G");
}

#[tokio::test]
async fn an_agent_that_comes_again_and_again_is_asked_for() {
    let (first, second, machine) = two().await;
    first.opens(&machine).await;
    let asked = || first.network.asked.lock().unwrap().clone();
    for _ in 0..2 {
        assert_eq!(second.sends(&machine).await, "ps-1");
        second.settle().await;
    }
    assert!(asked().is_empty());
    assert_eq!(second.sends(&machine).await, "ps-1", "never do both serve");
    second.settle().await;
    let expected = (machine.clone(), "ps-1:9443".to_owned(), "ps-2".parse().unwrap());
    assert_eq!(asked(), [expected]);
    second.clock.advance(Duration::from_secs(61)).await;
    second.sends(&machine).await;
    second.settle().await;
    assert_eq!(asked().len(), 1, "counted from the beginning");
}

#[tokio::test]
async fn a_machine_is_given_up_in_good_order() {
    let (first, second, machine) = two().await;
    let link = first.opens(&machine).await;
    let _watching = first.watch().await;
    let to = first.registry.shared().peers.target(&"ps-2".parse().unwrap()).await.unwrap();
    let shown =
        |site: &Site| crate::observe::ServerFacts::of(&site.metrics, Timestamp(0)).machines.len();
    assert_eq!((shown(&first), shown(&second)), (1, 0));
    first.registry.hand_over(&machine, to).await.unwrap();
    assert_eq!((shown(&first), shown(&second)), (0, 0));
    assert_eq!(first.owner(&machine).await, ("ps-2".to_owned(), 2));
    let LastWord::Redirect(redirect) = link.last_word().await else { panic!("no redirect") };
    assert_eq!(redirect.addresses, ["ps-2:9443"]);
    assert_eq!(first.sends(&machine).await, "ps-2");
    second.opens(&machine).await;
    assert_eq!(first.owner(&machine).await, ("ps-2".to_owned(), 3));
    assert_eq!((first.counted(|s| &s.moves), first.counted(|s| &s.machines_served)), (1, 0));
}

/// Records that came before the door was closed are published first.
#[tokio::test]
async fn what_was_admitted_before_a_move_is_published_by_who_admitted_it() {
    let machine = id("web");
    let (records, ours) = found(&machine);
    let first = Site::new(ours).await;
    let _second = first.beside("ps-2", Kept::default()).await;
    let document = first.enroll(&machine).await;
    first.owned_by("ps-1", &document).await;
    first.opens(&machine).await;
    first.moves(&machine, "ps-2").await.unwrap();
    let manifest = first.manifest(&machine).await;
    assert_eq!((manifest.published, manifest.owner.as_str()), (Sequence(4), "ps-2"));
    first.let_go(&records).await;
}

/// They may be the only copies, and nobody stands at the door who has them himself.
#[tokio::test]
async fn a_move_gives_no_held_records_up() {
    let machine = id("web");
    let (records, ours) = found(&machine);
    let first = Site::new(ours).await;
    let _second = first.beside("ps-2", Kept::default()).await;
    let document = first.enroll(&machine).await;
    for owner in ["ps-1", "ps-2", "ps-1"] {
        first.owned_by(owner, &document).await;
    }
    let refused = first.moves(&machine, "ps-2").await.unwrap_err();
    assert!(matches!(refused, HandoverError::Held { .. }), "{refused}");
    assert_eq!(first.owner(&machine).await, ("ps-1".to_owned(), 3));
    assert!(records.iter().all(|record| record.holders() > 1));
    assert_eq!(first.registry.look_after_kept().await.unwrap(), Left::Held);
    first.opens(&machine).await; // K2
    first.moves(&machine, "ps-2").await.unwrap();
}

/// Its owner's cache log may hold the only copies.
#[tokio::test]
async fn a_move_takes_no_machine_from_an_owner_that_is_gone() {
    let (first, _second, machine) = two().await;
    let document = first.registry.shared().vault.machine(&machine).await.unwrap().unwrap();
    let nobodys = first.moves(&machine, "ps-2").await.unwrap_err();
    assert!(matches!(nobodys, HandoverError::NotOwner { owner: None, .. }), "{nobodys}");
    first.owned_by("ps-9", &document).await;
    let refused = first.moves(&machine, "ps-2").await.unwrap_err();
    assert!(matches!(refused, HandoverError::NotOwner { owner: Some(_), .. }), "{refused}");
    assert_eq!(first.owner(&machine).await, ("ps-9".to_owned(), 1));
}

/// A machine whose agent was sent on is not one of this server's.
#[tokio::test]
async fn a_server_that_drains_takes_no_machine_from_an_owner_that_is_gone() {
    let (first, second, machine) = two().await;
    let _third = first.beside("ps-3", Kept::default()).await;
    second.opens(&machine).await;
    let _watching = first.watch().await;
    assert_eq!(first.sends(&machine).await, "ps-2");
    assert!(first.registry.claims().is_empty(), "a claim that failed is nothing to keep");
    first.cut_off("ps-2");
    first.registry.shared().peers.leave().await;
    first.registry.hand_over_all().await;
    assert_eq!(first.owner(&machine).await, ("ps-2".to_owned(), 1));
}

#[tokio::test]
async fn a_takeover_is_decided_anew_when_the_manifest_changed() {
    let machine = id("web");
    let first = Site::new(Kept::default()).await;
    let second = first.beside("ps-2", Kept::default()).await;
    first.enroll(&machine).await;
    first.opens(&machine).await;
    first.cut_off("ps-1");
    let gate = Gate::new();
    let held = Rule::on(Op::Put, Fault::Hold(gate.clone())).named("/manifest").times(1);
    first.faulty.add(held);
    let (registry, asked) = (Arc::clone(&second.registry), machine.clone());
    let opened = tokio::spawn(async move { registry.open(&asked, &CERTIFICATE).await });
    gate.arrived(1).await;
    // Decided, not written: the owner is there again, and publishes.
    first.back("ps-1").await;
    first.registry.routes().durable(kept(&machine));
    first.published(&machine, 4).await;
    gate.open();
    first.clock.advance(Duration::from_secs(1)).await;
    let opened = opened.await.unwrap();
    assert!(matches!(opened, Err(OpenError::Elsewhere { .. })), "taken on an old decision");
    assert_eq!(first.owner(&machine).await, ("ps-1".to_owned(), 1));
}

/// An agent that cannot write waits for the store: the door is closed only for what is soon published.
#[tokio::test]
async fn a_machine_whose_uploads_are_behind_is_not_given_up() {
    let machine = id("web");
    let (_records, ours) = found(&machine);
    let first = Site::new(ours).await;
    let _second = first.beside("ps-2", Kept::default()).await;
    let document = first.enroll(&machine).await;
    first.owned_by("ps-1", &document).await;
    // Before it opens: what was kept may be sealed and on its way at once.
    let gate = Gate::new();
    first.faulty.add(Rule::on(Op::Put, Fault::Hold(gate.clone())).named("/log/"));
    let link = first.opens(&machine).await;
    let late = first.moves(&machine, "ps-2").await.unwrap_err();
    assert!(matches!(late, HandoverError::Late { .. }), "{late}");
    assert!(!link.has_ended(), "nothing has changed");
    assert_eq!(first.owner(&machine).await, ("ps-1".to_owned(), 2));
    gate.open();
    first.moves(&machine, "ps-2").await.unwrap();
    assert_eq!(first.owner(&machine).await, ("ps-2".to_owned(), 3));
}

#[tokio::test]
async fn a_machine_is_kept_when_its_target_died_meanwhile() {
    let (first, _second, machine) = two().await;
    first.opens(&machine).await;
    let to = first.registry.shared().peers.target(&"ps-2".parse().unwrap()).await.unwrap();
    first.cut_off("ps-2");
    let refused = first.moves_to(&machine, to).await.unwrap_err();
    assert!(matches!(refused, HandoverError::Target { .. }), "{refused}");
    assert_eq!(first.owner(&machine).await, ("ps-1".to_owned(), 1));
    assert!(!first.opens(&machine).await.has_ended(), "it is served again");
}

#[tokio::test]
async fn what_a_fenced_server_made_durable_is_held() {
    let (first, second, machine) = two().await;
    first.opens(&machine).await;
    first.cut_off("ps-1");
    second.opens(&machine).await;
    first.back("ps-1").await;
    let records = kept(&machine);
    first.registry.routes().durable(records.clone());
    first.stops_serving(&machine).await;
    assert_eq!(first.registry.kept().records(), 4);
    assert!(records.iter().all(|record| record.holders() > 1), "they may be the only copies");
    assert_eq!(first.counted(|scale| &scale.fenced), 1);
    assert_eq!(first.registry.look_after_kept().await.unwrap(), Left::Held);
    let told = crate::observe::ServerFacts::of(&first.metrics, crate::model::Timestamp(0)).held;
    assert_eq!(told, [crate::observe::HeldFacts { machine: machine.clone(), records: 4 }]);
    // The agent comes back here: it has them itself, and sends them again.
    first.cut_off("ps-2");
    first.opens(&machine).await;
    assert_eq!(first.metrics.machine(&machine).watermarks().durable, Sequence::ZERO);
    first.let_go(&records).await;
}

/// A machine of which three records are durable here when it is taken, and one waits in the queue of a log
/// that has no room but what those three take.
async fn fenced_with_a_full_log() -> (Site, Site, MachineId, Vec<Durable>) {
    let (first, second, machine) = two().await;
    let link = first.opens(&machine).await;
    link.admitted(Sequence(4)).await;
    first.cut_off("ps-1");
    second.opens(&machine).await;
    first.back("ps-1").await;
    let records = kept(&machine);
    first.registry.routes().durable(records[..3].to_vec());
    let mut steps = 0..100_000;
    while first.registry.kept().records() < 3 {
        steps.next().expect("it finds out");
        first.clock.advance(Duration::from_millis(100)).await;
    }
    assert!(first.registry.served(&machine).is_some(), "a record is on its way through the log");
    assert_eq!(first.registry.look_after_kept().await.unwrap(), Left::Held);
    assert_eq!(first.sends(&machine).await, "ps-2");
    assert!(records[..3].iter().all(|record| record.holders() > 1), "nothing is given up for that");
    (first, second, machine, records)
}

/// The other one looks gone before it has published anything, and is back before the last record is written.
#[tokio::test]
async fn a_fenced_machine_whose_log_is_full_makes_way_for_its_agent() {
    let (first, second, machine, records) = fenced_with_a_full_log().await;
    first.cut_off("ps-2");
    let (registry, asked) = (Arc::clone(&first.registry), machine.clone());
    let opening = tokio::spawn(async move { registry.open(&asked, &CERTIFICATE).await });
    first.let_go(&records[..3]).await; // K2: there is room
    assert!(!opening.is_finished(), "its last record is not written");
    let ours = first.owner(&machine).await;
    assert_eq!(ours, ("ps-1".to_owned(), 3), "before the only copies are let go");
    first.back("ps-2").await;
    assert_eq!(second.sends(&machine).await, "ps-1");
    first.registry.routes().durable(records[3..].to_vec());
    first.settles(|| opening.is_finished()).await;
    assert!(!opening.await.unwrap().unwrap().has_ended());
    assert_eq!(first.metrics.machine(&machine).watermarks().durable, Sequence::ZERO);
    assert_eq!(first.owner(&machine).await, ("ps-1".to_owned(), 4));
    first.let_go(&records).await;
}

#[tokio::test]
async fn a_fenced_machine_whose_log_is_full_gives_up_what_the_other_has_published() {
    let (first, second, machine, records) = fenced_with_a_full_log().await;
    second.registry.routes().durable(kept(&machine));
    second.published(&machine, 4).await;
    assert_eq!(first.registry.look_after_kept().await.unwrap(), Left::Nothing);
    first.let_go(&records[..3]).await;
    // What the log writes then is looked at for itself.
    first.registry.routes().durable(records[3..].to_vec());
    first.stops_serving(&machine).await;
    assert_eq!(first.registry.kept().records(), 1);
    assert_eq!(first.registry.look_after_kept().await.unwrap(), Left::Nothing);
    first.let_go(&records).await;
}

/// The manifest names both alike: only who was fenced knows that somebody else went on.
#[tokio::test]
async fn what_was_durable_when_a_process_of_the_same_name_came_is_held() {
    let first = Site::new(Kept::default()).await;
    let machine = id("web");
    let document = first.enroll(&machine).await;
    first.opens(&machine).await;
    first.owned_by("ps-1", &document).await;
    let records = kept(&machine);
    first.registry.routes().durable(records.clone());
    first.stops_serving(&machine).await;
    assert_eq!(first.registry.kept().records(), 4);
    assert_eq!(first.registry.look_after_kept().await.unwrap(), Left::Held);
    assert_eq!(first.owner(&machine).await, ("ps-1".to_owned(), 2), "nothing was taken back");
    // The agent comes here: what it has not heard to be published it has itself.
    first.opens(&machine).await;
    assert_eq!(first.metrics.machine(&machine).watermarks().durable, Sequence::ZERO);
    first.let_go(&records).await;
}

#[tokio::test]
async fn a_server_that_drains_gives_its_machines_to_the_others() {
    let (first, second, _) = two().await;
    let third = first.beside("ps-3", Kept::default()).await;
    let _watching = first.watch().await;
    let machines: Vec<_> = (0..12).map(|nth| id(&format!("m-{nth}"))).collect();
    for machine in &machines {
        let document = first.enroll(machine).await;
        first.owned_by("ps-1", &document).await;
        first.opens(machine).await;
    }
    let peers = &first.registry.shared().peers;
    peers.leave().await;
    first.registry.hand_over_all().await;
    let mut theirs = [0, 0];
    for machine in &machines {
        let (owner, _) = first.owner(machine).await;
        let site = if owner == "ps-2" { &second } else { &third };
        theirs[usize::from(owner == "ps-3")] += 1;
        assert_eq!(first.sends(machine).await, owner);
        site.opens(machine).await;
    }
    assert_eq!(theirs, [6, 6]);
    assert_eq!(first.counted(|scale| &scale.moves), 12);
    let _also = second.watch().await;
    let late = id("late");
    first.enroll(&late).await;
    assert_ne!(first.sends(&late).await, "ps-1", "nothing new is placed where one leaves");
}

#[tokio::test]
async fn a_new_machine_goes_where_the_wish_says_and_the_wished_expects_it() {
    let (first, second, machine) = two().await;
    let vault = &first.registry.shared().vault;
    assert!(vault.assign(&machine, Some(&"ps-9".parse().unwrap())).await.is_err());
    vault.assign(&machine, Some(&"ps-2".parse().unwrap())).await.unwrap();
    let _watching = first.watch().await;
    assert_eq!(first.sends(&machine).await, "ps-2");
    assert_eq!(first.owner(&machine).await, ("ps-2".to_owned(), 1));
    second.opens(&machine).await;
    vault.assign(&machine, None).await.unwrap();
    assert_eq!(vault.assignment(&machine).await.unwrap(), None);
}

/// Its lease runs on for a while.
#[tokio::test]
async fn nothing_is_placed_where_nobody_answers() {
    let (first, second, machine) = two().await;
    let vault = &first.registry.shared().vault;
    vault.assign(&machine, Some(&"ps-2".parse().unwrap())).await.unwrap();
    let _watching = first.watch().await;
    first.cut_off("ps-2");
    first.opens(&machine).await;
    assert_eq!(second.sends(&machine).await, "ps-1");
}

#[tokio::test]
async fn a_name_that_another_process_took_ends_the_server() {
    let (first, _, _) = two().await;
    let peers = Arc::clone(&first.registry.shared().peers);
    let (_going, stop) = watch::channel(false);
    let running = tokio::spawn(async move { peers.run(stop).await });
    first.settle().await;
    let vault = &first.registry.shared().vault;
    let document = vault.server(&"ps-1".parse().unwrap()).await.unwrap().unwrap();
    first.faulty.break_lease(&names::server_document(&document.server)).await.unwrap();
    vault.take_server(&document, crate::store::LeaseId([99; 16])).await.unwrap();
    first.clock.advance(Duration::from_secs(6)).await;
    let ended = running.await.unwrap().unwrap_err();
    assert!(ended.to_string().contains("another process serves as ps-1"), "{ended}");
}

/// A write of the load that is slow on its way must not tell the others that it takes machines again.
#[tokio::test]
async fn an_older_write_of_the_own_document_overtakes_no_later_one() {
    let site = Site::new(Kept::default()).await;
    let peers = Arc::clone(&site.registry.shared().peers);
    let (_stop, stopped) = watch::channel(false);
    let gate = Gate::new();
    let put = Rule::on(Op::Put, Fault::Hold(gate.clone())).named("servers/ps-1").times(1);
    site.faulty.add(put);
    let running = Arc::clone(&peers);
    let running = tokio::spawn(async move { running.run(stopped).await });
    gate.arrived(1).await;
    peers.leave().await;
    gate.open();
    site.settle().await;
    let vault = &site.registry.shared().vault;
    assert!(vault.server(&"ps-1".parse().unwrap()).await.unwrap().unwrap().leaving);
    running.abort();
    // Whoever was aborted before its write arrived cannot see to it any more: the version does.
    let server = "ps-1".parse().unwrap();
    let gate = Gate::new();
    let put = Rule::on(Op::Put, Fault::Hold(gate.clone())).named("servers/ps-1").times(1);
    site.faulty.add(put);
    let older = ServerDocument { leaving: false, ..vault.server(&server).await.unwrap().unwrap() };
    let cache = "ps-1".bytes().fold(0, u8::wrapping_add);
    let lease = crate::store::LeaseId([cache; 16]);
    let asked = std::cell::Cell::new(0);
    let first = || {
        asked.set(asked.get() + 1);
        older.clone()
    };
    let writing = vault.write_server(&server, lease, first);
    let meanwhile = async {
        gate.arrived(1).await;
        peers.leave().await;
        gate.open();
    };
    tokio::join!(async { writing.await.unwrap() }, meanwhile);
    assert_eq!(asked.get(), 2, "it found another version, and asked what to say now");
}

#[tokio::test]
async fn the_lease_is_renewed_while_another_server_cannot_be_looked_at() {
    let site = Site::new(Kept::default()).await;
    let _other = site.beside("ps-2", Kept::default()).await;
    let gate = Gate::new();
    site.faulty.add(Rule::on(Op::Properties, Fault::Hold(gate.clone())).named("servers/ps-2"));
    let (_stop, stopped) = watch::channel(false);
    let peers = Arc::clone(&site.registry.shared().peers);
    let running = tokio::spawn(async move { peers.run(stopped).await });
    site.clock.advance(Duration::from_secs(20)).await;
    let renewals = site.metrics.scale.lease_renewals.load(Ordering::Relaxed);
    assert_eq!(renewals, 5, "at 0, 5, 10, 15 and 20 s");
    running.abort();
}
