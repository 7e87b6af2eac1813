//! HTTP/1.1 on port 9443: who may ask what.
//!
//! Owns: `GET /healthz` for everybody with a certificate, the upgrade at `GET /v1/replicate` for
//! machines, the gate in front of the operators' routes. Does not own those routes.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;
use tower::ServiceExt;

use super::handshakes::Handshake;
use super::identity::{Identity, Role};
use super::listener::{Ingest, drained};
use super::tls::Handshaken;
use crate::format::wire::PROTOCOL;

/// Where agents go.
pub const REPLICATE_PATH: &str = "/v1/replicate";
/// Where anybody with a certificate sees that the port is alive.
pub const HEALTH_PATH: &str = "/healthz";

/// Request head and buffer of one connection; hyper's smallest.
const BUFFER_BYTES_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 32;

/// A connection that speaks HTTP.
pub(super) struct Requests<'a> {
    pub(super) ingest: &'a Ingest,
    pub(super) identity: &'a Identity,
}

/// Why a connection's requests ended badly.
#[derive(Debug)]
pub(super) enum RequestError {
    /// No request in time.
    TooLong,
    /// No HTTP.
    Http(hyper::Error),
}

type Upgraded = (Handshaken, Bytes);

/// What the requests of one connection leave behind.
struct State {
    handshake: Mutex<Option<Handshake>>,
    first_request: Notify,
    upgrade: Mutex<Option<OnUpgrade>>,
}

impl Requests<'_> {
    /// Serves requests until the connection ends or becomes an agent's: then the stream, and what
    /// was read of it already.
    pub(super) async fn serve(
        &self,
        tls: Handshaken,
        handshake: Handshake,
        deadline: Duration,
    ) -> Result<Option<Upgraded>, RequestError> {
        let state = State {
            handshake: Mutex::new(Some(handshake)),
            first_request: Notify::new(),
            upgrade: Mutex::new(None),
        };
        let service = hyper::service::service_fn(|request| self.serve_request(&state, request));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.ingest.idle_timeout())
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(tls), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let clock = &self.ingest.clock;
        let too_long = async {
            tokio::select! {
                () = clock.sleep(deadline.saturating_sub(clock.monotonic())) => {}
                () = state.first_request.notified() => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = connection.as_mut() => ended.map_err(RequestError::Http)?,
            () = too_long => return Err(RequestError::TooLong),
            () = drained(self.ingest.drain.clone()) => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await.map_err(RequestError::Http)?;
            }
        }
        let upgrade = take(&state.upgrade);
        let Some(upgrade) = upgrade else {
            return Ok(None);
        };
        let upgraded = upgrade.await.map_err(RequestError::Http)?;
        let parts = upgraded.downcast::<TokioIo<Handshaken>>();
        let parts = parts.expect("the stream that was given to hyper comes back");
        Ok(Some((parts.io.into_inner(), parts.read_buf)))
    }

    async fn serve_request(
        &self,
        state: &State,
        request: hyper::Request<Incoming>,
    ) -> Result<Response, Infallible> {
        drop(take(&state.handshake)); // identity and request are there: no stranger any more
        state.first_request.notify_one();
        Ok(match (request.uri().path(), &self.identity.role) {
            (HEALTH_PATH | REPLICATE_PATH, _) if request.method() != Method::GET => {
                let refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here");
                ([(header::ALLOW, "GET")], refusal).into_response()
            }
            (HEALTH_PATH, _) => "ok".into_response(),
            (REPLICATE_PATH, Role::Machine(_)) => upgrade(state, request),
            (_, Role::Operator) if request.uri().path() != REPLICATE_PATH => {
                let operator = self.ingest.operator.clone();
                match operator.oneshot(request.map(Body::new)).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            }
            (path, role) => {
                let text = format!("the certificate of {role} is not good for {path}");
                refusal(StatusCode::FORBIDDEN, &text)
            }
        })
    }
}

fn upgrade(state: &State, mut request: hyper::Request<Incoming>) -> Response {
    let asked = request.headers().get(header::UPGRADE);
    if asked.map(HeaderValue::as_bytes) != Some(PROTOCOL.as_bytes()) {
        let text = format!("ask with `Connection: upgrade` and `Upgrade: {PROTOCOL}`");
        let refusal = refusal(StatusCode::UPGRADE_REQUIRED, &text);
        return ([(header::UPGRADE, PROTOCOL)], refusal).into_response();
    }
    let upgrade = hyper::upgrade::on(&mut request);
    *state.upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(upgrade);
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// For paths that the operators' routes do not have.
pub(super) async fn not_found(uri: axum::http::Uri) -> Response {
    let text = format!("there is nothing at {}", uri.path());
    refusal(StatusCode::NOT_FOUND, &text)
}

fn refusal(status: StatusCode, text: &str) -> Response {
    (status, axum::Json(serde_json::json!({ "error": text }))).into_response()
}

fn take<T>(place: &Mutex<Option<T>>) -> Option<T> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}
