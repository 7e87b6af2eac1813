//! Strangers over UDP: bounded, while a good agent keeps its acks.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast::format::wire::Hello;
use holdfast::model::Epoch;
use holdfast::settings::LimitSettings;

use crate::agent::{hello, write};
use crate::bounded;
use crate::quic_agent::{ALPN, QuicAgent, address, client, endpoint};
use crate::server::{Server, limits};

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}

/// A client's first datagram, as it is sent when nobody answers.
async fn first_datagram(server: &Server) -> Vec<u8> {
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let endpoint = endpoint();
    let config = client(&server.ca, Some(&server.ca.machine("web-1")), ALPN);
    let connecting = endpoint.connect_with(config, silent.local_addr().unwrap(), "holdfast");
    let mut datagram = vec![0; 2048];
    let (length, _) = silent.recv_from(&mut datagram).await.unwrap();
    drop(connecting);
    datagram.truncate(length);
    datagram
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_half_open_handshakes_do_not_disturb_an_agent() {
    bounded(async {
        let few = LimitSettings { handshakes_max: 32, connections_max: 64, ..limits() };
        let server = Server::start(few).await;
        let pair = server.ca.machine("web-1");
        let mut agent = QuicAgent::tracking(&server, &pair, 2).await;
        server.log.forgets.store(true, Ordering::Relaxed);
        let mut templates = Vec::new();
        for _ in 0..256 {
            templates.push(first_datagram(&server).await);
        }
        let before = resident_bytes();
        let (target, over) = (address(&server), Arc::new(AtomicBool::new(false)));
        let flood = {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                let sockets: Vec<_> =
                    (0..64).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
                let mut sent = 0_u32;
                while sent < 200_000 && !over.load(Ordering::Relaxed) {
                    let mut datagram = templates[sent as usize / 2 % templates.len()].clone();
                    match sent % 4 {
                        // A handshake's first datagram: begins one, unless that one is under way.
                        0 | 1 => {}
                        2 => datagram.iter_mut().skip(1).step_by(7).for_each(|byte| *byte ^= 0x5a),
                        _ => datagram = vec![sent as u8; 1 + sent as usize % 1400],
                    }
                    let socket = &sockets[sent as usize % sockets.len()];
                    let _ = socket.send_to(&datagram, target);
                    sent += 1;
                }
                sent
            })
        };
        // Acks go on, and a second agent comes in through the crowd.
        for n in 0..200 {
            let sequence = agent.record(n % 2, write(n as u64, 4096)).await;
            agent.durable(sequence).await;
            if n % 50 == 49 {
                let known = Hello { epoch: Epoch(1), ..hello("web-2") };
                let second = server.ca.machine("web-2");
                let another = async {
                    let hello = Hello { epoch: Epoch(0), ..known };
                    QuicAgent::welcomed(&server, &second, hello, 1).await
                };
                let came = tokio::time::timeout(Duration::from_secs(20), another).await;
                assert!(came.is_ok(), "an agent was kept out");
            }
        }
        over.store(true, Ordering::Relaxed);
        let sent = tokio::task::spawn_blocking(move || flood.join().unwrap()).await.unwrap();
        let growth = resident_bytes().saturating_sub(before);
        println!("{sent} datagrams, {} KiB more", growth >> 10);
        assert!(growth < 64 << 20, "memory grew by {growth} bytes");
        let open = server.metrics.connections.load(Ordering::Relaxed);
        assert!(open <= 64, "{open} connections");
    })
    .await;
}

#[tokio::test]
async fn unproven_addresses_take_half_of_the_places_at_most() {
    bounded(async {
        let few = LimitSettings {
            handshakes_max: 8,
            handshake_timeout: Duration::from_secs(1000),
            ..limits()
        };
        let server = Server::start(few).await;
        let mut sockets = Vec::new();
        let mut retried = 0;
        for _ in 0..32 {
            sockets.push(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
            let socket = sockets.last().unwrap();
            let datagram = first_datagram(&server).await;
            socket.send_to(&datagram, address(&server)).await.unwrap();
            let mut answer = [0; 2048];
            socket.recv_from(&mut answer).await.unwrap();
            // Bits 4 and 5 of a long header's first byte: 3 is a Retry.
            retried += usize::from(answer[0] & 0x30 == 0x30);
        }
        assert_eq!(retried, 32 - 4, "half of 8 begin, the others must prove their address");
        // Through a Retry.
        let pair = server.ca.machine("web-1");
        let mut agent = QuicAgent::tracking(&server, &pair, 1).await;
        let sequence = agent.record(0, write(0, 512)).await;
        agent.durable(sequence).await;
    })
    .await;
}
