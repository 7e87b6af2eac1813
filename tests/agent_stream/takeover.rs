//! Several process servers: what is sent again, and to whom, when the machine changes hands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast::agent::{Agent, AgentStatus};
use holdfast::format::wire::{Redirect, Refusal, Refuse};
use holdfast::model::{Change, Record};

use crate::machine::{Machine, blocking, export, noise, settled, until};
use crate::server::{Server, Site};
use crate::stream::{CHUNK, equals_source, no_violations};

/// A machine whose agent knows the servers `a` and `b`, in this order, and is settled on `a`.
async fn two(disk_bytes: u64, buffer_bytes: u64) -> (Machine, Arc<Server>, Arc<Server>, Agent) {
    two_for(Machine::new(&[disk_bytes], buffer_bytes)).await
}

async fn two_for(mut machine: Machine) -> (Machine, Arc<Server>, Arc<Server>, Agent) {
    machine.settings.servers = vec!["a:9443".into(), "b:9443".into()];
    let (a, b) = (Server::named("a", 4 << 20), Server::named("b", 4 << 20));
    let agent = machine.start(Arc::new(Site(vec![Arc::clone(&a), Arc::clone(&b)]))).await;
    settled(&agent).await;
    b.held().refuse = Some(Refuse { code: Refusal::NotOwner, text: "a owns web-1".into() });
    (machine, a, b, agent)
}

fn to(address: &str) -> Redirect {
    Redirect { addresses: vec![address.into()], reason: "web-1 moved".into() }
}

async fn write(agent: &Agent, writes: std::ops::Range<u64>, bytes: usize) {
    let disk = export(agent, 0);
    blocking(move || {
        for n in writes {
            disk.write(n * CHUNK, noise(bytes, n + 1).into(), false).unwrap();
        }
    })
    .await;
}

/// How often the stream lost its order.
fn catch_ups(server: &Server) -> usize {
    let begins = |record: &&Record| matches!(record.change, Change::CatchUpBegin(_));
    server.held().log.iter().filter(begins).count()
}

fn at(status: &AgentStatus, server: &str) -> bool {
    status.server.as_ref().is_some_and(|now| now.starts_with(server))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_owner_gets_what_was_not_published_and_nothing_else() {
    let (machine, a, b, agent) = two(4 << 20, 8 << 20).await;
    a.unpublished.store(true, Ordering::Relaxed);
    write(&agent, 0..40, 4096).await;
    let before = until(&agent, "durable", |status| status.durable == status.last).await;
    assert!(before.published < before.durable);
    // The server is lost with its disk; nobody is there for a while, and the machine goes on.
    a.away.store(true, Ordering::Relaxed);
    b.away.store(true, Ordering::Relaxed);
    a.kill(true);
    for n in 40..44 {
        let last = agent.status().last;
        write(&agent, n..n + 1, 512).await;
        until(&agent, "marked without a server", |status| status.last >= last + 2).await;
    }
    b.take_over(&a);
    b.away.store(false, Ordering::Relaxed);
    let status = settled(&agent).await;
    assert!(at(&status, "b:9443 (b)"), "{status:?}");
    assert_eq!(status.switches, 1);
    let why = status.switched_because.unwrap();
    assert!(why.contains("a:9443: the connection was lost"), "{why}");
    assert_eq!(status.resent_bytes, 40 * 4096, "what was durable and not published");
    assert_eq!(b.held().received_bytes, 40 * 4096 + 4 * 512);
    assert_eq!(catch_ups(&b), 1, "only the first copy: the order was kept");
    assert!(b.held().bookmarks().len() >= 4, "points of the time without a server");
    no_violations(&b);
    equals_source(&b, &machine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_followed_inside_a_session_and_in_answer_to_a_hello() {
    let (machine, a, b, agent) = two(4 << 20, 16 << 20).await;
    let agent = Arc::new(agent);
    let ended = Arc::new(AtomicBool::new(false));
    let workload = {
        let (agent, ended) = (Arc::clone(&agent), Arc::clone(&ended));
        blocking(move || {
            let disk = export(&agent, 0);
            let mut n = 0u64;
            while !ended.load(Ordering::Relaxed) {
                n += 1;
                let at = n * 2_654_435_761 % 8000 * 512;
                disk.write(at, noise(512, n).into(), false).unwrap();
                let mut status = agent.status();
                while status.buffered_bytes > 8 << 20 && !ended.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                    status = agent.status();
                }
                assert_eq!(status.mode, "ordered");
            }
        })
    };
    let workload = tokio::spawn(workload);
    for round in 1..=6 {
        let (from, goal, address) = if round % 2 == 1 { (&a, &b, "b") } else { (&b, &a, "a") };
        from.held().redirect = Some(to(&format!("{address}:9443")));
        // The agent may be there before its new owner is: that one sends it back once.
        if round % 3 == 0 {
            goal.held().redirect = Some(to("b:9443"));
            goal.held().refuse = None;
        }
        until(&agent, "gone", |status| !at(status, if address == "a" { "b" } else { "a" })).await;
        goal.take_over(from);
        until(&agent, "moved", |status| at(status, address) && status.switches >= round).await;
    }
    ended.store(true, Ordering::Relaxed);
    workload.await.unwrap();
    let status = settled(&agent).await;
    assert_eq!(status.switches, 6, "{status:?}");
    let why = status.switched_because.unwrap();
    assert!(why.contains("web-1 moved"), "{why}");
    assert_eq!(catch_ups(&a), 1, "the order was never lost");
    no_violations(&a);
    no_violations(&b);
    equals_source(&a, &machine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_silent_is_left() {
    let mut machine = Machine::new(&[4 << 20], 8 << 20);
    machine.settings.server_timeout = Duration::from_secs(20);
    let (machine, a, b, agent) = two_for(machine).await;
    a.frozen.store(true, Ordering::Relaxed);
    b.take_over(&a);
    write(&agent, 0..3, 4096).await;
    let status = settled(&agent).await;
    assert!(at(&status, "b:9443"), "{status:?}");
    let why = status.switched_because.unwrap();
    assert!(why.contains("no acknowledgement in "), "{why}");
    equals_source(&b, &machine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_are_not_owner_or_busy_are_passed_by() {
    let mut machine = Machine::new(&[1 << 20], 4 << 20);
    let servers = ["a", "b", "c"].map(|name| Server::named(name, 4 << 20));
    machine.settings.servers = ["a:9443", "b:9443", "c:9443"].map(str::to_owned).to_vec();
    let refuse = |code, text: &str| Some(Refuse { code, text: text.into() });
    servers[0].held().refuse = refuse(Refusal::NotOwner, "c owns web-1");
    servers[1].held().refuse = refuse(Refusal::Busy, "the store cannot be reached");
    let agent = machine.start(Arc::new(Site(servers.to_vec()))).await;
    let status = settled(&agent).await;
    assert!(at(&status, "c:9443 (c)"), "{status:?}");
    let hellos = servers.each_ref().map(|server| server.held().hellos.len());
    assert_eq!(hellos, [1, 1, 1]);
    assert_eq!(status.switches, 0, "the first is no switch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_buffer_holds_no_more_is_read_again_and_not_the_disk() {
    let (machine, a, b, agent) = two(16 << 20, 1 << 20).await;
    a.unpublished.store(true, Ordering::Relaxed);
    // Durable records leave the buffer when room is needed: three times what it holds.
    for n in 0..48 {
        write(&agent, n..n + 1, CHUNK as usize).await;
        until(&agent, "durable", |status| status.durable == status.last).await;
    }
    assert_eq!(agent.status().mode, "ordered");
    a.away.store(true, Ordering::Relaxed);
    a.kill(true);
    b.take_over(&a);
    let status = settled(&agent).await;
    assert_eq!(status.epoch, 1, "no resync: {status:?}");
    assert_eq!(catch_ups(&b), 2);
    let received = b.held().received_bytes;
    assert_eq!(received, 48 * CHUNK, "what was not published");
    no_violations(&b);
    equals_source(&b, &machine);
}
