//! Which agent has a machine's seat, and whether another one may take it.
//!
//! Owns: that no agent ends the session of another one only to begin the stream anew, and what is said
//! of two that live at once: a clone, a drill with network, an old host that was switched on again. Does
//! not own: the order in the seat (`machine`), what two histories have in common (`session`).
//!
//! An agent's *life* is one run of it. A machine's next life follows the last one: it tracks in the
//! stream's epoch and has given out nothing yet. Nobody else is let in while a life is connected; one that
//! is gone without a word frees the seat when its connection has been silent for `limits.idle_timeout`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::model::{EpochBegin, Incarnation, Sequence};

/// How long one that was refused counts as there: it comes again within seconds.
const COMES_AGAIN_WITHIN: Duration = Duration::from_secs(120);

/// Who is on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Party {
    /// Which life, as its hello says.
    pub(super) agent: Incarnation,
    pub(super) peer: SocketAddr,
}

/// Another agent than the one that sits, refused for as long as that one does.
#[derive(Debug)]
struct Rival {
    words: String,
    /// When it came last.
    came: Duration,
}

/// Another agent that was refused for good. It has stopped, and comes no more to say so.
#[derive(Debug)]
struct Disowned {
    words: String,
    /// Whether the one whose stream it is was welcomed last: the next other life is another run, by which
    /// somebody has looked after the machine.
    is_survived: bool,
}

/// The seat of one machine, its taking and leaving.
#[derive(Debug)]
pub(super) struct Sitting {
    /// What the stream tracks now.
    tracks: EpochBegin,
    present: Option<(u64, Party)>,
    writer: Option<Incarnation>,
    /// Who was welcomed last, behind which record.
    welcomed: Option<(Incarnation, Sequence)>,
    rival: Option<Rival>,
    disowned: Option<Disowned>,
}

impl Sitting {
    pub(super) fn new(tracks: EpochBegin) -> Self {
        let (present, writer, welcomed) = (None, None, None);
        Self { tracks, present, writer, welcomed, rival: None, disowned: None }
    }

    pub(super) fn tracks(&self) -> &EpochBegin {
        &self.tracks
    }

    /// The stream begins another epoch.
    pub(super) fn began(&mut self, tracks: EpochBegin) {
        self.tracks = tracks;
    }

    /// The party in whose place `agent` may not come. `follows`: it can be the machine's next life.
    pub(super) fn defends(&self, agent: Incarnation, follows: bool) -> Option<&Party> {
        let (_, sitter) = self.present.as_ref()?;
        (sitter.agent != agent && !follows).then_some(sitter)
    }

    pub(super) fn is_taken(&self) -> bool {
        self.present.is_some()
    }

    /// The connection of this number takes the seat.
    pub(super) fn enter(&mut self, number: u64, party: Party) {
        self.present = Some((number, party));
    }

    /// That connection has ended.
    pub(super) fn leave(&mut self, number: u64) {
        if self.present.as_ref().is_some_and(|(present, _)| *present == number) {
            self.present = None;
        }
    }

    /// Another one was refused. What is said of it is not said before the one in the seat is heard:
    /// until then that one may be dead, and the other its next life.
    pub(super) fn refused(&mut self, words: String, now: Duration) {
        self.rival = Some(Rival { words, came: now });
    }

    /// This life was refused for good.
    pub(super) fn disowned(&mut self, agent: Incarnation, words: String) {
        let is_survived = self.welcomed.is_some_and(|(last, _)| last != agent);
        self.disowned = Some(Disowned { words, is_survived });
        self.rival = None;
    }

    /// The one in the seat was heard; what is to be said of another one.
    pub(super) fn heard(&mut self, now: Duration) -> Option<String> {
        let late = |rival: &Rival| now.saturating_sub(rival.came) > COMES_AGAIN_WITHIN;
        if self.rival.as_ref().is_some_and(late) {
            self.rival = None;
        }
        self.rival.as_ref().map(|rival| rival.words.clone()).or_else(|| self.stopped())
    }

    /// What is to be said of one that was refused for good.
    pub(super) fn stopped(&self) -> Option<String> {
        self.disowned.as_ref().map(|disowned| disowned.words.clone())
    }

    /// A record of this life was admitted.
    pub(super) fn wrote(&mut self, agent: Incarnation) {
        self.writer = Some(agent);
    }

    /// This life was told that the stream ends there. True when it is another one than the last: then only
    /// [`Sitting::stopped`] is left to be said. To have come, as one that is refused comes too, is not enough.
    pub(super) fn welcomed(&mut self, agent: Incarnation, at: Sequence) -> bool {
        let last = self.welcomed.replace((agent, at));
        if last.is_some_and(|(last, _)| last == agent) {
            return false;
        }
        self.rival = None;
        match &mut self.disowned {
            Some(disowned) if !disowned.is_survived => disowned.is_survived = true,
            _ => self.disowned = None,
        }
        true
    }

    /// Whether the record at `end`, the stream's last one, is known to be another life's, and one of which
    /// this life was not told: what it gave out itself it gave out behind what it was told.
    pub(super) fn is_anothers(&self, agent: Incarnation, end: Sequence) -> bool {
        self.writer.is_some_and(|writer| writer != agent) && self.welcomed != Some((agent, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Epoch;

    fn party(agent: u8) -> Party {
        let peer = SocketAddr::from(([127, 0, 0, agent], 9));
        Party { agent: Incarnation([agent; 16]), peer }
    }

    fn life(agent: u8) -> Incarnation {
        party(agent).agent
    }

    fn free() -> Sitting {
        Sitting::new(EpochBegin { epoch: Epoch(1), disks: Vec::new() })
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_seat_is_defended_against_who_cannot_be_the_next_life() {
        let mut sitting = free();
        assert_eq!(sitting.defends(life(1), false), None, "free");
        sitting.enter(1, party(1));
        assert_eq!(sitting.defends(life(1), false), None, "the same life, on another connection");
        assert_eq!(sitting.defends(life(2), true), None, "the next life");
        assert_eq!(sitting.defends(life(2), false), Some(&party(1)));
        sitting.enter(2, party(1));
        sitting.leave(1);
        assert!(sitting.is_taken(), "an older connection's end frees nothing");
        sitting.leave(2);
        assert_eq!(sitting.defends(life(2), false), None);
    }

    #[test]
    fn a_life_is_told_from_another_by_records_that_it_was_not_told_of() {
        let mut sitting = free();
        assert!(!sitting.is_anothers(life(2), Sequence(9)), "who wrote before is not known");
        sitting.wrote(life(1));
        assert!(sitting.is_anothers(life(2), Sequence(9)));
        assert!(!sitting.is_anothers(life(1), Sequence(9)));
        sitting.welcomed(life(2), Sequence(9));
        assert!(!sitting.is_anothers(life(2), Sequence(9)), "it begins behind them");
        sitting.wrote(life(1));
        assert!(sitting.is_anothers(life(2), Sequence(10)), "these came since");
        sitting.welcomed(life(1), Sequence(10));
        sitting.wrote(life(2));
        assert!(!sitting.is_anothers(life(2), Sequence(11)));
    }

    #[test]
    fn a_rival_is_spoken_of_while_both_live() {
        let mut sitting = free();
        sitting.enter(1, party(1));
        assert_eq!(sitting.heard(Duration::ZERO), None);
        sitting.refused("two".to_owned(), MINUTE);
        assert_eq!(sitting.heard(2 * MINUTE).as_deref(), Some("two"));
        sitting.refused("two".to_owned(), 2 * MINUTE);
        assert_eq!(sitting.heard(4 * MINUTE).as_deref(), Some("two"));
        assert_eq!(sitting.heard(5 * MINUTE), None, "it comes no more");
        sitting.welcomed(life(1), Sequence(9));
        sitting.refused("two".to_owned(), 5 * MINUTE);
        assert!(sitting.welcomed(life(2), Sequence(9)), "it has the seat itself");
        assert_eq!(sitting.heard(6 * MINUTE), None);
    }

    /// It protects nothing any more, and comes no more.
    #[test]
    fn a_rival_that_stopped_is_spoken_of_until_the_survivor_is_started_anew() {
        let stopped = Some("stopped".to_owned());
        for is_known in [true, false] {
            let mut sitting = free();
            if is_known {
                sitting.enter(1, party(1));
                sitting.welcomed(life(1), Sequence(9));
                sitting.leave(1);
            }
            sitting.enter(2, party(2)); // as everybody does before he is refused for good
            sitting.refused("while that one sits".to_owned(), MINUTE);
            sitting.disowned(life(2), "stopped".to_owned());
            sitting.leave(2);
            for number in [3, 4] {
                sitting.enter(number, party(1));
                sitting.welcomed(life(1), Sequence(9));
                assert_eq!(sitting.heard(2 * MINUTE), stopped, "{is_known} {number}");
            }
            sitting.refused("two".to_owned(), 90 * MINUTE);
            assert_eq!(sitting.heard(91 * MINUTE).as_deref(), Some("two"));
            assert_eq!(sitting.heard(93 * MINUTE), stopped, "that one comes no more");
            sitting.enter(5, party(3));
            assert_eq!(sitting.stopped(), stopped, "it may be refused, too");
            assert!(sitting.welcomed(life(3), Sequence(9)));
            assert_eq!(sitting.heard(94 * MINUTE), None);
        }
    }
}
