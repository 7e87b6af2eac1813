//! Snapshots on file systems that share bytes between files (XFS, btrfs).

use std::process::Command;

use crate::fixture::{Bench, data, guard, owned, within};
use crate::mounts::Mounted;
use crate::{model, pages};

const G: u64 = 64 << 10;

async fn all_cases(kind: &str) {
    let Some(mounted) = Mounted::new(kind, 400) else {
        return;
    };
    let bench = |part: &str| within(&mounted.path.join(part));
    pages::snapshots_keep_their_bytes(bench("a")).await;
    pages::ranges_name_all_bytes(bench("b")).await;
    pages::gone_means_gone(bench("c")).await;
    model::histories_match_a_vector(bench("d")).await;
    moved(&mounted, bench("e")).await;
}

fn state(mounted: &Mounted, path: &str) -> Option<String> {
    std::fs::read_to_string(mounted.path.join(path)).ok()
}

/// The store is copied to a file system without clones and goes on there: older snapshots are
/// whole files, newer ones granules.
async fn moved(mounted: &Mounted, bench: Bench) {
    let a = owned(&bench, "seed/a", 16 * G).await;
    let mut kept = Vec::new();
    let mut bench = Some(bench);
    let to = tempfile::tempdir().unwrap();
    let copy = to.path().join("e");
    for round in 0..6_u8 {
        if round == 3 {
            drop(bench.take());
            let shown = state(mounted, "e/.pages/seed/a/state").unwrap();
            assert!(shown.contains(r#""kept":"clone""#), "{shown}");
            let from = mounted.path.join("e");
            let copied = Command::new("cp").arg("-a").args([&from, &copy]).status();
            assert!(copied.unwrap().success());
        }
        let here = bench.get_or_insert_with(|| within(&copy));
        let writes = [data(0, 512, round), data(u64::from(round + 1) * G, 4096, round)];
        here.store.write_pages(&a, &writes, &guard(1, 0)).await.unwrap();
        let id = here.store.snapshot(&a, "", &guard(1, 0)).await.unwrap();
        kept.push((id, here.store.read_pages(&a, None, 0, 16 * G).await.unwrap()));
    }
    let here = bench.unwrap();
    let shown = std::fs::read_to_string(copy.join(".pages/seed/a/state")).unwrap();
    assert!(shown.contains(r#""kept":"clone""#) && shown.contains(r#""kept":"granules""#));
    for gone in [3, 2, 1, 1, 0] {
        let (id, _) = kept.remove(gone);
        here.store.delete_snapshot(&a, &id).await.unwrap();
        for (id, content) in &kept {
            let read = here.store.read_pages(&a, Some(id), 0, 16 * G).await.unwrap();
            assert!(read == content, "snapshot {id:?} changed");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_on_xfs() {
    all_cases("xfs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_on_btrfs() {
    all_cases("btrfs").await;
}
