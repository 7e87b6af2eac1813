//! Many machines made known at once: directly in the vault, certificates from the site's authority.
//!
//! They share one key: a key pair of its own for each would cost time and show nothing.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use holdfast::cli::Failure;
use holdfast::cli::site::Site;
use holdfast::clock::{Clock, System};
use holdfast::control::ca::{CertificateAuthority, SigningRequest};
use holdfast::model::MachineId;
use holdfast::vault::{MachineDocument, Policy};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::LoadError;

/// Machines written at once: each waits for several syncs of the store.
const AT_ONCE: usize = 32;
/// The machines are gone long before.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(7 * 86_400);

/// What the enrolled machines have in common, and each its certificate.
pub(crate) struct Enrolled {
    pub(crate) roots: RootCertStore,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// Enrols `machines`, none of which is known yet.
pub(crate) async fn enrol(
    site: &Site,
    machines: &[MachineId],
    policy: &Policy,
    done: impl Fn(),
) -> Result<Enrolled, LoadError> {
    let failed = || LoadError::site("enrolling machines");
    let ca = CertificateAuthority::load(&site.settings.tls, &site.settings.site);
    let ca = ca.map_err(|error| failed()(error.into()))?;
    let (request, key) = SigningRequest::generate().map_err(|error| failed()(error.into()))?;
    let pem = |error: rustls::pki_types::pem::Error| failed()(Failure::from(error));
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(ca.certificate().as_bytes()).map_err(pem)?;
    roots.add(root).map_err(|error| failed()(error.into()))?;
    let (ca, request) = (Arc::new(ca), Arc::new(request));
    let enrolling = stream::iter(machines).map(|machine| {
        let (ca, request, done) = (Arc::clone(&ca), Arc::clone(&request), &done);
        async move {
            let certificate = one(site, &ca, &request, machine, policy).await;
            let certificate = certificate.map_err(LoadError::site("enrolling a machine"))?;
            done();
            CertificateDer::from_pem_slice(certificate.as_bytes())
                .map_err(|error| LoadError::site("enrolling a machine")(error.into()))
        }
    });
    let certificates = enrolling.buffered(AT_ONCE).try_collect().await?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(pem)?;
    Ok(Enrolled { roots, key, certificates })
}

async fn one(
    site: &Site,
    ca: &CertificateAuthority,
    request: &SigningRequest,
    machine: &MachineId,
    policy: &Policy,
) -> Result<String, Failure> {
    let now = System.wall();
    let issued = ca.issue_machine(machine, request, CERTIFICATE_LIFE, now, &System)?;
    let (_, wrapped) = site.sources.kek.make_data_key(machine, 1, &System, now);
    let document = MachineDocument {
        machine: machine.clone(),
        created: now,
        data_keys: vec![wrapped],
        certificates: vec![issued.entry],
        policy: policy.clone(),
    };
    site.sources.vault.create_machine(&document).await?;
    Ok(issued.certificate)
}
