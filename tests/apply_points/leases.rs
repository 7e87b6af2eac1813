//! What an applier does when a run takes long, when its lease ends under it, and what it checks and
//! tidies between runs.

use holdfast::clock::Clock;
use holdfast::model::{DeltaId, Sequence};
use holdfast::store::faulty::{Fault, Gate, Op, Rule};
use holdfast::store::{Class, Store};
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

#[tokio::test]
async fn pins_of_killed_recoveries_are_removed() {
    let site = Site::of(rounds(1, distinct)).await;
    let mut applier = site.applier().await.unwrap();
    site.apply_all(&mut applier, &policy()).await;
    for (id, seconds) in [("running", 1), ("late", -599), ("dead", -600)] {
        let expires = site.clock.wall().plus_seconds(seconds);
        let pin = PinDocument { sequence: at_round(0), base: at_round(0), expires };
        site.vault.write_pin(&machine(), id, &pin).await.unwrap();
    }
    applier.retain(&site.manifest().await, &Policy::default()).await.unwrap();
    let left = site.vault.pins(&machine()).await.unwrap();
    let left: Vec<_> = left.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(left, ["late", "running"]);
}
