//! `GET /metrics`, `GET /healthz`, `GET /v1/status`.
//!
//! Owns: the routes. Does not own: who may call them; the listener on loopback lets everybody who
//! reaches it, the data port asks for an operator's certificate before it comes here.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;

use super::Metrics;
use super::exposition::render;
use super::facts::ServerFacts;
use crate::clock::Clock;

#[derive(Clone)]
struct Observed {
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
}

/// The routes over `metrics`.
pub fn router(metrics: Arc<Metrics>, clock: Arc<dyn Clock>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/v1/status", get(status))
        .with_state(Observed { metrics, clock })
}

/// Answers on `listener` until `stop` completes, then finishes what runs.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn metrics_page(State(observed): State<Observed>) -> impl IntoResponse {
    let page = render(&observed.metrics, observed.clock.wall());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page)
}

async fn status(State(observed): State<Observed>) -> Json<ServerFacts> {
    Json(ServerFacts::of(&observed.metrics, observed.clock.wall()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::System;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn three_pages_over_a_socket() {
        let metrics = Arc::new(Metrics::default());
        metrics.machine(&"web".parse().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let router = router(metrics, System::clock());
        let server = tokio::spawn(serve(listener, router, async {
            stopped.await.ok();
        }));
        for (path, expected) in [
            ("/metrics", "holdfast_build_info"),
            ("/healthz", "ok"),
            ("/v1/status", "\"machine\":\"web\""),
        ] {
            let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.contains(expected), "{answer}");
        }
        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
    }
}
