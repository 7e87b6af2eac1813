//! Block blobs: conditions, blocks, ranges, listings, names.

use std::sync::Arc;

use bytes::Bytes;
use holdfast::store::faulty::{Fault, Faulty, Op, Rule};
use holdfast::store::{BLOCK_BYTES_MAX, BlockId, Condition, ETag, Store};

use crate::fixture::{Bench, bytes, kind, name};

pub(crate) async fn conditions_decide(bench: Bench) {
    let (store, a) = (bench.store, name("a/b"));
    let stale = Condition::Matches(ETag("stale".to_owned()));
    let put = |text, condition| store.put(&a, bytes(text), condition);
    assert_eq!(kind(put("1", stale.clone()).await), "precondition");
    assert_eq!(kind(store.read(&a).await), "not found");
    let first = put("1", Condition::Absent).await.unwrap();
    assert_eq!(kind(put("1", Condition::Absent).await), "already exists");
    assert_eq!(kind(store.put_new(&a, bytes("2")).await), "already exists");
    assert_eq!(kind(put("2", stale.clone()).await), "precondition");
    let second = put("2", Condition::Matches(first.clone())).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(store.read(&a).await.unwrap(), (bytes("2"), second.clone()));
    assert_eq!(kind(put("3", Condition::Matches(first.clone())).await), "precondition");
    let third = put("3", Condition::Always).await.unwrap();
    assert_eq!(store.properties(&a).await.unwrap().etag, third);
    assert_eq!(kind(store.delete(&a, stale).await), "precondition");
    store.delete(&a, Condition::Matches(third)).await.unwrap();
    assert_eq!(kind(store.delete(&a, Condition::Always).await), "not found");
    assert_eq!(kind(store.properties(&a).await), "not found");
    store.put_new(&a, bytes("1")).await.unwrap();
    assert_eq!(store.read(&a).await.unwrap().0, "1");
}

pub(crate) async fn a_repeated_commit_is_told(bench: Bench) {
    let (store, a) = (bench.store, name("log/1"));
    let blocks = [BlockId(0), BlockId(1)];
    for (block, text) in blocks.iter().zip(["one", "two"]) {
        store.stage_block(&a, *block, bytes(text)).await.unwrap();
    }
    let etag = store.commit_blocks(&a, &blocks, Condition::Absent).await.unwrap();
    let again = store.commit_blocks(&a, &blocks, Condition::Absent).await;
    assert_eq!(kind(again), "already exists");
    assert_eq!(store.read(&a).await.unwrap(), (bytes("onetwo"), etag));
    // The first commit took the blocks with it.
    let replace = store.commit_blocks(&a, &blocks, Condition::Always).await;
    assert_eq!(kind(replace), "refused");
}

pub(crate) async fn a_lost_answer_is_read_back(bench: Bench) {
    let store = Arc::new(Faulty::new(bench.store));
    let a = name("vault/a");
    let old = store.put(&a, bytes("old"), Condition::Absent).await.unwrap();
    for (fault, holds) in [(Fault::RequestLost, "old"), (Fault::AnswerLost, "new")] {
        store.add(Rule::on(Op::Put, fault).times(1));
        let condition = Condition::Matches(old.clone());
        let lost = store.put(&a, bytes("new"), condition.clone()).await;
        assert_eq!(kind(lost), "ambiguous");
        let (content, etag) = store.read(&a).await.unwrap();
        assert_eq!(content, holds);
        // Repeating it: the swap happens at most once.
        if holds == "new" {
            assert_eq!(kind(store.put(&a, bytes("new"), condition).await), "precondition");
            let same = Condition::Matches(etag.clone());
            let again = store.put(&a, bytes("new"), same).await.unwrap();
            assert_eq!(store.read(&a).await.unwrap(), (bytes("new"), again));
        }
    }
}

pub(crate) async fn blocks_join_in_order(bench: Bench) {
    let (store, a) = (bench.store, name("log/2"));
    let stage = |number, text| store.stage_block(&a, BlockId(number), bytes(text));
    stage(7, "wrong").await.unwrap();
    stage(7, "C").await.unwrap(); // replaces it
    stage(1, "A").await.unwrap();
    stage(2, "unnamed").await.unwrap();
    let commit = |list: &'static [u32], condition| {
        let list: Vec<BlockId> = list.iter().map(|number| BlockId(*number)).collect();
        let (store, a) = (Arc::clone(&store), a.clone());
        async move { store.commit_blocks(&a, &list, condition).await }
    };
    assert_eq!(kind(commit(&[1, 9], Condition::Absent).await), "refused");
    let stale = Condition::Matches(ETag("stale".to_owned()));
    assert_eq!(kind(commit(&[7], stale).await), "precondition");
    assert_eq!(kind(store.read(&a).await), "not found", "staged is invisible");
    commit(&[7, 1], Condition::Absent).await.unwrap();
    assert_eq!(store.read(&a).await.unwrap().0, "CA");
    assert_eq!(kind(commit(&[2], Condition::Always).await), "refused", "discarded");
    // One block alone takes another way than several: condition, then content, then retry.
    stage(3, "only").await.unwrap();
    assert_eq!(kind(commit(&[3], Condition::Absent).await), "already exists");
    commit(&[3], Condition::Always).await.unwrap();
    assert_eq!(store.read(&a).await.unwrap().0, "only");
    commit(&[], Condition::Always).await.unwrap();
    assert_eq!(store.read(&a).await.unwrap().0, "");
}

pub(crate) async fn ranges_end_where_the_object_ends(bench: Bench) {
    let (store, a) = (bench.store, name("r"));
    store.put(&a, bytes("0123456789"), Condition::Absent).await.unwrap();
    for (offset, length, expected) in [(0, 10, "0123456789"), (3, 4, "3456"), (10, 0, "")] {
        assert_eq!(store.read_range(&a, offset, length).await.unwrap(), expected);
    }
    for (offset, length) in [(0, 11), (10, 1), (11, 0), (u64::MAX, 1), (1, u64::MAX >> 40)] {
        let range = store.read_range(&a, offset, length).await;
        assert_eq!(kind(range), "out of range", "{offset}+{length}");
    }
    assert_eq!(store.properties(&a).await.unwrap().length, 10);
}

pub(crate) async fn listings_are_sorted_and_prefixed(bench: Bench) {
    let store = bench.store;
    for text in ["m/b/2", "m/a/10", "m/a/1", "m-x", "m/ab", "seed/q"] {
        store.put(&name(text), bytes("xyz"), Condition::Absent).await.unwrap();
    }
    store.create_pages(&name("seed/p"), 1024).await.unwrap();
    store.stage_block(&name("m/a/3"), BlockId(0), bytes("s")).await.unwrap();
    let list = async |prefix: &str| -> Vec<String> {
        let rows = store.list(prefix).await.unwrap();
        rows.iter().map(|row| format!("{}:{}", row.name, row.length)).collect()
    };
    let all = ["m-x:3", "m/a/1:3", "m/a/10:3", "m/ab:3", "m/b/2:3", "seed/p:1024", "seed/q:3"];
    assert_eq!(list("").await, all);
    assert_eq!(list("m/a").await, ["m/a/1:3", "m/a/10:3", "m/ab:3"]);
    assert_eq!(list("m/a/").await, ["m/a/1:3", "m/a/10:3"]);
    assert_eq!(list("m/a/10").await, ["m/a/10:3"]);
    for nothing in ["x", "m/a/1/", "../", "/", "m//", ".pages/", "m/c/"] {
        assert!(list(nothing).await.is_empty(), "{nothing}");
    }
}

pub(crate) async fn a_name_is_no_path(bench: Bench) {
    let store = bench.store;
    let put = |text: &'static str| {
        let store = Arc::clone(&store);
        async move { store.put(&name(text), bytes("x"), Condition::Always).await }
    };
    put("a/b").await.unwrap();
    assert_eq!(kind(put("a").await), "refused");
    assert_eq!(kind(put("a/b/c").await), "refused");
    assert_eq!(kind(store.create_pages(&name("a"), 512).await), "refused");
    assert_eq!(kind(store.read(&name("a")).await), "not found");
    assert_eq!(kind(store.read(&name("a/b/c")).await), "not found");
    store.delete(&name("a/b"), Condition::Always).await.unwrap();
    put("a").await.unwrap();
    store.delete(&name("a"), Condition::Always).await.unwrap();
    put("a/b").await.unwrap();
}

pub(crate) async fn kinds_do_not_mix(bench: Bench) {
    let (store, b, p) = (bench.store, name("k/blocks"), name("k/pages"));
    store.put(&b, bytes("x"), Condition::Absent).await.unwrap();
    store.create_pages(&p, 512).await.unwrap();
    assert_eq!(kind(store.create_pages(&b, 512).await), "already exists");
    assert_eq!(kind(store.page_properties(&b).await), "refused");
    assert_eq!(kind(store.put(&p, bytes("x"), Condition::Absent).await), "already exists");
    assert_eq!(kind(store.put(&p, bytes("x"), Condition::Always).await), "refused");
    assert_eq!(kind(store.stage_block(&p, BlockId(0), bytes("x")).await), "refused");
    assert_eq!(kind(store.read(&p).await), "refused");
    assert_eq!(kind(store.delete(&p, Condition::Always).await), "refused");
    assert_eq!(store.properties(&p).await.unwrap().length, 512);
}

pub(crate) async fn limits_are_enforced(bench: Bench) {
    let (store, a) = (bench.store, name("l"));
    let long = Bytes::from(vec![0; BLOCK_BYTES_MAX as usize + 1]);
    assert_eq!(kind(store.stage_block(&a, BlockId(0), Bytes::new()).await), "refused");
    assert_eq!(kind(store.stage_block(&a, BlockId(0), long.clone()).await), "refused");
    assert_eq!(kind(store.put(&a, long, Condition::Always).await), "refused");
    let list = vec![BlockId(0); 50_001];
    assert_eq!(kind(store.commit_blocks(&a, &list, Condition::Always).await), "refused");
    assert_eq!(kind(store.read(&a).await), "not found");
}

/// Adds one to the number in an object, `count` times, by compare-and-swap.
pub(crate) async fn count_up(store: &dyn Store, count: u32) {
    let a = name("vault/counter");
    let mut done = 0;
    while done < count {
        let (content, condition) = match store.read(&a).await {
            Ok((content, etag)) => (content, Condition::Matches(etag)),
            Err(_) => (bytes("0"), Condition::Absent),
        };
        let number: u64 = std::str::from_utf8(&content).unwrap().parse().unwrap();
        let next = Bytes::from((number + 1).to_string());
        match kind(store.put(&a, next, condition).await) {
            "ok" => done += 1,
            "precondition" | "already exists" => {}
            other => panic!("{other}"),
        }
    }
}

pub(crate) async fn swaps_from_many_tasks_lose_nothing(bench: Bench) {
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let store = Arc::clone(&bench.store);
            tokio::spawn(async move { count_up(&*store, 25).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let (content, _) = bench.store.read(&name("vault/counter")).await.unwrap();
    assert_eq!(content, "100");
}

pub(crate) async fn giving_up_an_object_gives_up_its_blocks(bench: Bench) {
    let (store, a) = (bench.store, name("log/3"));
    store.stage_block(&a, BlockId(0), bytes("x")).await.unwrap();
    assert_eq!(kind(store.delete(&a, Condition::Always).await), "not found");
    let gone = store.commit_blocks(&a, &[BlockId(0)], Condition::Absent).await;
    assert_eq!(kind(gone), "refused");
}

/// Where versions are made from content, equal content is the same version.
pub(crate) async fn equal_content_is_the_same_version(bench: Bench) {
    let (store, a) = (bench.store, name("a/b"));
    let first = store.put(&a, bytes("1"), Condition::Absent).await.unwrap();
    store.put(&a, bytes("2"), Condition::Always).await.unwrap();
    assert_eq!(store.put(&a, bytes("1"), Condition::Always).await.unwrap(), first);
}
