//! The data port over UDP: who gets in, and that several streams make one session.

use std::time::Duration;

use futures_util::FutureExt;
use holdfast::format::wire::{FromAgent, Hello, Progress, Refusal};
use holdfast::ingest::QuicEnd;
use holdfast::model::{Epoch, Record, Sequence, Timestamp, TrackingMode};
use quinn::ClientConfig;
use rcgen::SanType;

use crate::agent::{Agent, hello, write};
use crate::bounded;
use crate::pki::{Ca, Pair};
use crate::quic_agent::{ALPN, QuicAgent, address, client, endpoint};
use crate::server::{Server, limits};

/// Whether a client comes as far as a welcome.
async fn welcomed(server: &Server, config: ClientConfig) -> bool {
    let endpoint = endpoint();
    let connecting = endpoint.connect_with(config, address(server), "holdfast").unwrap();
    // In TLS 1.3 a client learns that its certificate was refused behind its own handshake.
    let Ok(connection) = connecting.await else { return false };
    let Ok((mut control, mut heard)) = connection.open_bi().await else { return false };
    let said = holdfast::format::wire::encode_from_agent(&FromAgent::Hello(hello("web-1")));
    let _ = control.write_all(&said.header).await;
    let _ = control.write_all_chunks(&mut said.payload.fragments().to_vec()).await;
    let mut header = [0; 40];
    heard.read_exact(&mut header).await.is_ok() && header[2] == 0x20
}

#[tokio::test]
async fn only_machines_of_this_site_get_in() {
    bounded(async {
        let server = Server::start(limits()).await;
        let ca = &server.ca;
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let with = |pair: &Pair| client(ca, Some(pair), ALPN);
        assert!(welcomed(&server, with(&ca.machine("web-1"))).await);
        assert!(!welcomed(&server, client(ca, None, ALPN)).await, "no certificate");
        let expired = ca.issue(vec![uri("spiffe://lab/machine/web-1")], 2021);
        assert!(!welcomed(&server, with(&expired)).await, "expired");
        assert!(!welcomed(&server, with(&Ca::new().machine("web-1"))).await, "another CA");
        let two = ["spiffe://lab/machine/web-1", "spiffe://lab/machine/web-2"].map(uri);
        assert!(!welcomed(&server, with(&ca.issue(two.into(), 2999))).await, "two names");
        for bad in ["spiffe://other/machine/web-1", "spiffe://lab/operator", "https://lab/x"] {
            assert!(!welcomed(&server, with(&ca.peer(bad))).await, "{bad}");
        }
        for alpn in [&b"h3"[..], b"http/1.1", b"holdfast/2"] {
            let config = client(ca, Some(&ca.machine("web-1")), alpn);
            assert!(!welcomed(&server, config).await, "{alpn:?}");
        }
        let open = server.metrics.connections.load(std::sync::atomic::Ordering::Relaxed);
        assert!(open <= 1, "{open} connections are open");
    })
    .await;
}

#[tokio::test]
async fn a_machine_cannot_name_another_one_and_a_revoked_one_nobody() {
    bounded(async {
        use sha2::Digest;
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = QuicAgent::connected(&server, &pair).await;
        agent.say(&FromAgent::Hello(hello("web-2"))).await;
        assert_eq!(agent.refused().await.code, Refusal::Identity);
        let digest = sha2::Sha256::digest(pair.certificate.der());
        server.log.revoked.lock().unwrap().push(hex::encode(digest));
        let mut agent = QuicAgent::connected(&server, &pair).await;
        agent.say(&FromAgent::Hello(hello("web-1"))).await;
        assert_eq!(agent.refused().await.code, Refusal::Identity);
        assert!(server.log.records("web-2").is_empty());
    })
    .await;
}

#[tokio::test]
async fn nothing_is_resumed_and_nothing_is_sent_early() {
    bounded(async {
        let server = Server::start(limits()).await;
        let config = client(&server.ca, Some(&server.ca.machine("web-1")), ALPN);
        let endpoint = endpoint();
        for _ in 0..3 {
            let connecting =
                endpoint.connect_with(config.clone(), address(&server), "holdfast").unwrap();
            let Err(connecting) = connecting.into_0rtt() else { panic!("early data is possible") };
            connecting.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn records_of_several_streams_are_admitted_in_order() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = QuicAgent::tracking(&server, &pair, 4).await;
        let changes: Vec<_> = (0..40).map(|n| write(n, 1 << 19 >> (n % 11))).collect();
        // Always the later of two first, on different streams.
        for (pair, two) in changes.chunks(2).enumerate() {
            let at = |n: usize| (2 * pair + n) % 4;
            agent.next += 1;
            agent.record(at(1), two[1].clone()).await;
            agent.next -= 2;
            let first = agent.record(at(0), two[0].clone()).await;
            agent.next += 1;
            agent.durable(first + 1).await;
        }
        let kept = server.log.records("web-1").into_iter().skip(3);
        assert_eq!(kept.map(|record| record.change).collect::<Vec<_>>(), changes);
        for stream in &mut agent.records {
            stream.finish().unwrap();
        }
        agent.say(&FromAgent::Goodbye).await;
        assert_eq!(agent.hear().await, None);
        let known = Hello { epoch: Epoch(1), last: Sequence(43), ..hello("web-1") };
        let (_, welcome) = QuicAgent::welcomed(&server, &pair, known, 1).await;
        assert_eq!((welcome.durable.0, welcome.published.0), (43, 43));
    })
    .await;
}

#[tokio::test]
async fn a_goodbye_waits_for_the_records_before_it() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = QuicAgent::tracking(&server, &pair, 2).await;
        // The server knows both streams; the second has not ended when the goodbye comes.
        agent.record(0, write(0, 512)).await;
        agent.say(&FromAgent::Goodbye).await;
        agent.records[0].finish().unwrap();
        let last = agent.record(1, write(1, 512)).await;
        agent.records[1].finish().unwrap();
        while agent.hear().await.is_some() {}
        while server.log.records("web-1").len() < last as usize {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn repetitions_gaps_and_frames_on_the_wrong_stream_are_refused() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        drop(QuicAgent::tracking(&server, &pair, 2).await);
        let known = || Hello { epoch: Epoch(1), last: Sequence(99), ..hello("web-1") };
        let progress = FromAgent::Progress(Progress {
            time: Timestamp(1),
            mode: TrackingMode::Ordered,
            last: Sequence(3),
            dirty_bytes: 0,
            total_bytes: 0,
            buffered_bytes: 0,
        });
        let record = |sequence| {
            FromAgent::Record(Record { sequence: Sequence(sequence), change: write(0, 512) })
        };
        // 4 MiB of credit are 4 streams of 1 MiB. Sequences from the next one on.
        for (said, word) in [
            (vec![(0, -1)], "repetition"),
            (vec![(0, 0), (1, 0)], "repetition"),
            (vec![(0, 1), (1, 2), (2, 3), (3, 4)], "gap"),
            (vec![], "stream for records"),
        ] {
            let (mut agent, _) = QuicAgent::welcomed(&server, &pair, known(), 4).await;
            for (stream, offset) in &said {
                let sequence = agent.next.wrapping_add_signed(*offset);
                agent.say_on(*stream, &record(sequence)).await;
            }
            if said.is_empty() {
                agent.say_on(0, &progress).await;
            }
            let refuse = agent.refused().await;
            assert_eq!(refuse.code, Refusal::Protocol);
            assert!(refuse.text.contains(word), "{}", refuse.text);
        }
        let (mut agent, _) = QuicAgent::welcomed(&server, &pair, known(), 0).await;
        agent.say(&record(5)).await;
        let refuse = agent.refused().await;
        assert!(refuse.text.contains("control stream"), "{}", refuse.text);
    })
    .await;
}

#[tokio::test]
async fn streams_and_bytes_are_bounded() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let stranger = QuicAgent::connected(&server, &pair).await;
        assert!(stranger.connection.open_uni().now_or_never().is_none(), "before the welcome");
        assert!(stranger.connection.open_bi().now_or_never().is_none(), "one control stream");
        drop(stranger);
        let mut agent = QuicAgent::tracking(&server, &pair, 4).await;
        assert!(agent.connection.open_uni().now_or_never().is_none(), "credit allows 4");
        // A log that stands still, and an agent that sends all the same.
        server.running.send_replace(false);
        let mut taken = 0;
        let refuse = loop {
            tokio::select! {
                biased;
                refuse = agent.heard.read_chunk(1 << 20, true) => match refuse.unwrap() {
                    Some(chunk) if chunk.bytes[2] == 0x23 => break chunk.bytes,
                    Some(_) => {}
                    None => panic!("no refusal"),
                },
                () = async {
                    let frame = holdfast::format::wire::encode_from_agent(&FromAgent::Record(
                        Record { sequence: Sequence(4 + taken), change: write(0, 1 << 20) },
                    ));
                    let stream = &mut agent.records[taken as usize % 4];
                    let _ = stream.write_all(&frame.header).await;
                    let _ = stream.write_all_chunks(&mut frame.payload.fragments().to_vec()).await;
                } => taken += 1,
            }
        };
        let text = String::from_utf8_lossy(&refuse);
        assert!(text.contains("credit"), "{text}");
        assert!(taken <= 4 + 4 + 4, "{taken} MiB left us: credit, windows, and what we buffer");
    })
    .await;
}

#[tokio::test]
async fn a_machine_has_one_seat_over_both_ways() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut quic = QuicAgent::tracking(&server, &pair, 2).await;
        let known = Hello { epoch: Epoch(1), last: Sequence(9), ..hello("web-1") };
        let (mut tcp, _) = Agent::welcomed(&server, &pair, known.clone()).await;
        assert_eq!(quic.refused().await.code, Refusal::Superseded);
        let sequence = tcp.record(write(0, 512)).await;
        tcp.durable(sequence).await;
        let (mut again, welcome) = QuicAgent::welcomed(&server, &pair, known, 2).await;
        assert_eq!(tcp.refused().await.code, Refusal::Superseded);
        assert_eq!(welcome.durable.0, sequence);
        let sequence = again.record(1, write(1, 512)).await;
        again.durable(sequence).await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_survives_another_address() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = QuicAgent::tracking(&server, &pair, 2).await;
        for n in 0..5 {
            let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
            agent.endpoint.rebind(socket).unwrap();
            let sequence = agent.record(n % 2, write(n as u64, 64 << 10)).await;
            agent.durable(sequence).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_drain_ends_sessions_in_order() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = QuicAgent::tracking(&server, &pair, 2).await;
        server.drain.send_replace(true);
        assert_eq!(agent.refused().await.code, Refusal::NotOwner);
        let (endpoint, config) = (endpoint(), client(&server.ca, Some(&pair), ALPN));
        let late = endpoint.connect_with(config, address(&server), "holdfast").unwrap();
        drop(agent);
        assert_eq!(server.serving_quic.await.unwrap().unwrap(), QuicEnd::Drained);
        drop(late);
    })
    .await;
}

#[tokio::test]
async fn silent_agents_and_records_that_never_come_are_cut_off() {
    bounded(async {
        let hasty =
            holdfast::settings::LimitSettings { idle_timeout: Duration::from_secs(2), ..limits() };
        let server = Server::start(hasty).await;
        let pair = server.ca.machine("web-1");
        let mut agent = QuicAgent::tracking(&server, &pair, 2).await;
        // Alive for QUIC, and a gap that could still close on a third stream.
        agent.next = 5;
        agent.record(0, write(0, 512)).await;
        let beats = async {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                agent.endpoint.rebind(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
            }
        };
        let mut heard = Vec::new();
        tokio::select! {
            read = agent.heard.read_to_end(1 << 20) => heard = read.unwrap_or_default(),
            () = beats => {}
        }
        let text = String::from_utf8_lossy(&heard);
        assert!(text.contains("in time"), "{text:?}");
    })
    .await;
}
