//! Shared key: every try of a request is signed with the account's key.
//!
//! Azure's client for Rust has no such policy. The string that is signed is that of "Authorize with
//! Shared Key" (Azure REST, storage services); the tests hold its published examples.

use std::sync::Arc;

use async_trait::async_trait;
use azure_core::base64;
use azure_core::http::headers::Headers;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{Context, Request, Url};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::call::header;
use super::renewed::Renewed;
use crate::clock::Clock;
use crate::model::Timestamp;

/// Signs as `account`.
pub(super) struct SharedKey {
    account: String,
    key: Renewed<Vec<u8>>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedKey({})", self.account)
    }
}

impl SharedKey {
    pub(super) fn new(account: &str, key: Renewed<Vec<u8>>, clock: Arc<dyn Clock>) -> Self {
        Self { account: account.to_owned(), key, clock }
    }
}

#[async_trait]
#[allow(elided_lifetimes_in_paths, reason = "as the trait declares it")]
impl Policy for SharedKey {
    async fn send(
        &self,
        ctx: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        request.insert_header("x-ms-date", http_date(self.clock.wall()));
        if let Some(length) = request.body().len().filter(|length| *length > 0) {
            request.insert_header("content-length", length.to_string());
        }
        let (url, headers) = (request.url(), request.headers());
        let text = string_to_sign(&self.account, request.method().as_str(), url, headers);
        let signature = sign(&self.key.now(), &text);
        request.insert_header("authorization", format!("SharedKey {}:{signature}", self.account));
        next[0].send(ctx, request, &next[1..]).await
    }
}

/// As HTTP writes it (RFC 7231).
fn http_date(at: Timestamp) -> String {
    let nanos = i128::from(at.0) * 1000;
    let time = azure_core::time::OffsetDateTime::from_unix_timestamp_nanos(nanos);
    azure_core::time::to_rfc7231(&time.unwrap_or(azure_core::time::OffsetDateTime::UNIX_EPOCH))
}

fn sign(key: &[u8], text: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(text.as_bytes());
    base64::encode(mac.finalize().into_bytes())
}

fn string_to_sign(account: &str, method: &str, url: &Url, headers: &Headers) -> String {
    let value = |name: &'static str| header(headers, name);
    let length = match value("content-length") {
        "0" => "", // since version 2015-02-21
        length => length,
    };
    let standard = [
        method,
        value("content-encoding"),
        value("content-language"),
        length,
        value("content-md5"),
        value("content-type"),
        value("date"),
        value("if-modified-since"),
        value("if-match"),
        value("if-none-match"),
        value("if-unmodified-since"),
        value("range"),
    ];
    let mut own: Vec<String> = headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-ms-"))
        .map(|(name, value)| format!("{}:{}\n", name.as_str(), value.as_str().trim()))
        .collect();
    own.sort_unstable();
    format!("{}\n{}{}", standard.join("\n"), own.concat(), resource(account, url))
}

/// The path as it is sent, and the query with decoded values, sorted; values of a name that comes
/// twice are sorted and joined by commas.
fn resource(account: &str, url: &Url) -> String {
    let mut pairs: Vec<(String, String)> =
        url.query_pairs().map(|(name, value)| (name.to_lowercase(), value.into_owned())).collect();
    pairs.sort_unstable();
    let mut text = format!("/{account}{}", url.path());
    let mut last = None;
    for (name, value) in pairs {
        match last.as_ref() == Some(&name) {
            true => text.push(','),
            false => text.push_str(&format!("\n{name}:")),
        }
        text.push_str(&value);
        last = Some(name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(method: &str, url: &str, headers: &[(&'static str, &'static str)]) -> String {
        let mut all = Headers::new();
        for (name, value) in headers {
            all.insert(*name, *value);
        }
        string_to_sign("myaccount", method, &Url::parse(url).unwrap(), &all)
    }

    /// "Authorize with Shared Key", the examples of Blob, Queue and File services.
    #[test]
    fn the_published_examples() {
        let metadata = signed(
            "GET",
            "https://myaccount.blob.core.windows.net/mycontainer?restype=container&comp=metadata&timeout=20",
            &[("x-ms-date", "Fri, 26 Jun 2015 23:39:12 GMT"), ("x-ms-version", "2015-02-21")],
        );
        assert_eq!(
            metadata,
            "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\n\
             x-ms-version:2015-02-21\n/myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20"
        );
        let listing = signed(
            "GET",
            "https://myaccount.blob.core.windows.net/container?restype=container&comp=list\
             &include=snapshots&include=metadata&include=uncommittedblobs",
            &[],
        );
        let canonical = listing.split_once("/myaccount").unwrap().1;
        let published =
            "/container\ncomp:list\ninclude:metadata,snapshots,uncommittedblobs\nrestype:container";
        assert_eq!(canonical, published);
        let secondary = signed(
            "GET",
            "https://myaccount-secondary.blob.core.windows.net/mycontainer/myblob",
            &[],
        );
        assert!(secondary.ends_with("\n/myaccount/mycontainer/myblob"), "{secondary}");
    }

    #[test]
    fn standard_headers_have_their_places() {
        let text = signed(
            "PUT",
            "https://a.example/c/b",
            &[
                ("content-length", "11"),
                ("content-type", "text/plain"),
                ("if-match", "\"0x1\""),
                ("if-none-match", "*"),
                ("range", "bytes=0-9"),
            ],
        );
        let head = "PUT\n\n\n11\n\ntext/plain\n\n\n\"0x1\"\n*\n\nbytes=0-9\n/myaccount";
        assert!(text.starts_with(head), "{text:?}");
        let empty = signed("PUT", "https://a.example/c/b", &[("content-length", "0")]);
        assert!(empty.starts_with("PUT\n\n\n\n\n"), "zero is not signed: {empty:?}");
    }

    /// RFC 4231, test case 2, in Base64.
    #[test]
    fn the_signature_is_hmac_sha256() {
        let signature = sign(b"Jefe", "what do ya want for nothing?");
        assert_eq!(signature, "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM=");
        assert_eq!(http_date(Timestamp(1_435_361_952_000_000)), "Fri, 26 Jun 2015 23:39:12 GMT");
    }
}
