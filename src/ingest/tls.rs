//! TLS of port 9443: version 1.3 only, a certificate of the site's CA from everybody.
//!
//! Three parts: [`handshake`] proves who is there and carries the HTTP request, all by rustls;
//! behind the upgrade [`record`] opens and seals records with the keys that rustls made, and
//! [`stream`] reads them into the arena, where they are opened in place.
//!
//! Owns: the server's configuration, and sentences that say which file is wrong and what to do.
//! Does not own: what a certificate means ([`super::identity`]). There are no tickets, no resumed
//! sessions and no early data: each connection proves its certificate anew, and nothing that was
//! recorded can be played again.

mod handshake;
mod record;
mod stream;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use x509_parser::prelude::{FromDer, X509Certificate};

pub(super) use self::handshake::Handshaken;
pub(super) use self::record::RECORD_BYTES_MAX;
pub(super) use self::stream::take_over;
use crate::model::Timestamp;
use crate::settings::TlsFiles;

/// Files from which no TLS server can be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path} cannot be read; `holdfast init` writes it")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{path} holds no {expected} in PEM form; `holdfast init` writes one")]
    Content {
        /// Which.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
    },
    /// The CA's file holds what cannot be a CA.
    #[error("{path} holds a certificate that cannot be used as CA")]
    Ca {
        /// Which.
        path: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// The certificate's life is over, or has not begun.
    #[error(
        "the certificate in {path} is good from {not_before} to {not_after}, it is {now}: renew it, or set the clock"
    )]
    Life {
        /// Which.
        path: PathBuf,
        /// Begin.
        not_before: Timestamp,
        /// End.
        not_after: Timestamp,
        /// The present.
        now: Timestamp,
    },
    /// Certificate and key do not belong together, or are of a kind that is not supported.
    #[error(
        "the key in {key} does not fit the certificate in {certificate}; both come from one `holdfast init`"
    )]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// The CA gives no verifier.
    #[error("no client can be verified with {path}")]
    Verifier {
        /// The CA's file.
        path: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
    /// The cryptographic provider lacks TLS 1.3: not this program's build.
    #[error("the cryptographic provider has no TLS 1.3")]
    Provider(#[source] rustls::Error),
}

/// The configuration of port 9443.
///
/// # Errors
/// Names the file that is wrong.
pub fn server_config(files: &TlsFiles, now: Timestamp) -> Result<Arc<ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca_certificate, now)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Ca { path: files.ca_certificate.clone(), source })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|source| TlsError::Verifier { path: files.ca_certificate.clone(), source })?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Provider)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.certificate, now)?, key(&files.key)?)
        .map_err(|source| TlsError::Pair {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            source,
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Behind the upgrade the records are opened here: see `record`.
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // The default today; early data could be replayed, so a change of the default must be seen.
    assert!(config.max_early_data_size == 0, "early data is off");
    Ok(Arc::new(config))
}

/// When the certificate of the server, and that of the site's authority, ends: of several in a file the first
/// that does.
///
/// # Errors
/// Names the file that is wrong.
pub fn certificate_ends(
    files: &TlsFiles,
    now: Timestamp,
) -> Result<[(&'static str, Timestamp); 2], TlsError> {
    let first = |path: &Path| {
        let mut first = Timestamp::LATEST;
        for certificate in certificates(path, now)? {
            first = first.min(end_of(path, &certificate, now)?);
        }
        Ok(first)
    };
    Ok([("server", first(&files.certificate)?), ("authority", first(&files.ca_certificate)?)])
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let path = path.to_owned();
    std::fs::read(&path).map_err(|source| TlsError::Read { path, source })
}

fn certificates(path: &Path, now: Timestamp) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = || TlsError::Content { path: path.to_owned(), expected: "certificate" };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|_| content())?;
    for certificate in &found {
        end_of(path, certificate, now)?;
    }
    match found.is_empty() {
        true => Err(content()),
        false => Ok(found),
    }
}

/// When its life ends, if it lives now.
fn end_of(
    path: &Path,
    certificate: &CertificateDer<'_>,
    now: Timestamp,
) -> Result<Timestamp, TlsError> {
    let content = |_| TlsError::Content { path: path.to_owned(), expected: "certificate" };
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(content)?;
    let moment =
        |time: x509_parser::time::ASN1Time| Timestamp::default().plus_seconds(time.timestamp());
    let life = certificate.validity();
    let (not_before, not_after) = (moment(life.not_before), moment(life.not_after));
    if now < not_before || now > not_after {
        return Err(TlsError::Life { path: path.to_owned(), not_before, not_after, now });
    }
    Ok(not_after)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|_| TlsError::Content { path: path.to_owned(), expected: "private key" })
}

#[cfg(test)]
mod tests;
