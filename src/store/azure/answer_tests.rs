use super::*;
use crate::model::ObjectName;
use azure_core::http::{RawResponse, StatusCode};

const NOON: i64 = 1_800_000_000;

fn answered(
    status: u16,
    code: &str,
    more: &[(&'static str, &'static str)],
    effect: Effect,
) -> StoreError {
    let mut headers = vec![("x-ms-request-id", "6a2b")];
    headers.extend(more);
    came(status, code, &headers, effect)
}

/// With these headers and no others.
fn came(
    status: u16,
    code: &str,
    more: &[(&'static str, &'static str)],
    effect: Effect,
) -> StoreError {
    let mut headers = Headers::new();
    for (name, value) in more {
        headers.insert(*name, *value);
    }
    let status = StatusCode::from(status);
    let raw = RawResponse::from_bytes(status, headers, Vec::new());
    let kind = ErrorKind::HttpResponse {
        status,
        error_code: (!code.is_empty()).then(|| code.to_owned()),
        raw_response: Some(Box::new(raw)),
    };
    judged(Error::with_message(kind, "told"), effect)
}

fn judged(error: Error, effect: Effect) -> StoreError {
    let name = ObjectName::new("seed/a").unwrap();
    let about = About::new("azure:acct/box", &name);
    Asked { about, effect, now: Timestamp(NOON * 1_000_000) }.judge(error)
}

fn kind(error: &StoreError) -> &'static str {
    match error {
        StoreError::NotFound { .. } => "not found",
        StoreError::AlreadyExists { .. } => "already exists",
        StoreError::Precondition { .. } => "precondition",
        StoreError::Fenced { .. } => "fenced",
        StoreError::Transient { .. } => "transient",
        StoreError::Throttled { .. } => "throttled",
        StoreError::Ambiguous { .. } => "ambiguous",
        StoreError::Denied { .. } => "denied",
        StoreError::Refused { .. } => "refused",
        other => panic!("{other}"),
    }
}

/// The table of `docs/azure.md`.
#[test]
fn every_answer_has_its_class() {
    let table = [
        (400, "InvalidBlockList", "refused"),
        (400, "InvalidHeaderValue", "refused"),
        (400, "InvalidAuthenticationInfo", "denied"),
        (401, "InvalidAuthenticationInfo", "denied"),
        (403, "AuthenticationFailed", "denied"),
        (403, "AuthorizationPermissionMismatch", "denied"),
        (403, "AccountIsDisabled", "denied"),
        (404, "BlobNotFound", "not found"),
        (404, "", "not found"),
        (404, "ContainerNotFound", "denied"),
        (409, "BlobAlreadyExists", "already exists"),
        (409, "LeaseAlreadyPresent", "fenced"),
        (409, "LeaseIdMismatchWithLeaseOperation", "fenced"),
        (409, "LeaseIsBrokenAndCannotBeRenewed", "fenced"),
        (409, "InvalidBlobType", "refused"),
        (409, "SnaphotOperationRateExceeded", "throttled"),
        (409, "SnapshotCountExceeded", "throttled"),
        (409, "SystemInUse", "throttled"),
        (409, "ContainerBeingDeleted", "denied"),
        (412, "ConditionNotMet", "precondition"),
        (412, "LeaseIdMissing", "fenced"),
        (412, "LeaseIdMismatchWithBlobOperation", "fenced"),
        (412, "LeaseNotPresentWithBlobOperation", "fenced"),
        (412, "SequenceNumberConditionNotMet", "fenced"),
        (413, "RequestBodyTooLarge", "refused"),
        (408, "", "ambiguous"),
        (429, "TooManyRequests", "throttled"),
        (500, "InternalError", "ambiguous"),
        (500, "OperationTimedOut", "ambiguous"),
        (502, "", "ambiguous"),
        (503, "ServerBusy", "throttled"),
        (504, "", "ambiguous"),
    ];
    for (status, code, expected) in table {
        let told = answered(status, code, &[], Effect::Changes);
        assert_eq!(kind(&told), expected, "{status} {code}");
        let reading = answered(status, code, &[], Effect::Reads);
        let expected = if expected == "ambiguous" { "transient" } else { expected };
        assert_eq!(kind(&reading), expected, "{status} {code}, reading");
    }
}

/// What has no number of Azure's: a proxy that inspects TLS, a gateway. Whatever it says, nothing is
/// known about the object.
#[test]
fn what_is_not_azures_answer_says_nothing_about_an_object() {
    // Azure's client takes the status for the code when there is none.
    for (status, code) in [
        (302, "Found"),
        (307, "Temporary Redirect"),
        (400, "Bad Request"),
        (404, "Not Found"),
        (404, "BlobNotFound"),
        (407, "Proxy Authentication Required"),
        (409, ""),
        (412, ""),
        (421, "Misdirected Request"),
    ] {
        let told = came(status, code, &[], Effect::Changes);
        assert_eq!(kind(&told), "ambiguous", "{status}");
        let text = crate::observe::error_chain(&told);
        assert!(text.contains(&format!("an answer {status} that is not Azure's")), "{text}");
        assert!(text.contains("a proxy or gateway answered?"), "{text}");
        assert!(!text.contains("told"), "the page that came is not shown: {text}");
        assert_eq!(kind(&came(status, code, &[], Effect::Reads)), "transient", "{status}");
    }
    for (status, reading, changing) in [
        (401, "denied", "denied"),
        (403, "denied", "denied"),
        // The gateway may have passed a change on before it said so.
        (429, "throttled", "ambiguous"),
        (503, "throttled", "ambiguous"),
    ] {
        assert_eq!(kind(&came(status, "", &[], Effect::Reads)), reading, "{status}");
        assert_eq!(kind(&came(status, "", &[], Effect::Changes)), changing, "{status}");
    }
}

#[test]
fn what_was_never_sent_had_no_effect_and_what_broke_off_may_have() {
    for (error, effect, expected) in [
        (ErrorKind::Connection, Effect::Changes, "transient"),
        (ErrorKind::Io, Effect::Changes, "ambiguous"),
        (ErrorKind::Io, Effect::Reads, "transient"),
        (ErrorKind::Credential, Effect::Changes, "denied"),
    ] {
        let told = judged(Error::with_message(error, "x"), effect);
        assert_eq!(kind(&told), expected);
    }
}

#[test]
fn a_busy_store_says_for_how_long() {
    for (headers, expected) in [
        (&[("retry-after", "7")][..], Some(Duration::from_secs(7))),
        (&[("x-ms-retry-after-ms", "250"), ("retry-after", "1")], Some(Duration::from_millis(250))),
        (&[], None),
    ] {
        let told = answered(503, "ServerBusy", headers, Effect::Changes);
        assert_eq!(told.retry_after(), expected);
        let told = answered(409, "SnaphotOperationRateExceeded", headers, Effect::Changes);
        assert_eq!(told.retry_after(), expected);
    }
}

#[test]
fn texts_name_account_container_object_and_cure() {
    // The date is some months before "now".
    let skewed = [("date", "Fri, 26 Jun 2015 23:39:12 GMT")];
    let cases = [
        (answered(403, "AuthenticationFailed", &skewed, Effect::Reads), "clock is 364638048 s off"),
        (
            answered(403, "AuthenticationFailed", &[], Effect::Reads),
            "check the key, signature or token that the store's address names; a file that is written anew is read within 5 s, anything else needs a restart",
        ),
        (
            answered(403, "AuthorizationFailure", &[], Effect::Reads),
            "Storage Blob Data Contributor",
        ),
        (answered(404, "ContainerNotFound", &[], Effect::Reads), "az storage container create"),
    ];
    for (told, cure) in cases {
        let text = told.to_string();
        assert!(text.starts_with("azure:acct/box: seed/a: ") && text.contains(cure), "{text}");
    }
}
