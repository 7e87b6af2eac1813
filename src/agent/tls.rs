//! TLS of the agent: version 1.3 only, own certificate, one CA, nothing resumed.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem};
use rustls::{ClientConfig, RootCertStore};

use crate::settings::AgentSettings;

use super::error::AgentError;

/// Configuration from the files that the settings name.
pub(super) fn client_config(settings: &AgentSettings) -> Result<ClientConfig, AgentError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&settings.ca_certificate)? {
        let added = roots.add(certificate);
        added.map_err(unusable(&settings.ca_certificate, "CA certificate"))?;
    }
    let chain = certificates(&settings.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&settings.key);
    let key = key.map_err(unusable(&settings.key, "private key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable(&settings.certificate, "TLS 1.3 provider"))?;
    let mut config = builder
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(unusable(&settings.certificate, "certificate for this key"))?;
    // A resumed session would outlive a revoked certificate; early data could be replayed.
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// The name that the certificate of `server` must carry: the one of the settings, or the host that is
/// connected to. Whoever named the address, the settings or another server: what is checked is the
/// same.
pub(super) fn expected_name(
    settings: Option<&str>,
    server: &str,
) -> Result<ServerName<'static>, AgentError> {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    let name = settings.unwrap_or(host.trim_matches(['[', ']'])).to_owned();
    ServerName::try_from(name).map_err(AgentError::dial(server, "reading its host name"))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AgentError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(unusable(path, "certificate"))?;
    if found.is_empty() {
        return Err(unusable(path, "certificate")(pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn unusable<E: std::error::Error + Send + Sync + 'static>(
    path: &Path,
    what: &'static str,
) -> impl FnOnce(E) -> AgentError {
    let path = path.to_owned();
    move |error| AgentError::Certificate { path, what, source: Box::new(error) }
}
