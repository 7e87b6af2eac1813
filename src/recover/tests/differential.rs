//! Generated histories: what is read at every point equals what a trivially simple applier has.

use proptest::prelude::*;

use super::*;

/// Raw choices; made legal by [`legal`].
fn op() -> impl Strategy<Value = Op> {
    let place = |disk: u16, sector: u64, sectors: u64| {
        let last = SIZES[disk as usize] as u64 / 512;
        let sector = sector % last;
        (disk, sector, sectors.min(last - sector))
    };
    let place = (0u16..2, 0u64..64, 1u64..20).prop_map(move |(d, s, n)| place(d, s, n));
    prop_oneof![
        8 => (place.clone(), prop::bool::weighted(0.2)).prop_map(|((disk, sector, sectors), zeros)| {
            Op::Write { disk, sector, sectors, zeros }
        }),
        2 => place.prop_map(|(disk, sector, sectors)| Op::Zero { disk, sector, sectors }),
        3 => any::<bool>().prop_map(|app| Op::Bookmark { name: "", app }),
        1 => any::<bool>().prop_map(Op::CatchUp),
        1 => Just(Op::Epoch),
    ]
}

/// Leaves out marks where they may not stand; the first record begins an epoch.
fn legal(ops: Vec<Op>) -> Vec<Op> {
    let mut catching_up = false;
    let keep = |op: &Op| match op {
        Op::Bookmark { .. } => !catching_up,
        Op::CatchUp(begin) => {
            let legal = *begin || catching_up;
            catching_up = *begin;
            legal
        }
        Op::Epoch => {
            catching_up = false;
            true
        }
        Op::Write { .. } | Op::Zero { .. } => true,
    };
    std::iter::once(Op::Epoch).chain(ops).filter(keep).collect()
}

/// Every point that is listed is read whole and in odd pieces; everything that must be listed is.
async fn check(world: &World, expected: &[u64]) -> Result<(), TestCaseError> {
    let points = world.recovery.points().await.unwrap();
    let listed: Vec<u64> = points.iter().map(|point| point.sequence.0).collect();
    prop_assert_eq!(&listed, expected);
    for sequence in listed {
        let expected = &world.states[sequence as usize].disks;
        for (disk, expected) in ["root", "log"].into_iter().zip(expected) {
            let reader = world.reader(&format!("seq:{sequence}"), disk).await.unwrap();
            let read = reader.read(0, reader.size_bytes()).await.unwrap();
            prop_assert!(read == expected, "disk {disk} at {sequence}");
            let mut sparse = vec![0; expected.len()];
            for range in reader.ranges().await.unwrap() {
                let piece = reader.read(range.start, range.end - range.start).await.unwrap();
                sparse[range.start as usize..range.end as usize].copy_from_slice(&piece);
            }
            prop_assert!(sparse == *expected, "holes of disk {disk} at {sequence}");
            let odd = reader.read(1536, 7 * 512).await.unwrap();
            prop_assert!(odd == expected[1536..1536 + 7 * 512]);
        }
    }
    Ok(())
}

/// Cutting inside a delta is refused or right, never wrong.
async fn check_between(world: &World) -> Result<(), TestCaseError> {
    for sequence in 1..world.states.len() {
        match world.read(&format!("seq:{sequence}")).await {
            Ok(disks) => {
                let state = &world.states[sequence];
                prop_assert!(disks == state.disks, "cut at {sequence}");
                prop_assert!(!state.catching_up, "{sequence} lies in a catch-up");
            }
            Err(error) => {
                let refused = matches!(error, RecoverError::NotAPoint { .. });
                prop_assert!(refused, "{error}");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_read_equals_the_simplest_applier(
        first in prop::collection::vec(op(), 1..40),
        second in prop::collection::vec(op(), 0..20),
        batch_sectors in 1u64..64,
        keep_every_write: bool,
        snapshots in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        truncate: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            world.batch_bytes = batch_sectors * 512;
            world.keep_every_write = keep_every_write;
            let all = legal(first.iter().chain(&second).cloned().collect());
            let (one, two) = all.split_at(first.len().min(all.len()));
            world.publish(one).await;
            world.publish(two).await;
            let mut kept: Vec<u64> = Vec::new();
            if !world.bookmarks.is_empty() {
                kept.extend(snapshots.iter().map(|at| *at.get(&world.bookmarks)));
            }
            kept.sort_unstable();
            kept.dedup();
            for snapshot in &kept {
                world.snapshot(*snapshot).await;
            }
            let mut expected = world.bookmarks.clone();
            let manifest = world.manifest().await;
            let paged = manifest.pages.last().map_or(Sequence::ZERO, |page| page.last);
            if let Some(through) = kept.first().filter(|at| truncate && Sequence(**at) >= paged) {
                world.truncate(*through).await;
                expected.retain(|sequence| sequence >= through);
            }
            check(&world, &expected).await?;
            check_between(&world).await?;
            let report = world.verify(None).await.unwrap();
            prop_assert!(report.good(), "{:?}", report.failures);
            prop_assert_eq!(report.points.len(), expected.len());
            prop_assert!(world.vault.pins(&world.machine).await.unwrap().is_empty());
            Ok(())
        })?;
    }
}
