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

/// Another agent than the one that sits.
#[derive(Debug)]
struct Rival {
    words: String,
    /// When it came last; `None`: that it exists is proven, and it comes no more.
    came: Option<Duration>,
}

/// The seat of one machine, its taking and leaving.
#[derive(Debug)]
pub(super) struct Sitting {
    /// What the stream tracks now.
    tracks: EpochBegin,
    present: Option<(u64, Party)>,
    last: Option<Incarnation>,
    writer: Option<Incarnation>,
    /// Who was welcomed last, behind which record.
    welcomed: Option<(Incarnation, Sequence)>,
    rival: Option<Rival>,
}

impl Sitting {
    pub(super) fn new(tracks: EpochBegin) -> Self {
        Self { tracks, present: None, last: None, writer: None, welcomed: None, rival: None }
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

    /// The connection of this number takes the seat. True when nothing is left to be said of a rival:
    /// another life has it now.
    pub(super) fn enter(&mut self, number: u64, party: Party) -> bool {
        let another = self.last.replace(party.agent) != Some(party.agent);
        self.present = Some((number, party));
        another && self.rival.take().is_some()
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
        self.rival = Some(Rival { words, came: Some(now) });
    }

    /// Another one was refused for good.
    pub(super) fn proven(&mut self, words: String) {
        self.rival = Some(Rival { words, came: None });
    }

    /// The one in the seat was heard; what is to be said of another one.
    pub(super) fn heard(&mut self, now: Duration) -> Option<String> {
        let late = |came: Duration| now.saturating_sub(came) > COMES_AGAIN_WITHIN;
        if self.rival.as_ref().and_then(|rival| rival.came).is_some_and(late) {
            self.rival = None;
        }
        self.rival.as_ref().map(|rival| rival.words.clone())
    }

    /// A record of this life was admitted.
    pub(super) fn wrote(&mut self, agent: Incarnation) {
        self.writer = Some(agent);
    }

    /// This life was told that the stream ends there.
    pub(super) fn welcomed(&mut self, agent: Incarnation, at: Sequence) {
        self.welcomed = Some((agent, at));
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
        sitting.proven("foreign".to_owned());
        assert!(!sitting.enter(2, party(1)), "the same life came back: both are still there");
        assert_eq!(sitting.heard(90 * MINUTE).as_deref(), Some("foreign"));
        assert!(sitting.enter(3, party(2)));
        assert_eq!(sitting.heard(91 * MINUTE), None);
    }
}
