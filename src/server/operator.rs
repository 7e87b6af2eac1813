//! What operators, and other process servers, may ask of a process server on its data port: status,
//! settings, bookmarks, and to give a machine up.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};

use super::handover::HandoverError;
use super::machines::Registry;
use crate::clock::random16;
use crate::control::{BookmarkAnswer, BookmarkQuestion, BookmarkWait, MoveAnswer, MoveOrder};
use crate::format::wire::BookmarkRequest;
use crate::ingest::{BookmarkError, OpenError, PlacedBookmark};
use crate::model::{BookmarkId, MachineId};
use crate::observe;
use crate::observe::endpoint::{Door, Observed};

/// Largest body of an operator's request, bytes.
const BODY_BYTES_MAX: usize = 16 << 10;
/// How long a bookmark may take to be placed and durable.
const DURABLE_WAIT: Duration = Duration::from_secs(30);
/// How long it may then take to be recoverable.
const RECOVERABLE_WAIT: Duration = Duration::from_secs(120);

/// The routes; the data port lets only operators' certificates through to them.
pub(super) fn router(registry: &Arc<Registry>) -> Router {
    let shared = registry.shared();
    let bookmarks = Router::new()
        .route("/v1/machines/{machine}/bookmarks", post(bookmark))
        .route("/v1/machines/{machine}/move", post(give_up))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::clone(registry));
    let observed = observe::endpoint::router(Observed {
        metrics: Arc::clone(&shared.metrics),
        clock: Arc::clone(&shared.clock),
        tuning: shared.tuning.clone(),
        door: Door::Operator,
    });
    // The data port has a health path of its own, open to every certificate.
    bookmarks.merge(observed)
}

async fn bookmark(
    State(registry): State<Arc<Registry>>,
    Path(machine): Path<String>,
    Json(order): Json<BookmarkQuestion>,
) -> Response {
    let Ok(machine) = machine.parse::<MachineId>() else {
        let message = format!("{machine:?} is no machine's name");
        return refuse(StatusCode::NOT_FOUND, "unknown-machine", &message);
    };
    let Some(served) = registry.served(&machine) else {
        let message = format!(
            "machine {machine} is not served here: its agent has not connected since the start"
        );
        return refuse(StatusCode::CONFLICT, "not-connected", &message);
    };
    let shared = registry.shared();
    let id = BookmarkId(random16(shared.entropy.as_ref()));
    let request = BookmarkRequest { id, kind: order.kind, name: order.name.clone() };
    let placed = async {
        let placed = served.link.bookmark(request).await?;
        served.link.durable_at(placed.sequence).await;
        Ok::<_, BookmarkError>(placed)
    };
    let PlacedBookmark { sequence, time } = tokio::select! {
        placed = placed => match placed {
            Ok(placed) => placed,
            Err(error) => return not_placed(&error),
        },
        () = shared.clock.sleep(DURABLE_WAIT) => {
            let message = format!("bookmark {id} of machine {machine} was not confirmed in time");
            return refuse(StatusCode::GATEWAY_TIMEOUT, "not-confirmed", &message);
        }
    };
    if order.wait == BookmarkWait::Recoverable {
        tokio::select! {
            () = served.link.published_at(sequence) => {}
            () = shared.clock.sleep(RECOVERABLE_WAIT) => {
                let message = format!(
                    "bookmark {id} of machine {machine} is durable at {sequence} but not yet \
                     recoverable: {}", reason(&registry, &machine));
                return refuse(StatusCode::GATEWAY_TIMEOUT, "not-recoverable-yet", &message);
            }
        }
    }
    let BookmarkQuestion { name, kind, wait: reached } = order;
    let (bookmark, sequence) = (id.to_string(), sequence.0);
    Json(BookmarkAnswer { bookmark, name, kind, sequence, time, reached }).into_response()
}

async fn give_up(
    State(registry): State<Arc<Registry>>,
    Path(machine): Path<String>,
    Json(order): Json<MoveOrder>,
) -> Response {
    let Ok(machine) = machine.parse::<MachineId>() else {
        let message = format!("{machine:?} is no machine's name");
        return refuse(StatusCode::NOT_FOUND, "unknown-machine", &message);
    };
    let server = order.to;
    if server == registry.shared().server {
        let message = format!("{server} is asked to give machine {machine} to itself");
        return refuse(StatusCode::CONFLICT, "same-server", &message);
    }
    if order.unless_connected
        && let Some(served) = registry.served(&machine)
        && served.link.has_agent()
    {
        let words = format!(
            "another agent of this machine is at process server {server}, while one is connected here: stop \
             one, and see docs/operations.md, \"Two agents of one machine\""
        );
        served.link.refused_another(words, registry.shared().clock.monotonic());
        let message = format!("machine {machine} stays: its agent is connected");
        return refuse(StatusCode::CONFLICT, "connected", &message);
    }
    let to = match registry.shared().peers.target(&server).await {
        Ok(to) => to,
        Err(why) => {
            let message = format!("machine {machine} cannot go to {server}: {why}");
            return refuse(StatusCode::CONFLICT, "no-target", &message);
        }
    };
    match registry.hand_over(&machine, to).await {
        Ok(()) => Json(MoveAnswer { machine, server, moved: true }).into_response(),
        Err(error) => {
            let (status, code) = match &error {
                HandoverError::Unknown { .. } => (StatusCode::NOT_FOUND, "unknown-machine"),
                HandoverError::Open(OpenError::Elsewhere { .. })
                | HandoverError::NotOwner { .. } => (StatusCode::CONFLICT, "not-owner"),
                HandoverError::Held { .. } => (StatusCode::CONFLICT, "records-held"),
                HandoverError::Target { .. } => (StatusCode::CONFLICT, "no-target"),
                HandoverError::Late { .. } => (StatusCode::GATEWAY_TIMEOUT, "late"),
                HandoverError::Open(_)
                | HandoverError::Leaving { .. }
                | HandoverError::Unpublished { .. } => (StatusCode::CONFLICT, "not-given-up"),
                HandoverError::Vault { .. }
                | HandoverError::Keys { .. }
                | HandoverError::Upload { .. } => {
                    (StatusCode::SERVICE_UNAVAILABLE, "store-unavailable")
                }
            };
            refuse(status, code, &observe::error_chain(&error))
        }
    }
}

fn reason(registry: &Registry, machine: &MachineId) -> String {
    let metrics = registry.shared().metrics.machine(machine);
    let trouble = metrics.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    trouble.clone().unwrap_or_else(|| "uploads are behind".to_owned())
}

fn not_placed(error: &BookmarkError) -> Response {
    let (status, code) = match error {
        BookmarkError::NotConnected { .. } => (StatusCode::CONFLICT, "not-connected"),
        BookmarkError::Busy { .. } => (StatusCode::TOO_MANY_REQUESTS, "busy"),
        BookmarkError::Name { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "name-too-long"),
        BookmarkError::Refused { .. } => (StatusCode::CONFLICT, "refused"),
    };
    refuse(status, code, &observe::error_chain(error))
}

fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    let body = serde_json::json!({ "error": { "code": code, "message": message } });
    (status, Json(body)).into_response()
}
