//! What an applier does when a run takes long, when its lease ends under it, and what it checks and
//! tidies between runs.

use holdfast::clock::Clock;
use holdfast::model::{DeltaId, Sequence, Timestamp};
use holdfast::store::faulty::{Fault, Gate, Op, Rule};
use holdfast::store::{Class, LeaseId, PageGuard, Store};
use holdfast::vault::{PinDocument, Policy};

use super::races::{distinct, meanwhile};
use super::site::{Site, at_round, machine, policy, rounds, seed_disk};

/// Holds the first page write of a run to the first disk; the write before it is the footer.
fn hold_a_write(site: &Site) -> Gate {
    let gate = Gate::new();
    let held = Rule::on(Op::WritePages, Fault::Hold(gate.clone()));
    site.faulty.add(held.named("-root-").after(1).times(1));
    gate
}

#[tokio::test]
async fn a_run_that_takes_longer_than_a_lease_keeps_it() {
    let site = Site::of(rounds(1, distinct)).await;
    let manifest = site.manifest().await;
    let mut applier = site.applier().await.unwrap();
    let gate = hold_a_write(&site);
    let usual = policy();
    let slowly = async {
        gate.arrived(1).await;
        for _ in 0..5 {
            site.clock.advance(25);
            for _ in 0..50 {
                tokio::task::yield_now().await; // who waited for that moment acts on it
            }
        }
        gate.open();
    };
    let (step, ()) = tokio::join!(applier.step(&manifest, &usual), slowly);
    assert!(step.unwrap().unwrap().point.is_some());
    assert_eq!(site.check().await, 1);
}

#[tokio::test]
async fn a_lease_that_nobody_else_took_is_taken_again() {
    let site = Site::of(rounds(2, distinct)).await;
    let manifest = site.manifest().await;
    let mut applier = site.applier().await.unwrap();
    let gate = hold_a_write(&site);
    let broken = async { site.faulty.break_lease(&seed_disk(0)).await.unwrap() };
    let failed = meanwhile(applier.step(&manifest, &policy()), &gate, broken).await;
    assert_eq!(failed.unwrap_err().class(), Class::Retry, "no other applier has the machine");
    site.apply_all(&mut applier, &policy()).await;
    assert_eq!(site.check().await, 2);
}

#[tokio::test]
async fn a_run_must_chain_to_the_delta_before_it() {
    let site = Site::of(rounds(2, distinct)).await;
    let manifest = site.manifest().await;
    let mut applier = site.applier().await.unwrap();
    applier.step(&manifest, &policy()).await.unwrap();
    let mut other = manifest.clone();
    let end = Sequence(at_round(0));
    let before = other.entries.iter_mut().find(|entry| entry.last == end).unwrap();
    before.id = DeltaId([7; 16]);
    let error = applier.step(&other, &policy()).await.unwrap_err();
    assert_eq!(error.class(), Class::Poison, "{error:?}");
    assert!(site.points().await.quarantine.is_some());
    site.apply_all(&mut applier, &policy()).await;
    assert_eq!(site.check().await, 2);
}

/// Writes a recovery's pin, as it does when it begins and each time that it renews it.
async fn write_pin(site: &Site, id: &str, expires: Timestamp) {
    let pin = PinDocument { sequence: at_round(0), base: at_round(0), expires };
    site.vault.write_pin(&machine(), id, &pin).await.unwrap();
}

async fn pins(site: &Site) -> Vec<String> {
    site.vault.pins(&machine()).await.unwrap().into_iter().map(|(id, _)| id).collect()
}

/// Gives up all that it may.
fn nothing_old() -> Policy {
    Policy { snapshot_interval_s: 1, journal_window_s: 0, ladder: Vec::new(), ..policy() }
}

#[tokio::test]
async fn a_pin_that_is_renewed_holds_whatever_the_clocks_say() {
    let site = Site::of(rounds(4, distinct)).await;
    let mut applier = site.applier().await.unwrap();
    let policy = nothing_old();
    site.apply_all(&mut applier, &policy).await;
    let manifest = site.manifest().await;
    // The recovering host's clock is right, ours is an hour ahead, then an hour behind.
    for (wrong_by, steps) in [(3_600, 5), (-3_600, 5)] {
        site.clock.set_wrong_by(wrong_by);
        for _ in 0..steps {
            let expires = Timestamp(site.clock.monotonic().as_micros() as i64).plus_seconds(600);
            write_pin(&site, "running", expires).await;
            let decision = applier.retain(&manifest, &policy).await.unwrap();
            assert_eq!(decision.truncate_through.0, at_round(0), "the log after its base stays");
            let points = site.points().await.snapshots;
            let kept: Vec<_> = points.iter().map(|point| point.sequence).collect();
            assert_eq!(kept, [at_round(0), at_round(3)], "its base and the newest");
            site.clock.advance(200);
        }
        // A newer applier of the same process goes on with what was seen.
        applier = site.applier().await.unwrap();
    }
    assert_eq!(pins(&site).await, ["running"]);
}

#[tokio::test]
async fn pins_of_killed_recoveries_are_removed() {
    let site = Site::of(rounds(2, distinct)).await;
    let mut applier = site.applier().await.unwrap();
    let policy = nothing_old();
    site.apply_all(&mut applier, &policy).await;
    let manifest = site.manifest().await;
    // By a clock that is ahead: what a pin says of its end counts for nothing.
    write_pin(&site, "killed", site.clock.wall().plus_seconds(86_400)).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        applier.retain(&manifest, &policy).await.unwrap();
        held.push((site.points().await.snapshots.len(), pins(&site).await.len()));
        site.clock.advance(300);
        applier = site.applier().await.unwrap(); // restarts of appliers do not prolong its life
    }
    assert_eq!(held, [(2, 1), (2, 1), (1, 1), (1, 1), (1, 0)]);
}

#[tokio::test]
async fn snapshots_that_somebody_else_made_stay() {
    let site = Site::of(rounds(3, distinct)).await;
    let mut applier = site.applier().await.unwrap();
    let policy = nothing_old();
    site.apply_all(&mut applier, &policy).await;
    let lease = LeaseId([9; 16]);
    let sequence_number = site.points().await.applier_generation;
    let guard = PageGuard { lease, sequence_number };
    site.faulty.break_lease(&seed_disk(0)).await.unwrap();
    site.faulty.acquire_lease(&seed_disk(0), lease, 60).await.unwrap();
    for label in ["", "before the upgrade", "12: see the ticket"] {
        site.faulty.snapshot(&seed_disk(0), label, &guard).await.unwrap();
    }
    site.faulty.release_lease(&seed_disk(0), lease).await.unwrap();
    let manifest = site.manifest().await;
    applier.retain(&manifest, &policy).await.unwrap();
    let there = site.faulty.list_snapshots(&seed_disk(0)).await.unwrap();
    assert_eq!(there.len(), 1 + 3, "the newest point and theirs: {there:?}");
    // They alone are no reason to write the points document again at every look.
    let writes = site.faulty.calls(Op::Put, "/points");
    applier.retain(&manifest, &policy).await.unwrap();
    assert_eq!(site.faulty.calls(Op::Put, "/points"), writes);
}
