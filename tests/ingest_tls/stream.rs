//! What agents with good certificates do, well or badly.

use std::time::Duration;

use holdfast::format::wire::{
    BookmarkOutcome, BookmarkReply, BookmarkRequest, FromAgent, FromServer, Hello, Progress,
    Redirect, Refusal, Refuse, encode_from_agent,
};
use holdfast::ingest::{BookmarkError, CreditShare, CreditTerms, LastWord, PlacedBookmark};
use holdfast::model::{
    BookmarkId, BookmarkKind, Epoch, Incarnation, Record, Sequence, Timestamp, TrackingMode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::{Agent, bookmark, hello, write};
use crate::bounded;
use crate::server::{Server, limits};

#[tokio::test]
async fn writes_arrive_as_they_were_and_are_acknowledged() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        let changes: Vec<_> = (0..40).map(|n| write(n, 1 << 20 >> (n % 12))).collect();
        for change in changes.clone() {
            let sequence = agent.record(change).await;
            agent.acked(|ack| ack.durable.0 >= sequence && ack.published.0 >= sequence).await;
        }
        let kept = server.log.records("web-1");
        let kept: Vec<_> = kept.into_iter().skip(3).map(|record| record.change).collect();
        assert_eq!(kept, changes);
        let (bytes_in, bytes_out, ..) = server.metrics.stage(holdfast::observe::Stage::Ingest);
        assert!(bytes_in > bytes_out && bytes_out > 1 << 20);
        agent.say(&FromAgent::Goodbye).await;
        assert_eq!(agent.hear().await, None);
        let (mut again, welcome) = {
            let (epoch, last) = (Epoch(1), Sequence(43));
            Agent::welcomed(&server, &pair, Hello { epoch, last, ..hello("web-1") }).await
        };
        assert_eq!((welcome.durable.0, welcome.published.0), (43, 43));
        let sequence = again.record(write(0, 512)).await;
        again.durable(sequence).await;
    })
    .await;
}

#[tokio::test]
async fn repetitions_and_gaps_are_refused() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.next = 3;
        agent.record(write(0, 512)).await;
        assert_eq!(agent.refused().await.code, Refusal::Protocol);
        let known = || Hello { epoch: Epoch(1), ..hello("web-1") };
        let (mut agent, _) = Agent::welcomed(&server, &pair, known()).await;
        agent.next += 1;
        agent.record(write(0, 512)).await;
        let refuse = agent.refused().await;
        assert_eq!(refuse.code, Refusal::Protocol);
        assert!(refuse.text.contains("gap"), "{}", refuse.text);
        assert_eq!(server.log.records("web-1").len(), 3, "neither was kept");
    })
    .await;
}

#[tokio::test]
async fn a_newer_connection_waits_until_the_older_ones_records_are_durable() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut older = Agent::tracking(&server, &pair, "web-1").await;
        older.durable(3).await;
        server.running.send_replace(false);
        for n in 0..5 {
            older.record(write(n, 4096)).await;
        }
        // Admitted, and stuck in the log: the metric is the only witness.
        let metrics = server.metrics.machine(&"web-1".parse().unwrap());
        while metrics.watermarks().received < Sequence(8) {
            tokio::task::yield_now().await;
        }
        let known = Hello { epoch: Epoch(1), last: Sequence(8), ..hello("web-1") };
        let mut newer = Agent::upgraded(&server, &pair).await;
        newer.say(&FromAgent::Hello(known)).await;
        assert_eq!(older.refused().await.code, Refusal::Superseded);
        {
            let welcome = newer.hear();
            tokio::pin!(welcome);
            let early = tokio::time::timeout(std::time::Duration::from_millis(200), &mut welcome);
            assert!(early.await.is_err(), "five records are not durable yet");
            server.running.send_replace(true);
            let Some(FromServer::Welcome(welcome)) = welcome.await else {
                panic!("no welcome");
            };
            assert_eq!(welcome.durable, Sequence(8));
        }
        newer.next = 9;
        let sequence = newer.record(write(9, 4096)).await;
        newer.durable(sequence).await;
        let sequences: Vec<_> = server.log.records("web-1").iter().map(|r| r.sequence.0).collect();
        assert_eq!(sequences, (1..=9).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_is_not_the_next_life_ends_nobodys_session() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let metrics = server.metrics.machine(&"web-1".parse().unwrap());
        let rival = || metrics.rival.lock().unwrap().clone();
        let refused = async |hello: Hello| {
            let mut agent = Agent::upgraded(&server, &pair).await;
            agent.say(&FromAgent::Hello(hello)).await;
            agent.refused().await
        };
        let mut first = Agent::tracking(&server, &pair, "web-1").await;
        first.durable(3).await;
        let life = |life: u8| Hello { agent: Incarnation([life; 16]), ..hello("web-1") };
        let follows = |number: u8| Hello { epoch: Epoch(1), ..life(number) };
        let mut other_disks = follows(2);
        other_disks.disks[0].size_bytes += 512;
        let strangers = [
            life(2),                                        // lost what it knew
            Hello { epoch: Epoch(2), ..life(2) },           // an epoch that never arrived
            Hello { witnessed: Sequence(9), ..follows(2) }, // another store
            Hello { last: Sequence(9), ..follows(2) },      // has written itself
            other_disks,
        ];
        for stranger in strangers {
            let refuse = refused(stranger.clone()).await;
            assert_eq!(refuse.code, Refusal::Busy, "{stranger:?}");
            let words = "another agent of machine web-1 is connected, from 127.0.0.1:";
            assert!(refuse.text.starts_with(words), "{}", refuse.text);
        }
        assert_eq!(rival(), None, "the first may be dead, and its connection half open");
        let progress = Progress {
            time: Timestamp(1),
            mode: TrackingMode::Ordered,
            last: Sequence(3),
            dirty_bytes: 0,
            total_bytes: 64 << 20,
            buffered_bytes: 0,
        };
        first.say(&FromAgent::Progress(progress)).await;
        let sequence = first.record(write(0, 512)).await;
        first.durable(sequence).await;
        let words = rival().unwrap();
        assert!(words.contains("is refused while the one at 127.0.0.1:"), "{words}");

        let (mut next, _) = Agent::welcomed(&server, &pair, follows(3)).await;
        assert_eq!(first.refused().await.code, Refusal::Superseded);
        assert_eq!(rival(), None);
        let sequence = next.record(write(1, 512)).await;
        next.durable(sequence).await;
        // It lives after all, and the same numbers mean other writes to it.
        let back = Hello { epoch: Epoch(1), last: Sequence(99), ..hello("web-1") };
        assert_eq!(refused(back.clone()).await.code, Refusal::Busy);
        next.say(&FromAgent::Goodbye).await;
        let refuse = loop {
            let refuse = refused(back.clone()).await;
            if refuse.code != Refusal::Busy {
                break refuse;
            }
        };
        assert_eq!(refuse.code, Refusal::Foreign, "{}", refuse.text);
        let words = rival().unwrap();
        assert!(words.contains("another one writes its stream, and has stopped"), "{words}");
        // Who goes on comes again and again, and that tells nothing of the one that stopped.
        let link = server.log.link("web-1");
        while link.has_agent() {
            tokio::task::yield_now().await; // it is on its way out
        }
        let again = Hello { last: Sequence(sequence), ..follows(3) };
        let (_again, _) = Agent::welcomed(&server, &pair, again).await;
        assert_eq!(rival(), Some(words));
        let (_, welcome) = Agent::welcomed(&server, &pair, follows(4)).await;
        assert_eq!((welcome.durable.0, rival()), (sequence, None));
    })
    .await;
}

#[tokio::test]
async fn a_bookmark_travels_to_the_agent_and_back() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let link = server.log.link("web-1");
        let id = BookmarkId([4; 16]);
        let request =
            || BookmarkRequest { id, kind: BookmarkKind::CrashConsistent, name: "now".into() };
        let nobody = link.bookmark(request()).await;
        assert!(matches!(nobody, Err(BookmarkError::NotConnected { .. })));
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.durable(3).await;
        let (placed, ()) = tokio::join!(link.bookmark(request()), async {
            let asked = agent.hear_request().await;
            assert_eq!(asked, request());
            let at = Sequence(agent.record(bookmark(asked.id, &asked.name)).await);
            let outcome = BookmarkOutcome::Placed(at);
            agent.say(&FromAgent::Bookmark(BookmarkReply { id, outcome })).await;
            agent.durable(at.0).await;
        });
        let (sequence, time) = (Sequence(4), Timestamp(1));
        assert_eq!(placed, Ok(PlacedBookmark { sequence, time }), "as its record says");
        let (refused, ()) = tokio::join!(link.bookmark(request()), async {
            agent.hear_request().await;
            let outcome = BookmarkOutcome::Refused("catching up".into());
            agent.say(&FromAgent::Bookmark(BookmarkReply { id, outcome })).await;
        });
        let reason = "catching up".to_owned();
        let machine = link.machine().clone();
        assert_eq!(refused, Err(BookmarkError::Refused { machine, id, reason }));
        let (gone, ()) = tokio::join!(link.bookmark(request()), async {
            agent.hear_request().await;
            agent.tls.shutdown().await.unwrap();
        });
        assert!(matches!(gone, Err(BookmarkError::NotConnected { .. })));
    })
    .await;
}

#[tokio::test]
async fn a_full_cache_withholds_credit_until_there_is_room() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.durable(3).await;
        let none = CreditTerms { share: CreditShare::NONE, small_backlog_bytes: 0 };
        server.credit.send_replace(none);
        let sequence = agent.record(write(0, 1 << 20)).await;
        let ack = agent.acked(|ack| ack.durable.0 >= sequence).await;
        let granted = ack.credit_limit;
        server.credit.send_replace(CreditTerms::FREE);
        let ack = agent.acked(|ack| ack.credit_limit > granted).await;
        assert!(ack.credit_limit >= granted + (1 << 20));
        // What exceeds the credit is refused, not buffered.
        server.running.send_replace(false);
        for n in 0..8 {
            agent.record(write(n, 1 << 20)).await;
        }
        let refuse = agent.refused().await;
        assert_eq!(refuse.code, Refusal::Protocol);
        assert!(refuse.text.contains("credit"), "{}", refuse.text);
    })
    .await;
}

#[tokio::test]
async fn who_did_not_fill_the_cache_goes_on_at_stop() {
    bounded(async {
        let server = Server::start(limits()).await;
        let stop = CreditTerms { share: CreditShare::NONE, small_backlog_bytes: 1 };
        server.credit.send_replace(stop);
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        let sequence = agent.record(write(0, 1 << 20)).await;
        let ack = agent.acked(|ack| ack.durable.0 >= sequence).await;
        let window = ack.credit_limit - (1 << 20);
        assert!(window > 1 << 20 && window < limits().credit_bytes, "the smallest, not {window}");
    })
    .await;
}

#[tokio::test]
async fn what_the_arena_does_not_hold_stays_with_the_agent() {
    bounded(async {
        let bytes_max = 4 << 20;
        let small = holdfast::settings::LimitSettings {
            receive_bytes_max: bytes_max,
            credit_bytes: 64 << 20,
            ..limits()
        };
        let server = Server::start(small).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.durable(3).await;
        server.running.send_replace(false);
        let metrics = server.metrics.machine(&"web-1".parse().unwrap());
        let (mut reader, mut writer) = tokio::io::split(agent.tls);
        let sending = async {
            for n in 4..20 {
                let record = Record { sequence: Sequence(n), change: write(n, 1 << 20) };
                let frame = encode_from_agent(&FromAgent::Record(record));
                writer.write_all(&frame.header).await.unwrap();
                writer.write_all(&frame.payload.to_bytes()).await.unwrap();
            }
            writer.flush().await.unwrap();
            std::future::pending::<()>().await;
        };
        let watching = async {
            while metrics.watermarks().received < Sequence(5) {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await; // time for more than it may
            let received = metrics.watermarks().received.0 - 3;
            assert!(received << 20 <= bytes_max, "{received} MiB are held");
            server.running.send_replace(true);
            while metrics.watermarks().durable < Sequence(19) {
                let _ = reader.read(&mut [0; 256]).await;
            }
        };
        tokio::select! {
            () = sending => {}
            () = watching => {}
        }
    })
    .await;
}

/// A machine that is given up: nothing more is admitted, all that was is durable, and then the agent is
/// told where to go.
#[tokio::test]
async fn an_agent_whose_machine_is_given_up_is_told_where_to_go() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.durable(3).await;
        let link = server.log.link("web-1");
        link.close_door();
        link.settled().await; // the session has left its seat
        agent.record(write(0, 512)).await;
        let addresses = vec!["ps-2:9443".to_owned()];
        let redirect = Redirect { addresses, reason: "moved to ps-2".to_owned() };
        link.end(LastWord::Redirect(redirect.clone()));
        assert_eq!(agent.hear().await, Some(FromServer::Redirect(redirect.clone())));
        assert_eq!(agent.hear().await, None, "nothing follows");
        assert_eq!(server.log.records("web-1").len(), 3, "the door was closed");
        // So is who comes later.
        let mut late = Agent::upgraded(&server, &pair).await;
        late.say(&FromAgent::Hello(Hello { epoch: Epoch(1), ..hello("web-1") })).await;
        assert_eq!(late.hear().await, Some(FromServer::Redirect(redirect)));
    })
    .await;
}

#[tokio::test]
async fn a_draining_server_says_so_and_ends() {
    bounded(async {
        let mut server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.durable(3).await;
        server.drain.send_replace(true);
        assert_eq!(agent.refused().await.code, Refusal::NotOwner);
        drop(agent);
        (&mut server.serving).await.unwrap();
        assert_eq!(server.metrics.connections.load(std::sync::atomic::Ordering::Relaxed), 0);
    })
    .await;
}

#[tokio::test]
async fn an_agent_whose_machine_ended_may_not_come_again() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let link = server.log.link("web-1");
        let why = |code| Refuse { code, text: "for a reason".into() };
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.durable(3).await;
        link.end(why(Refusal::NotOwner));
        assert_eq!(agent.refused().await, why(Refusal::NotOwner));
        let mut agent = Agent::upgraded(&server, &pair).await;
        let known = Hello { epoch: Epoch(1), ..hello("web-1") };
        agent.say(&FromAgent::Hello(known)).await;
        assert_eq!(agent.refused().await, why(Refusal::NotOwner));
    })
    .await;
}

/// The runtime of a shard is not tokio's own.
#[test]
fn a_shards_runtime_carries_it() {
    tokio_uring::start(bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        let sequence = agent.record(write(0, 1 << 20)).await;
        agent.durable(sequence).await;
    }));
}

impl Agent {
    async fn hear_request(&mut self) -> BookmarkRequest {
        loop {
            match self.hear().await {
                Some(FromServer::BookmarkRequest(request)) => return request,
                Some(FromServer::Ack(_)) => {}
                other => panic!("no request but {other:?}"),
            }
        }
    }
}
