//! Strangers in great number: bounded in memory and time, while a good agent keeps its acks.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast::clock::{Clock, System};
use holdfast::format::wire::Hello;
use holdfast::model::Epoch;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::agent::{Agent, hello, write};
use crate::bounded;
use crate::pki::connect;
use crate::server::{Server, limits};

const STRANGERS: u64 = 10_000;
const GROWTH_MAX: u64 = 64 << 20;

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}

/// The begin of a ClientHello of 60,000 bytes, in records of 15,000, and never the end.
fn half_a_hello() -> Vec<u8> {
    let record = |content: Vec<u8>| [&[0x16, 3, 1, 0x3a, 0x98][..], &content[..]].concat();
    let mut first = vec![0; 15_000];
    first[..6].copy_from_slice(&[1, 0, 0xea, 0x60, 3, 3]);
    [record(first), record(vec![0; 15_000]), record(vec![0; 15_000])].concat()
}

/// One of the things that strangers do; all end by themselves or by the server's bounds.
async fn stranger(server: &Server, number: u64) {
    if number % 10 == 9 {
        let _ = connect(&server.ca.client(None), server.port).await;
        return;
    }
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", server.port)).await else {
        return;
    };
    let _ = match number % 5 {
        0 => return,
        1 => socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await,
        2 => socket.write_all(&[number as u8; 2048]).await,
        _ => socket.write_all(&half_a_hello()).await,
    };
    // Hangs until the server ends it.
    let _ = socket.read(&mut [0; 64]).await;
}

/// The server ends a connection without a word, and soon.
async fn ended(stream: &mut (impl AsyncRead + Unpin)) {
    let mut byte = [0];
    let heard = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut byte)).await;
    assert!(matches!(heard, Ok(Ok(0) | Err(_))), "still open: {heard:?}");
}

/// Writes and waits for the ack, again and again: how many, and the longest wait.
async fn acks_until(agent: &mut Agent, over: impl Future<Output = ()>) -> (u64, Duration) {
    let (mut acks, mut slowest) = (0, Duration::ZERO);
    tokio::pin!(over);
    loop {
        let begin = System.monotonic();
        let sequence = agent.record(write(acks % 1000, 4096)).await;
        agent.durable(sequence).await;
        slowest = slowest.max(System.monotonic() - begin);
        acks += 1;
        tokio::select! {
            biased;
            () = &mut over => return (acks, slowest),
            () = std::future::ready(()) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_strangers_do_not_disturb_an_agent() {
    bounded(async {
        let server = Server::start(holdfast::settings::LimitSettings {
            handshakes_max: 128,
            connections_max: 512,
            ..limits()
        });
        let server = Arc::new(server.await);
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.durable(3).await;
        server.log.forgets.store(true, Ordering::Relaxed);
        let (alone, _) = acks_until(&mut agent, System.sleep(Duration::from_secs(1))).await;
        let before = resident_bytes();
        let (begun, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let crowd: Vec<_> = (0..200)
            .map(|_| {
                let (server, begun, most) =
                    (Arc::clone(&server), Arc::clone(&begun), Arc::clone(&most));
                tokio::spawn(async move {
                    loop {
                        let number = begun.fetch_add(1, Ordering::Relaxed);
                        if number >= STRANGERS {
                            return;
                        }
                        stranger(&server, number).await;
                        most.fetch_max(resident_bytes(), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let begin = System.monotonic();
        let over = async { drop(futures_util::future::join_all(crowd).await) };
        let (acks, slowest) = acks_until(&mut agent, over).await;
        let rate = acks as f64 / (System.monotonic() - begin).as_secs_f64();
        let growth = most.load(Ordering::Relaxed).saturating_sub(before);
        println!(
            "{alone} acks/s alone, {rate:.0} in the crowd, the slowest in {slowest:?}; {} KiB more",
            growth >> 10
        );
        // The crowd itself needs most of the machine.
        assert!(rate > alone as f64 / 20.0, "{rate} acks/s, {alone} alone");
        assert!(slowest < Duration::from_secs(3), "an ack took {slowest:?}");
        assert!(growth < GROWTH_MAX, "memory grew by {growth} bytes");
        let refused = server.metrics.connections_refused.load(Ordering::Relaxed);
        assert!(refused > STRANGERS / 2, "{refused} were refused");
    })
    .await;
}

#[tokio::test]
async fn sitting_strangers_do_not_keep_an_agent_out() {
    bounded(async {
        let few = holdfast::settings::LimitSettings {
            handshakes_max: 4,
            handshake_timeout: Duration::from_secs(1000),
            ..limits()
        };
        let server = Server::start(few).await;
        let mut sitting = Vec::new();
        for _ in 0..8 {
            let socket = TcpStream::connect(("127.0.0.1", server.port)).await;
            sitting.push(socket.unwrap());
        }
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.durable(3).await;
        ended(&mut sitting[0]).await;
        drop(agent);
        let (mut agent, _) =
            Agent::welcomed(&server, &pair, Hello { epoch: Epoch(1), ..hello("web-1") }).await;
        let sequence = agent.record(write(0, 512)).await;
        agent.durable(sequence).await;
    })
    .await;
}

#[tokio::test]
async fn a_stranger_has_the_handshakes_time_and_no_more() {
    bounded(async {
        let hasty = holdfast::settings::LimitSettings {
            handshake_timeout: Duration::from_millis(300),
            idle_timeout: Duration::from_secs(1000),
            ..limits()
        };
        let server = Server::start(hasty).await;
        // Says nothing; and through TLS, but asks nothing.
        let mut silent = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        let connector = server.ca.client(Some(&server.ca.machine("web-1")));
        let mut idle = connect(&connector, server.port).await.unwrap();
        ended(&mut silent).await;
        ended(&mut idle).await;
    })
    .await;
}

#[tokio::test]
async fn more_connections_than_allowed_are_closed_at_once() {
    bounded(async {
        let one = holdfast::settings::LimitSettings { connections_max: 1, ..limits() };
        let server = Server::start(one).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.durable(3).await;
        assert!(connect(&server.ca.client(Some(&pair)), server.port).await.is_err());
        let sequence = agent.record(write(0, 512)).await;
        agent.durable(sequence).await;
    })
    .await;
}
