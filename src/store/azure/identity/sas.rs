//! Shared access signature: every try of a request carries the one that its file holds then.

use std::sync::Arc;

use async_trait::async_trait;
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{Context, Request};

use super::renewed::Renewed;

/// Appends it to the address.
#[derive(Debug)]
pub(super) struct Sas(pub(super) Renewed<String>);

#[async_trait]
#[allow(elided_lifetimes_in_paths, reason = "as the trait declares it")]
impl Policy for Sas {
    async fn send(
        &self,
        ctx: &Context,
        request: &mut Request,
        next: &[Arc<dyn Policy>],
    ) -> PolicyResult {
        let signature = self.0.now();
        let url = request.url_mut();
        let query = match url.query() {
            Some(own) if !own.is_empty() => format!("{own}&{signature}"),
            _ => signature.to_string(),
        };
        url.set_query(Some(&query));
        next[0].send(ctx, request, &next[1..]).await
    }
}
