//! The applier against a trivially simple one: whatever the store does wrong and however often the
//! applier is replaced, each snapshot point holds exactly the writes up to its bookmark, over all
//! disks, a stale applier changes nothing, and damage in the log stops it there and is named.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod damage;
mod leases;
mod races;
mod set_back;
mod site;

use holdfast::model::Sequence;
use holdfast::store::{Class, Store};
use holdfast::vault::Policy;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use site::{Site, history, policy, seed_disk};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_point_is_a_cut_whatever_the_store_does() {
    let mut points = 0;
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let site = Site::of(history(&mut random)).await;
        let mut applier = None;
        site.faulty.shake(seed, 60);
        for round in 0.. {
            assert!(round < 2_000, "seed {seed} comes to no end");
            if round == 1_000 {
                site.faulty.heal();
            }
            // Now and then the applier is killed, and the policy changes under it.
            if random.random_bool(0.1) {
                applier = None;
            }
            let interval = [1, 60, 3600][random.random_range(0..3)];
            let policy = Policy { snapshot_interval_s: interval, ..policy() };
            let Ok(Some((manifest, _))) = site.log.manifest().await else { continue };
            if applier.is_none() {
                applier = site.applier().await.ok();
            }
            let Some(working) = applier.as_mut() else { continue };
            match working.step(&manifest, &policy).await {
                Ok(None) => break,
                Ok(Some(_)) => {}
                Err(error) => {
                    assert!(matches!(error.class(), Class::Retry | Class::Fence), "{error:?}");
                    applier = None;
                }
            }
        }
        site.faulty.heal();
        points += site.check().await;
        assert_eq!(site.points().await.applied, site.manifest().await.published.0, "seed {seed}");
    }
    assert!(points > 100, "only {points} points were checked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_applier_changes_nothing() {
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(1_000 + seed);
        let site = Site::of(history(&mut random)).await;
        let manifest = site.manifest().await;
        let mut older = site.applier().await.unwrap();
        older.step(&manifest, &policy()).await.unwrap();
        let mut newer = site.applier().await.unwrap();
        while newer.step(&manifest, &policy()).await.unwrap().is_some() {
            // The older one goes on from where it was stopped, at every step of the newer.
            match older.step(&manifest, &policy()).await {
                Ok(None) => {}
                Ok(Some(step)) => panic!("seed {seed}: a stale applier applied {step:?}"),
                Err(error) => assert_eq!(error.class(), Class::Fence, "{error:?}"),
            }
        }
        site.check().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_keeps_what_kept_points_need() {
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(2_000 + seed);
        let site = Site::of(history(&mut random)).await;
        let manifest = site.manifest().await;
        let mut applier = site.applier().await.unwrap();
        let every = Policy { snapshot_interval_s: 1, ..policy() };
        while applier.step(&manifest, &every).await.unwrap().is_some() {}
        let before = site.check().await;
        let short = Policy { journal_window_s: 100, ladder: Vec::new(), ..every };
        let decision = applier.retain(&manifest, &short).await.unwrap();
        let after = site.check().await;
        assert!(after <= before && after >= 1);
        let kept = site.faulty.list_snapshots(&seed_disk(0)).await.unwrap().len();
        assert_eq!(kept, after, "snapshots that no point names are gone");
        let points = site.points().await;
        let base = points.snapshots.iter().any(|p| p.sequence == decision.truncate_through.0);
        assert!(base || decision.truncate_through == Sequence::ZERO, "the log goes up to a base");
    }
}
