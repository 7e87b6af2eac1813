//! What the stream says, whatever is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use holdfast::agent::{AgentStatus, Stopped};
use holdfast::format::wire::{BookmarkOutcome, BookmarkRequest, Refusal, Refuse};
use holdfast::model::{BookmarkId, BookmarkKind, CaptureMode, CatchUp, Change, DiskIndex, Record};
use holdfast::settings::AgentMode;

use crate::machine::{Machine, blocking, export, noise, settled, until};
use crate::server::{Direct, Server};

pub(crate) const CHUNK: u64 = 65536;

pub(crate) fn no_violations(server: &Server) {
    let violations = server.held().violations.clone();
    assert!(violations.is_empty(), "{violations:?}");
}

/// The stream through its end shows what the source disks hold.
pub(crate) fn equals_source(server: &Server, machine: &Machine) {
    let held = server.held();
    let images = held.images(held.log.len() as u64);
    for disk in 0..machine.settings.disks.len() {
        let image = &images[&DiskIndex(disk as u16)];
        let source = machine.source(disk);
        let differs = (0..source.len()).find(|&at| image[at] != source[at]);
        assert_eq!(differs, None, "disk {disk} differs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_copy_runs_beside_live_writes_within_its_buffer() {
    let machine = Machine::new(&[24 << 20, 1 << 20], 4 << 20);
    let server = Server::new(4 << 20);
    server.pace_ms.store(20, Ordering::Relaxed); // a copy that can be watched
    let agent = machine.start(Arc::new(Direct(Arc::clone(&server)))).await;
    let disk = export(&agent, 0);
    let writer = blocking(move || {
        for n in 0..400u64 {
            disk.write((n * 7919 % 6144) * 4096, noise(4096, n).into(), false).unwrap();
        }
    });
    let watched = async {
        let mut seen_copying = false;
        loop {
            let status = agent.status();
            seen_copying |= status.mode == "catching-up" && status.caught_up_bytes > 0;
            assert!(status.buffered_bytes <= 4 << 20, "{status:?}");
            if status.mode == "ordered" {
                return seen_copying;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let ((), seen_copying) = tokio::join!(writer, watched);
    assert!(seen_copying);
    server.pace_ms.store(0, Ordering::Relaxed);
    settled(&agent).await;
    no_violations(&server);
    equals_source(&server, &machine);
    let held = server.held();
    let ordered = [0, 1].map(|disk| (DiskIndex(disk), CaptureMode::Ordered));
    assert_eq!(held.captures, ordered.into(), "told of each disk");
    assert!(matches!(held.log[1].change, Change::CatchUpBegin(CatchUp::InitialReplication)));
    let begins = |record: &&Record| matches!(record.change, Change::CatchUpBegin(_));
    assert_eq!(held.log.iter().filter(begins).count(), 1, "the copy never lost its order");
    // Live writes before the Welcome are not teed, they are read with the rest.
    let live = held.received_bytes - (25 << 20);
    assert!(live <= 400 * 4096, "the disk is read once, {live} more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookmarks_are_prefixes_whatever_is_killed() {
    let machine = Machine::new(&[2 << 20, 2 << 20], 8 << 20);
    let server = Server::new(2 << 20);
    let agent = Arc::new(machine.start(Arc::new(Direct(Arc::clone(&server)))).await);
    settled(&agent).await;
    let ended = Arc::new(AtomicBool::new(false));
    let workload = {
        let (agent, ended) = (Arc::clone(&agent), Arc::clone(&ended));
        let mut images = [machine.source(0), machine.source(1)];
        blocking(move || {
            let disks = [export(&agent, 0), export(&agent, 1)];
            let mut points = Vec::new();
            let mut n = 0u64;
            while !ended.load(Ordering::Relaxed) {
                n += 1;
                let (disk, at) = ((n % 2) as usize, (n * 2_654_435_761 % 4000) as usize * 512);
                let bytes = noise((n as usize % 8 + 1) * 512, n);
                images[disk][at..at + bytes.len()].copy_from_slice(&bytes);
                disks[disk].write(at as u64, bytes.into(), n.is_multiple_of(64)).unwrap();
                if n.is_multiple_of(50) {
                    let name = format!("n{n}");
                    if let Ok((_, at)) = agent.bookmark(&name, BookmarkKind::CrashConsistent) {
                        points.push((at.0, name, images.clone()));
                    }
                    std::thread::yield_now();
                }
                if points.len() > 150 {
                    points.drain(..50);
                }
            }
            points
        })
    };
    let workload = tokio::spawn(workload);
    for round in 0..40u64 {
        tokio::time::sleep(Duration::from_millis(3 + round * 7 % 40)).await;
        server.unpublished.store(round % 5 == 2, Ordering::Relaxed);
        server.kill(round % 4 == 3);
        // Each time it waits longer before it comes back; sometimes it is killed again before.
        let hellos = server.held().hellos.len();
        if round % 3 != 0 {
            until(&agent, "back", |_| server.held().hellos.len() > hellos).await;
        }
    }
    server.unpublished.store(false, Ordering::Relaxed);
    until(&agent, "ordered", |status| status.mode == "ordered").await;
    tokio::time::sleep(Duration::from_millis(50)).await; // a few more bookmarks in order
    ended.store(true, Ordering::Relaxed);
    let points = workload.await.unwrap();
    settled(&agent).await;
    no_violations(&server);
    equals_source(&server, &machine);
    let held = server.held();
    let mut checked = 0;
    for (sequence, name, images) in &points {
        // A bookmark that was never sent when order was lost is not in the stream.
        if held.bookmarks().contains(&(*sequence, name.clone())) {
            let found = held.images(*sequence);
            for (disk, image) in images.iter().enumerate() {
                assert!(found[&DiskIndex(disk as u16)] == *image, "bookmark {name}, disk {disk}");
            }
            checked += 1;
        }
    }
    assert!(checked >= 10, "{checked} of {} bookmarks could be compared", points.len());
    assert!(held.hellos.len() > 20, "{} connections", held.hellos.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookmark_cuts_all_disks_at_one_number() {
    let machine = Machine::new(&[1 << 20, 1 << 20], 32 << 20);
    let server = Server::new(8 << 20);
    let agent = Arc::new(machine.start(Arc::new(Direct(Arc::clone(&server)))).await);
    settled(&agent).await;
    let ended = Arc::new(AtomicBool::new(false));
    let acknowledged: Arc<Vec<AtomicU64>> = Arc::new((0..4).map(|_| AtomicU64::new(0)).collect());
    let writers: Vec<_> = (0..4u64)
        .map(|writer| {
            let (agent, ended) = (Arc::clone(&agent), Arc::clone(&ended));
            let acknowledged = Arc::clone(&acknowledged);
            tokio::spawn(blocking(move || {
                let disks = [export(&agent, 0), export(&agent, 1)];
                let mut n = 0u64;
                while !ended.load(Ordering::Relaxed) {
                    n += 1;
                    for disk in &disks {
                        let mut sector = vec![0; 512];
                        sector[..8].copy_from_slice(&n.to_le_bytes());
                        disk.write(writer * 512, sector.into(), false).unwrap();
                    }
                    acknowledged[writer as usize].store(n, Ordering::Release);
                }
            }))
        })
        .collect();
    let mut points = Vec::new();
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(3)).await;
        let before: Vec<u64> = acknowledged.iter().map(|n| n.load(Ordering::Acquire)).collect();
        let (_, sequence) = agent.bookmark("", BookmarkKind::CrashConsistent).unwrap();
        points.push((sequence.0, before));
    }
    ended.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    settled(&agent).await;
    no_violations(&server);
    let held = server.held();
    for (sequence, before) in points {
        let images = held.images(sequence);
        for (writer, &acknowledged) in before.iter().enumerate() {
            let number = |disk: u16| {
                let at = writer * 512;
                u64::from_le_bytes(images[&DiskIndex(disk)][at..at + 8].try_into().unwrap())
            };
            let (first, second) = (number(0), number(1));
            if acknowledged > 0 {
                assert!(
                    first == second || first == second + 1,
                    "{first} and {second} at {sequence}"
                );
                assert!(
                    second >= acknowledged,
                    "{acknowledged} was acknowledged, {second} is there"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_writers_end_as_the_source_does() {
    let machine = Machine::new(&[1 << 20], 4 << 20);
    let server = Server::new(2 << 20);
    let agent = Arc::new(machine.start(Arc::new(Direct(Arc::clone(&server)))).await);
    let writers: Vec<_> = (0..4u64)
        .map(|writer| {
            let agent = Arc::clone(&agent);
            tokio::spawn(blocking(move || {
                let disk = export(&agent, 0);
                for n in 0..1500u64 {
                    let at = (n * 13 + writer) % 40 * 512;
                    match n % 5 {
                        4 => disk.zero(at, 2048, true, false).unwrap(),
                        _ => disk.write(at, noise(2048, n * 4 + writer).into(), false).unwrap(),
                    }
                }
            }))
        })
        .collect();
    for n in 0..8 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        server.kill(n % 3 == 2);
    }
    for writer in writers {
        writer.await.unwrap();
    }
    settled(&agent).await;
    no_violations(&server);
    equals_source(&server, &machine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_away_costs_the_bitmap_and_not_the_workload() {
    let machine = Machine::new(&[8 << 20], 512 << 10);
    let server = Server::new(2 << 20);
    let agent = Arc::new(machine.start(Arc::new(Direct(Arc::clone(&server)))).await);
    settled(&agent).await;
    server.away.store(true, Ordering::Relaxed);
    server.kill(false);
    let before = server.held().received_bytes;
    let disk = export(&agent, 0);
    blocking(move || {
        for n in 0..20u64 {
            disk.write(n * 3 * CHUNK, noise(CHUNK as usize, n).into(), false).unwrap();
        }
    })
    .await;
    let status = until(&agent, "bitmap", |status| status.mode == "bitmap").await;
    assert!(status.why.contains("buffer is full"), "{}", status.why);
    assert_eq!((status.dirty_bytes, status.buffered_bytes), (20 * CHUNK, 0));
    let text = until_text(&machine, "\"mode\": \"bitmap\"").await;
    assert!(text.contains("away"), "the file says what is wrong: {text}");
    assert!(agent.bookmark("x", BookmarkKind::CrashConsistent).is_err());
    server.away.store(false, Ordering::Relaxed);
    settled(&agent).await;
    no_violations(&server);
    equals_source(&server, &machine);
    assert_eq!(server.held().received_bytes - before, 20 * CHUNK, "only what was dirty");
}

async fn until_text(machine: &Machine, wanted: &str) -> String {
    for _ in 0..2000 {
        let text = std::fs::read_to_string(machine.path("state/status.json")).unwrap_or_default();
        if text.contains(wanted) && text.contains("away") {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("status.json never says {wanted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn withheld_credit_is_the_same_and_ends_the_same() {
    let machine = Machine::new(&[8 << 20], 2 << 20);
    let server = Server::new(5 << 18); // a largest record fits, a full buffer does not
    let agent = Arc::new(machine.start(Arc::new(Direct(Arc::clone(&server)))).await);
    settled(&agent).await;
    server.stalled.store(true, Ordering::Relaxed);
    let write = |from: u64| {
        let disk = export(&agent, 0);
        blocking(move || {
            for n in from..from + 60 {
                disk.write(n * CHUNK, noise(CHUNK as usize, n).into(), false).unwrap();
            }
        })
    };
    write(0).await;
    until(&agent, "bitmap", |status| status.mode == "bitmap").await;
    write(20).await;
    server.stalled.store(false, Ordering::Relaxed);
    settled(&agent).await;
    no_violations(&server);
    equals_source(&server, &machine);
    assert_eq!(server.held().hellos.len(), 1, "on the same connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_sends_again_only_what_may_have_changed() {
    let machine = Machine::new(&[16 << 20, 1 << 20], 4 << 20);
    let server = Server::new(2 << 20);
    let dial = Arc::new(Direct(Arc::clone(&server)));
    for life in 0..6u64 {
        let agent = machine.start(Arc::clone(&dial) as _).await;
        settled(&agent).await;
        equals_source(&server, &machine);
        if life % 2 == 0 {
            server.away.store(true, Ordering::Relaxed);
            server.kill(false);
        } else {
            server.unpublished.store(true, Ordering::Relaxed);
        }
        let before = server.held().received_bytes;
        let disk = export(&agent, 0);
        blocking(move || {
            for n in 0..5u64 {
                disk.write(
                    (life * 31 + n * 40) % 256 * CHUNK + 512,
                    noise(1024, n + life).into(),
                    false,
                )
                .unwrap();
            }
        })
        .await;
        until(&agent, "five chunks", |status| status.unsettled_bytes == 5 * CHUNK).await;
        if life % 2 == 1 {
            until(&agent, "sent", |status| status.durable == status.last).await;
        }
        drop(agent); // as if killed
        server.away.store(false, Ordering::Relaxed);
        server.unpublished.store(false, Ordering::Relaxed);
        let agent = machine.start(Arc::clone(&dial) as _).await;
        settled(&agent).await;
        let sent_live = if life % 2 == 1 { 5 * 1024 } else { 0 };
        assert_eq!(server.held().received_bytes - before, 5 * CHUNK + sent_live);
        drop(agent);
    }
    no_violations(&server);
    equals_source(&server, &machine);
    assert_eq!(server.held().epoch.0, 1, "never a new epoch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_in_its_first_copy_sends_the_rest() {
    let machine = Machine::new(&[32 << 20], 1 << 20);
    let server = Server::new(1 << 21);
    server.pace_ms.store(60, Ordering::Relaxed);
    let dial = Arc::new(Direct(Arc::clone(&server)));
    let mut lives = 0;
    loop {
        let agent = machine.start(Arc::clone(&dial) as _).await;
        lives += 1;
        let before = agent.status().unsettled_bytes;
        let moved = until(&agent, "further", |status| {
            status.mode == "ordered" || status.unsettled_bytes + (1 << 20) < before
        })
        .await;
        if moved.mode == "ordered" {
            settled(&agent).await;
            break;
        }
    }
    no_violations(&server);
    equals_source(&server, &machine);
    let received = server.held().received_bytes;
    assert!(lives > 2, "{lives} lives");
    assert!(received < (32 << 20) + lives * (9 << 20), "{received} bytes in {lives} lives");
    assert_eq!(server.held().epoch.0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_orderly_stop_nothing_is_sent_again() {
    let machine = Machine::new(&[4 << 20], 4 << 20);
    let server = Server::new(2 << 20);
    let dial = Arc::new(Direct(Arc::clone(&server)));
    let agent = machine.start(Arc::clone(&dial) as _).await;
    settled(&agent).await;
    let disk = export(&agent, 0);
    let late = Arc::clone(&disk);
    blocking(move || disk.write(0, noise(1 << 20, 3).into(), false).unwrap()).await;
    assert_eq!(agent.stop().await, Stopped::Clean);
    assert!(blocking(move || late.write(0, vec![1; 512].into(), false)).await.is_err());
    server.goodbye().await;
    let (records, bytes) = {
        let held = server.held();
        (held.log.len(), held.received_bytes)
    };
    let agent = machine.start(Arc::clone(&dial) as _).await;
    settled(&agent).await;
    let now = {
        let held = server.held();
        (held.log.len(), held.received_bytes)
    };
    assert_eq!(now, (records, bytes));
    let disk = export(&agent, 0);
    blocking(move || disk.write(0, noise(512, 4).into(), false).unwrap()).await;
    settled(&agent).await;
    assert_eq!(server.held().received_bytes, bytes + 512);
    // The server is away: the stop is bounded, and honest.
    server.away.store(true, Ordering::Relaxed);
    server.kill(false);
    let disk = export(&agent, 0);
    blocking(move || disk.write(0, noise(512, 5).into(), false).unwrap()).await;
    assert_eq!(agent.stop_within(Duration::from_secs(2)).await, Stopped::Unsettled);
    no_violations(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_bitmap_or_a_rolled_back_store_begins_a_new_epoch() {
    let machine = Machine::new(&[1 << 20], 4 << 20);
    let server = Server::new(4 << 20);
    let dial = Arc::new(Direct(Arc::clone(&server)));
    let agent = machine.start(Arc::clone(&dial) as _).await;
    settled(&agent).await;
    assert_eq!(agent.stop().await, Stopped::Clean);
    std::fs::remove_file(machine.path("state/disk0.bitmap")).unwrap();
    let agent = machine.start(Arc::clone(&dial) as _).await;
    assert_eq!(settled(&agent).await.epoch, 2);
    server.roll_back(5);
    let begun = |_: &AgentStatus| {
        let held = server.held();
        let begins = |record: &Record| matches!(record.change, Change::EpochBegin(_));
        held.log.iter().skip(5).any(begins)
    };
    until(&agent, "new epoch", begun).await;
    settled(&agent).await;
    no_violations(&server);
    equals_source(&server, &machine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_somebody_else_writes_stops_replication_and_not_the_workload() {
    let machine = Machine::new(&[1 << 20], 4 << 20);
    let server = Server::new(4 << 20);
    let agent = machine.start(Arc::new(Direct(Arc::clone(&server)))).await;
    settled(&agent).await;
    server.held().refuse = Some(Refuse { code: Refusal::Foreign, text: "somebody else".into() });
    let status = until(&agent, "halted", |status| status.halted).await;
    assert!(status.last_error.unwrap().contains("somebody else"));
    let disk = export(&agent, 0);
    blocking(move || disk.write(0, noise(512, 9).into(), true).unwrap()).await;
    until(&agent, "bitmap", |status| status.mode == "bitmap" && status.dirty_bytes == CHUNK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requested_and_periodic_bookmarks_are_placed_or_refused_in_words() {
    let machine = Machine::new(&[1 << 20], 4 << 20);
    let server = Server::new(4 << 20);
    let agent = machine.start(Arc::new(Direct(Arc::clone(&server)))).await;
    settled(&agent).await;
    let ask = |id: u8, name: &str| {
        server.held().ask.push(BookmarkRequest {
            id: BookmarkId([id; 16]),
            kind: BookmarkKind::CrashConsistent,
            name: name.into(),
        });
    };
    ask(1, "before upgrade");
    let outcome = reply(&server, 1).await;
    let BookmarkOutcome::Placed(sequence) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(server.held().bookmarks().contains(&(sequence.0, "before upgrade".into())));
    let count = server.held().bookmarks().len();
    tokio::time::sleep(Duration::from_millis(100)).await; // ten of the policy's intervals
    assert_eq!(server.held().bookmarks().len(), count, "nothing was written, nothing is marked");
    let disk = export(&agent, 0);
    blocking(move || disk.write(0, noise(512, 9).into(), false).unwrap()).await;
    until(&agent, "marked", |_| server.held().bookmarks().len() == count + 1).await;
    server.stalled.store(true, Ordering::Relaxed);
    let disk = export(&agent, 0);
    blocking(move || {
        for n in 0..200u64 {
            disk.write(n % 16 * CHUNK, noise(CHUNK as usize, n).into(), false).unwrap();
        }
    })
    .await;
    until(&agent, "bitmap", |status| status.mode == "bitmap").await;
    ask(2, "now");
    assert!(
        matches!(reply(&server, 2).await, BookmarkOutcome::Refused(why) if why.contains("full"))
    );
    assert!(agent.bookmark(&"x".repeat(129), BookmarkKind::CrashConsistent).is_err());
    no_violations(&server);
}

async fn reply(server: &Server, id: u8) -> BookmarkOutcome {
    for _ in 0..2000 {
        let found = server.held().replies.iter().find(|reply| reply.id.0[0] == id).cloned();
        if let Some(reply) = found {
            return reply.outcome;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no answer to bookmark {id}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_mode_sync_a_write_is_durable_when_it_is_answered() {
    let mut machine = Machine::new(&[1 << 20], 4 << 20);
    machine.settings.mode = AgentMode::Sync;
    let server = Server::new(4 << 20);
    // Its five seconds without an acknowledgement are five.
    let agent = machine.start_at(1, Arc::new(Direct(Arc::clone(&server)))).await;
    settled(&agent).await;
    let (disk, holder) = (export(&agent, 0), Arc::clone(&server));
    blocking(move || {
        for n in 0..20u64 {
            let before = holder.held().durable;
            disk.write(n * 512, noise(512, n).into(), false).unwrap();
            let held = holder.held();
            let through = held.durable;
            let there =
                held.images(through)[&DiskIndex(0)][n as usize * 512..][..512] == noise(512, n);
            assert!(through > before && there);
        }
    })
    .await;
    server.stalled.store(true, Ordering::Relaxed);
    let disk = export(&agent, 0);
    blocking(move || disk.write(0, noise(512, 99).into(), false).unwrap()).await; // bounded
    let status = agent.status();
    assert_eq!((status.mode, status.acknowledge), ("bitmap", "sync-suspended"));
    server.stalled.store(false, Ordering::Relaxed);
    settled(&agent).await;
    assert_eq!(agent.status().acknowledge, "sync");
    no_violations(&server);
}
