//! A full disk: real file systems of a few megabytes, which takes root to mount.

use bytes::Bytes;
use holdfast::clock::System;
use holdfast::store::{BlockId, Condition, Dir, Store};

use crate::fixture::{clear, data, guard, kind, lease, name};
use crate::mounts::Mounted;

const MIB: usize = 1 << 20;
const SIZE_MIB: u64 = 24;

async fn objects(kind_of: &str) {
    let Some(mounted) = Mounted::new(kind_of, SIZE_MIB) else {
        return;
    };
    let store = Dir::open(&mounted.path, System::clock()).unwrap();
    let (a, b) = (name("vault/a"), name("log/b"));
    let body = |fill| Bytes::from(vec![fill; 2 * MIB]);
    store.put(&a, Bytes::from_static(b"old"), Condition::Absent).await.unwrap();
    store.stage_block(&b, BlockId(0), body(1)).await.unwrap();
    store.stage_block(&b, BlockId(1), body(2)).await.unwrap();
    mounted.fill(1 << 20);
    let two = [BlockId(0), BlockId(1)];
    for _ in 0..3 {
        assert_eq!(kind(store.put(&a, body(3), Condition::Always).await), "full");
        assert_eq!(kind(store.stage_block(&b, BlockId(2), body(3)).await), "full");
        assert_eq!(kind(store.commit_blocks(&b, &two, Condition::Absent).await), "full");
        assert_eq!(store.read(&a).await.unwrap().0, "old");
        assert_eq!(kind(store.read(&b).await), "not found");
    }
    assert_eq!(mounted.temporaries().len(), 2, "only the two staged blocks");
    mounted.free();
    store.commit_blocks(&b, &two, Condition::Absent).await.unwrap();
    assert_eq!(store.read(&b).await.unwrap().0, [body(1), body(2)].concat());
    assert!(mounted.temporaries().is_empty());
}

async fn pages(kind_of: &str) {
    let Some(mounted) = Mounted::new(kind_of, SIZE_MIB) else {
        return;
    };
    let store = Dir::open(&mounted.path, System::clock()).unwrap();
    let a = name("seed/a");
    let size = 64 * MIB as u64;
    store.create_pages(&a, size).await.unwrap();
    store.acquire_lease(&a, lease(1), 60).await.unwrap();
    let by = guard(1, 0);
    store.write_pages(&a, &[data(0, 3 * MIB, 1)], &by).await.unwrap();
    let first = store.snapshot(&a, "", &by).await.unwrap();
    let image = store.read_pages(&a, None, 0, size).await.unwrap();
    mounted.fill(1 << 20);
    for _ in 0..3 {
        // No room for new pages; and none for what the snapshot must keep.
        let new = [data(0, 4096, 7), data(16 * MIB as u64, 4 * MIB, 2)];
        assert_eq!(kind(store.write_pages(&a, &new, &by).await), "full");
        let over = [data(0, 3 * MIB, 3)];
        assert_eq!(kind(store.write_pages(&a, &over, &by).await), "full");
        for snapshot in [None, Some(&first)] {
            let now = store.read_pages(&a, snapshot, 0, size).await.unwrap();
            assert!(now == image, "{snapshot:?} changed although there was no room");
        }
    }
    // A little room is enough for a little: what failed did not eat it.
    store.write_pages(&a, &[data(0, 4096, 8), clear(8192, 512)], &by).await.unwrap();
    store.flush_pages(&a, &by).await.unwrap();
    mounted.free();
    store.write_pages(&a, &[data(0, 3 * MIB, 3)], &by).await.unwrap();
    let kept = store.read_pages(&a, Some(&first), 0, size).await.unwrap();
    assert!(kept == image);
}

#[tokio::test]
async fn a_full_tmpfs_refuses_objects() {
    objects("tmpfs").await;
}

#[tokio::test]
async fn a_full_ext4_refuses_objects() {
    objects("ext4").await;
}

#[tokio::test]
async fn a_full_tmpfs_refuses_pages() {
    pages("tmpfs").await;
}

#[tokio::test]
async fn a_full_ext4_refuses_pages() {
    pages("ext4").await;
}

/// Overwriting bytes that a clone shares takes room, too.
#[tokio::test]
async fn a_full_xfs_refuses_pages() {
    let Some(mounted) = Mounted::new("xfs", 400) else {
        return;
    };
    let store = Dir::open(&mounted.path, System::clock()).unwrap();
    let (a, by, size) = (name("seed/a"), guard(1, 0), 32 * MIB as u64);
    store.create_pages(&a, size).await.unwrap();
    store.acquire_lease(&a, lease(1), 60).await.unwrap();
    let whole = |fill| [0, 1, 2, 3, 4, 5, 6, 7].map(|at| data(at * 4 * MIB as u64, 4 * MIB, fill));
    store.write_pages(&a, &whole(1), &by).await.unwrap();
    let first = store.snapshot(&a, "", &by).await.unwrap();
    mounted.fill(8 << 20);
    for _ in 0..3 {
        assert_eq!(kind(store.write_pages(&a, &whole(2), &by).await), "full");
        for snapshot in [None, Some(&first)] {
            let now = store.read_pages(&a, snapshot, 0, size).await.unwrap();
            assert!(now.iter().all(|byte| *byte == 1), "{snapshot:?} changed");
        }
    }
    mounted.free();
    store.write_pages(&a, &whole(2), &by).await.unwrap();
    let kept = store.read_pages(&a, Some(&first), 0, size).await.unwrap();
    assert!(kept.iter().all(|byte| *byte == 1));
}
