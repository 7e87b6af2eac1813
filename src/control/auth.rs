//! Who may call: an operator's token on every route but two.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use super::answer::Refusal;
use super::sidecar::Shared;
use crate::vault::{Token, TokenError};

/// Where a request came from.
pub(super) type Peer = ConnectInfo<SocketAddr>;

/// Lets a request through that shows an operator's token.
pub(super) async fn operator(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let token = shared.bearer(request.headers(), peer)?;
    let checked = shared.sources.vault.check_operator_token(&token).await;
    checked.map_err(|error| shared.denied(error, peer))?;
    Ok(next.run(request).await)
}

impl Shared {
    /// The token that a request shows.
    pub(super) fn bearer(&self, headers: &HeaderMap, peer: Peer) -> Result<Token, Refusal> {
        let now = self.clock.monotonic();
        if !self.limiter.admits(peer.ip(), now) {
            return Err(Refusal::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_failures",
                "too many requests without a good token came from your address",
                "wait a minute and send a good token",
            ));
        }
        let header = headers.get(AUTHORIZATION);
        let text = header.and_then(|value| value.to_str().ok());
        let token = text.and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        let token = token.and_then(Token::parse);
        token.ok_or_else(|| {
            self.limiter.failed(peer.ip(), now);
            Refusal::new(
                StatusCode::UNAUTHORIZED,
                "token_missing",
                "the request shows no bearer token",
                "send `Authorization: Bearer TOKEN`; `holdfast init` wrote an operator's to operator.token",
            )
        })
    }

    /// Counts a token that was refused.
    pub(super) fn denied(&self, error: TokenError, peer: Peer) -> Refusal {
        if !matches!(error, TokenError::Vault(_)) {
            self.limiter.failed(peer.ip(), self.clock.monotonic());
        }
        let refusal = Refusal::from(error);
        tracing::warn!(peer = %peer.ip(), status = %refusal.status(), "refused a token");
        refusal
    }
}
