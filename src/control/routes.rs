//! The routes of the control API. `docs/operations.md` shows each with curl.

use std::sync::Arc;

use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Extension, Json, Router, middleware};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Inquiry;
use super::answer::Refusal;
use super::auth::{self, Peer};
use super::body::Body;
use super::bookmark::{BookmarkAnswer, BookmarkQuestion, NAME_BYTES_MAX, bookmark};
use super::ca::SigningRequest;
use super::placing::{MoveAnswer, MoveOrder, Wish, assign, move_machine};
use super::sidecar::Shared;
use super::status::{MachineStatus, status};
use crate::model::{MachineId, Timestamp};
use crate::vault::{CertificateEntry, MachineDocument, Policy, PolicyBounds};

type Answer<T> = Result<Json<T>, Refusal>;
type Sidecar = State<Arc<Shared>>;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let operator = Router::new()
        .route("/v1/machines", get(list_machines))
        .route("/v1/machines/{machine}", get(show_machine))
        .route("/v1/machines/{machine}/policy", get(show_policy).put(put_policy))
        .route("/v1/machines/{machine}/status", get(show_status))
        .route("/v1/machines/{machine}/points", get(list_points))
        .route("/v1/machines/{machine}/points/{bookmark}/pin", post(pin).delete(unpin))
        .route("/v1/machines/{machine}/bookmarks", post(make_bookmark))
        .route("/v1/machines/{machine}/assignment", get(show_wish).put(put_wish))
        .route("/v1/machines/{machine}/move", post(order_move))
        .route("/v1/servers", get(list_servers))
        .route("/v1/enrolment-tokens", post(make_token))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), auth::operator));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/v1/enrol", post(enrol))
        .merge(operator)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(shared)
}

async fn no_route() -> Refusal {
    let cure = "docs/operations.md lists the routes";
    Refusal::new(StatusCode::NOT_FOUND, "no_route", "there is no such route", cure)
}

async fn no_method() -> Refusal {
    let cure = "docs/operations.md lists the routes";
    let message = "the route does not take this method";
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no_method", message, cure)
}

/// A machine as operators see it: without its keys.
#[derive(Serialize)]
struct MachineView {
    machine: MachineId,
    created: Timestamp,
    certificates: Vec<CertificateEntry>,
    policy: Policy,
}

impl From<MachineDocument> for MachineView {
    fn from(document: MachineDocument) -> Self {
        Self {
            machine: document.machine,
            created: document.created,
            certificates: document.certificates,
            policy: document.policy,
        }
    }
}

/// A name outside the alphabet belongs to no machine.
fn machine_named(text: &str) -> Result<MachineId, Refusal> {
    text.parse().map_err(|error| {
        let cure = "GET /v1/machines lists those that are enrolled";
        Refusal::new(StatusCode::NOT_FOUND, "machine_unknown", error, cure)
    })
}

async fn list_machines(State(shared): Sidecar) -> Answer<Value> {
    let machines = shared.sources.vault.machines().await?;
    Ok(Json(json!({ "machines": machines })))
}

async fn show_machine(State(shared): Sidecar, Path(machine): Path<String>) -> Answer<MachineView> {
    let machine = machine_named(&machine)?;
    Ok(Json(shared.sources.document(&machine).await?.into()))
}

async fn show_policy(State(shared): Sidecar, Path(machine): Path<String>) -> Answer<Policy> {
    let machine = machine_named(&machine)?;
    Ok(Json(shared.sources.document(&machine).await?.policy))
}

async fn put_policy(
    State(shared): Sidecar,
    Path(machine): Path<String>,
    Body(policy): Body<Policy>,
) -> Answer<Policy> {
    let machine = machine_named(&machine)?;
    shared.sources.document(&machine).await?; // unknown machines before broken rules
    let bounds = PolicyBounds { snapshot_interval_min_s: shared.settings.snapshot_interval_min_s };
    let vault = &shared.sources.vault;
    let document = vault.update_policy(&machine, policy, bounds).await?;
    tracing::info!(%machine, "policy changed");
    Ok(Json(document.policy))
}

async fn show_status(State(shared): Sidecar, Path(machine): Path<String>) -> Answer<MachineStatus> {
    let machine = machine_named(&machine)?;
    let mut inquiry = Inquiry::over(shared.client.clone());
    let sheet = shared.sources.factsheet(&machine, &mut inquiry).await?;
    Ok(Json(status(&sheet, shared.clock.wall())))
}

async fn list_points(State(shared): Sidecar, Path(machine): Path<String>) -> Answer<Value> {
    let machine = machine_named(&machine)?;
    let points = shared.sources.points(&machine).await?;
    Ok(Json(json!({ "machine": machine, "points": points })))
}

async fn pin(
    State(shared): Sidecar,
    Path((machine, bookmark)): Path<(String, String)>,
) -> Answer<Value> {
    keep(&shared, &machine, bookmark, true).await
}

async fn unpin(
    State(shared): Sidecar,
    Path((machine, bookmark)): Path<(String, String)>,
) -> Answer<Value> {
    keep(&shared, &machine, bookmark, false).await
}

async fn keep(shared: &Shared, machine: &str, bookmark: String, keep: bool) -> Answer<Value> {
    let machine = machine_named(machine)?;
    shared.sources.keep_point(&machine, &bookmark, keep).await?;
    Ok(Json(json!({ "machine": machine, "bookmark": bookmark, "pinned": keep })))
}

async fn make_bookmark(
    State(shared): Sidecar,
    Path(machine): Path<String>,
    Body(question): Body<BookmarkQuestion>,
) -> Answer<BookmarkAnswer> {
    let machine = machine_named(&machine)?;
    if question.name.len() > NAME_BYTES_MAX || question.name.chars().any(char::is_control) {
        let message =
            format!("a name has at most {NAME_BYTES_MAX} bytes and no control characters");
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        return Err(Refusal::new(
            status,
            "name_refused",
            message,
            "choose a shorter, plainer name",
        ));
    }
    let answer = bookmark(&shared.sources, &shared.client, &machine, &question).await?;
    Ok(Json(answer))
}

async fn list_servers(State(shared): Sidecar) -> Answer<Value> {
    let servers = shared.sources.servers().await?;
    Ok(Json(json!({ "servers": servers })))
}

async fn show_wish(State(shared): Sidecar, Path(machine): Path<String>) -> Answer<Wish> {
    let machine = machine_named(&machine)?;
    shared.sources.document(&machine).await?;
    Ok(Json(Wish { server: shared.sources.vault.assignment(&machine).await? }))
}

async fn put_wish(
    State(shared): Sidecar,
    Path(machine): Path<String>,
    Body(wish): Body<Wish>,
) -> Answer<Wish> {
    let machine = machine_named(&machine)?;
    assign(&shared.sources, &machine, &wish).await?;
    Ok(Json(wish))
}

async fn order_move(
    State(shared): Sidecar,
    Path(machine): Path<String>,
    Body(order): Body<MoveOrder>,
) -> Answer<MoveAnswer> {
    let machine = machine_named(&machine)?;
    Ok(Json(move_machine(&shared.sources, &shared.client, &machine, &order).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenQuestion {
    machine: MachineId,
    ttl_s: Option<u64>,
}

async fn make_token(
    State(shared): Sidecar,
    Body(question): Body<TokenQuestion>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let longest = shared.settings.token_ttl.as_secs();
    let ttl_s = question.ttl_s.unwrap_or(longest);
    if !(1..=longest).contains(&ttl_s) {
        let message = format!("ttl_s = {ttl_s} must be 1 to {longest}");
        let cure = "leave it out, or raise sidecar.token_ttl_s";
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        return Err(Refusal::new(status, "ttl_refused", message, cure));
    }
    let (vault, now) = (&shared.sources.vault, shared.clock.wall());
    vault.remove_expired_tokens(now).await?;
    let expires = now.plus_seconds(i64::try_from(ttl_s).unwrap_or(i64::MAX));
    let entropy = shared.registrar.entropy.as_ref();
    let token = vault.create_enrolment_token(&question.machine, expires, entropy);
    let token = token.await?;
    tracing::info!(machine = %question.machine, %expires, "enrolment token made");
    let answer = json!({
        "machine": question.machine,
        "token": token.reveal(),
        "expires": expires,
    });
    Ok((StatusCode::CREATED, Json(answer)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnrolQuestion {
    machine: MachineId,
    csr: String,
}

#[derive(Serialize)]
struct EnrolAnswer {
    machine: MachineId,
    certificate: String,
    ca_certificate: String,
    servers: Vec<String>,
    not_after: Timestamp,
}

/// The token is looked at first and used up last, so that a request that cannot be served does not
/// cost it.
async fn enrol(
    State(shared): Sidecar,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    request: Request,
) -> Result<(StatusCode, Json<EnrolAnswer>), Refusal> {
    let token = shared.bearer(&headers, peer)?;
    let Body(question) = Body::<EnrolQuestion>::from_request(request, &shared).await?;
    let (vault, machine) = (&shared.sources.vault, &question.machine);
    let now = shared.clock.wall();
    let good = vault.check_enrolment_token(&token, machine, now).await;
    good.map_err(|error| shared.denied(error, peer))?;
    let csr = SigningRequest::parse(&question.csr)?;
    let redeemed = vault.redeem_enrolment_token(&token, machine, now).await;
    redeemed.map_err(|error| shared.denied(error, peer))?;
    let enrolment = shared.registrar.enrol(machine, &csr).await?;
    let fingerprint = &enrolment.issued.entry.fingerprint;
    tracing::info!(%machine, fingerprint, first = enrolment.first, "machine enrolled");
    let answer = EnrolAnswer {
        machine: question.machine,
        certificate: enrolment.issued.certificate,
        ca_certificate: enrolment.ca_certificate,
        servers: enrolment.servers,
        not_after: enrolment.issued.entry.not_after,
    };
    Ok((StatusCode::CREATED, Json(answer)))
}
