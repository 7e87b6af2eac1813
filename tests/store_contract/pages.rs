//! Page blobs: rules, holes, ranges, snapshots.

use bytes::Bytes;
use holdfast::store::{PAGE_BLOB_BYTES_MAX, PAGE_WRITE_BYTES_MAX, PageBody, PageWrite, SnapshotId};

use crate::fixture::{Bench, clear, data, guard, kind, name, owned};

const SIZE: u64 = (1 << 20) + 512;
const G: u64 = 64 << 10;

pub(crate) async fn azures_rules_hold(bench: Bench) {
    let a = owned(&bench, "p", 16 << 20).await;
    let store = &bench.store;
    for size in [0, 511, 513, PAGE_BLOB_BYTES_MAX + 512] {
        assert_eq!(kind(store.create_pages(&name("q"), size).await), "refused");
    }
    assert_eq!(kind(store.create_pages(&a, 512).await), "already exists");
    let longest = PAGE_WRITE_BYTES_MAX as usize;
    let write =
        async |writes: &[PageWrite]| kind(store.write_pages(&a, writes, &guard(1, 0)).await);
    let bad: [&[PageWrite]; 9] = [
        &[data(1, 512, 1)],
        &[data(0, 511, 1)],
        &[data(0, 0, 1)],
        &[clear(0, 0)],
        &[clear(512, 100)],
        &[data(0, longest + 512, 1)],
        &[data((16 << 20) - 512, 1024, 1)],
        &[clear(u64::MAX - 511, 512)],
        &[data(512, 512, 1), clear(1024, 512), data(0, 1024, 2)],
    ];
    for writes in bad {
        assert_eq!(write(writes).await, "refused", "{:?}", writes[0].offset);
    }
    let all = store.read_pages(&a, None, 0, 16 << 20).await.unwrap();
    assert!(all.iter().all(|byte| *byte == 0), "a refused call changed something");
    assert_eq!(write(&[data(0, longest, 1), clear(8 << 20, 8 << 20)]).await, "ok");
    let label = "x".repeat(257);
    assert_eq!(kind(store.snapshot(&a, &label, &guard(1, 0)).await), "refused");
    for (offset, length) in [(16 << 20, 1), (0, (16 << 20) + 1), (u64::MAX, 2)] {
        assert_eq!(kind(store.read_pages(&a, None, offset, length).await), "out of range");
        assert_eq!(kind(store.page_ranges(&a, None, offset, length).await), "out of range");
    }
}

pub(crate) async fn holes_read_as_zeros(bench: Bench) {
    let a = owned(&bench, "seed/a", SIZE).await;
    let store = &bench.store;
    let writes = [data(G - 512, 1024, 7), data(SIZE - 512, 512, 9)];
    store.write_pages(&a, &writes, &guard(1, 0)).await.unwrap();
    store.write_pages(&a, &[clear(G, 512)], &guard(1, 0)).await.unwrap();
    store.flush_pages(&a, &guard(1, 0)).await.unwrap();
    let mut expected = vec![0; SIZE as usize];
    expected[G as usize - 512..G as usize].fill(7);
    expected[SIZE as usize - 512..].fill(9);
    assert_eq!(store.read_pages(&a, None, 0, SIZE).await.unwrap(), expected);
    let odd = store.read_pages(&a, None, G - 3, 5).await.unwrap();
    assert_eq!(odd, Bytes::from_static(&[7, 7, 7, 0, 0]));
    assert_eq!(store.page_properties(&a).await.unwrap().length, SIZE);
}

/// Whatever the ranges leave out is zero.
pub(crate) async fn ranges_name_all_bytes(bench: Bench) {
    let a = owned(&bench, "seed/a", SIZE).await;
    let store = &bench.store;
    assert_eq!(store.page_ranges(&a, None, 0, SIZE).await.unwrap(), []);
    let write = async |write| store.write_pages(&a, &[write], &guard(1, 0)).await.unwrap();
    write(data(3 * G, 4096, 1)).await;
    let first = store.snapshot(&a, "1", &guard(1, 0)).await.unwrap();
    write(data(9 * G, 4096, 2)).await;
    write(clear(3 * G, G)).await;
    for (snapshot, wanted, without) in [(None, 9 * G, 3 * G), (Some(&first), 3 * G, 9 * G)] {
        let ranges = store.page_ranges(&a, snapshot, 0, SIZE).await.unwrap();
        assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
        let names = |at: u64| ranges.iter().any(|range| (range.start..range.end).contains(&at));
        assert!(names(wanted) && names(wanted + 4095), "{ranges:?}");
        assert!(!names(without), "a hole is listed: {ranges:?}");
        let inside = store.page_ranges(&a, snapshot, wanted + 512, 1024).await.unwrap();
        assert_eq!((inside[0].start, inside[0].end), (wanted + 512, wanted + 1536));
    }
}

pub(crate) async fn snapshots_keep_their_bytes(bench: Bench) {
    let a = owned(&bench, "seed/a", SIZE).await;
    let store = &bench.store;
    let mut kept: Vec<(SnapshotId, Bytes)> = Vec::new();
    for round in 1..=5_u8 {
        let at = u64::from(round) * G;
        let writes = [data(0, 512, round), data(at, G as usize, round), clear(SIZE - 512, 512)];
        store.write_pages(&a, &writes, &guard(1, 0)).await.unwrap();
        let id = store.snapshot(&a, "", &guard(1, 0)).await.unwrap();
        kept.push((id, store.read_pages(&a, None, 0, SIZE).await.unwrap()));
    }
    let all = [clear(0, SIZE)];
    store.write_pages(&a, &all, &guard(1, 0)).await.unwrap();
    for gone in [2, 3, 0, 1, 0] {
        for (id, content) in &kept {
            let read = store.read_pages(&a, Some(id), 0, SIZE).await.unwrap();
            assert!(read == content, "snapshot {id:?} changed");
            let part = store.read_pages(&a, Some(id), G - 1, G + 2).await.unwrap();
            assert!(part == content[G as usize - 1..2 * G as usize + 1]);
        }
        let (id, _) = kept.remove(gone);
        store.delete_snapshot(&a, &id).await.unwrap();
        assert_eq!(kind(store.read_pages(&a, Some(&id), 0, 512).await), "not found");
        assert_eq!(kind(store.delete_snapshot(&a, &id).await), "not found");
    }
    assert_eq!(store.list_snapshots(&a).await.unwrap(), []);
}

pub(crate) async fn snapshots_are_listed_by_age(bench: Bench) {
    let a = owned(&bench, "seed/a", SIZE).await;
    let store = &bench.store;
    let mut ids = Vec::new();
    for label in ["c", "b", "b", "a"] {
        ids.push(store.snapshot(&a, label, &guard(1, 0)).await.unwrap());
    }
    store.delete_snapshot(&a, &ids[3]).await.unwrap();
    let newest = store.snapshot(&a, "d", &guard(1, 0)).await.unwrap();
    assert_ne!(newest, ids[3], "an id names one content for ever");
    let listed = store.list_snapshots(&a).await.unwrap();
    let labels: Vec<&str> = listed.iter().map(|one| &*one.label).collect();
    assert_eq!(labels, ["c", "b", "b", "d"]);
    assert!(listed.is_sorted_by(|a, b| a.id < b.id), "ordered by age as text");
}

pub(crate) async fn gone_means_gone(bench: Bench) {
    let a = owned(&bench, "seed/a", SIZE).await;
    let store = &bench.store;
    store.write_pages(&a, &[data(0, 512, 1)], &guard(1, 0)).await.unwrap();
    let id = store.snapshot(&a, "", &guard(1, 0)).await.unwrap();
    store.delete_pages(&a, Some(crate::fixture::lease(1))).await.unwrap();
    assert_eq!(kind(store.delete_pages(&a, None).await), "not found");
    assert_eq!(kind(store.page_properties(&a).await), "not found");
    assert_eq!(kind(store.acquire_lease(&a, crate::fixture::lease(1), 15).await), "not found");
    assert_eq!(store.list("").await.unwrap(), []);
    // The next of that name begins anew.
    let a = owned(&bench, "seed/a", 1024).await;
    let content = store.read_pages(&a, None, 0, 1024).await.unwrap();
    assert!(content.iter().all(|byte| *byte == 0));
    assert_eq!(kind(store.read_pages(&a, Some(&id), 0, 512).await), "not found");
    let body = PageBody::Data(Bytes::from_static(&[1; 512]));
    let write = PageWrite { offset: 0, body };
    store.write_pages(&a, &[write], &guard(1, 0)).await.unwrap();
}

/// A reader of a snapshot meets a writer at every moment of preserving and overwriting.
pub(crate) async fn readers_of_a_snapshot_see_no_later_write(bench: Bench) {
    let a = owned(&bench, "seed/a", 64 * G).await;
    let store = &bench.store;
    let write = async |granule: u64, fill| {
        let writes = [data(granule * G, G as usize, fill)];
        store.write_pages(&a, &writes, &guard(1, 0)).await.unwrap();
    };
    for granule in 0..64 {
        write(granule, 1).await;
    }
    let id = store.snapshot(&a, "", &guard(1, 0)).await.unwrap();
    let rounds = bench.rounds(150);
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (store, a, id) = (std::sync::Arc::clone(store), a.clone(), id.clone());
            tokio::spawn(async move {
                for _ in 0..rounds {
                    let content = store.read_pages(&a, Some(&id), 0, 64 * G).await.unwrap();
                    assert!(content.iter().all(|byte| *byte == 1), "a later write shows");
                }
            })
        })
        .collect();
    for granule in 0..64 {
        write(granule, 2).await;
    }
    for reader in readers {
        reader.await.unwrap();
    }
}
