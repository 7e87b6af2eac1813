//! What the agent does about a server's Welcome: a pure decision, table in `docs/agent.md`.

use crate::format::wire::Welcome;
use crate::model::{Epoch, Sequence};

/// What the agent knows when the Welcome arrives.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// The bitmap's epoch; `Epoch(0)` when none was begun.
    pub(super) epoch: Epoch,
    /// Why the bitmap cannot continue its epoch.
    pub(super) resync: Option<String>,
    /// The stop before this life was orderly and nothing was given out since.
    pub(super) clean: bool,
    /// Highest publication ever told, in this life or before.
    pub(super) witnessed: Sequence,
    /// Highest durable position told in this life.
    pub(super) durable: Sequence,
    /// Highest position that the server can have from this life: what it named, or was sent since.
    /// `None` before the first Welcome.
    pub(super) sent: Option<Sequence>,
    /// First and last sequence that can be sent again (empty: `last` = `first` - 1); `None` when
    /// order was lost.
    pub(super) held: Option<(Sequence, Sequence)>,
    /// Where this life placed the begin of `epoch`.
    pub(super) epoch_placed: Option<Sequence>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The Welcome contradicts itself: reconnect.
    Nonsense(String),
    /// Somebody else writes this stream: stop.
    Foreign(String),
    /// Everything must be sent again, in a new epoch.
    NewEpoch {
        /// Why.
        why: String,
        /// The store lost what it had published: a human must look at it.
        alarm: bool,
    },
    /// The buffer reaches back: send the rest again; the order is kept.
    Resend,
    /// What is known to be dirty is read again.
    CatchUp,
    /// A server was lost with what only it had: everything unpublished is read again.
    CatchUpAll,
}

/// Decides. The rows are tried from the top.
pub(super) fn decide(known: &Known, welcome: &Welcome) -> Decision {
    let Welcome { durable, published, .. } = *welcome;
    if published > durable {
        let text = format!("published {published} lies after durable {durable}");
        return Decision::Nonsense(text);
    }
    // What was given out and never sent proves nothing: another's records may have those numbers.
    if let Some(sent) = known.sent.filter(|sent| durable > *sent) {
        return Decision::Foreign(format!(
            "the server's stream ends at {durable}, this agent sent {sent} at most: another agent uses \
             this machine's certificate"
        ));
    }
    if published < known.witnessed {
        let witnessed = known.witnessed;
        let why = format!(
            "the store was rolled back: it had published {witnessed}, it names {published}"
        );
        return Decision::NewEpoch { why, alarm: true };
    }
    if let Some(why) = &known.resync {
        let why = why.clone();
        return Decision::NewEpoch { why, alarm: false };
    }
    if known.epoch == Epoch(0) {
        // What this life gave out meanwhile belongs to no epoch.
        let why = "no epoch was begun yet".to_owned();
        return Decision::NewEpoch { why, alarm: false };
    }
    let reaches = |(first, last): (Sequence, Sequence)| first <= durable.next() && durable <= last;
    let epoch_is_coming = known.epoch_placed.is_some_and(|placed| placed > durable);
    if known.held.is_some_and(reaches) && (welcome.epoch == known.epoch || epoch_is_coming) {
        return Decision::Resend;
    }
    if welcome.epoch != known.epoch {
        let (theirs, ours) = (welcome.epoch, known.epoch);
        let why = format!("the stream is in epoch {theirs}, the bitmap tracks epoch {ours}");
        return Decision::NewEpoch { why, alarm: false };
    }
    if known.clean && durable != known.witnessed {
        let witnessed = known.witnessed;
        let why =
            format!("the stream ended at {witnessed} when the agent stopped, it ends at {durable}");
        return Decision::NewEpoch { why, alarm: true };
    }
    if durable < known.durable || known.held.is_some() {
        return Decision::CatchUpAll;
    }
    Decision::CatchUp
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Generation;

    fn welcome(epoch: u32, durable: u64, published: u64) -> Welcome {
        Welcome {
            server: "ps-1".parse().unwrap(),
            generation: Generation(1),
            epoch: Epoch(epoch),
            durable: Sequence(durable),
            published: Sequence(published),
            credit_limit: 0,
            bookmark_interval_ms: 5000,
        }
    }

    fn known() -> Known {
        Known {
            epoch: Epoch(1),
            resync: None,
            clean: false,
            witnessed: Sequence(10),
            durable: Sequence(20),
            sent: Some(Sequence(30)),
            held: Some((Sequence(11), Sequence(30))),
            epoch_placed: None,
        }
    }

    fn new_epoch(known: &Known, welcome: &Welcome) -> bool {
        matches!(decide(known, welcome), Decision::NewEpoch { alarm: false, .. })
    }

    fn alarm(known: &Known, welcome: &Welcome) -> bool {
        matches!(decide(known, welcome), Decision::NewEpoch { alarm: true, .. })
    }

    #[test]
    fn while_this_life_holds_records() {
        assert!(matches!(decide(&known(), &welcome(1, 9, 12)), Decision::Nonsense(_)));
        assert!(matches!(decide(&known(), &welcome(1, 31, 10)), Decision::Foreign(_)));
        assert!(alarm(&known(), &welcome(1, 20, 9)));
        for durable in 10..=30 {
            assert_eq!(decide(&known(), &welcome(1, durable, 10)), Decision::Resend);
        }
        assert!(new_epoch(&known(), &welcome(2, 20, 10)));
        let far = Known { held: Some((Sequence(16), Sequence(30))), ..known() };
        assert_eq!(decide(&far, &welcome(1, 15, 10)), Decision::Resend);
        assert_eq!(decide(&far, &welcome(1, 14, 10)), Decision::CatchUpAll);
        let rewound = Known { held: Some((Sequence(16), Sequence(22))), ..known() };
        assert_eq!(decide(&rewound, &welcome(1, 25, 10)), Decision::CatchUpAll);
        let begun = Known { epoch: Epoch(2), epoch_placed: Some(Sequence(25)), ..known() };
        assert_eq!(decide(&begun, &welcome(1, 24, 10)), Decision::Resend);
        assert!(new_epoch(&begun, &welcome(1, 25, 10)), "it should be there and is not");
        let resync = Known { resync: Some("new disk".into()), ..known() };
        assert!(new_epoch(&resync, &welcome(1, 20, 10)));
    }

    /// The buffer filled while it was away, and reaches behind what the other wrote meanwhile.
    #[test]
    fn what_was_never_sent_is_somebody_elses() {
        let ahead = Known { sent: Some(Sequence(20)), ..known() };
        assert_eq!(decide(&ahead, &welcome(1, 20, 10)), Decision::Resend);
        for durable in [21, 25, 30] {
            let decided = decide(&ahead, &welcome(1, durable, 10));
            assert!(matches!(decided, Decision::Foreign(_)), "{durable}: {decided:?}");
        }
        // Nothing was written here since the orderly stop, and nothing sent since the first Welcome.
        let idle =
            Known { sent: Some(Sequence(10)), held: Some((Sequence(11), Sequence(10))), ..known() };
        assert!(matches!(decide(&idle, &welcome(1, 11, 10)), Decision::Foreign(_)));
    }

    /// It was killed before any server had welcomed it, and is written to before one does.
    #[test]
    fn an_agent_that_never_began_an_epoch_begins_one() {
        let young = Known {
            epoch: Epoch(0),
            witnessed: Sequence::ZERO,
            durable: Sequence::ZERO,
            sent: Some(Sequence::ZERO),
            held: Some((Sequence(1), Sequence(7))),
            ..known()
        };
        assert!(new_epoch(&young, &welcome(0, 0, 0)));
        assert!(new_epoch(&Known { held: None, ..young }, &welcome(0, 0, 0)));
    }

    #[test]
    fn when_order_was_lost_or_the_life_is_new() {
        let lost = Known { held: None, ..known() };
        assert_eq!(decide(&lost, &welcome(1, 20, 10)), Decision::CatchUp);
        assert_eq!(decide(&lost, &welcome(1, 19, 10)), Decision::CatchUpAll);
        assert!(new_epoch(&lost, &welcome(0, 20, 10)));
        let reborn = Known { sent: None, durable: Sequence::ZERO, ..lost.clone() };
        assert_eq!(decide(&reborn, &welcome(1, 99, 10)), Decision::CatchUp);
        assert!(alarm(&reborn, &welcome(1, 99, 9)));
        let clean = Known { clean: true, ..reborn };
        assert_eq!(decide(&clean, &welcome(1, 10, 10)), Decision::CatchUp);
        assert!(alarm(&clean, &welcome(1, 11, 10)), "somebody wrote after we left");
    }
}
