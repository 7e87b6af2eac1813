//! Certificates and keys from files into TLS 1.3 configurations.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::ControlError;
use crate::settings::TlsFiles;

/// For an HTTPS server without client certificates: the sidecar.
pub(super) fn server(tls: &TlsFiles) -> Result<Arc<ServerConfig>, ControlError> {
    let refused = |source| ControlError::Tls { path: tls.certificate.clone(), source };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .with_no_client_auth()
        .with_single_cert(chain(&tls.certificate)?, key(&tls.key)?)
        .map_err(refused)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0; // no resumption: every connection is looked at anew
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// For a client with the operator's certificate that trusts the site's authority alone.
pub(super) fn operator(tls: &TlsFiles) -> Result<Arc<ClientConfig>, ControlError> {
    let path = &tls.operator_certificate;
    let refused = |source| ControlError::Tls { path: path.clone(), source };
    let mut roots = RootCertStore::empty();
    for certificate in chain(&tls.ca_certificate)? {
        roots
            .add(certificate)
            .map_err(|source| ControlError::Tls { path: tls.ca_certificate.clone(), source })?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(refused)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain(path)?, key(&tls.operator_key)?)
        .map_err(refused)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(super) fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, ControlError> {
    let text = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) | Err(_) => Err(ControlError::Pem { path: path.to_owned(), what: "certificate" }),
    }
}

pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, ControlError> {
    let text = zeroize::Zeroizing::new(read(path)?);
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| ControlError::Pem { path: path.to_owned(), what: "private key" })
}

fn read(path: &Path) -> Result<Vec<u8>, ControlError> {
    std::fs::read(path).map_err(|source| ControlError::File { path: path.to_owned(), source })
}
