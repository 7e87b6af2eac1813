//! Which points there are, and what each spelling finds.

use super::*;

async fn found(world: &World, spec: &str) -> u64 {
    world.resolve(spec).await.unwrap().sequence.0
}

fn listed(points: &[Point]) -> Vec<(u64, Stored)> {
    points.iter().map(|point| (point.sequence.0, point.stored)).collect()
}

#[tokio::test]
async fn every_spelling_finds_its_point() {
    let world = World::after(&story()).await;
    world.snapshot(7).await;
    assert_eq!(found(&world, "latest").await, 16);
    assert_eq!(found(&world, "latest-processed").await, 7);
    assert_eq!(found(&world, "latest-app").await, 7);
    assert_eq!(found(&world, "name:first").await, 16, "the newest of that name");
    assert_eq!(found(&world, "name:last of one").await, 12);
    assert_eq!(found(&world, "seq:4").await, 4);
    assert_eq!(found(&world, "time:1970-01-01T00:00:11.9Z").await, 7);
    assert_eq!(found(&world, "time:1970-01-01T00:00:12Z").await, 12);
    for none in ["name:second", "time:1970-01-01T00:00:03Z"] {
        let error = world.resolve(none).await.unwrap_err().to_string();
        assert!(error.contains(none) && error.contains("it has 4 from sequence 4"), "{error}");
    }
}

#[tokio::test]
async fn the_base_is_the_newest_snapshot_of_the_same_epoch() {
    let world = World::after(&story()).await;
    let point = world.resolve("seq:12").await.unwrap();
    assert!(point.base.is_none());
    assert_eq!(point.deltas.first().unwrap().first, Sequence(1));
    world.snapshot(4).await;
    world.snapshot(7).await;
    let point = world.resolve("seq:12").await.unwrap();
    assert_eq!(point.base.as_ref().unwrap().sequence, 7);
    assert_eq!(point.deltas.first().unwrap().first, Sequence(8));
    let point = world.resolve("seq:7").await.unwrap();
    assert!(point.base.is_some() && point.deltas.is_empty());
    let point = world.resolve("seq:16").await.unwrap();
    assert!(point.base.is_none(), "a snapshot of epoch 1 is no base for epoch 2");
    assert_eq!(point.deltas.first().unwrap().first, Sequence(13));
}

#[tokio::test]
async fn points_say_how_they_are_kept() {
    let world = World::after(&story()).await;
    let logged = |sequence| (sequence, Stored::CloudLog);
    let points = world.recovery.points().await.unwrap();
    assert_eq!(listed(&points), [logged(4), logged(7), logged(12), logged(16)]);
    world.snapshot(7).await;
    let id = BookmarkId(u128::from(12u8).to_be_bytes());
    world.vault.keep_bookmark(&world.machine, id, true).await.unwrap();
    let points = world.recovery.points().await.unwrap();
    assert_eq!(points[1].stored, Stored::Both);
    let pinned: Vec<_> = points.iter().map(|point| point.pinned).collect();
    assert_eq!(pinned, [false, false, true, false]);

    world.truncate(7).await;
    let points = world.recovery.points().await.unwrap();
    assert_eq!(listed(&points), [(7, Stored::Snapshot), logged(12), logged(16)]);
    let json = serde_json::to_value(&points[0]).unwrap();
    assert_eq!(json["stored"], "snapshot");
    assert_eq!(json["sequence"], 7);
    assert_eq!(world.read("seq:12").await.unwrap(), world.states[12].disks);
    assert_eq!(world.read("seq:7").await.unwrap(), world.states[7].disks);

    world.truncate(12).await;
    let points = world.recovery.points().await.unwrap();
    assert_eq!(listed(&points), [(7, Stored::Snapshot), logged(16)]);
    let error = world.resolve("seq:12").await.unwrap_err().to_string();
    assert!(error.contains("seq:7 and seq:16"), "{error}");
}

#[tokio::test]
async fn a_bookmark_without_its_base_is_no_point() {
    let world = World::after(&story()).await;
    world.truncate(4).await; // and no snapshot: 7 and 12 cannot be rebuilt
    let points = world.recovery.points().await.unwrap();
    assert_eq!(listed(&points), [(16, Stored::CloudLog)]);
    let error = world.resolve("seq:12").await.unwrap_err();
    assert!(matches!(error, RecoverError::NotAPoint { .. }), "{error}");
}

#[tokio::test]
async fn a_snapshot_that_the_log_no_longer_reaches_is_no_base() {
    let world = World::after(&story()).await;
    world.snapshot(4).await;
    world.truncate(7).await; // 5 to 7 are in neither
    let points = world.recovery.points().await.unwrap();
    assert_eq!(listed(&points), [(4, Stored::Snapshot), (16, Stored::CloudLog)]);
    assert_eq!(world.read("seq:4").await.unwrap(), world.states[4].disks);
    let error = world.resolve("seq:12").await.unwrap_err();
    assert!(matches!(error, RecoverError::NotAPoint { .. }), "{error}");
}

#[tokio::test]
async fn a_machine_without_points_says_so() {
    let world = World::new().await;
    assert_eq!(world.recovery.points().await.unwrap(), []);
    let error = world.resolve("latest").await.unwrap_err().to_string();
    assert!(error.contains("it has none yet"), "{error}");
    let stranger = "db".parse().unwrap();
    let store: Arc<dyn Store> = Arc::clone(&world.store) as _;
    let error = Recovery::open(store, &world.key, &stranger).await.unwrap_err();
    assert!(matches!(error, RecoverError::NoMachine { .. }), "{error}");
    let error = World::after(&story()).await.reader("latest", "swap").await.unwrap_err();
    assert!(error.to_string().contains("only root, log"), "{error}");
}

#[tokio::test]
async fn between_bookmarks_only_where_nothing_was_folded() {
    let ops = [
        Op::Epoch,
        write(0, 0, 8),
        write(0, 4, 8), // covers half of the one before
        write(1, 0, 4),
        bookmark(""),
    ];
    let folded = World::after(&ops).await;
    let error = folded.resolve("seq:2").await.unwrap_err().to_string();
    assert!(error.contains("folded") && error.contains("seq:5"), "{error}");
    let error = folded.resolve("seq:9").await.unwrap_err().to_string();
    assert!(error.contains("does not hold it") && error.contains("seq:5"), "{error}");

    // Zeros leave no bytes behind, whether they overlap or not.
    let zeros = [
        Op::Epoch,
        write(0, 0, 8),
        Op::Zero { disk: 0, sector: 8, sectors: 4 },
        Op::Write { disk: 1, sector: 0, sectors: 4, zeros: true },
        bookmark(""),
    ];
    for ops in [&ops, &zeros] {
        let mut kept = World::new().await;
        kept.keep_every_write = true;
        kept.publish(ops).await;
        for sequence in 2..=5 {
            let read = kept.read(&format!("seq:{sequence}")).await.unwrap();
            assert_eq!(read, kept.states[sequence].disks, "at {sequence}");
        }
    }
    // It is what the policy says that counts, not what happened to be folded.
    let error = World::after(&zeros).await.resolve("seq:3").await.unwrap_err().to_string();
    assert!(error.contains("folded"), "{error}");

    let mut unordered = World::new().await;
    unordered.keep_every_write = true;
    unordered.publish(&story()).await;
    let error = unordered.resolve("seq:10").await.unwrap_err().to_string();
    assert!(error.contains("catch-up") && error.contains("seq:7 and seq:12"), "{error}");
}

/// All its disks are zeros there: the machine never was like that.
#[tokio::test]
async fn the_bare_beginning_of_an_epoch_is_no_point() {
    let mut world = World::new().await;
    world.keep_every_write = true;
    world.publish(&[Op::Epoch]).await;
    for _ in 0..2 {
        let error = world.resolve("seq:1").await.unwrap_err();
        assert!(matches!(error, RecoverError::NotAPoint { .. }), "{error}");
        assert!(error.to_string().contains("an epoch begins there"), "{error}");
        world.publish(&[write(0, 0, 8), bookmark("")]).await;
    }
    assert_eq!(world.read("seq:2").await.unwrap(), world.states[2].disks);
}

#[tokio::test]
async fn a_pin_lives_as_long_as_its_recovery() {
    let world = World::after(&story()).await;
    world.snapshot(7).await;
    let (clock, latest): (Arc<dyn Clock>, _) = (System::clock(), "seq:12".parse().unwrap());
    let (point, pin) = Pin::take(&world.recovery, &latest, &clock, &System).await.unwrap();
    assert!(pin.is_held());
    assert_eq!(point.sequence, Sequence(12));
    let pins = world.vault.pins(&world.machine).await.unwrap();
    assert_eq!((pins[0].1.sequence, pins[0].1.base), (12, 7));
    assert!(pins[0].1.expires > clock.wall());
    pin.release().await;
    assert!(world.vault.pins(&world.machine).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_store_that_cannot_be_written_only_warns() {
    use crate::store::faulty::{Fault, Faulty, Op as StoreOp, Rule};
    let world = World::after(&story()).await;
    let faulty = Faulty::new(Arc::clone(&world.store) as _);
    faulty.add(Rule::on(StoreOp::Put, Fault::Full).named("pins/"));
    let store: Arc<dyn Store> = Arc::new(faulty);
    let recovery = Recovery::open(store, &world.key, &world.machine).await.unwrap();
    let (clock, latest): (Arc<dyn Clock>, _) = (System::clock(), PointSpec::Latest);
    let (point, pin) = Pin::take(&recovery, &latest, &clock, &System).await.unwrap();
    assert!(!pin.is_held());
    assert_eq!(point.sequence, Sequence(16));
    pin.release().await;
}
