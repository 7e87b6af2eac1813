//! One metrics page from a process server.
//!
//! Owns: one bounded request, plain HTTP as the metrics listener speaks it. Does not own: when it is
//! asked again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::header::{ACCEPT, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::TopError;
use super::reading::Reading;
use crate::clock::Clock;

/// Longest page: some ten thousand machines.
const PAGE_BYTES_MAX: usize = 64 << 20;
/// Time that a page may take: with thousands of machines it is megabytes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where metrics come from.
#[derive(Clone)]
pub struct Source {
    /// `HOST:PORT` of the metrics listener.
    pub address: String,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Source {
    /// What the server says now.
    pub(super) async fn reading(&self) -> Result<Reading, TopError> {
        let page = tokio::select! {
            page = self.page() => page?,
            () = self.clock.sleep(PATIENCE) => {
                let (address, seconds) = (self.address.clone(), PATIENCE.as_secs());
                return Err(TopError::Late { address, seconds });
            }
        };
        let reading = Reading::of(&String::from_utf8_lossy(&page));
        let reading =
            reading.map_err(|source| TopError::Page { address: self.address.clone(), source })?;
        match reading.version {
            Some(_) => Ok(reading),
            None => Err(self.other("a page of metrics without holdfast_build_info")),
        }
    }

    fn other(&self, what: impl Into<String>) -> TopError {
        TopError::NotMetrics { address: self.address.clone(), what: what.into() }
    }

    async fn page(&self) -> Result<Bytes, TopError> {
        let address = &self.address;
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| TopError::Broken {
            address: address.clone(),
            source,
        };
        let socket = TcpStream::connect(address)
            .await
            .map_err(|source| TopError::Unreachable { address: address.clone(), source })?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(socket));
        let (mut sender, connection) = handshake.await.map_err(|error| broken(error.into()))?;
        let request = Request::get("/metrics")
            .header(HOST, address)
            .header(ACCEPT, "application/openmetrics-text; version=1.0.0")
            .body(Empty::<Bytes>::new())
            .map_err(|error| broken(error.into()))?;
        let answered = async {
            let response =
                sender.send_request(request).await.map_err(|error| broken(error.into()))?;
            if !response.status().is_success() {
                return Err(self.other(format!("answered with status {}", response.status())));
            }
            let body = Limited::new(response.into_body(), PAGE_BYTES_MAX);
            Ok(body.collect().await.map_err(broken)?.to_bytes())
        };
        // The connection future drives the exchange; both live and end within this call.
        let (mut connection, mut answered) = (std::pin::pin!(connection), std::pin::pin!(answered));
        tokio::select! {
            outcome = &mut answered => outcome,
            ended = &mut connection => match ended {
                Ok(()) => answered.await,
                Err(error) => Err(broken(error.into())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::clock::System;
    use crate::model::Timestamp;

    /// What is made of a server that answers with these bytes and closes.
    async fn asked(answer: &'static str) -> Result<Reading, TopError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = socket.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            socket.write_all(answer.as_bytes()).await.unwrap();
            request
        };
        let source = Source { address, clock: System::clock() };
        let (request, reading) = tokio::join!(serving, source.reading());
        assert!(request.starts_with("GET /metrics HTTP/1.1"), "{request}");
        assert!(request.contains("application/openmetrics-text"), "{request}");
        reading
    }

    #[tokio::test]
    async fn a_page_is_read_and_everything_else_is_named() {
        let page = "HTTP/1.1 200 OK\r\ncontent-length: 39\r\n\r\nholdfast_build_info{version=\"1.2.3\"} 1\n";
        assert_eq!(asked(page).await.unwrap().version.as_deref(), Some("1.2.3"));
        for (answer, said) in [
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "answered with status 404"),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nother 1\n",
                "without holdfast_build_info",
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", "not understood"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 600\r\n\r\nother 1\n", "broke off"),
            ("SSH-2.0-OpenSSH_9.2\r\n", "broke off"),
            ("", "broke off"),
        ] {
            let error = asked(answer).await.unwrap_err();
            let told = error.to_string();
            assert!(told.contains(said) && told.contains("http://127.0.0.1:"), "{answer}: {told}");
        }
    }

    /// A clock by which every wait is over.
    struct Hasty;

    #[async_trait::async_trait]
    impl Clock for Hasty {
        fn wall(&self) -> Timestamp {
            Timestamp(0)
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }

        async fn sleep(&self, _: Duration) {}
    }

    #[tokio::test]
    async fn one_that_does_not_answer_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let source = Source { address, clock: Arc::new(Hasty) };
        assert!(matches!(source.reading().await, Err(TopError::Late { seconds: 5, .. })));
    }
}
