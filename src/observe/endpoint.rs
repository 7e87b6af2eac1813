//! `GET /metrics`, `GET /healthz`, `GET /v1/status`, `GET` and `PATCH /v1/tuning`.
//!
//! Owns: the routes. Does not own: who may call them; the listener on loopback lets everybody who
//! reaches it read, the data port asks for an operator's certificate before it comes here.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::TcpListener;

use super::exposition::{Shape, render};
use super::facts::ServerFacts;
pub use super::tuning::Door;
use super::{Metrics, tuning};
use crate::bounded_http::{self, Bounds};
use crate::clock::Clock;
use crate::settings::Tuning;

const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Most connections to the listener at once: scrapers, and people who look.
const CONNECTIONS_MAX: usize = 64;
/// Largest body of a change, bytes.
const BODY_BYTES_MAX: usize = 16 << 10;

/// What the routes answer from.
#[derive(Clone)]
pub struct Observed {
    /// What is measured.
    pub metrics: Arc<Metrics>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The settings in force.
    pub tuning: Tuning,
    /// Who may change them.
    pub door: Door,
}

/// The routes.
pub fn router(observed: Observed) -> Router {
    Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/v1/status", get(status))
        .route("/v1/tuning", get(tuning::list).patch(tuning::change))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(observed)
}

/// Answers on `listener` until `stop` completes, then lets running requests end.
pub async fn serve(
    listener: TcpListener,
    observed: Observed,
    head_timeout: Duration,
    stop: impl Future<Output = ()>,
) {
    let clock = Arc::clone(&observed.clock);
    let bounds = Bounds { connections_max: CONNECTIONS_MAX, head_timeout };
    let open = |socket| std::future::ready(Ok(socket));
    bounded_http::serve(listener, clock, bounds, router(observed), open, stop).await;
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Whether the series of each machine are wanted.
    #[serde(default = "yes")]
    machines: bool,
}

fn yes() -> bool {
    true
}

async fn metrics_page(
    State(observed): State<Observed>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Response {
    let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let openmetrics = accepts.is_some_and(|accept| accept.contains("application/openmetrics-text"));
    let shape = Shape { openmetrics, machines: wanted.machines };
    let now = observed.clock.wall();
    // With thousands of machines a page is megabytes: not on a thread that others wait for.
    let rendering = move || render(&observed.metrics, &observed.tuning.now().cache, now, shape);
    match tokio::task::spawn_blocking(rendering).await {
        Ok(page) => {
            let kind = if openmetrics { OPENMETRICS } else { PLAIN };
            ([(CONTENT_TYPE, kind)], page).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "the metrics page panicked");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn status(State(observed): State<Observed>) -> Json<ServerFacts> {
    Json(ServerFacts::of(&observed.metrics, observed.clock.wall()))
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
