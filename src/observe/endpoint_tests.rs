use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::clock::System;
use crate::settings::load_tuning;

struct Server {
    address: SocketAddr,
    tuning: Tuning,
    stop: tokio::sync::oneshot::Sender<()>,
    serving: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("holdfast.toml");
        let text = "site = \"s\"\nserver = \"ps\"\nstore = \"dir:store\"\nadvertise = \"h:1\"\n";
        std::fs::write(&path, text).unwrap();
        let tuning = load_tuning(&path).unwrap();
        let metrics = Arc::new(Metrics::default());
        metrics.machine(&"web".parse().unwrap()).served.store(true, Ordering::Relaxed);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (clock, door) = (System::clock(), Door::Loopback);
        let observed = Observed { metrics, clock, tuning: tuning.clone(), door };
        let serving = tokio::spawn(serve(listener, observed, Duration::from_secs(60), async {
            stopped.await.ok();
        }));
        Self { address, tuning, stop, serving, _directory: directory }
    }

    async fn ask(&self, head: &str, body: &str) -> String {
        let mut socket = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let (line, headers) = head.split_once('\n').unwrap_or((head, "host: 127.0.0.1\n"));
        let length = body.len();
        let request = format!(
            "{line} HTTP/1.1\r\n{}content-length: {length}\r\nconnection: close\r\n\r\n{body}",
            headers.replace('\n', "\r\n")
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn patch(&self, body: &str) -> (u16, Value) {
        let answer = self.ask("PATCH /v1/tuning", body).await;
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap())
    }

    async fn end(self) {
        self.stop.send(()).unwrap();
        self.serving.await.unwrap();
    }
}

#[tokio::test]
async fn the_pages_over_a_socket() {
    let server = Server::start().await;
    for (path, expected) in [
        ("GET /metrics", "content-type: text/plain; version=0.0.4"),
        ("GET /metrics", "holdfast_build_info"),
        ("GET /healthz", "ok"),
        ("GET /v1/status", "\"machine\":\"web\""),
        ("GET /v1/tuning", "\"key\":\"batch.age_max_ms\",\"value\":6000,"),
        ("GET /v1/tuning", "\"key\":\"shards\",\"value\":"),
        (
            "GET /metrics\nhost: x\naccept: application/openmetrics-text;version=1.0.0,*/*;q=0.1\n",
            "content-type: application/openmetrics-text; version=1.0.0",
        ),
    ] {
        let answer = server.ask(path, "").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(expected), "{expected}\n{answer}");
    }
    let few = server.ask("GET /metrics?machines=false", "").await;
    assert!(few.contains("holdfast_machines{") && !few.contains("machine=\"web\""), "{few}");
    assert!(server.ask("GET /metrics?machine=web", "").await.starts_with("HTTP/1.1 400"));
    server.end().await;
}

#[tokio::test]
async fn settings_change_over_a_socket() {
    let server = Server::start().await;
    let (status, answer) = server.patch(r#"{"set": {"batch.age_max_ms": 50}, "keep": true}"#).await;
    assert_eq!((status, &answer["changed"][0]["old"]), (200, &Value::from(6000)), "{answer}");
    assert_eq!(server.tuning.now().batch.age_max.as_millis(), 50);

    let (status, answer) =
        server.patch(r#"{"set": {"batch.age_max_ms": 5, "no.such": 1, "seal.level": 3}}"#).await;
    let violations = answer["error"]["violations"].as_array().unwrap();
    assert_eq!((status, violations.len()), (422, 2), "{answer}");
    assert_eq!(violations[0]["key"], "batch.age_max_ms");
    assert_eq!(server.tuning.now().seal.level, 1, "all or nothing");

    for body in ["", "{", "[]", r#"{"set": 1}"#, r#"{"set": {}, "kept": true}"#] {
        let (status, answer) = server.patch(body).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &Value::from("not-understood")));
    }
    let large = format!(r#"{{"set": {{"{}": 1}}}}"#, "x".repeat(BODY_BYTES_MAX));
    assert!(server.ask("PATCH /v1/tuning", &large).await.starts_with("HTTP/1.1 413"));
    let rebound = "PATCH /v1/tuning\nhost: evil.example:9445\n";
    let answer = server.ask(rebound, r#"{"set": {"seal.level": 3}}"#).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(server.tuning.now().seal.level, 1);
    server.end().await;
}
