//! From an answer of Azure to what the caller may do about it. The table stands in `docs/azure.md`.
//!
//! Owns: which status and code is which error. Does not own: retrying, which the rooms above do with
//! back-off, and reading back after an ambiguous answer, which only they can judge.

use std::sync::Arc;
use std::time::Duration;

use azure_core::error::{Error, ErrorKind};
use azure_core::http::headers::Headers;

use super::call::header;
use super::genuine;
use crate::model::Timestamp;
use crate::store::StoreError;
use crate::store::rules::About;

/// Whether a request that got no answer may have changed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Reads,
    Changes,
}

/// What is known about who asked what.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) about: About<'a>,
    pub(super) effect: Effect,
    /// This machine's clock.
    pub(super) now: Timestamp,
}

/// Azure refuses a signature whose date is further off.
const SKEW: i64 = 15 * 60;

impl Asked<'_> {
    /// What `error` means for this request.
    pub(super) fn judge(self, error: Error) -> StoreError {
        let (status, code, headers) = match error.kind() {
            ErrorKind::HttpResponse { status, error_code, raw_response } => {
                let headers = raw_response.as_ref().map(|raw| raw.headers().clone());
                let headers = headers.unwrap_or_default();
                let code = error_code.clone();
                let code = code.unwrap_or_else(|| header(&headers, "x-ms-error-code").to_owned());
                (u16::from(*status), code, headers)
            }
            ErrorKind::Connection => return self.unreachable(error),
            ErrorKind::Credential => {
                return self.denied(format!("no token: {}", chain(&error)));
            }
            _ => return self.lost(error),
        };
        if self.is_foreign(status, &headers) {
            // Not chained: the body, a page for a browser, would be the message.
            return self.lost(genuine::foreign(status));
        }
        match status {
            400 if code == "InvalidAuthenticationInfo" => {
                self.denied(self.forbidden(status, &code, &headers))
            }
            400 => self.bad_request(&code, &error),
            401 | 403 => self.denied(self.forbidden(status, &code, &headers)),
            404 => self.missing(&code),
            409 => self.conflict(&code, &headers),
            412 => self.condition(&code),
            429 | 503 => self.busy(retry_after(&headers)),
            408 | 500..=599 => self.lost(error),
            _ => self.about.refused(format!("Azure answers {status} {code}")),
        }
    }

    /// Azure numbers every answer. What comes without says nothing about an object; a refusal is
    /// believed all the same, and of a read a "busy", as it lets the caller wait. A gateway that says
    /// "busy" to a change may have passed it on: it may still arrive.
    fn is_foreign(self, status: u16, headers: &Headers) -> bool {
        let believed = match status {
            401 | 403 => true,
            429 | 503 => self.effect == Effect::Reads,
            _ => false,
        };
        !believed && !genuine::is_numbered(headers)
    }

    fn names(self) -> (String, String) {
        (self.about.store.to_owned(), self.about.name.to_string())
    }

    pub(super) fn denied(self, detail: String) -> StoreError {
        let (store, name) = self.names();
        StoreError::Denied { store, name, detail }
    }

    fn unreachable(self, source: Error) -> StoreError {
        let (store, name) = self.names();
        StoreError::Transient { store, name, source: Arc::new(source) }
    }

    fn lost(self, source: Error) -> StoreError {
        let (store, name) = self.names();
        match self.effect {
            Effect::Reads => StoreError::Transient { store, name, source: Arc::new(source) },
            Effect::Changes => StoreError::Ambiguous { store, name, source: Arc::new(source) },
        }
    }

    fn busy(self, retry_after: Option<Duration>) -> StoreError {
        let (store, name) = self.names();
        StoreError::Throttled { store, name, retry_after }
    }

    fn bad_request(self, code: &str, error: &Error) -> StoreError {
        match code {
            "InvalidBlockList" => self.about.refused("a block is committed but not staged"),
            _ => self.about.refused(format!("Azure answers 400 {code}: {}", first_line(error))),
        }
    }

    fn forbidden(self, status: u16, code: &str, headers: &Headers) -> String {
        let date = header(headers, "date");
        let there = azure_core::time::parse_rfc7231(date).ok();
        let skew = there.map(|there| self.now.0 / 1_000_000 - there.unix_timestamp());
        match (skew, code) {
            (Some(skew), _) if skew.abs() >= SKEW => {
                format!("this machine's clock is {skew} s off Azure's; set it (NTP)")
            }
            (_, "AuthenticationFailed" | "InvalidAuthenticationInfo") => format!(
                "Azure does not accept the credential ({status} {code}); check the key, signature or token that the store's address names; a file that is written anew is read within 5 s, anything else needs a restart"
            ),
            (_, "AccountIsDisabled") => "the account is disabled; enable it".to_owned(),
            _ => format!(
                "the credential may not do this ({status} {code}); give it the role Storage Blob Data Contributor on the container, and let the account's firewall pass this machine"
            ),
        }
    }

    fn missing(self, code: &str) -> StoreError {
        match code {
            "ContainerNotFound" | "ContainerBeingDeleted" => self.denied(
                "the container is not there; make it (az storage container create) or correct the store's address"
                    .to_owned(),
            ),
            "ResourceNotFound" if self.about.name.as_str().is_empty() => self.about.not_found(),
            _ => self.about.not_found(),
        }
    }

    fn conflict(self, code: &str, headers: &Headers) -> StoreError {
        match code {
            "BlobAlreadyExists" | "ContainerAlreadyExists" => self.about.already_exists(),
            "InvalidBlobType" => self.about.refused("is the other kind of blob"),
            "ContainerBeingDeleted" | "ContainerDisabled" => {
                self.denied(format!("the container cannot be used ({code}); make it again"))
            }
            // A limit on how often or how many: it passes, or retention makes room.
            code if code.contains("RateExceeded") || code.contains("CountExceeded") => {
                self.busy(retry_after(headers))
            }
            "SystemInUse" => self.busy(retry_after(headers)),
            code if code.starts_with("Lease") => self.about.fenced(lease(code)),
            _ => self.about.refused(format!("Azure answers 409 {code}")),
        }
    }

    fn condition(self, code: &str) -> StoreError {
        match code {
            "SequenceNumberConditionNotMet" => {
                self.about.fenced("its sequence number is not the one that the write carries")
            }
            code if code.starts_with("Lease") => self.about.fenced(lease(code)),
            _ => self.about.precondition(),
        }
    }
}

fn lease(code: &str) -> &'static str {
    match code {
        "LeaseIdMissing" => "a lease holds it",
        "LeaseAlreadyPresent" => "another lease holds it",
        "LeaseIdMismatchWithBlobOperation" | "LeaseIdMismatchWithLeaseOperation" => {
            "another lease holds it"
        }
        _ => "the lease has ended",
    }
}

fn retry_after(headers: &Headers) -> Option<Duration> {
    let number = |name: &'static str| header(headers, name).parse().ok();
    number("x-ms-retry-after-ms")
        .or_else(|| number("retry-after-ms"))
        .map(Duration::from_millis)
        .or_else(|| number("retry-after").map(Duration::from_secs))
}

fn first_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

pub(super) fn chain(error: &Error) -> String {
    let mut text = first_line(error);
    let mut at: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(source) = at {
        text.push_str(": ");
        text.push_str(source.to_string().lines().next().unwrap_or_default());
        at = source.source();
    }
    text
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
