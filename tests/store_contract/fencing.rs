//! Leases and sequence numbers: who may change a page blob, in every state, by every call.

use holdfast::store::{BlockId, Condition, LeaseId, PageGuard, Store};

use crate::fixture::{Bench, bytes, clear, data, guard, kind, lease, name, owned};

/// Every guarded call, without effect when it succeeds.
async fn guarded(store: &dyn Store, guard: PageGuard) -> [&'static str; 4] {
    let a = name("p");
    [
        kind(store.write_pages(&a, &[data(0, 512, 1)], &guard).await),
        kind(store.write_pages(&a, &[clear(0, 512)], &guard).await),
        kind(store.flush_pages(&a, &guard).await),
        kind(store.snapshot(&a, "s", &guard).await),
    ]
}

async fn raise(store: &dyn Store, number: u64, id: LeaseId) -> &'static str {
    kind(store.raise_sequence_number(&name("p"), number, id).await)
}

/// What stands in `traps.md`, stricter where Azure is not: a guard is always needed.
pub(crate) async fn the_table(bench: Bench) {
    let a = owned(&bench, "p", 4096).await;
    let store = &*bench.store;
    // Leased by 1, number 0.
    assert_eq!(guarded(store, guard(1, 0)).await, ["ok"; 4]);
    assert_eq!(guarded(store, guard(2, 0)).await, ["fenced"; 4], "wrong lease");
    assert_eq!(guarded(store, guard(1, 1)).await, ["fenced"; 4], "number too high");
    assert_eq!(raise(store, 5, lease(2)).await, "fenced");
    assert_eq!(kind(store.delete_pages(&a, None).await), "fenced");
    assert_eq!(kind(store.delete_pages(&a, Some(lease(2))).await), "fenced");
    assert_eq!(kind(store.renew_lease(&a, lease(2)).await), "fenced");
    assert_eq!(kind(store.release_lease(&a, lease(2)).await), "fenced");
    // Expired, nobody else.
    bench.lapse(&a).await;
    assert_eq!(guarded(store, guard(1, 0)).await, ["fenced"; 4], "expired");
    assert_eq!(raise(store, 5, lease(1)).await, "fenced");
    assert_eq!(kind(store.delete_pages(&a, Some(lease(1))).await), "fenced");
    store.renew_lease(&a, lease(1)).await.unwrap(); // not re-leased: Azure allows it, too
    assert_eq!(guarded(store, guard(1, 0)).await, ["ok"; 4]);
    // Taken over: break, acquire, raise. The old owner is out at every step.
    store.break_lease(&a).await.unwrap();
    assert_eq!(guarded(store, guard(1, 0)).await, ["fenced"; 4], "broken");
    assert_eq!(kind(store.renew_lease(&a, lease(1)).await), "fenced");
    store.acquire_lease(&a, lease(2), 15).await.unwrap();
    assert_eq!(guarded(store, guard(1, 0)).await, ["fenced"; 4], "leased by another");
    assert_eq!(raise(store, 7, lease(2)).await, "ok");
    assert_eq!(guarded(store, guard(2, 0)).await, ["fenced"; 4], "number too low");
    assert_eq!(guarded(store, guard(2, 7)).await, ["ok"; 4]);
    // The old one comes back after the new one's lease ran out: the number still fences it.
    bench.lapse(&a).await;
    store.acquire_lease(&a, lease(1), 15).await.unwrap();
    assert_eq!(guarded(store, guard(1, 0)).await, ["fenced"; 4]);
    store.release_lease(&a, lease(1)).await.unwrap();
    store.release_lease(&a, lease(1)).await.unwrap(); // its first answer may have been lost
    assert_eq!(guarded(store, guard(1, 7)).await, ["fenced"; 4], "given back");
    store.delete_pages(&a, None).await.unwrap();
}

pub(crate) async fn a_lease_is_taken_twice_by_its_holder(bench: Bench) {
    let a = owned(&bench, "p", 4096).await;
    let store = &bench.store;
    store.acquire_lease(&a, lease(1), 15).await.unwrap();
    assert_eq!(kind(store.acquire_lease(&a, lease(2), 15).await), "fenced");
    for seconds in [0, 14, 61, u32::MAX] {
        assert_eq!(kind(store.acquire_lease(&a, lease(1), seconds).await), "refused");
    }
    let nobody = name("nobody");
    assert_eq!(kind(store.acquire_lease(&nobody, lease(1), 15).await), "not found");
}

pub(crate) async fn a_lease_runs_out(bench: Bench) {
    let a = owned(&bench, "p", 4096).await;
    let store = &bench.store;
    store.acquire_lease(&a, lease(1), 15).await.unwrap();
    assert_eq!(kind(store.acquire_lease(&a, lease(2), 15).await), "fenced");
    bench.lapse(&a).await;
    store.acquire_lease(&a, lease(2), 15).await.unwrap();
    assert_eq!(kind(store.renew_lease(&a, lease(1)).await), "fenced");
}

pub(crate) async fn a_lease_runs_for_its_seconds(bench: Bench) {
    let a = owned(&bench, "p", 4096).await;
    let store = &bench.store;
    store.acquire_lease(&a, lease(1), 15).await.unwrap();
    bench.clock.move_seconds(14);
    assert_eq!(kind(store.acquire_lease(&a, lease(2), 15).await), "fenced");
    store.renew_lease(&a, lease(1)).await.unwrap();
    bench.clock.move_seconds(14);
    assert_eq!(kind(store.acquire_lease(&a, lease(2), 15).await), "fenced");
    bench.clock.move_seconds(1);
    store.acquire_lease(&a, lease(2), 15).await.unwrap();
    assert_eq!(kind(store.renew_lease(&a, lease(1)).await), "fenced");
}

pub(crate) async fn a_clock_set_back_frees_a_lease(bench: Bench) {
    let a = owned(&bench, "p", 4096).await;
    bench.clock.move_seconds(-3600);
    bench.store.acquire_lease(&a, lease(2), 15).await.unwrap();
    assert_eq!(guarded(&*bench.store, guard(1, 0)).await, ["fenced"; 4]);
}

pub(crate) async fn numbers_only_rise(bench: Bench) {
    let a = owned(&bench, "p", 4096).await;
    let store = &*bench.store;
    for (number, expected) in [(3, 3), (2, 3), (9, 9), (i64::MAX as u64, i64::MAX as u64)] {
        assert_eq!(raise(store, number, lease(1)).await, "ok");
        let found = store.page_properties(&a).await.unwrap().sequence_number;
        assert_eq!(found, expected);
    }
    assert_eq!(raise(store, u64::MAX, lease(1)).await, "refused");
}

/// A small object that says who is alive: only the holder of its lease changes it.
pub(crate) async fn a_leased_object_changes_under_its_lease_alone(bench: Bench) {
    let (store, a) = (&*bench.store, name("vault/servers/one"));
    assert_eq!(kind(store.acquire_lease(&a, lease(1), 15).await), "not found");
    let under = async |number: u8, condition: Condition| {
        kind(store.put_leased(&a, bytes("beat"), condition, lease(number)).await)
    };
    let bare = async || {
        let block = [BlockId(0)];
        let staged = store.stage_block(&a, block[0], bytes("x")).await;
        let committed = store.commit_blocks(&a, &block, Condition::Always).await;
        [
            kind(store.put(&a, bytes("bare"), Condition::Always).await),
            kind(staged.and(committed)),
            kind(store.delete(&a, Condition::Always).await),
        ]
    };
    let etag = store.put(&a, bytes("first"), Condition::Absent).await.unwrap();
    assert!(!store.properties(&a).await.unwrap().leased);
    assert_eq!(under(1, Condition::Always).await, "fenced", "nobody holds it");
    store.acquire_lease(&a, lease(1), 15).await.unwrap();
    store.acquire_lease(&a, lease(1), 15).await.unwrap(); // its first answer may have been lost
    assert_eq!(kind(store.acquire_lease(&a, lease(2), 15).await), "fenced");
    assert!(store.properties(&a).await.unwrap().leased);
    assert_eq!(bare().await, ["fenced"; 3]);
    assert_eq!(under(2, Condition::Always).await, "fenced");
    assert_eq!(store.read(&a).await.unwrap().0, "first");
    assert_eq!(under(1, Condition::Matches(etag.clone())).await, "ok");
    assert_eq!(under(1, Condition::Matches(etag)).await, "precondition");
    assert_eq!(store.read(&a).await.unwrap().0, "beat");
    store.renew_lease(&a, lease(1)).await.unwrap();
    assert_eq!(kind(store.renew_lease(&a, lease(2)).await), "fenced");
    // Broken by a successor: the former holder is out at once.
    store.break_lease(&a).await.unwrap();
    assert!(!store.properties(&a).await.unwrap().leased);
    assert_eq!(under(1, Condition::Always).await, "fenced");
    assert_eq!(kind(store.renew_lease(&a, lease(1)).await), "fenced");
    store.acquire_lease(&a, lease(2), 15).await.unwrap();
    assert_eq!(under(2, Condition::Always).await, "ok");
    store.release_lease(&a, lease(2)).await.unwrap();
    store.release_lease(&a, lease(2)).await.unwrap();
    assert_eq!(bare().await, ["ok"; 3]);
    // The next of that name begins anew.
    store.put(&a, bytes("again"), Condition::Absent).await.unwrap();
    assert_eq!(under(2, Condition::Always).await, "fenced");
}

/// A lease that ran out may be renewed, unless somebody used the time.
pub(crate) async fn a_lapsed_lease_ends_with_a_foreign_change(bench: Bench) {
    let (store, a, b) = (&*bench.store, name("vault/servers/a"), name("vault/servers/b"));
    for object in [&a, &b] {
        store.put(object, bytes("first"), Condition::Absent).await.unwrap();
        store.acquire_lease(object, lease(1), 15).await.unwrap();
    }
    bench.lapse(&a).await;
    bench.lapse(&b).await;
    let late = store.put_leased(&a, bytes("late"), Condition::Always, lease(1)).await;
    assert_eq!(kind(late), "fenced");
    store.put(&b, bytes("foreign"), Condition::Always).await.unwrap();
    assert_eq!(kind(store.renew_lease(&b, lease(1)).await), "fenced");
    store.renew_lease(&a, lease(1)).await.unwrap();
    let back = store.put_leased(&a, bytes("back"), Condition::Always, lease(1)).await;
    assert_eq!(kind(back), "ok");
}
