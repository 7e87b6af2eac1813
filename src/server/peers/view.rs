//! What one process server knows of the others, and which of them a machine is placed on. Sans-io; time
//! is an argument.
//!
//! Owns: whether an expiry may be believed, and the choice. Does not own: asking the store, dialling.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::model::{MachineId, ServerId};
use crate::vault::{LEASE_SECONDS, ServerDocument};

/// How long a renewal counts from the moment it was sent: the lease less a third.
pub(super) const COUNTS: Duration = Duration::from_secs(LEASE_SECONDS as u64 * 2 / 3);
/// Of an idle machine, so that idle machines are spread, too; bytes/s.
const IDLE_CHURN: u64 = 1 << 10;
/// Part of what was placed that a look leaves: as much as a measurement of churn leaves of the one
/// before.
const PLACED_KEPT: f64 = 0.9;

/// One other process server.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) document: ServerDocument,
    /// Whether its lease ran when it was looked at.
    pub(super) leased: bool,
    /// When that was, by the clock that goes on in suspension.
    pub(super) seen_at: Duration,
    /// Machines placed there that its load does not show yet.
    placed: f64,
}

impl Peer {
    pub(super) fn is_fresh(&self, now: Duration) -> bool {
        now.saturating_sub(self.seen_at) < COUNTS
    }
}

/// All of them, and how long this server has seen the store without a break.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) peers: BTreeMap<ServerId, Peer>,
    sight: Option<Sight>,
    placed_here: f64,
}

#[derive(Clone, Copy, Debug)]
struct Sight {
    since: Duration,
    last: Duration,
}

impl View {
    /// The own lease was renewed by a request that was sent at `sent`.
    pub(super) fn renewed(&mut self, sent: Duration) {
        let unbroken = self.sight.filter(|sight| sent.saturating_sub(sight.last) < COUNTS);
        let since = unbroken.map_or(sent, |sight| sight.since);
        self.sight = Some(Sight { since, last: sent });
        self.placed_here *= PLACED_KEPT;
    }

    /// Whether somebody whose lease has run out is believed to be gone: only while the own one has
    /// counted without a break for as long as a lease is. After an outage of the store all of them
    /// have run out, and nobody is gone.
    pub(super) fn believes_expiry(&self, now: Duration) -> bool {
        self.sight.is_some_and(|sight| {
            let whole = Duration::from_secs(u64::from(LEASE_SECONDS));
            now.saturating_sub(sight.last) < COUNTS && now.saturating_sub(sight.since) >= whole
        })
    }

    pub(super) fn saw(&mut self, document: ServerDocument, leased: bool, now: Duration) {
        let server = document.server.clone();
        let placed = self.peers.get(&server).map_or(0.0, |peer| peer.placed * PLACED_KEPT);
        self.peers.insert(server, Peer { document, leased, seen_at: now, placed });
    }

    /// Those whose lease ran when they were looked at last.
    pub(super) fn living(&self) -> impl Iterator<Item = &Peer> + Clone {
        self.peers.values().filter(|peer| peer.leased)
    }

    /// Those of them that take machines.
    pub(super) fn taking(&self) -> impl Iterator<Item = &Peer> + Clone {
        self.living().filter(|peer| !peer.document.leaving)
    }

    /// Where a machine goes: `None` is here. Of those in `gone` it is known better than by their leases.
    pub(super) fn place(
        &mut self,
        here: Option<&ServerDocument>,
        wish: Option<&ServerId>,
        gone: &BTreeSet<ServerId>,
    ) -> Option<ServerDocument> {
        let chosen = self.choose(here, wish, gone).cloned();
        match chosen.as_ref().and_then(|chosen| self.peers.get_mut(&chosen.server)) {
            None => self.placed_here += 1.0,
            Some(peer) => peer.placed += 1.0,
        }
        chosen
    }

    fn choose(
        &self,
        here: Option<&ServerDocument>,
        wish: Option<&ServerId>,
        gone: &BTreeSet<ServerId>,
    ) -> Option<&ServerDocument> {
        if here.is_some_and(|here| wish == Some(&here.server)) {
            return None;
        }
        let there = self.taking().filter(|peer| !gone.contains(&peer.document.server));
        if let Some(wished) = there.clone().find(|peer| Some(&peer.document.server) == wish) {
            return Some(&wished.document);
        }
        let average = self.average(here);
        let weigh = |document: &ServerDocument, placed: f64| {
            let idle = document.load.machines.saturating_mul(IDLE_CHURN);
            let placed = (placed * average as f64) as u64;
            document.load.churn_bytes_per_s.saturating_add(idle).saturating_add(placed)
        };
        let lightest = there.min_by_key(|peer| weigh(&peer.document, peer.placed))?;
        let worth_it = here.is_none_or(|here| {
            let theirs = weigh(&lightest.document, lightest.placed);
            theirs.saturating_add(average) < weigh(here, self.placed_here)
        });
        worth_it.then_some(&lightest.document)
    }

    /// What the average machine sends.
    fn average(&self, here: Option<&ServerDocument>) -> u64 {
        let documents = || self.living().map(|peer| &peer.document).chain(here);
        let churn: u64 = documents().map(|one| one.load.churn_bytes_per_s).sum();
        let machines: u64 = documents().map(|one| one.load.machines).sum();
        churn.checked_div(machines).unwrap_or(0).max(IDLE_CHURN)
    }

    /// Who applies a machine: its owner while that one lives, else the one of the living that the
    /// machine's name chooses.
    pub(super) fn steward(&self, machine: &MachineId, owner: &ServerId, us: &ServerId) -> ServerId {
        let mut living: Vec<_> = self.living().map(|peer| &peer.document.server).collect();
        living.push(us);
        if living.contains(&owner) || !self.peers.contains_key(owner) {
            return owner.clone();
        }
        let weight = |server: &ServerId| {
            let both = format!("{server}/{machine}");
            <[u8; 32]>::from(Sha256::digest(both.as_bytes()))
        };
        living.into_iter().max_by_key(|server| weight(server)).unwrap_or(us).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::server_document;
    use crate::vault::ServerLoad;

    fn id(name: &str) -> ServerId {
        name.parse().unwrap()
    }

    fn document(name: &str, churn: u64, machines: u64) -> ServerDocument {
        let load = ServerLoad { churn_bytes_per_s: churn, machines, cache_fill: 0.0 };
        ServerDocument { load, ..server_document(name, 1) }
    }

    fn view(peers: &[(&str, u64, u64)]) -> View {
        let mut view = View::default();
        for (name, churn, machines) in peers {
            view.saw(document(name, *churn, *machines), true, Duration::ZERO);
        }
        view
    }

    fn placed(view: &mut View, here: &ServerDocument, wish: Option<&str>) -> Option<String> {
        let wish = wish.map(id);
        let there = view.place(Some(here), wish.as_ref(), &BTreeSet::new());
        there.map(|document| document.server.to_string())
    }

    #[test]
    fn the_lightest_by_churn_and_here_unless_another_is_lighter_by_a_machine() {
        let here = document("a", 3000, 3);
        assert_eq!(placed(&mut view(&[("b", 2500, 3)]), &here, None), None, "not worth a redirect");
        let found = placed(&mut view(&[("b", 900, 3), ("c", 1000, 3)]), &here, None);
        assert_eq!(found.as_deref(), Some("b"));
        assert_eq!(placed(&mut view(&[]), &here, None), None, "alone");
    }

    #[test]
    fn what_was_placed_counts_before_it_is_measured() {
        let (mut view, here) = (view(&[("b", 0, 0), ("c", 0, 0)]), document("a", 0, 0));
        let mut counts = BTreeMap::new();
        for _ in 0..30 {
            let there = placed(&mut view, &here, None).unwrap_or_else(|| "a".to_owned());
            *counts.entry(there).or_insert(0) += 1;
        }
        let spread: Vec<u32> = counts.into_values().collect();
        assert_eq!(spread.len(), 3, "everybody gets some");
        assert!(spread.iter().all(|count| (8..=12).contains(count)), "{spread:?}");
    }

    #[test]
    fn a_wish_counts_while_that_server_takes_machines() {
        let here = document("a", 0, 0);
        let mut all = view(&[("b", 1 << 30, 99), ("c", 0, 0)]);
        assert_eq!(placed(&mut all, &here, Some("b")).as_deref(), Some("b"));
        assert_eq!(placed(&mut view(&[("b", 0, 0)]), &document("a", 1 << 30, 9), Some("a")), None);
        let leaving = ServerDocument { leaving: true, ..document("b", 0, 0) };
        all.saw(leaving, true, Duration::ZERO);
        assert_ne!(placed(&mut all, &here, Some("b")).as_deref(), Some("b"), "it drains");
        all.saw(document("b", 0, 0), false, Duration::ZERO);
        assert_ne!(placed(&mut all, &here, Some("b")).as_deref(), Some("b"), "it is gone");
        let gone = id("b");
        let mut known = view(&[("b", 0, 0)]);
        let heavy = document("a", 1 << 30, 9);
        assert!(
            known.place(Some(&heavy), Some(&gone), &[gone.clone()].into()).is_none(),
            "dialled in vain"
        );
    }

    #[test]
    fn an_expiry_is_believed_after_a_lease_of_unbroken_sight_only() {
        let at = Duration::from_secs;
        let mut view = View::default();
        assert!(!view.believes_expiry(at(100)), "nothing was seen yet");
        for sent in [100, 105, 110] {
            view.renewed(at(sent));
            assert!(!view.believes_expiry(at(sent)), "{sent}");
        }
        view.renewed(at(115));
        assert!(view.believes_expiry(at(116)));
        assert!(!view.believes_expiry(at(125)), "the own renewal counts for two thirds of a lease");
        view.renewed(at(126));
        assert!(!view.believes_expiry(at(130)), "a break: all leases ran out in it");
        for sent in [131, 136, 141] {
            view.renewed(at(sent));
        }
        assert!(view.believes_expiry(at(142)));
    }

    #[test]
    fn the_owner_applies_and_else_one_of_the_living_that_all_agree_on() {
        let (a, b, c, gone) = (id("a"), id("b"), id("c"), id("gone"));
        let mut of_a = view(&[("b", 0, 0), ("c", 0, 0), ("gone", 0, 0)]);
        let mut of_b = view(&[("a", 0, 0), ("c", 0, 0), ("gone", 0, 0)]);
        let machine = |n: u32| format!("m-{n}").parse::<MachineId>().unwrap();
        assert_eq!(of_a.steward(&machine(1), &gone, &a), gone, "alive");
        assert_eq!(of_a.steward(&machine(1), &id("never-seen"), &a), id("never-seen"));
        for view in [&mut of_a, &mut of_b] {
            view.saw(document("gone", 0, 0), false, Duration::ZERO);
        }
        let mut counts = BTreeMap::new();
        for n in 0..90 {
            let chosen = of_a.steward(&machine(n), &gone, &a);
            assert_eq!(chosen, of_b.steward(&machine(n), &gone, &b), "m-{n}");
            *counts.entry(chosen).or_insert(0) += 1;
        }
        assert_eq!(counts.keys().collect::<Vec<_>>(), [&a, &b, &c]);
        assert!(counts.values().all(|count| *count > 15), "{counts:?}");
    }
}
