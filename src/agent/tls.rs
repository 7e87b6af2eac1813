//! TLS of the agent: version 1.3 only, own certificate, one CA, nothing resumed.

use std::path::Path;
use std::sync::Arc;

use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::nbd::Peer;
use crate::settings::{AgentSettings, QemuAddress};

use super::error::AgentError;

/// Who the agent is, and whom it believes: files that the settings name.
#[derive(Clone, Copy)]
pub(super) struct Identity<'a> {
    ca_certificate: &'a Path,
    certificate: &'a Path,
    key: &'a Path,
}

/// Towards a process server.
pub(super) fn client_config(settings: &AgentSettings) -> Result<ClientConfig, AgentError> {
    let AgentSettings { ca_certificate, certificate, key, .. } = settings;
    Identity { ca_certificate, certificate, key }.client_config()
}

impl<'a> Identity<'a> {
    pub(super) fn towards_qemu(settings: &'a AgentSettings) -> Self {
        let tls = &settings.mirror;
        let (ca_certificate, certificate, key) = (&tls.ca_certificate, &tls.certificate, &tls.key);
        Self { ca_certificate, certificate, key }
    }

    fn roots(&self) -> Result<RootCertStore, AgentError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(self.ca_certificate)? {
            let added = roots.add(certificate);
            added.map_err(unusable(self.ca_certificate, "CA certificate"))?;
        }
        Ok(roots)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, AgentError> {
        PrivateKeyDer::from_pem_file(self.key).map_err(unusable(self.key, "private key"))
    }

    /// What a client is.
    pub(super) fn client_config(&self) -> Result<ClientConfig, AgentError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable(self.certificate, "TLS 1.3 provider"))?;
        let mut config = builder
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(certificates(self.certificate)?, self.private_key()?)
            .map_err(unusable(self.certificate, "certificate for this key"))?;
        // A resumed session would outlive a revoked certificate; early data could be replayed.
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    }

    /// What a server is. Its clients show a certificate of the CA.
    pub(super) fn server_config(&self) -> Result<ServerConfig, AgentError> {
        let roots = Arc::new(self.roots()?);
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
        let clients = clients.map_err(unusable(self.ca_certificate, "CA certificate"))?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable(self.certificate, "TLS 1.3 provider"))?;
        let mut config = builder
            .with_client_cert_verifier(clients)
            .with_single_cert(certificates(self.certificate)?, self.private_key()?)
            .map_err(unusable(self.certificate, "certificate for this key"))?;
        // As above: nothing is resumed.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Looks whether the certificate is one of `host`, which others will check.
    pub(super) fn carries(&self, host: &str) -> Result<(), AgentError> {
        let what = "certificate with the host of `address` in its subjectAltName";
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(unusable(self.certificate, what))?;
        let own = certificates(self.certificate)?;
        let own = own.first().map(ParsedCertificate::try_from).transpose();
        let named = own.and_then(|own| own.map_or(Ok(()), |own| verify_server_name(&own, &name)));
        named.map_err(unusable(self.certificate, what))
    }
}

/// A channel of QEMU, and what it is spoken to with on another host.
pub(super) fn peer(settings: &AgentSettings, address: &QemuAddress) -> Result<Peer, AgentError> {
    Ok(match address {
        QemuAddress::Socket(path) => Peer::Socket(path.clone()),
        QemuAddress::Tls { host, port } => {
            let config = Arc::new(Identity::towards_qemu(settings).client_config()?);
            Peer::Tls { host: host.clone(), port: *port, config }
        }
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
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
