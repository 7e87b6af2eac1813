//! Who does not get in, and who gets no further.

use std::process::Stdio;
use std::time::Duration;

use holdfast::format::wire::{FromAgent, Refusal};
use holdfast::model::Sequence;
use rcgen::SanType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::agent::{Agent, UPGRADE, hello, request, write};
use crate::bounded;
use crate::pki::{Ca, Pair, connect};
use crate::server::{Server, limits};

const HEALTH: &str = "GET /healthz HTTP/1.1";

/// Whether a client with this certificate gets an answer to anything at all.
async fn answered(server: &Server, ca: &Ca, pair: Option<&Pair>) -> bool {
    // In TLS 1.3 a client learns that its certificate was refused when it reads.
    let Ok(mut tls) = connect(&ca.client(pair), server.port).await else {
        return false;
    };
    let _ = tls.write_all(format!("{HEALTH}\r\n\r\n").as_bytes()).await;
    matches!(tls.read(&mut [0; 16]).await, Ok(1..))
}

#[tokio::test]
async fn only_certificates_of_this_site_that_name_one_role_get_in() {
    bounded(async {
        let server = Server::start(limits()).await;
        let ca = &server.ca;
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        assert!(answered(&server, ca, Some(&ca.machine("web-1"))).await);
        assert!(answered(&server, ca, Some(&ca.peer("spiffe://lab/operator"))).await);
        assert!(!answered(&server, ca, None).await, "no certificate");
        let expired = ca.issue(vec![uri("spiffe://lab/machine/web-1")], 2021);
        assert!(!answered(&server, ca, Some(&expired)).await, "expired");
        let other = Ca::new().machine("web-1");
        assert!(!answered(&server, ca, Some(&other)).await, "another CA");
        let two = ["spiffe://lab/machine/web-1", "spiffe://lab/machine/web-2"].map(uri);
        assert!(!answered(&server, ca, Some(&ca.issue(two.into(), 2999))).await, "two names");
        let dns = SanType::DnsName("web-1".try_into().unwrap());
        assert!(!answered(&server, ca, Some(&ca.issue(vec![dns], 2999))).await, "no URI");
        for bad in [
            "spiffe://other/machine/web-1",
            "spiffe://lab/machine/../web-1",
            "https://lab/operator",
        ] {
            assert!(!answered(&server, ca, Some(&ca.peer(bad))).await, "{bad}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_machine_cannot_name_another_one() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::upgraded(&server, &pair).await;
        agent.say(&FromAgent::Hello(hello("web-2"))).await;
        assert_eq!(agent.refused().await.code, Refusal::Identity);
        let unknown = server.ca.machine("web-99");
        let mut agent = Agent::upgraded(&server, &unknown).await;
        agent.say(&FromAgent::Hello(hello("web-99"))).await;
        assert_eq!(agent.refused().await.code, Refusal::Identity);
        assert!(server.log.records("web-2").is_empty());
        for path in ["/v1/machines", "/v1/machines/web-2", "/anything"] {
            let (answer, _) = request(&server, &pair, &format!("GET {path} HTTP/1.1")).await;
            assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn each_role_has_its_paths() {
    bounded(async {
        let server = Server::start(limits()).await;
        let operator = server.ca.peer("spiffe://lab/operator");
        let machine = server.ca.machine("web-1");
        let cases = [
            (&operator, HEALTH, "200"),
            (&machine, HEALTH, "200"),
            (&operator, "GET /v1/machines HTTP/1.1", "200"),
            (&operator, "GET /nothing HTTP/1.1", "404"),
            (&operator, UPGRADE, "403"),
            (&machine, "GET /v1/replicate HTTP/1.1", "426"),
            (&machine, "POST /v1/replicate HTTP/1.1", "405"),
        ];
        for (pair, head, status) in cases {
            let (answer, _) = request(&server, pair, head).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
        }
        let long = format!("GET /{} HTTP/1.1", "x".repeat(64 << 10));
        let (answer, _) = request(&server, &machine, &long).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_at_its_next_connection() {
    bounded(async {
        use sha2::Digest;
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let digest = sha2::Sha256::digest(pair.certificate.der());
        server.log.revoked.lock().unwrap().push(hex::encode(digest));
        let mut agent = Agent::upgraded(&server, &pair).await;
        agent.say(&FromAgent::Hello(hello("web-1"))).await;
        assert_eq!(agent.refused().await.code, Refusal::Identity);
    })
    .await;
}

#[tokio::test]
async fn a_revoked_certificate_ends_its_live_session() {
    bounded(async {
        use sha2::Digest;
        let server = Server::start(limits()).await;
        let (pair, good) = (server.ca.machine("web-1"), server.ca.machine("web-2"));
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        let mut other = Agent::tracking(&server, &good, "web-2").await;
        agent.durable(3).await;
        let digest = sha2::Sha256::digest(pair.certificate.der());
        server.log.revoked.lock().unwrap().push(hex::encode(digest));
        assert_eq!(agent.refused().await.code, Refusal::Identity);
        let sequence = other.record(write(0, 512)).await;
        other.durable(sequence).await;
    })
    .await;
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    bounded(async {
        let server = Server::start(limits()).await;
        for (version, good) in [("-tls1_2", false), ("-tls1_3", true)] {
            let target = format!("127.0.0.1:{}", server.port);
            let openssl = move || {
                std::process::Command::new("openssl")
                    .args(["s_client", "-brief", version, "-connect", &target])
                    .stdin(Stdio::null())
                    .output()
            };
            let output = tokio::task::spawn_blocking(openssl).await.unwrap();
            let output = output.expect("openssl is installed");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(text.contains("CONNECTION ESTABLISHED"), good, "{version}: {text}");
        }
    })
    .await;
}

#[tokio::test]
async fn plain_http_is_refused() {
    bounded(async {
        let server = Server::start(limits()).await;
        let mut socket = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        socket.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    })
    .await;
}

#[tokio::test]
async fn a_length_of_4_gib_is_refused_before_it_is_read() {
    bounded(async {
        let server = Server::start(limits()).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        let frame = holdfast::format::wire::encode_from_agent(&FromAgent::Record(
            holdfast::model::Record { sequence: Sequence(4), change: write(0, 512) },
        ));
        let mut header = frame.header;
        header[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        header[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        agent.tls.write_all(&header).await.unwrap();
        let refuse = agent.refused().await;
        assert_eq!(refuse.code, Refusal::Protocol);
        // The same from a stranger to the protocol, as its first frame.
        let mut stranger = Agent::upgraded(&server, &pair).await;
        stranger.tls.write_all(&header).await.unwrap();
        assert_eq!(stranger.refused().await.code, Refusal::Protocol);
    })
    .await;
}

#[tokio::test]
async fn trickling_and_silent_agents_are_cut_off() {
    bounded(async {
        let patient = limits();
        let server = Server::start(holdfast::settings::LimitSettings {
            idle_timeout: Duration::from_secs(2),
            ..patient
        })
        .await;
        let pair = server.ca.machine("web-1");
        let mut silent = Agent::tracking(&server, &pair, "web-1").await;
        assert!(silent.refused().await.text.contains("in time"));
        // One byte at a time is not faster than silence, in the header and in the payload.
        let record = holdfast::model::Record { sequence: Sequence(1), change: write(0, 4096) };
        let frame = holdfast::format::wire::encode_from_agent(&FromAgent::Record(record));
        for whole_header in [false, true] {
            let mut agent = Agent::upgraded(&server, &pair).await;
            let epoch = holdfast::model::Epoch(1);
            agent
                .say(&FromAgent::Hello(holdfast::format::wire::Hello { epoch, ..hello("web-1") }))
                .await;
            let head = if whole_header { 40 } else { 1 };
            agent.tls.write_all(&frame.header[..head]).await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(agent.tls);
            let trickle = async {
                let mut pace = tokio::time::interval(Duration::from_millis(200));
                loop {
                    pace.tick().await;
                    if writer.write_all(&[frame.header[1]]).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    let _ = writer.flush().await;
                }
            };
            let mut heard = Vec::new();
            tokio::select! {
                _ = reader.read_to_end(&mut heard) => {}
                () = trickle => {}
            }
            let text = String::from_utf8_lossy(&heard);
            assert!(text.contains("in time"), "header whole: {whole_header}, {text:?}");
        }
    })
    .await;
}
