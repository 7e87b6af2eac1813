//! `GET` and `PATCH /v1/tuning`: settings that change while the server runs.
//!
//! Owns: who may change them, and what is answered. Does not own: the rules (settings).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, State};
use axum::http::header::HOST;
use axum::http::{Extensions, HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::chain::error_chain;
use super::endpoint::Observed;
use crate::settings::tuning::{Listed, TuningError};

/// Who may change settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Whoever connects from this machine itself, wherever the listener is bound.
    Loopback,
    /// Whoever comes this far: an operator's certificate was shown.
    Operator,
}

/// What a change is asked with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    set: BTreeMap<String, Value>,
    #[serde(default)]
    keep: bool,
}

/// What is listed.
#[derive(Debug, Serialize)]
struct Listing {
    /// Most memory that the server takes with these settings.
    memory_bytes_max: u64,
    settings: Vec<Listed>,
}

/// Everything that can change, and what cannot.
pub(super) async fn list(State(observed): State<Observed>) -> Response {
    let memory_bytes_max = observed.tuning.now().memory_bytes_max();
    Json(Listing { memory_bytes_max, settings: observed.tuning.list() }).into_response()
}

/// Changes settings, all that are named or none.
pub(super) async fn change(
    State(observed): State<Observed>,
    extensions: Extensions,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let by = match asker(observed.door, &extensions, &headers) {
        Ok(by) => by,
        Err(message) => return refuse(StatusCode::FORBIDDEN, "not-from-here", message, json!([])),
    };
    let question: Question = match serde_json::from_slice(&body) {
        Ok(question) => question,
        Err(error) => {
            let message = format!(
                "the body is not understood: {error}; write it like \
                 {{\"set\": {{\"batch.age_max_ms\": 500}}, \"keep\": false}}"
            );
            return refuse(StatusCode::BAD_REQUEST, "not-understood", &message, json!([]));
        }
    };
    // Keeping a change writes and syncs a file.
    let tuning = observed.tuning.clone();
    let changing = move || tuning.change(&question.set, question.keep, &by);
    match tokio::task::spawn_blocking(changing).await {
        Ok(Ok(changed)) => Json(json!({ "changed": changed })).into_response(),
        Ok(Err(error)) => {
            let message = error_chain(&error);
            let (status, code, violations) = match &error {
                TuningError::Violations(violations) => {
                    (StatusCode::UNPROCESSABLE_ENTITY, "rules-broken", json!(violations))
                }
                TuningError::Keep { .. } => {
                    (StatusCode::INTERNAL_SERVER_ERROR, "not-kept", json!([]))
                }
                TuningError::NoPlace => (StatusCode::CONFLICT, "not-kept", json!([])),
            };
            refuse(status, code, &message, violations)
        }
        Err(error) => {
            tracing::error!(%error, "changing settings panicked");
            let message = "the change could not be made; the log says more";
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "broken", message, json!([]))
        }
    }
}

/// Who asks, in words for the log; or why it may not.
fn asker(door: Door, extensions: &Extensions, headers: &HeaderMap) -> Result<String, &'static str> {
    if door == Door::Operator {
        return Ok("an operator, on the data port".to_owned());
    }
    let peer = extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    let peer = peer.filter(|peer| peer.ip().to_canonical().is_loopback()).ok_or(
        "settings are changed from the server's own machine, or with an operator's certificate on \
         the data port",
    )?;
    // A page in a browser on this machine may have any name resolved to here.
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_local(host) {
        return Err("the request's Host must be an address or localhost");
    }
    Ok(peer.to_string())
}

fn is_local(host: &str) -> bool {
    if host.parse::<IpAddr>().is_ok() {
        return true; // an IPv6 address without brackets
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn refuse(status: StatusCode, code: &str, message: &str, violations: Value) -> Response {
    let body = json!({ "error": { "code": code, "message": message, "violations": violations } });
    (status, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_local_names() {
        for host in ["127.0.0.1:9445", "localhost", "LOCALHOST:1", "[::1]:9445", "::1", "10.0.0.1"]
        {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:9445", "localhost.evil.example:80"] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn strangers_change_nothing() {
        let ask = |door, peer: &str, host: &str| {
            let mut extensions = Extensions::new();
            if let Ok(peer) = peer.parse::<SocketAddr>() {
                extensions.insert(ConnectInfo(peer));
            }
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            asker(door, &extensions, &headers).is_ok()
        };
        assert!(ask(Door::Loopback, "127.0.0.1:5", "localhost:9445"));
        assert!(ask(Door::Loopback, "[::ffff:127.0.0.1]:5", "127.0.0.1"));
        assert!(!ask(Door::Loopback, "10.1.2.3:5", "10.0.0.1:9445"));
        assert!(!ask(Door::Loopback, "nobody", "localhost"));
        assert!(!ask(Door::Loopback, "127.0.0.1:5", "evil.example"));
        assert!(ask(Door::Operator, "nobody", "ps.example.org"));
    }
}
