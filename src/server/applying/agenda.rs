//! Which machine is due next: one deadline each, the earliest first. Sans-io; time is an argument.
//!
//! Owns: the order. Does not own: what is done with a machine that is due, and why its deadline is
//! when it is ([`super::rhythm`]). A machine that needs more than its turn goes behind those that
//! have waited longer, so none starves another.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::model::MachineId;

/// All machines, each waiting for its deadline, waiting for news, or away for its turn.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    order: BTreeSet<(Duration, MachineId)>,
    places: HashMap<MachineId, Place>,
}

#[derive(Debug)]
struct Place {
    due: Option<Duration>,
    /// News do not bring it forward beyond this.
    not_before: Duration,
    woken: bool,
    away: bool,
}

/// A machine whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) machine: MachineId,
    /// Whether there was news of it since its last turn.
    pub(super) woken: bool,
}

impl Agenda {
    /// A machine that may be new; known ones keep their deadline.
    pub(super) fn enter(&mut self, machine: &MachineId, due: Duration) {
        if !self.places.contains_key(machine) {
            let place = Place { due: None, not_before: due, woken: false, away: false };
            self.places.insert(machine.clone(), place);
            self.put(machine, Some(due));
        }
    }

    /// News of a machine: it is due now, or as soon as its pause is over.
    pub(super) fn wake(&mut self, machine: &MachineId, now: Duration) {
        self.enter(machine, now);
        let Some(place) = self.places.get_mut(machine) else { return };
        place.woken = true;
        let soon = now.max(place.not_before);
        if !place.away && place.due.is_none_or(|due| due > soon) {
            self.put(machine, Some(soon));
        }
    }

    /// The machine that has been due the longest; it is away until it comes [`Agenda::back`].
    pub(super) fn take(&mut self, now: Duration) -> Option<Due> {
        let (due, _) = self.order.first()?;
        if *due > now {
            return None;
        }
        let (_, machine) = self.order.pop_first()?;
        let place = self.places.get_mut(&machine)?;
        place.due = None;
        place.away = true;
        let woken = std::mem::take(&mut place.woken);
        Some(Due { machine, woken })
    }

    /// A machine after its turn: due at `next`, or when there is news, but not before `not_before`.
    pub(super) fn back(
        &mut self,
        machine: &MachineId,
        not_before: Duration,
        next: Option<Duration>,
    ) {
        let Some(place) = self.places.get_mut(machine) else { return };
        place.away = false;
        place.not_before = not_before;
        let due = if place.woken { Some(not_before) } else { next.map(|at| at.max(not_before)) };
        self.put(machine, due);
    }

    /// When the first machine is due.
    pub(super) fn next(&self) -> Option<Duration> {
        self.order.first().map(|(due, _)| *due)
    }

    fn put(&mut self, machine: &MachineId, due: Option<Duration>) {
        let Some(place) = self.places.get_mut(machine) else { return };
        if let Some(before) = std::mem::replace(&mut place.due, due) {
            self.order.remove(&(before, machine.clone()));
        }
        if let Some(due) = due {
            self.order.insert((due, machine.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn machine(name: &str) -> MachineId {
        name.parse().unwrap()
    }

    fn due(name: &str, woken: bool) -> Option<Due> {
        Some(Due { machine: machine(name), woken })
    }

    #[test]
    fn an_idle_machine_is_due_at_once_when_there_is_news_and_then_pauses() {
        let mut agenda = Agenda::default();
        let web = machine("web");
        agenda.enter(&web, at(5));
        assert_eq!(agenda.take(at(4)), None);
        assert_eq!(agenda.take(at(5)), due("web", false));
        agenda.back(&web, at(6), None);
        assert_eq!(agenda.next(), None, "nothing is ever due by itself");
        agenda.wake(&web, at(1000));
        assert_eq!(agenda.take(at(1000)), due("web", true), "at once");
        agenda.wake(&web, at(1000));
        assert_eq!(agenda.take(at(1000)), None, "it is away");
        agenda.back(&web, at(1001), None);
        assert_eq!(agenda.next(), Some(at(1001)), "the news that came meanwhile is not lost");
        agenda.wake(&web, at(1000));
        assert_eq!(agenda.next(), Some(at(1001)), "the pause holds");
        assert_eq!(agenda.take(at(1001)), due("web", true));
    }

    #[test]
    fn who_needs_more_waits_behind_who_waited_longer() {
        let mut agenda = Agenda::default();
        for (name, since) in [("loud", 1), ("b", 2), ("c", 3)] {
            agenda.enter(&machine(name), at(since));
        }
        let mut turns = Vec::new();
        for now in 10..16 {
            let due = agenda.take(at(now)).unwrap();
            let next = (due.machine.as_str() == "loud").then_some(at(now));
            agenda.back(&due.machine, at(now), next);
            turns.push(due.machine.as_str().to_owned());
        }
        assert_eq!(turns, ["loud", "b", "c", "loud", "loud", "loud"]);
    }

    #[test]
    fn a_deadline_moves_forward_only() {
        let mut agenda = Agenda::default();
        let web = machine("web");
        agenda.enter(&web, at(3));
        agenda.wake(&web, at(1));
        assert_eq!(agenda.next(), Some(at(3)), "its first look is spread on purpose");
        assert!(agenda.take(at(3)).is_some());
        agenda.back(&web, at(4), Some(at(100)));
        agenda.enter(&web, at(5));
        assert_eq!(agenda.next(), Some(at(100)), "known already");
        agenda.wake(&web, at(50));
        assert_eq!(agenda.next(), Some(at(50)));
    }
}
