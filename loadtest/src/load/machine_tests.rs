//! A machine against the process server's own session, without a socket or a clock.

use std::time::Duration;

use bytes::Bytes;
use holdfast::format::wire::{Frame, FrameHeader, FrameKind, FromServer};
use holdfast::ingest::{Event, Session, Standing, StreamState, greet};
use holdfast::model::{Change, DiskIndex, DiskSpec, Generation, Record, Sequence};

use super::*;
use crate::load::pace::Pace;
use crate::load::pattern::Profile;

const SECOND: Duration = Duration::from_secs(1);

/// The server's side: what it admitted, and its watermarks.
struct Server {
    session: Session,
    stream: StreamState,
    window: u64,
    admitted: Vec<Record>,
}

impl Server {
    fn take(&mut self, frame: Frame) {
        let header = FrameHeader::decode(&frame.header).unwrap();
        let event = self.session.handle_frame(&mut self.stream, &header, frame.payload);
        if let Event::Admit(record) = event.expect("a machine breaks no rule") {
            self.admitted.push(record);
        }
    }

    fn ack(&mut self, durable: u64, published: u64) -> Option<FromServer> {
        let ack = self.session.poll_ack(Sequence(durable), Sequence(published), self.window);
        ack.map(FromServer::Ack)
    }
}

fn pair(profile: Profile, credit: u64) -> (Machine, Server, Tally) {
    pair_marked(profile, credit, None)
}

fn pair_marked(
    profile: Profile,
    credit: u64,
    marked_every: Option<u64>,
) -> (Machine, Server, Tally) {
    let id: MachineId = "load-1".parse().unwrap();
    let disk =
        DiskSpec { index: DiskIndex(0), name: "disk0".parse().unwrap(), size_bytes: 64 << 20 };
    let mut machine = Machine::new(Setup {
        id: id.clone(),
        disks: vec![disk],
        pattern: Pattern::of_profile(profile, 1, 64 << 20, None, 1),
        content: Content::random(4 << 20, 1),
        audited: true,
        loud: false,
        marked_every,
    });
    let hello = machine.hello();
    let header = FrameHeader::decode(&hello.header).unwrap();
    let hello = greet(&id, &header, hello.payload).unwrap();
    let stream = StreamState::default();
    let standing = Standing {
        server: "ps-1".parse().unwrap(),
        generation: Generation(1),
        published: Sequence::ZERO,
        bookmark_interval_ms: 5000,
    };
    let (session, welcome) = Session::begin(hello, &stream, &standing, credit).unwrap();
    machine.welcome(&welcome).unwrap();
    (
        machine,
        Server { session, stream, window: credit, admitted: Vec::new() },
        Tally::new(SECOND, SECOND),
    )
}

/// Lets the machine send until it waits; when it wants to be looked at again.
fn send(machine: &mut Machine, server: &mut Server, now: Duration, tally: &mut Tally) -> Duration {
    loop {
        match machine.poll(now, tally) {
            Poll::Frame(frame) => server.take(frame),
            Poll::Wait(until) => return until,
        }
    }
}

#[test]
fn it_opens_writes_and_closes_as_the_session_demands() {
    let (mut machine, mut server, mut tally) = pair(Profile::Mixed, 4 << 20);
    let mut now = SECOND;
    machine.begin(Schedule::new(Pace::Flat { depth: 1000 }, false, now, 0.0), now + 3 * SECOND);
    while now < 5 * SECOND {
        send(&mut machine, &mut server, now, &mut tally);
        let all = server.admitted.len() as u64;
        if let Some(ack) = server.ack(all, all) {
            machine.handle(ack, now + SECOND / 100, &mut tally).unwrap();
        }
        now += SECOND / 10;
    }
    assert!(machine.is_settled() && tally.writes > 100, "{}", tally.writes);
    assert_eq!(tally.durable.len(), tally.writes);
    machine.finish("end", true);
    send(&mut machine, &mut server, now, &mut tally);
    assert!(!machine.is_settled(), "the last bookmark is not published");
    let all = server.admitted.len() as u64;
    let ack = server.ack(all, all).unwrap();
    machine.handle(ack, now, &mut tally).unwrap();
    assert!(machine.is_settled());
    let (_, _, sequence, ledger) = machine.closed().unwrap();
    assert_eq!(sequence, Sequence(all));

    // What the session admitted is what the ledger says, but for the one sector that was tampered.
    let content = Content::random(4 << 20, 1);
    let mut disk = vec![0; 64 << 20];
    for record in &server.admitted {
        if let Change::Write { extent, payload, .. } = &record.change {
            let range = extent.offset() as usize..extent.end() as usize;
            disk[range].copy_from_slice(&payload.to_bytes());
        }
    }
    assert_eq!(ledger.difference(0, 0, &Bytes::from(disk.clone()), &content), Some(511));
    disk[511] ^= 1;
    assert_eq!(ledger.difference(0, 0, &Bytes::from(disk), &content), None);
}

#[test]
fn it_never_exceeds_its_credit_and_goes_on_when_it_grows() {
    let (mut machine, mut server, mut tally) = pair(Profile::Sequential, 2 << 20);
    machine.begin(Schedule::new(Pace::Flat { depth: 1000 }, false, SECOND, 0.0), 100 * SECOND);
    for round in 1..20 {
        // `take` fails when a record is beyond the credit.
        send(&mut machine, &mut server, SECOND + SECOND / 1000 * round, &mut tally);
        let all = server.admitted.len() as u64;
        machine.handle(server.ack(all, 0).unwrap(), SECOND, &mut tally).unwrap();
    }
    assert!(tally.payload_bytes > 20 << 20, "{}", tally.payload_bytes);
}

#[test]
fn an_open_loop_counts_from_the_moment_at_which_a_write_was_due() {
    let (mut machine, mut server, mut tally) = pair(Profile::FourK, 4 << 20);
    machine.begin(Schedule::new(Pace::Writes(10.0), false, SECOND, 0.0), 11 * SECOND);
    // Nobody looked at it for 5 s: 50 writes are late, the oldest by 5 s.
    send(&mut machine, &mut server, 6 * SECOND, &mut tally);
    assert!((50..=51).contains(&tally.writes), "{}", tally.writes);
    let all = server.admitted.len() as u64;
    machine.handle(server.ack(all, all).unwrap(), 6 * SECOND, &mut tally).unwrap();
    assert!((4_900_000..5_100_000).contains(&tally.durable.max()), "{}", tally.durable.max());
    let middle = tally.durable.value_at_quantile(0.5);
    assert!((2_300_000..2_700_000).contains(&middle), "{middle}");
    // And never again: what was due in the rest of the phase is counted, though it was never sent.
    send(&mut machine, &mut server, 20 * SECOND, &mut tally);
    assert!((49..=50).contains(&tally.missed), "{}", tally.missed);
    assert_eq!(tally.durable.len(), tally.writes + tally.missed);
}

#[test]
fn a_flush_waits_until_everything_before_it_is_durable() {
    let (mut machine, mut server, mut tally) = pair(Profile::Oltp, 16 << 20);
    machine.begin(Schedule::new(Pace::Flat { depth: 1000 }, false, SECOND, 0.0), 100 * SECOND);
    send(&mut machine, &mut server, SECOND, &mut tally);
    assert_eq!((tally.writes, tally.flushes), (64, 0));
    let all = server.admitted.len() as u64;
    machine.handle(server.ack(all - 1, 0).unwrap(), SECOND, &mut tally).unwrap();
    send(&mut machine, &mut server, SECOND, &mut tally);
    assert_eq!(tally.writes, 64, "one write before it is not durable");
    machine.handle(server.ack(all, 0).unwrap(), SECOND, &mut tally).unwrap();
    send(&mut machine, &mut server, SECOND, &mut tally);
    assert!(tally.writes > 64 && tally.flushes == 1, "{} {}", tally.writes, tally.flushes);
}

#[test]
fn rpo_counts_from_the_newest_published_bookmark() {
    let (mut machine, mut server, mut tally) = pair(Profile::FourK, 4 << 20);
    machine.begin(Schedule::new(Pace::Writes(10.0), false, SECOND, 0.0), 100 * SECOND);
    send(&mut machine, &mut server, SECOND, &mut tally);
    machine.note_rpo(SECOND, &mut tally);
    assert_eq!(tally.rpo.len(), 0, "nothing can be recovered to yet");
    let all = server.admitted.len() as u64;
    machine.handle(server.ack(all, all).unwrap(), SECOND, &mut tally).unwrap();
    machine.note_rpo(SECOND, &mut tally);
    assert_eq!(tally.rpo.max(), 1, "everything is published");
    send(&mut machine, &mut server, 4 * SECOND, &mut tally);
    machine.note_rpo(4 * SECOND, &mut tally);
    assert!((2_900_000..3_100_000).contains(&tally.rpo.max()), "{}", tally.rpo.max());
}

#[test]
fn nonsense_of_a_server_is_named() {
    let (mut machine, mut server, mut tally) = pair(Profile::FourK, 4 << 20);
    send(&mut machine, &mut server, SECOND, &mut tally);
    let last = server.admitted.len() as u64;
    let ack = Ack { durable: Sequence(last + 1), published: Sequence::ZERO, credit_limit: 0 };
    let error = machine.handle(FromServer::Ack(ack), SECOND, &mut tally).unwrap_err();
    assert!(matches!(error, Nonsense::Ahead { .. }), "{error}");
}

#[test]
fn a_zero_that_gets_lost_is_seen() {
    let every = Profile::Zero.zeroes(None);
    let (mut machine, mut server, mut tally) = pair_marked(Profile::Zero, 4 << 20, every);
    machine.begin(Schedule::new(Pace::Flat { depth: 64 }, false, SECOND, 0.0), 2 * SECOND);
    let mut now = SECOND;
    while !machine.is_settled() {
        send(&mut machine, &mut server, now, &mut tally);
        let all = server.admitted.len() as u64;
        if let Some(ack) = server.ack(all, all) {
            machine.handle(ack, now, &mut tally).unwrap();
        }
        now += SECOND / 100;
    }
    machine.finish("end", false);
    send(&mut machine, &mut server, now, &mut tally);
    let (_, _, _, ledger) = machine.closed().unwrap();
    let content = Content::random(4 << 20, 1);
    let is_zero = |record: &&Record| matches!(record.change, Change::Zero { .. });
    let zeros = server.admitted.iter().filter(is_zero).count();
    assert!(zeros >= 64, "the whole disk was zeroed: {zeros}");
    let recovered = |lost: std::ops::Range<usize>| {
        let (mut disk, mut seen) = (vec![0; 64 << 20], 0);
        for record in &server.admitted {
            match &record.change {
                Change::Write { extent, payload, .. } => {
                    let range = extent.offset() as usize..extent.end() as usize;
                    disk[range].copy_from_slice(&payload.to_bytes());
                }
                Change::Zero { extent, .. } => {
                    seen += 1;
                    if !lost.contains(&(seen - 1)) {
                        disk[extent.offset() as usize..extent.end() as usize].fill(0);
                    }
                }
                _ => {}
            }
        }
        ledger.difference(0, 0, &Bytes::from(disk), &content)
    };
    assert_eq!(recovered(0..0), None);
    // Whatever came behind the first 63: one place was never zeroed.
    assert!(recovered(63..zeros).is_some());
}

#[test]
fn an_idle_machine_speaks_as_often_as_an_agent() {
    let (mut machine, mut server, mut tally) = pair(Profile::IdleMany, 4 << 20);
    let mut told = Vec::new();
    for second in 0..41 {
        let now = SECOND * second;
        while let Poll::Frame(frame) = machine.poll(now, &mut tally) {
            match FrameHeader::decode(&frame.header).unwrap().kind() {
                FrameKind::Progress => told.push(second),
                _ => server.take(frame),
            }
        }
        let all = server.admitted.len() as u64;
        if let Some(ack) = server.ack(all, all) {
            machine.handle(ack, now, &mut tally).unwrap();
        }
    }
    // What it replicated first was a change, and that it is published another.
    assert_eq!(told, [0, 1, 11, 21, 31]);
}
