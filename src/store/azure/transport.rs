//! The HTTP client under Azure's: ring, system CAs and own ones, proxy, bounded silence.
//!
//! Owns: connections. Does not own: who we are, retries (there are none below the trait), or what an
//! answer means. Errors carry no address: one may hold a shared access signature.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::error::{Error, ErrorKind};
use azure_core::http::headers::{HeaderName, HeaderValue, Headers};
use azure_core::http::{AsyncRawResponse, Body, HttpClient, Method, Request, Transport};
use futures_util::TryStreamExt;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::config::ConfigError;
use crate::settings::AzureUrl;

/// Azure keeps idle connections for minutes, Azurite for five seconds: a request on one that the
/// other side is just closing is an ambiguous answer for nothing.
const IDLE: Duration = Duration::from_secs(4);
/// Where a machine asks for its managed identity (metadata address, App Service, Arc): no proxy can
/// ask there in its name.
const OWN: &str = "169.254.0.0/16,127.0.0.0/8,::1,localhost";
const CONNECT: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Http(reqwest::Client);

/// One pool of connections for a store.
pub(super) fn transport(url: &AzureUrl) -> Result<Transport, ConfigError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(url.ca_file.as_deref())?)
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .read_timeout(url.timeout)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(64);
    if let Some(address) = &url.proxy {
        builder = builder.proxy(proxy(address, url.proxy_credentials_file.as_deref())?);
    }
    let client = builder.build().map_err(|source| ConfigError::Client { source })?;
    Ok(Transport::new(Arc::new(Http(client))))
}

fn proxy(address: &str, credentials: Option<&Path>) -> Result<reqwest::Proxy, ConfigError> {
    let proxy = reqwest::Proxy::all(address).map_err(|source| ConfigError::Client { source })?;
    let proxy = proxy.no_proxy(reqwest::NoProxy::from_string(OWN));
    let Some(path) = credentials else { return Ok(proxy) };
    let text = super::config::secret(path)?;
    let (user, password) = text.split_once(':').ok_or_else(|| ConfigError::Content {
        path: path.to_owned(),
        detail: "holds no user:password".to_owned(),
    })?;
    Ok(proxy.basic_auth(user, password))
}

fn tls(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, ConfigError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let refuse = |detail: String| ConfigError::Content { path: path.to_owned(), detail };
        let pem = super::config::secret(path)?;
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
            roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3");
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn method(method: Method) -> reqwest::Method {
    match method {
        Method::Delete => reqwest::Method::DELETE,
        Method::Get => reqwest::Method::GET,
        Method::Head => reqwest::Method::HEAD,
        Method::Patch => reqwest::Method::PATCH,
        Method::Post => reqwest::Method::POST,
        Method::Put => reqwest::Method::PUT,
        other => unreachable!("Azure's client has no method {other}"),
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let mut builder = self.0.request(method(request.method()), request.url().clone());
        for (name, value) in request.headers().iter() {
            builder = builder.header(name.as_str(), value.as_str());
        }
        builder = match request.body().clone() {
            Body::Bytes(bytes) => builder.body(bytes),
            Body::SeekableStream(stream) => builder.body(reqwest::Body::wrap_stream(stream)),
        };
        let response = builder.send().await.map_err(|error| {
            // What failed before a connection stood had no effect.
            let kind = if error.is_connect() { ErrorKind::Connection } else { ErrorKind::Io };
            Error::with_error(kind, error.without_url(), "no answer")
        })?;
        let status = response.status().as_u16().into();
        let mut headers = Headers::new();
        for (name, value) in response.headers() {
            if let Ok(value) = value.to_str() {
                let name = HeaderName::from(name.as_str().to_owned());
                headers.insert(name, HeaderValue::from(value.to_owned()));
            }
        }
        let body = response.bytes_stream().map_err(|error| {
            Error::with_error(ErrorKind::Io, error.without_url(), "the answer broke off")
        });
        Ok(AsyncRawResponse::new(status, headers, Box::pin(body)))
    }
}
