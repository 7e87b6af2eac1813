//! Who is served when, by the order alone; and what becomes of wishes that are given up.

use super::order::{Order, Pool};
use super::*;

fn machine(number: u8) -> MachineKey {
    MachineKey([number; 16])
}

fn served(order: &mut Order<&'static str>) -> Vec<&'static str> {
    std::iter::from_fn(|| order.serve()).collect()
}

#[test]
fn a_newcomer_goes_before_the_rest_of_a_loud_queue() {
    let mut order = Order::new(1, 0);
    let first = order.ask(machine(1), 1, 100, "loud 1");
    for name in ["loud 2", "loud 3", "loud 4"] {
        order.ask(machine(1), 1, 100, name);
    }
    assert_eq!(served(&mut order), ["loud 1"]);
    order.ask(machine(2), 1, 10, "quiet");
    let granted = order.collect(first);
    order.give_back(granted.who, granted.pool, granted.units, true);
    assert_eq!(served(&mut order), ["quiet"]);
}

/// Two that always want more get the same, whatever the size of their pieces.
#[test]
fn the_share_is_in_cost_not_in_turns() {
    let mut order = Order::new(1, 0);
    let mut had = [0_u64; 2];
    let cost = |who: usize| [700, 100][who];
    let mut ids = std::collections::HashMap::new();
    let mut wish = |order: &mut Order<usize>, who: usize| {
        let id = order.ask(machine(who as u8), 1, cost(who), who);
        ids.insert(who, id);
        id
    };
    let mut waiting = [wish(&mut order, 0), wish(&mut order, 1)];
    for _ in 0..8_000 {
        let who = order.serve().unwrap();
        let granted = order.collect(waiting[who]);
        had[who] += cost(who);
        waiting[who] = wish(&mut order, who);
        order.give_back(granted.who, granted.pool, granted.units, true);
    }
    assert!(had[0].abs_diff(had[1]) <= 1_400, "{had:?}");
}

#[test]
fn the_reserve_is_for_those_that_have_nothing() {
    let mut order = Order::new(4, 1);
    for name in ["a", "b", "c", "d", "e"] {
        order.ask(machine(1), 1, 1, name);
    }
    assert_eq!(served(&mut order), ["a", "b", "c"], "the last unit is kept");
    let quiet = order.ask(machine(2), 1, 1, "quiet");
    order.ask(machine(2), 1, 1, "quiet again");
    assert_eq!(served(&mut order), ["quiet"], "it has something now");
    assert_eq!(order.collect(quiet).pool, Pool::Reserve);
}

#[test]
fn who_needs_much_is_not_overtaken_for_ever() {
    let mut order = Order::new(10, 2);
    let other = order.ask(machine(9), 6, 1, "other");
    order.ask(machine(1), 1, 1, "small");
    assert_eq!(served(&mut order), ["other", "small"]);
    order.ask(machine(1), 3, 1, "large");
    order.ask(machine(2), 2, 1, "fits the reserve");
    order.ask(machine(3), 1, 1, "would fit the common pool");
    assert_eq!(served(&mut order), ["fits the reserve"]);
    let granted = order.collect(other);
    order.give_back(granted.who, granted.pool, granted.units, true);
    assert_eq!(served(&mut order), ["large", "would fit the common pool"]);
}

#[test]
fn one_machine_has_half_while_others_are_about_and_all_of_it_alone() {
    let mut order = Order::new(9, 1);
    let loud = |order: &mut Order<_>| (0..8).map(|_| order.ask(machine(1), 1, 9, "loud")).collect();
    let alone: Vec<u64> = loud(&mut order);
    assert_eq!(served(&mut order).len(), 8);
    let quiet = order.ask(machine(2), 1, 1, "quiet");
    assert_eq!(served(&mut order), ["quiet"], "from the reserve");
    let more: Vec<u64> = loud(&mut order);
    for (left, id) in alone.into_iter().enumerate() {
        let granted = order.collect(id);
        order.give_back(granted.who, granted.pool, granted.units, true);
        // Down to half of the eight, and from then on one for one.
        assert_eq!(
            served(&mut order).len(),
            usize::from(left >= 4),
            "after {} came back",
            left + 1
        );
    }
    let third = order.ask(machine(3), 1, 1, "third");
    assert_eq!(served(&mut order), ["third"], "there is room in the other half");
    for id in [quiet, third] {
        let granted = order.collect(id);
        order.give_back(granted.who, granted.pool, granted.units, true);
    }
    assert_eq!(served(&mut order).len(), 4, "alone again: the other half, too");
    assert_eq!(more.len(), 8);
}

#[test]
fn who_has_nothing_and_needs_more_than_the_reserve_gets_all_of_it() {
    let mut order = Order::new(10, 2);
    order.ask(machine(1), 8, 1, "all");
    order.ask(machine(2), 5, 1, "a full batch");
    assert_eq!(served(&mut order), ["all", "a full batch"]);
    assert_eq!(order.in_use(), 10);
}

#[test]
fn more_than_there_is_counts_as_all_of_it() {
    let mut order = Order::new(10, 2);
    let all = order.ask(machine(1), 1 << 40, 1, "all");
    assert_eq!(served(&mut order), ["all"]);
    assert_eq!(order.collect(all).units, 8);
    assert_eq!((order.in_use(), order.capacity()), (8, 10));
}

#[test]
fn fewer_units_are_given_out_once_there_are_fewer() {
    let mut order = Order::new(3, 0);
    let ids: Vec<_> = (0..3).map(|_| order.ask(machine(1), 1, 1, "one")).collect();
    assert_eq!(served(&mut order).len(), 3);
    order.resize(1, 0);
    order.ask(machine(1), 1, 1, "next");
    for (left, id) in [(2, ids[0]), (1, ids[1])] {
        let granted = order.collect(id);
        order.give_back(granted.who, granted.pool, granted.units, true);
        assert_eq!((order.in_use(), served(&mut order).len()), (left, 0));
    }
    let granted = order.collect(ids[2]);
    order.give_back(granted.who, granted.pool, granted.units, true);
    assert_eq!(served(&mut order), ["next"]);
}

#[tokio::test]
async fn units_come_back_with_turns_and_with_wishes_that_are_given_up() {
    let turns = Turns::new(4, 0);
    let mut first = turns.take(machine(1), 4, 1).await;
    {
        let waits = turns.take(machine(2), 2, 1);
        tokio::pin!(waits);
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert_eq!(turns.waiting(), 1);
    }
    assert_eq!((turns.waiting(), turns.in_use()), (0, 4), "the wish went with its future");
    let told = turns.take(machine(3), 1, 1);
    {
        tokio::pin!(told);
        assert!(futures_util::poll!(&mut told).is_pending());
        first.shrink_to(1);
        assert_eq!(turns.in_use(), 2, "granted, and never looked at");
    }
    assert_eq!(turns.in_use(), 1, "what was granted came back with its future");
    drop(first);
    assert_eq!(turns.in_use(), 0);
}
