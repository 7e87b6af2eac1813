//! From the socket to the log: what is copied, what is held, and what TLS may do in between.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use holdfast::format::wire::{FromAgent, encode_from_agent};
use holdfast::model::{CatchUp, Change, Epoch, EpochBegin, Record, Sequence};
use tokio::io::AsyncWriteExt;

use crate::agent::{Agent, disks, hello, write};
use crate::bounded;
use crate::pki::Pair;
use crate::server::{Server, limits};

fn copied(server: &Server) -> u64 {
    server.metrics.ingest_copied_bytes.load(Ordering::Relaxed)
}

#[tokio::test]
async fn nothing_is_copied_on_the_way_in() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        let mut last = 0;
        for round in 0..30 {
            last = agent.record(write(round, 1 << 20)).await;
            for small in 0..60 {
                last = agent.record(write(small, 4096)).await;
            }
            agent.durable(last).await;
        }
        assert_eq!(copied(&server), 0);
        assert_eq!(server.log.records("web-1").len() as u64, last);
    })
    .await;
}

/// The records of a machine's begin, and a frame of 1 MiB, as bytes.
fn stream(from: u64) -> Vec<u8> {
    let begin = EpochBegin { epoch: Epoch(1), disks: disks() };
    let changes = [
        Change::EpochBegin(begin),
        Change::CatchUpBegin(CatchUp::InitialReplication),
        Change::CatchUpEnd,
        write(from, 1 << 20),
    ];
    let mut bytes = Vec::new();
    for (sequence, change) in (1..).zip(changes) {
        let sequence = Sequence(sequence);
        let frame = encode_from_agent(&FromAgent::Record(Record { sequence, change }));
        bytes.extend_from_slice(&frame.header);
        bytes.extend_from_slice(&frame.payload.to_bytes());
    }
    bytes
}

/// Far more connections than pieces, and all of them in the middle of the largest frame: none has
/// what it needs, and no record is on its way that would free a piece.
#[tokio::test]
async fn half_received_frames_do_not_stop_each_other() {
    bounded(async {
        let small = holdfast::settings::LimitSettings { receive_bytes_max: 4 << 20, ..limits() };
        let server = Server::start(small).await;
        let connecting = (1..=24_u64).map(|n| {
            let server = &server;
            async move {
                let machine = format!("web-{n}");
                let pair = server.ca.machine(&machine);
                Agent::welcomed(server, &pair, hello(&machine)).await.0
            }
        });
        let mut agents = Vec::new();
        for connecting in connecting {
            agents.push(connecting.await);
        }
        let bytes = stream(1);
        let (first, second) = bytes.split_at(300 << 10);
        join_all(agents.iter_mut().map(|agent| async {
            agent.tls.write_all(first).await.unwrap();
            agent.tls.flush().await.unwrap();
        }))
        .await;
        join_all(agents.iter_mut().map(|agent| async {
            let (mut reader, mut writer) = tokio::io::split(&mut agent.tls);
            let sending = async {
                writer.write_all(second).await.unwrap();
                writer.flush().await.unwrap();
                std::future::pending::<()>().await;
            };
            let hearing = async {
                let mut heard = Vec::new();
                // The ack of record 4 is the last that is said; before it come 3 more at most.
                while !heard.windows(8).any(|eight| eight == 4_u64.to_le_bytes()) {
                    let mut bytes = [0; 256];
                    let count = tokio::io::AsyncReadExt::read(&mut reader, &mut bytes).await;
                    heard.extend_from_slice(&bytes[..count.unwrap()]);
                }
            };
            tokio::select! { () = sending => {}, () = hearing => {} }
        }))
        .await;
        for n in 1..=24 {
            let records = server.log.records(&format!("web-{n}"));
            assert_eq!(records.last().unwrap().change, write(1, 1 << 20), "web-{n}");
        }
        assert!(copied(&server) > 0, "somebody had to let go");
    })
    .await;
}

#[tokio::test]
async fn a_trickle_is_copied_and_costs_no_more() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        let change = write(1, 8192);
        let sequence = Sequence(agent.next);
        let record = Record { sequence, change: change.clone() };
        let frame = encode_from_agent(&FromAgent::Record(record));
        agent.tls.write_all(&frame.header).await.unwrap();
        for byte in frame.payload.to_bytes().chunks(16) {
            agent.tls.write_all(byte).await.unwrap();
            agent.tls.flush().await.unwrap();
        }
        agent.durable(sequence.0).await;
        assert_eq!(server.log.records("web-1").last().unwrap().change, change);
        assert_eq!(copied(&server), 8192, "each byte once");
    })
    .await;
}

#[tokio::test]
async fn keys_change_in_the_middle_of_frames() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        let mut sent = Vec::new();
        for n in 0..20 {
            let change = write(n, 64 << 10);
            let sequence = Sequence(agent.next);
            agent.next += 1;
            let record = Record { sequence, change: change.clone() };
            let frame = encode_from_agent(&FromAgent::Record(record));
            agent.tls.write_all(&frame.header).await.unwrap();
            let payload = frame.payload.to_bytes();
            let (first, second) = payload.split_at(20_000);
            agent.tls.write_all(first).await.unwrap();
            agent.tls.get_mut().1.refresh_traffic_keys().unwrap();
            agent.tls.write_all(second).await.unwrap();
            agent.durable(sequence.0).await;
            sent.push(change);
        }
        let kept = server.log.records("web-1").into_iter().skip(3);
        assert_eq!(kept.map(|record| record.change).collect::<Vec<_>>(), sent);
        assert_eq!(copied(&server), 0);
    })
    .await;
}

/// OpenSSL's client, driven through its terminal's commands.
struct OpenSsl {
    child: Child,
    stdin: ChildStdin,
    said: Arc<Mutex<Vec<u8>>>,
}

impl OpenSsl {
    fn connect(server: &Server, pair: &Pair, suite: &str, directory: &std::path::Path) -> Self {
        let path = |name: &str| directory.join(name);
        pair.write(&path("machine.crt"), &path("machine.key"));
        std::fs::write(path("ca.crt"), server.ca.certificate.pem()).unwrap();
        let mut child = Command::new("openssl")
            .args(["s_client", "-tls1_3", "-ciphersuites", suite])
            .args(["-connect", &format!("127.0.0.1:{}", server.port), "-servername", "holdfast"])
            .arg("-cert")
            .arg(path("machine.crt"))
            .arg("-key")
            .arg(path("machine.key"))
            .arg("-CAfile")
            .arg(path("ca.crt"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for mut stream in streams {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    said.lock().unwrap().extend_from_slice(&bytes[..count]);
                }
            });
        }
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin, said }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.stdin.write_all(bytes).unwrap();
        self.stdin.flush().unwrap();
    }

    /// Waits until it has said `what` so many times.
    async fn said(&self, what: &[u8], times: usize) {
        for _ in 0..6000 {
            let found = {
                let said = self.said.lock().unwrap();
                said.windows(what.len()).filter(|window| *window == what).count()
            };
            if found >= times {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let said = self.said.lock().unwrap();
        let (what, said) = (what.escape_ascii(), said.escape_ascii().to_string());
        let last = said.len().saturating_sub(2000);
        panic!("openssl did not say {what} {times} times: …{}", &said[last..]);
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `K` updates OpenSSL's key and asks for ours, `k` only updates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_updates_keys_with_every_suite() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("skipped: openssl is not installed");
        return;
    }
    bounded(async {
        for suite in
            ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"]
        {
            let server = Server::start(limits()).await;
            let directory = tempfile::tempdir().unwrap();
            let pair = server.ca.machine("web-1");
            let mut openssl = OpenSsl::connect(&server, &pair, suite, directory.path());
            let head = format!("{}\r\nHost: holdfast\r\n\r\n", crate::agent::UPGRADE);
            openssl.said(suite.as_bytes(), 1).await;
            openssl.say(head.as_bytes());
            openssl.said(b"101 Switching Protocols", 1).await;
            let hello = encode_from_agent(&FromAgent::Hello(hello("web-1")));
            openssl.say(&[&hello.header[..], &hello.payload.to_bytes()].concat());
            // The kind follows the magic: no certificate in base64 reads like that.
            openssl.said(b"HF\x20", 1).await; // the welcome
            let link = server.log.link("web-1");
            let bytes = stream(1);
            // What is acknowledged was read by OpenSSL: then a command is the first of what it reads.
            for (updates, command) in [b"K\n", b"k\n", b"K\n"].into_iter().enumerate() {
                openssl.say(command);
                openssl.said(b"KEYUPDATE", updates + 1).await;
                if updates == 0 {
                    openssl.say(&bytes);
                } else {
                    let (sequence, change) = (Sequence(4 + updates as u64), write(2, 4096));
                    let record = FromAgent::Record(Record { sequence, change });
                    let frame = encode_from_agent(&record);
                    openssl.say(&[&frame.header[..], &frame.payload.to_bytes()].concat());
                }
                link.durable_at(Sequence(4 + updates as u64)).await;
            }
            let records = server.log.records("web-1");
            assert_eq!(records[3].change, write(1, 1 << 20));
            assert_eq!(records[5].change, write(2, 4096));
            openssl.said(b"HF\x21", 2).await; // acks under keys of ours that it asked for
        }
    })
    .await;
}
