//! An answer is Azure's, or it is none.
//!
//! A proxy that opens TLS, or a gateway in front of the account, may answer in Azure's place: its page
//! for a browser says 200. Believed, it would be a delta that stands nowhere. Azure numbers every answer.

use std::sync::Arc;

use async_trait::async_trait;
use azure_core::error::{Error, ErrorKind};
use azure_core::http::headers::Headers;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{Context, Request};

use super::call::header;

/// Whatever else is done with each try, its answer must be Azure's.
pub(super) fn ask(mut policies: Vec<Arc<dyn Policy>>) -> Vec<Arc<dyn Policy>> {
    policies.push(Arc::new(Genuine));
    policies
}

/// Believes no success that does not carry Azure's number.
#[derive(Debug)]
struct Genuine;

#[async_trait]
#[allow(elided_lifetimes_in_paths, reason = "as the trait declares it")]
impl Policy for Genuine {
    async fn send(
        &self,
        ctx: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        let answer = next[0].send(ctx, request, &next[1..]).await?;
        if answer.status().is_success() && !is_numbered(answer.headers()) {
            return Err(foreign(answer.status().into()));
        }
        Ok(answer)
    }
}

/// Whether Azure numbered the answer.
pub(super) fn is_numbered(headers: &Headers) -> bool {
    !header(headers, "x-ms-request-id").is_empty()
}

/// What is said of an answer without a number. Its body, a page for a browser, is not.
pub(super) fn foreign(status: u16) -> Error {
    Error::with_message(
        ErrorKind::Other,
        format!("an answer {status} that is not Azure's; a proxy or gateway answered?"),
    )
}

#[cfg(test)]
mod tests {
    use azure_core::http::{AsyncRawResponse, Method, StatusCode};

    use super::*;

    /// Whoever answers.
    #[derive(Debug)]
    struct Somebody(StatusCode, bool);

    #[async_trait]
    #[allow(elided_lifetimes_in_paths, reason = "as the trait declares it")]
    impl Policy for Somebody {
        async fn send(&self, _: &Context, _: &mut Request, _: &[Arc<dyn Policy>]) -> PolicyResult {
            let mut headers = Headers::new();
            if self.1 {
                headers.insert("x-ms-request-id", "1");
            }
            Ok(AsyncRawResponse::from_bytes(self.0, headers, "<html>"))
        }
    }

    #[tokio::test]
    async fn a_success_without_azures_number_is_none() {
        let told = async |status, numbered| {
            let next = [Arc::new(Somebody(status, numbered)) as Arc<dyn Policy>];
            let url = "https://acct.blob.core.windows.net/c/n".parse().unwrap();
            let mut request = Request::new(url, Method::Put);
            Genuine.send(&Context::new(), &mut request, &next).await.map(drop)
        };
        for status in [StatusCode::Ok, StatusCode::Created, StatusCode::PartialContent] {
            told(status, true).await.unwrap();
            let error = told(status, false).await.unwrap_err().to_string();
            assert!(error.contains("not Azure's"), "{error}");
        }
        // What is no success has its meaning elsewhere.
        told(StatusCode::ServiceUnavailable, false).await.unwrap();
    }
}
