//! How a guest's disk is now, in words.
//!
//! Owns: since when it is so. Does not own: what is done about it ([`super::guest`]).

use crate::model::Timestamp;

/// One disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Every write reaches the agent first.
    Synced,
    /// Not now.
    Apart {
        /// Nobody answers at the monitor: QEMU is not running.
        off: bool,
        /// Since when the one or the other.
        since: Timestamp,
        /// What was seen last.
        why: String,
    },
}

impl State {
    /// Apart, and since when, by what it was before.
    pub(super) fn apart(before: Option<&Self>, off: bool, why: &str, now: Timestamp) -> Self {
        let since = match before {
            Some(Self::Apart { off: was, since, .. }) if *was == off => *since,
            _ => Timestamp(now.0 - now.0.rem_euclid(1_000_000)),
        };
        Self::Apart { off, since, why: why.to_owned() }
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Synced => "QEMU sends each write before the guest has its answer".to_owned(),
            Self::Apart { off: true, since, why } => format!("guest off since {since}: {why}"),
            Self::Apart { off: false, since, why } => format!("not mirrored since {since}: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_off_since_its_monitor_went_and_not_since_it_was_tried_last() {
        let at = |second: i64| Timestamp(second * 1_000_000 + 17);
        let gone = State::apart(Some(&State::Synced), false, "the mirror job is gone", at(10));
        let off = State::apart(Some(&gone), true, "no answer", at(12));
        let still = State::apart(Some(&off), true, "connection refused", at(300));
        assert_eq!(still.words(), "guest off since 1970-01-01T00:00:12Z: connection refused");
        let back = State::apart(Some(&still), false, "attaching", at(301));
        assert_eq!(back.words(), "not mirrored since 1970-01-01T00:05:01Z: attaching");
        assert_eq!(State::apart(None, false, "attaching", at(301)), back);
    }
}
