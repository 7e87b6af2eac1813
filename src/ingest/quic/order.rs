//! Which stream's frame is next, sans-io.
//!
//! Owns: the order in which frames of several streams become one sequence. Does not own: whether
//! the session likes them. Of each stream at most one frame's header is looked at; payloads stay in
//! the stream, behind its window, until it is their turn. So what waits for a gap to close is never
//! more than the windows.

use crate::format::wire::FrameKind;
use crate::model::Sequence;

/// The frame at the head of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// It has not come yet.
    Missing,
    /// Not a frame: the session finds the words.
    Nonsense,
    /// A frame of this kind, at this place in the stream when it is a record.
    Frame(FrameKind, Sequence),
}

/// What a peer did that frames alone cannot show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misplaced {
    #[error("record {0} came on the control stream")]
    Record(Sequence),
    #[error("a {0:?} frame came on a stream for records")]
    Control(FrameKind),
}

/// The stream whose frame goes on now; 0 is the control stream, records begin at 1. `None`: what
/// has come so far decides nothing.
///
/// # Errors
/// When a frame stands on a stream of the other kind.
pub(super) fn choose(
    control: Head,
    records: &[Head],
    next: Sequence,
    streams_max: usize,
) -> Result<Option<usize>, Misplaced> {
    match control {
        Head::Missing => {}
        // It ends the session, so it stands behind every record.
        Head::Frame(FrameKind::Goodbye, _) if !records.is_empty() => {}
        Head::Frame(FrameKind::Record(_), sequence) => return Err(Misplaced::Record(sequence)),
        Head::Frame(..) | Head::Nonsense => return Ok(Some(0)),
    }
    let mut lowest: Option<(Sequence, usize)> = None;
    let mut missing = records.len() < streams_max;
    for (at, head) in (1..).zip(records) {
        match *head {
            Head::Missing => missing = true,
            Head::Nonsense => return Ok(Some(at)),
            Head::Frame(FrameKind::Record(_), sequence) if sequence <= next => {
                return Ok(Some(at)); // lower: a repetition, which the session refuses
            }
            Head::Frame(FrameKind::Record(_), sequence) => {
                lowest = Some(lowest.map_or((sequence, at), |lowest| lowest.min((sequence, at))));
            }
            Head::Frame(kind, _) => return Err(Misplaced::Control(kind)),
        }
    }
    // Every stream that may exist goes on behind the gap: it can never close, and the session
    // refuses the record that stands behind it.
    Ok(lowest.filter(|_| !missing).map(|(_, at)| at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::change::ChangeKind;

    const MAX: usize = 3;

    fn record(sequence: u64) -> Head {
        Head::Frame(FrameKind::Record(ChangeKind::Write), Sequence(sequence))
    }

    fn chosen(control: Head, records: &[Head]) -> Result<Option<usize>, Misplaced> {
        choose(control, records, Sequence(5), MAX)
    }

    #[test]
    fn records_go_on_in_order_whatever_stream_they_came_on() {
        let none = Head::Missing;
        assert_eq!(chosen(none, &[]), Ok(None));
        assert_eq!(chosen(none, &[record(9), record(5), record(7)]), Ok(Some(2)));
        assert_eq!(chosen(none, &[record(9), none, record(7)]), Ok(None), "5 may come on 2");
        assert_eq!(chosen(none, &[record(9), record(7)]), Ok(None), "5 may come on a new stream");
    }

    #[test]
    fn repetitions_and_gaps_that_cannot_close_reach_the_session_at_once() {
        let none = Head::Missing;
        assert_eq!(chosen(none, &[record(9), record(4)]), Ok(Some(2)), "a repetition");
        assert_eq!(chosen(none, &[record(9), record(6), record(7)]), Ok(Some(2)), "a gap");
        assert_eq!(chosen(none, &[none, Head::Nonsense]), Ok(Some(2)));
        assert_eq!(chosen(Head::Nonsense, &[record(5)]), Ok(Some(0)));
    }

    #[test]
    fn each_kind_of_stream_has_its_frames() {
        let progress = Head::Frame(FrameKind::Progress, Sequence::ZERO);
        assert_eq!(chosen(progress, &[record(5)]), Ok(Some(0)));
        assert_eq!(chosen(record(5), &[]), Err(Misplaced::Record(Sequence(5))));
        let wrong = Err(Misplaced::Control(FrameKind::Progress));
        assert_eq!(chosen(Head::Missing, &[progress]), wrong);
    }

    #[test]
    fn a_goodbye_stands_behind_every_record() {
        let goodbye = Head::Frame(FrameKind::Goodbye, Sequence::ZERO);
        assert_eq!(chosen(goodbye, &[record(5)]), Ok(Some(1)));
        assert_eq!(chosen(goodbye, &[Head::Missing]), Ok(None));
        assert_eq!(chosen(goodbye, &[]), Ok(Some(0)));
    }
}
