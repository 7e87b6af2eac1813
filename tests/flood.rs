//! Ten thousand strangers before a whole process server in a process of its own: an agent that
//! writes at its rate keeps it, and the server's memory stays where it was.
//!
//! Counted, not timed: the agent offers a write at each of its own ticks, and nine of ten must be
//! acknowledged before the last stranger has gone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say where")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use holdfast::clock::{Clock, System};
use holdfast::format::wire::{self, FrameHeader, FromAgent, FromServer, HEADER_BYTES, Hello};
use holdfast::model::*;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use support::{Site, have};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const STRANGERS: u64 = 10_000;
/// So many at a time: without a bound each half handshake would cost the server 67 KiB.
const AT_A_TIME: usize = 600;
const HANDSHAKES_MAX: i64 = 64;
const GROWTH_MAX: u64 = 24 << 20;
/// 200 writes a second.
const TICK: Duration = Duration::from_millis(5);
/// Writes before the flood, so that what the server allocates once is there.
const WARM_UP: u64 = 600;

/// TLS to the site, with the machine's certificate or with none.
fn connector(folder: &Path, with_certificate: bool) -> TlsConnector {
    let certificates = |name: &str| {
        let all = CertificateDer::pem_file_iter(folder.join(name)).unwrap();
        all.map(Result::unwrap).collect::<Vec<_>>()
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("ca.crt"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = if with_certificate {
        let key = PrivateKeyDer::from_pem_file(folder.join("machine.key")).unwrap();
        builder.with_client_auth_cert(certificates("machine.crt"), key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    TlsConnector::from(Arc::new(config))
}

async fn connect(connector: &TlsConnector, port: u16) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(("127.0.0.1", port)).await?;
    socket.set_nodelay(true)?;
    connector.connect(ServerName::try_from("127.0.0.1").unwrap(), socket).await
}

/// The begin of a ClientHello of 60,000 bytes, in records of 15,000, and never the end.
fn half_a_hello() -> Vec<u8> {
    let record = |content: Vec<u8>| [&[0x16, 3, 1, 0x3a, 0x98][..], &content[..]].concat();
    let mut first = vec![0; 15_000];
    first[..6].copy_from_slice(&[1, 0, 0xea, 0x60, 3, 3]);
    [record(first), record(vec![0; 15_000]), record(vec![0; 15_000])].concat()
}

/// One of the things that strangers do; all end by themselves or by the server's bounds.
async fn stranger(port: u16, anonymous: &TlsConnector, number: u64) {
    if number % 10 == 9 {
        if let Ok(mut tls) = connect(anonymous, port).await {
            let _ = tls.read(&mut [0; 64]).await; // without a certificate: refused after TLS
        }
        return;
    }
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)).await else {
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

async fn say(to: &mut (impl AsyncWrite + Unpin), message: &FromAgent) -> std::io::Result<()> {
    let frame = wire::encode_from_agent(message);
    to.write_all(&frame.header).await?;
    to.write_all(&frame.payload.to_bytes()).await?;
    to.flush().await
}

async fn hear(from: &mut (impl AsyncRead + Unpin)) -> Option<FromServer> {
    let mut header = [0; HEADER_BYTES];
    from.read_exact(&mut header).await.ok()?;
    let header = FrameHeader::decode(&header).unwrap();
    let mut payload = vec![0; header.payload_length() as usize];
    from.read_exact(&mut payload).await.ok()?;
    Some(wire::decode_from_server(&header, &Bytes::from(payload)).unwrap())
}

fn disks() -> Vec<DiskSpec> {
    vec![DiskSpec { index: DiskIndex(0), name: "root".parse().unwrap(), size_bytes: 64 << 20 }]
}

fn write(number: u64) -> Change {
    let extent = Extent::new((number % 1000) * 4096, 4096, 1 << 20).unwrap();
    Change::Write { disk: DiskIndex(0), extent, payload: vec![number as u8; 4096].into() }
}

/// What the agent has offered and what the server has acknowledged as durable.
#[derive(Default)]
struct Rate {
    offered: AtomicU64,
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

/// An agent that offers one write a tick, on one connection, until it is told to stop.
async fn good_agent(mut tls: TlsStream<TcpStream>, rate: Arc<Rate>) {
    let request = "GET /v1/replicate HTTP/1.1\r\nHost: holdfast\r\nConnection: Upgrade\r\n\
                   Upgrade: holdfast/1\r\n\r\n";
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(tls.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    let hello = Hello {
        version: wire::VERSION,
        machine: "web-1".parse().unwrap(),
        agent: Incarnation([1; 16]),
        epoch: Epoch(0),
        disks: disks(),
        witnessed: Sequence::ZERO,
        last: Sequence::ZERO,
    };
    say(&mut tls, &FromAgent::Hello(hello)).await.unwrap();
    let welcome = hear(&mut tls).await;
    assert!(matches!(welcome, Some(FromServer::Welcome(_))), "{welcome:?}");
    let begin = Change::EpochBegin(EpochBegin { epoch: Epoch(1), disks: disks() });
    let begin = [begin, Change::CatchUpBegin(CatchUp::InitialReplication), Change::CatchUpEnd];
    let marks = begin.len() as u64;
    let (mut reader, mut writer) = tokio::io::split(tls);
    let heard = Arc::clone(&rate);
    let listening = tokio::spawn(async move {
        while let Some(message) = hear(&mut reader).await {
            if let FromServer::Ack(ack) = message {
                heard.acknowledged.fetch_max(ack.durable.0.saturating_sub(marks), Ordering::AcqRel);
            }
        }
    });
    let mut sequence = 0;
    for change in begin {
        sequence += 1;
        let record = Record { sequence: Sequence(sequence), change };
        say(&mut writer, &FromAgent::Record(record)).await.unwrap();
    }
    while !rate.stop.load(Ordering::Acquire) {
        System.sleep(TICK).await;
        let number = rate.offered.fetch_add(1, Ordering::AcqRel);
        sequence += 1;
        let record = Record { sequence: Sequence(sequence), change: write(number) };
        // A connection that the server ended takes no more; what was offered counts all the same.
        let _ = say(&mut writer, &FromAgent::Record(record)).await;
    }
    listening.abort();
}

/// Memory of a process that is in RAM.
fn resident_bytes(pid: u32) -> u64 {
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}

/// All strangers; gives the most memory that the server was seen with.
async fn flood(port: u16, pid: u32, anonymous: TlsConnector) -> u64 {
    let (begun, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let crowd = (0..AT_A_TIME).map(|_| {
        let (begun, most) = (Arc::clone(&begun), Arc::clone(&most));
        let anonymous = anonymous.clone();
        tokio::spawn(async move {
            loop {
                let number = begun.fetch_add(1, Ordering::Relaxed);
                if number >= STRANGERS {
                    return;
                }
                stranger(port, &anonymous, number).await;
                most.fetch_max(resident_bytes(pid), Ordering::Relaxed);
            }
        })
    });
    futures_util::future::join_all(crowd).await;
    most.load(Ordering::Relaxed)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn ten_thousand_strangers_cost_an_agent_nothing_and_the_server_no_memory() {
    if !have(&["curl"]) {
        return;
    }
    let site = Site::new();
    site.set("limits.handshakes_max", HANDSHAKES_MAX);
    let folder = site.enroll("web-1", &[("root", 64 << 20)]).directory;
    let server = site.serve();
    let (port, pid) = (site.port, server.pid());
    let rate = Arc::new(Rate::default());
    // The agent has a thread of its own: the strangers' work is not the agent's.
    let agent = {
        let (rate, connector) = (Arc::clone(&rate), connector(&folder, true));
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let tls = connect(&connector, port).await.unwrap();
                good_agent(tls, rate).await;
            });
        })
    };
    let seen = |counter: &AtomicU64| counter.load(Ordering::Acquire);
    support::eventually("the agent is under way", 120, || {
        (seen(&rate.acknowledged) >= WARM_UP).then_some(())
    });
    let before = resident_bytes(pid);
    let (offered, acknowledged) = (seen(&rate.offered), seen(&rate.acknowledged));
    let most = runtime().block_on(flood(port, pid, connector(&folder, false)));
    let acknowledged = seen(&rate.acknowledged) - acknowledged;
    let offered = seen(&rate.offered) - offered;
    rate.stop.store(true, Ordering::Release);
    agent.join().unwrap();
    let growth = most.saturating_sub(before);
    println!("{acknowledged} of {offered} writes acknowledged, {} KiB more", growth >> 10);
    assert!(offered > 100, "the flood was over before it was one: {offered} writes");
    assert!(acknowledged * 10 >= offered * 9, "{acknowledged} of {offered} acknowledged");
    assert!(growth < GROWTH_MAX, "the server's memory grew by {growth} bytes");
    let page = site.metrics();
    let refused = page.lines().find_map(|line| line.strip_prefix("holdfast_connections_refused"));
    let refused: f64 = refused.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(refused > STRANGERS as f64 / 2.0, "{refused} were refused");
    server.stop();
}
