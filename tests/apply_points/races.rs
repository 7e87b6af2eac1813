//! Two appliers, an applier and a recovery, an applier and its own late requests: in the one order
//! in which each pair once went wrong. Gates in the store make the order, no clock does.

use std::sync::Arc;

use holdfast::clock::{Clock, System};
use holdfast::control::{ControlError, Sources};
use holdfast::model::BookmarkId;
use holdfast::recover::{DiskReader, Pin, PointSpec, RecoverError, ResolvedPoint};
use holdfast::store::faulty::{Fault, Gate, Op, Rule};
use holdfast::store::{Class, LeaseId, PageGuard, Store};
use holdfast::upload::{Cut, truncate};
use holdfast::vault::Policy;

use super::site::{DISK_BYTES, Site, at_round, machine, policy, rounds, seed_disk, specs};

/// A different id for each bookmark.
pub(crate) fn distinct(round: u8) -> [u8; 16] {
    [round + 1; 16]
}

/// Keeps the last minutes and thins hard.
fn short() -> Policy {
    Policy { snapshot_interval_s: 1, journal_window_s: 100, ladder: Vec::new(), ..policy() }
}

/// Snapshots at rounds 0, 3, 6, …; the log holds the bookmarks between.
fn sparse() -> Policy {
    Policy { snapshot_interval_s: 180, ..short() }
}

/// Runs `first` until `gate` holds something (or it ends by itself), then `then`, then opens.
pub(crate) async fn meanwhile<T>(
    first: impl Future<Output = T>,
    gate: &Gate,
    then: impl Future,
) -> T {
    let mut first = std::pin::pin!(first);
    tokio::select! {
        biased;
        ended = &mut first => return ended,
        () = gate.arrived(1) => {}
    }
    then.await;
    gate.open();
    first.await
}

#[tokio::test]
async fn a_stale_applier_deletes_no_snapshot_of_a_newer_one() {
    let site = Site::of(rounds(3, distinct)).await;
    let manifest = site.manifest().await;
    let mut older = site.applier().await.unwrap();
    older.step(&manifest, &policy()).await.unwrap();
    let gate = Gate::new();
    site.faulty.add(Rule::on(Op::ListSnapshots, Fault::Hold(gate.clone())).times(1));
    let others = async {
        let mut newer = site.applier().await.unwrap();
        site.apply_all(&mut newer, &policy()).await;
    };
    let everything = Policy::default();
    let retained = meanwhile(older.retain(&manifest, &everything), &gate, others).await;
    assert_eq!(retained.unwrap_err().class(), Class::Fence);
    assert_eq!(site.check().await, 3);
}

#[tokio::test]
async fn a_newer_applier_builds_on_no_snapshot_that_a_stale_one_may_delete() {
    let site = Site::of(rounds(2, distinct)).await;
    let manifest = site.manifest().await;
    let mut older = site.applier().await.unwrap();
    older.step(&manifest, &policy()).await.unwrap();
    // The second snapshot is made and cannot be recorded: no point names it.
    site.faulty.add(Rule::on(Op::Put, Fault::Unreachable).named("/points").after(1).times(1));
    assert_eq!(older.step(&manifest, &policy()).await.unwrap_err().class(), Class::Retry);
    let gate = Gate::new();
    site.faulty.add(Rule::on(Op::DeleteSnapshot, Fault::Hold(gate.clone())).times(1));
    let others = async {
        let mut newer = site.applier().await.unwrap();
        site.apply_all(&mut newer, &policy()).await;
    };
    let _stale = meanwhile(older.retain(&manifest, &Policy::default()), &gate, others).await;
    assert!(site.faulty.calls(Op::DeleteSnapshot, "") >= 1, "the stale one had begun");
    assert_eq!(site.check().await, 2);
}

#[tokio::test]
async fn snapshots_are_deleted_only_after_the_document_was_written_again() {
    let site = Site::of(rounds(2, distinct)).await;
    let manifest = site.manifest().await;
    let mut applier = site.applier().await.unwrap();
    applier.step(&manifest, &policy()).await.unwrap();
    let record = || Rule::on(Op::Put, Fault::Unreachable).named("/points");
    site.faulty.add(record().after(1).times(1));
    assert!(applier.step(&manifest, &policy()).await.is_err());
    // The record that failed may still be on its way; only another write makes it fail for sure.
    site.faulty.add(record().times(1));
    assert!(applier.retain(&manifest, &Policy::default()).await.is_err());
    assert_eq!(site.faulty.calls(Op::DeleteSnapshot, ""), 0);
    applier.retain(&manifest, &Policy::default()).await.unwrap();
    assert_eq!(site.faulty.calls(Op::DeleteSnapshot, ""), 2);
    site.apply_all(&mut applier, &policy()).await;
    assert_eq!(site.check().await, 2);
}

/// From then on the same id is one disk's leftover and another disk's point.
#[tokio::test]
async fn a_crash_between_the_snapshots_of_two_disks_leaves_nothing() {
    let site = Site::of(rounds(3, distinct)).await;
    let manifest = site.manifest().await;
    let mut older = site.applier().await.unwrap();
    older.step(&manifest, &policy()).await.unwrap();
    site.faulty.add(Rule::on(Op::Snapshot, Fault::Unreachable).after(1).times(1));
    assert!(older.step(&manifest, &policy()).await.is_err());
    let mut newer = site.applier().await.unwrap();
    site.apply_all(&mut newer, &policy()).await;
    newer.retain(&manifest, &Policy::default()).await.unwrap();
    for disk in 0..specs().len() {
        let there = site.faulty.list_snapshots(&seed_disk(disk)).await.unwrap();
        assert_eq!(there.len(), 3, "disk {disk}: {there:?}");
    }
    assert_eq!(site.check().await, 3);
}

#[tokio::test]
async fn two_bookmarks_of_one_id_are_two_points() {
    let site = Site::of(rounds(4, |_| [9; 16])).await;
    let mut applier = site.applier().await.unwrap();
    site.apply_all(&mut applier, &policy()).await;
    assert_eq!(site.check().await, 4);
}

#[tokio::test]
async fn a_failed_run_waits_for_its_page_writes() {
    let site = Site::of(rounds(1, distinct)).await;
    let manifest = site.manifest().await;
    let mut applier = site.applier().await.unwrap();
    // The first page write of each disk is its footer.
    let gate = Gate::new();
    let on = |fault, part| Rule::on(Op::WritePages, fault).named(part).after(1).times(1);
    site.faulty.add(on(Fault::Hold(gate.clone()), "-root-"));
    site.faulty.add(on(Fault::Unreachable, "-data-"));
    let failed = meanwhile(applier.step(&manifest, &policy()), &gate, async {}).await;
    assert_eq!(failed.unwrap_err().class(), Class::Retry);
    let root = site.faulty.read_pages(&seed_disk(0), None, 0, DISK_BYTES).await.unwrap();
    assert!(root == site.at[&at_round(0)][0], "the other disk's write ended before the run did");
}

#[tokio::test]
async fn what_a_failed_or_abandoned_run_left_on_its_way_is_refused() {
    for abandoned in [false, true] {
        let site = Site::of(rounds(2, distinct)).await;
        let manifest = site.manifest().await;
        let mut applier = site.applier().await.unwrap();
        let gate = Gate::new();
        let fault = if abandoned { Fault::Hold(gate.clone()) } else { Fault::RequestLost };
        site.faulty.add(Rule::on(Op::WritePages, fault).named("-root-").after(1).times(1));
        let usual = policy();
        tokio::select! {
            biased;
            failed = applier.step(&manifest, &usual) => assert!(failed.is_err()),
            () = gate.arrived(1) => {}
        }
        site.apply_all(&mut applier, &policy()).await;
        let generation = site.points().await.applier_generation;
        let drawn = site.drawn.0.lock().unwrap().clone();
        let leases = drawn.into_iter().filter_map(|bytes| bytes.try_into().ok());
        let (mut refused, mut taken) = (0, 0);
        for lease in leases {
            let guard = PageGuard { lease: LeaseId(lease), sequence_number: generation };
            match site.faulty.flush_pages(&seed_disk(0), &guard).await {
                Ok(()) => taken += 1,
                Err(_) => refused += 1,
            }
        }
        assert_eq!(taken, 1, "one lease holds the disk");
        assert!(refused >= 1, "the lease of the run that was given up is another");
        assert_eq!(site.check().await, 2);
    }
}

async fn pin(site: &Site, round: u8) -> Result<(ResolvedPoint, Pin), RecoverError> {
    let recovery = site.recovery().await;
    let spec: PointSpec = format!("seq:{}", at_round(round)).parse().unwrap();
    let clock: Arc<dyn Clock> = Arc::clone(&site.clock) as _;
    Pin::take(&recovery, &spec, &clock, &System).await
}

/// Both disks at a point, through what was resolved.
async fn read(site: &Site, point: &ResolvedPoint) -> Result<(), RecoverError> {
    let recovery = site.recovery().await;
    for (index, spec) in specs().iter().enumerate() {
        let reader = DiskReader::open(&recovery, point, &spec.name, 1 << 20).await?;
        let content = reader.read(0, DISK_BYTES).await?;
        assert!(
            content == site.at[&point.sequence.0][index],
            "{} at {}",
            spec.name,
            point.sequence
        );
    }
    Ok(())
}

async fn cut(site: &Site, decision: holdfast::apply::retention::Decision) {
    let generation = site.manifest().await.generation;
    let (through, epochs_from) = (decision.truncate_through, decision.epochs_from);
    let cut = Cut { generation, through, epochs_from };
    truncate(&site.upload_context(), cut).await.unwrap();
}

#[tokio::test]
async fn a_point_that_is_pinned_while_retention_decides_is_kept() {
    let site = Site::of(rounds(9, distinct)).await;
    let manifest = site.manifest().await;
    let mut applier = site.applier().await.unwrap();
    site.apply_all(&mut applier, &sparse()).await;
    let gate = Gate::new();
    site.faulty.add(Rule::on(Op::Put, Fault::Hold(gate.clone())).named("/points").times(1));
    let mut pinned = None;
    let others = async { pinned = Some(pin(&site, 4).await.unwrap()) };
    let decision = meanwhile(applier.retain(&manifest, &short()), &gate, others).await.unwrap();
    cut(&site, decision).await;
    let (point, pin) = pinned.expect("retention writes the points document");
    read(&site, &point).await.unwrap();
    pin.release().await;
    // And once it has been let go, it goes.
    let decision = applier.retain(&manifest, &short()).await.unwrap();
    cut(&site, decision).await;
    assert!(read(&site, &point).await.is_err());
}

#[tokio::test]
async fn nothing_is_pinned_onto_what_retention_has_given_up_but_not_yet_removed() {
    let site = Site::of(rounds(9, distinct)).await;
    let manifest = site.manifest().await;
    let mut applier = site.applier().await.unwrap();
    site.apply_all(&mut applier, &sparse()).await;
    // Every snapshot stays; the log before the window's base goes.
    let ladder = Policy::default().ladder;
    let keep_all = Policy { journal_window_s: 250, ladder, ..sparse() };
    let decision = applier.retain(&manifest, &keep_all).await.unwrap();
    assert_eq!(decision.truncate_through.0, at_round(3));
    for round in [1, 2] {
        let error = pin(&site, round).await.unwrap_err();
        assert!(matches!(error, RecoverError::NotAPoint { .. }), "{error}");
    }
    let mut held = Vec::new();
    for round in [0, 3, 4, 8] {
        held.push(pin(&site, round).await.unwrap());
    }
    cut(&site, decision).await;
    for (point, pin) in held {
        read(&site, &point).await.unwrap();
        pin.release().await;
    }
}

#[tokio::test]
async fn a_point_that_retention_gives_up_meanwhile_is_not_said_to_be_pinned() {
    let site = Site::of(rounds(9, distinct)).await;
    let manifest = site.manifest().await;
    let mut applier = site.applier().await.unwrap();
    site.apply_all(&mut applier, &sparse()).await;
    let sources = Sources { vault: site.vault.clone(), kek: Arc::clone(&site.key) };
    let gate = Gate::new();
    site.faulty.add(Rule::on(Op::Put, Fault::Hold(gate.clone())).named("/points").times(1));
    // Round 1 stands in the log alone, on the snapshot of round 0.
    let id = BookmarkId(distinct(1)).to_string();
    let machine = machine();
    let keeping = sources.keep_point(&machine, &id, true);
    let mut decided = None;
    let others = async { decided = Some(applier.retain(&manifest, &short()).await.unwrap()) };
    let kept = meanwhile(keeping, &gate, others).await;
    assert!(decided.is_some_and(|decision| decision.truncate_through.0 >= at_round(1)));
    assert!(matches!(kept, Err(ControlError::UnknownPoint { .. })), "{kept:?}");
    assert!(site.points().await.pinned.is_empty(), "no pin is left of it");
    // One that is still there is kept, and let go.
    let id = BookmarkId(distinct(7)).to_string();
    sources.keep_point(&machine, &id, true).await.unwrap();
    assert_eq!(site.points().await.pinned, [id.as_str()]);
    sources.keep_point(&machine, &id, false).await.unwrap();
    assert!(site.points().await.pinned.is_empty());
}
