//! Request bodies: bounded in size and time, JSON without unknown fields.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::answer::Refusal;
use super::sidecar::Shared;

/// Longest body, bytes.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Time for a body to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);

/// A body that was read and understood.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<Shared>> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, Refusal> {
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX);
        let collected = tokio::select! {
            collected = body.collect() => collected,
            () = shared.clock.sleep(BODY_TIME) => return Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_late",
                "the body did not arrive in time",
                "send it at once",
            )),
        };
        let bytes = collected.map_err(|error| unreadable(&*error))?.to_bytes();
        serde_json::from_slice(&bytes).map(Self).map_err(|error| not_understood(&error))
    }
}

fn unreadable(error: &(dyn std::error::Error + 'static)) -> Refusal {
    if error.is::<LengthLimitError>() {
        return Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is longer than {BODY_BYTES_MAX} bytes"),
            "no request of this API needs that much",
        );
    }
    Refusal::new(StatusCode::BAD_REQUEST, "body_unreadable", error, "send the body whole")
}

fn not_understood(error: &serde_json::Error) -> Refusal {
    let cure = "docs/operations.md shows the body of every request";
    match error.classify() {
        Category::Data => {
            Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "body_refused", error, cure)
        }
        Category::Syntax | Category::Eof | Category::Io => {
            Refusal::new(StatusCode::BAD_REQUEST, "bad_json", error, cure)
        }
    }
}
