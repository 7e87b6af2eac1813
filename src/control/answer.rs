//! How the sidecar says no: `{"error": {"code", "message", "cure"}}` with the right status.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::ControlError;
use crate::observe::error_chain;
use crate::store::Class;
use crate::vault::{TokenError, VaultError};

/// Body of every refusal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: ErrorDetail,
}

/// What is wrong and what to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For programs: a stable word.
    pub code: String,
    /// For people.
    pub message: String,
    /// What to do; may be empty.
    #[serde(default)]
    pub cure: String,
}

/// A refusal.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    error: ErrorDetail,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &str, message: impl ToString, cure: &str) -> Self {
        Self {
            status,
            error: ErrorDetail {
                code: code.to_owned(),
                message: message.to_string(),
                cure: cure.to_owned(),
            },
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, Json(ErrorBody { error: self.error })).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"holdfast\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            let minute = HeaderValue::from_static("60");
            response.headers_mut().insert(RETRY_AFTER, minute);
        }
        response
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        let unauthorized = StatusCode::UNAUTHORIZED;
        let (status, code, cure) = match error {
            TokenError::Vault(error) => return error.into(),
            TokenError::Unknown => {
                (unauthorized, "token_unknown", "send a token that was made for this site")
            }
            TokenError::Expired { .. } => {
                (unauthorized, "token_expired", "ask the operator for a new token")
            }
            TokenError::Used { .. } => {
                (unauthorized, "token_used", "ask the operator for a new token")
            }
            TokenError::OtherUse => (
                StatusCode::FORBIDDEN,
                "token_other_use",
                "enrolment takes an enrolment token, everything else an operator's",
            ),
            TokenError::OtherMachine { .. } => (
                StatusCode::FORBIDDEN,
                "token_other_machine",
                "ask the operator for a token of this machine",
            ),
        };
        Self::new(status, code, error, cure)
    }
}

impl From<VaultError> for Refusal {
    fn from(error: VaultError) -> Self {
        match (&error, error.class()) {
            (VaultError::Policy { .. }, _) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "policy_refused",
                &error,
                "docs/configuration.md lists the bounds of a policy",
            ),
            (VaultError::Missing { .. }, _) => Self::new(
                StatusCode::NOT_FOUND,
                "not_found",
                &error,
                "GET /v1/machines lists what exists",
            ),
            (_, Class::Retry) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "store_unavailable",
                error_chain(&error),
                "nothing was changed for certain; ask again when the store answers",
            ),
            (_, Class::Reject | Class::Fence) => Self::new(
                StatusCode::CONFLICT,
                "conflict",
                error_chain(&error),
                "read what is there now and ask again",
            ),
            (_, Class::Poison | Class::Bug) => Self::broken(&error),
        }
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Vault(error) => error.into(),
            ControlError::Token(error) => error.into(),
            ControlError::UnknownMachine { .. } => Self::new(
                StatusCode::NOT_FOUND,
                "machine_unknown",
                &error,
                "GET /v1/machines lists those that are enrolled",
            ),
            ControlError::UnknownPoint { .. } => Self::new(
                StatusCode::NOT_FOUND,
                "point_unknown",
                &error,
                "GET /v1/machines/{machine}/points lists those that exist",
            ),
            ControlError::UnknownCertificate { .. } => Self::new(
                StatusCode::NOT_FOUND,
                "certificate_unknown",
                &error,
                "`holdfast revoke {machine}` lists those that exist",
            ),
            ControlError::SigningRequest { .. } => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "csr_refused",
                &error,
                "make it with `openssl req -new`, PEM, signed by its own key",
            ),
            ControlError::Refused { status, ref code, ref cure, .. }
                if (400..500).contains(&status) && status != 401 && status != 403 =>
            {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::CONFLICT);
                Self::new(status, code, &error, cure)
            }
            ControlError::NoOwner { .. }
            | ControlError::OwnerGone { .. }
            | ControlError::Unreachable { .. }
            | ControlError::Broken { .. }
            | ControlError::Timeout { .. }
            | ControlError::Answer { .. }
            | ControlError::Refused { .. } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "process_server_unavailable",
                error_chain(&error),
                "start `holdfast serve`, or look at its log",
            ),
            ControlError::CloudLog(ref inner) if inner.class() == Class::Retry => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "store_unavailable",
                error_chain(&error),
                "ask again when the store answers",
            ),
            ControlError::Recover(ref inner) if inner.class() == Class::Retry => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "store_unavailable",
                error_chain(&error),
                "ask again when the store answers",
            ),
            ControlError::CloudLog(_)
            | ControlError::Recover(_)
            | ControlError::Seal(_)
            | ControlError::File { .. }
            | ControlError::Pem { .. }
            | ControlError::Certificate { .. }
            | ControlError::Tls { .. }
            | ControlError::Listen { .. } => Self::broken(&error),
        }
    }
}

impl Refusal {
    /// Something that needs a human: logged, and told by its first sentence only.
    fn broken(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = error_chain(error), "a request found something broken");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "broken", error, "look at the sidecar's log")
    }
}
