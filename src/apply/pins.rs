//! Which recoveries still run: those whose pins change.
//!
//! Owns: for how long each pin of a machine was seen unchanged, by a clock that only goes forward. What
//! a pin says of its own end is not asked: it was written by another host's clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::vault::PinDocument;

/// A recovery renews its pin three times in this time. One that did not has ended.
const LIFE: Duration = Duration::from_secs(600);
/// A pin that ended is removed so much later: whoever comes back late finds it and renews it.
const REMOVED_AFTER: Duration = Duration::from_secs(1200);

/// The pins of one machine as they were seen. Whoever makes applier after applier for it gives all of
/// them the same.
#[derive(Clone, Debug, Default)]
pub struct PinsSeen(Arc<Mutex<BTreeMap<String, Seen>>>);

#[derive(Debug)]
struct Seen {
    pin: PinDocument,
    since: Duration,
}

/// What follows from the pins.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Pins {
    /// Of recoveries that may still run.
    pub(super) running: Vec<PinDocument>,
    /// Ids of those that nobody will renew, until they are gone.
    pub(super) dead: Vec<String>,
}

impl PinsSeen {
    /// All pins that are there `now`. Those that are there no more are forgotten.
    pub(super) fn sort(&self, pins: Vec<(String, PinDocument)>, now: Duration) -> Pins {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *seen);
        let mut sorted = Pins::default();
        for (id, pin) in pins {
            let unchanged = before.remove(&id).filter(|seen| seen.pin == pin);
            let since = unchanged.map_or(now, |seen| seen.since);
            let age = now.saturating_sub(since);
            if age < LIFE {
                sorted.running.push(pin.clone());
            }
            if age >= REMOVED_AFTER {
                sorted.dead.push(id.clone());
            }
            seen.insert(id, Seen { pin, since });
        }
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn pin(expires: i64) -> PinDocument {
        PinDocument { sequence: 9, base: 4, expires: Timestamp(expires) }
    }

    fn at(seen: &PinsSeen, seconds: u64, pins: &[(&str, i64)]) -> (usize, Vec<String>) {
        let pins = pins.iter().map(|(id, expires)| ((*id).to_owned(), pin(*expires))).collect();
        let sorted = seen.sort(pins, Duration::from_secs(seconds));
        (sorted.running.len(), sorted.dead)
    }

    #[test]
    fn a_pin_ends_when_it_did_not_change_for_its_life() {
        let seen = PinsSeen::default();
        assert_eq!(at(&seen, 5_000, &[("a", 1), ("b", 1)]), (2, vec![]), "however old they say");
        assert_eq!(at(&seen, 5_599, &[("a", 1), ("b", 2)]), (2, vec![]), "b was renewed");
        assert_eq!(at(&seen, 5_600, &[("a", 1), ("b", 2)]), (1, vec![]));
        assert_eq!(at(&seen.clone(), 6_199, &[("a", 1), ("b", 3)]), (1, vec![]));
        assert_eq!(at(&seen, 6_200, &[("a", 1), ("b", 3)]), (1, vec!["a".to_owned()]));
        assert_eq!(at(&seen, 6_200, &[("a", 1), ("b", 3)]).1, ["a"], "it could not be removed");
        assert_eq!(at(&seen, 6_201, &[("a", 2), ("b", 3)]), (2, vec![]), "a came back");
        assert_eq!(at(&seen, 9_999, &[]), (0, vec![]));
        assert_eq!(at(&seen, 9_999, &[("a", 2)]), (1, vec![]), "what was gone is new");
    }
}
