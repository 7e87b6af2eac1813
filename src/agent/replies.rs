//! Bookmarks that the server asked for on one connection.
//!
//! Owns: that each has one answer, and a true one; how many may wait for it. Does not own: placing and
//! sending them ([`super::stream`], [`super::session`]).

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::format::wire::{BookmarkOutcome, BookmarkReply};
use crate::model::{BookmarkId, Change, Record};

use super::stream::Placed;

/// Requests that wait for their answer. Where writes are seen after the fact each may hold a thread.
const OPEN_MAX: usize = 16;

/// A request without an answer.
#[derive(Debug)]
struct Open {
    id: BookmarkId,
    placed: Option<Placed>,
    /// Its record was given to the connection: whatever becomes of the order later, it is a point once
    /// it is published.
    sent: bool,
}

/// What was asked on one connection.
#[derive(Debug, Default)]
pub(super) struct Replies {
    open: Mutex<Vec<Open>>,
    refused: Mutex<Vec<BookmarkReply>>,
}

impl Replies {
    /// A request; `false`: nothing is to be placed for it.
    pub(super) fn open(&self, id: BookmarkId) -> bool {
        let mut open = lock(&self.open);
        if open.iter().any(|one| one.id == id) {
            return false; // asked for twice: the answer is the same
        }
        if open.len() >= OPEN_MAX {
            self.refuse(id, format!("{OPEN_MAX} bookmarks wait for their answer already"));
            return false;
        }
        open.push(Open { id, placed: None, sent: false });
        true
    }

    /// What became of it. Its record may have been sent already.
    pub(super) fn placed(&self, id: BookmarkId, placed: Result<Placed, String>) {
        let mut open = lock(&self.open);
        let Some(at) = open.iter().position(|one| one.id == id) else { return };
        match placed {
            Ok(placed) => open[at].placed = Some(placed),
            Err(why) => {
                open.remove(at);
                self.refuse(id, why);
            }
        }
    }

    /// These records leave now.
    pub(super) fn sent(&self, records: &[Record]) {
        let mut open = lock(&self.open);
        if open.is_empty() {
            return;
        }
        for record in records {
            let Change::Bookmark(bookmark) = &record.change else { continue };
            open.iter_mut().filter(|one| one.id == bookmark.id).for_each(|one| one.sent = true);
        }
    }

    /// Answers to the bookmarks whose records were sent, and to those that never will be. `losses` is
    /// how often order was lost so far, asked after the last call of [`Replies::sent`].
    pub(super) fn answers(&self, losses: u64) -> Vec<BookmarkReply> {
        let mut replies = std::mem::take(&mut *lock(&self.refused));
        lock(&self.open).retain(|one| {
            let (id, Some(placed)) = (one.id, one.placed) else { return true };
            let outcome = if one.sent {
                BookmarkOutcome::Placed(placed.sequence)
            } else if placed.losses != losses {
                BookmarkOutcome::Refused("order was lost before the bookmark was sent".to_owned())
            } else {
                return true;
            };
            replies.push(BookmarkReply { id, outcome });
            false
        });
        replies
    }

    fn refuse(&self, id: BookmarkId, why: String) {
        let outcome = BookmarkOutcome::Refused(why);
        lock(&self.refused).push(BookmarkReply { id, outcome });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::stream::Stream;
    use super::super::stream_tests::ordered;
    use super::*;
    use crate::model::{Bookmark, BookmarkKind, Timestamp};

    fn place(stream: &Stream, id: BookmarkId) -> Result<Placed, String> {
        let (kind, time) = (BookmarkKind::CrashConsistent, Timestamp(0));
        stream.bookmark(Bookmark { id, kind, time, name: String::new() })
    }

    #[test]
    fn a_bookmark_that_was_sent_before_order_was_lost_is_placed() {
        let machine = ordered(1 << 20);
        let replies = Replies::default();
        let (sent, unsent, late) = (BookmarkId([1; 16]), BookmarkId([2; 16]), BookmarkId([3; 16]));
        for id in [sent, late] {
            assert!(replies.open(id));
        }
        let placed = place(&machine.stream, sent);
        replies.placed(sent, placed.clone());
        let told_late = place(&machine.stream, late);
        assert!(replies.answers(machine.stream.lock().losses).is_empty(), "not sent yet");
        replies.sent(&machine.take());
        assert!(replies.open(unsent));
        replies.placed(unsent, place(&machine.stream, unsent));
        for why in ["once", "twice"] {
            let sent = machine.stream.lock().sent;
            machine.stream.acked(sent, sent).unwrap();
            machine.stream.give_up_order(why);
            machine.stream.resume(Duration::ZERO, u64::MAX, 0);
        }
        // Whoever placed it comes to say so only now.
        replies.placed(late, told_late.clone());
        let outcome = |placed: Result<Placed, String>| {
            BookmarkOutcome::Placed(placed.expect("placed above").sequence)
        };
        let refused = "order was lost before the bookmark was sent".to_owned();
        let expected = [
            (sent, outcome(placed)),
            (late, outcome(told_late)),
            (unsent, BookmarkOutcome::Refused(refused)),
        ];
        let answers = replies.answers(machine.stream.lock().losses);
        assert_eq!(answers, expected.map(|(id, outcome)| BookmarkReply { id, outcome }));
        assert!(replies.answers(machine.stream.lock().losses).is_empty(), "each has one answer");
    }

    #[test]
    fn a_few_requests_wait_and_more_are_refused() {
        let replies = Replies::default();
        let id = |n: usize| BookmarkId([n as u8; 16]);
        for n in 0..OPEN_MAX {
            assert!(replies.open(id(n)), "{n}");
        }
        assert!(!replies.open(id(3)), "the same once more");
        assert!(replies.answers(0).is_empty());
        assert!(!replies.open(id(OPEN_MAX)));
        let answers = replies.answers(0);
        let [BookmarkReply { id: of, outcome: BookmarkOutcome::Refused(why) }] = &answers[..]
        else {
            panic!("{answers:?}");
        };
        assert_eq!(*of, id(OPEN_MAX));
        assert!(why.contains("16"), "{why}");
        replies.placed(id(3), Err("the application is busy".to_owned()));
        assert!(replies.open(id(OPEN_MAX)), "an answer makes room");
    }
}
