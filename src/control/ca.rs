//! The private certificate authority of a site.
//!
//! Owns: which certificates exist and what they say. Does not own: who may have one (`enrol`), and
//! whether one is still good (the vault records fingerprints and revocations).
//!
//! | certificate | subject alternative name | for |
//! |---|---|---|
//! | server | DNS names and IP addresses it is reached by | TLS server |
//! | operator | `spiffe://<site>/operator` | TLS client: command line and sidecar |
//! | machine | `spiffe://<site>/machine/<machine>` | TLS client: its agent |

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::ControlError;
use crate::clock::{Entropy, random16};
use crate::model::{MachineId, SiteId, Timestamp};
use crate::settings::TlsFiles;
use crate::vault::CertificateEntry;

/// Life of the authority's own certificate.
const CA_LIFE: Duration = Duration::from_secs(20 * 366 * 86_400);
/// Life of the certificates of server and operator.
const SERVER_LIFE: Duration = Duration::from_secs(10 * 366 * 86_400);
/// Certificates begin a little in the past: clocks differ.
const SKEW_S: i64 = 3_600;

/// Signs certificates of one site.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    site: SiteId,
}

/// A certificate that was just made.
#[derive(Debug)]
pub struct Issued {
    /// PEM.
    pub certificate: String,
    /// What the vault records about it.
    pub entry: CertificateEntry,
}

/// A key that was made together with its certificate.
#[derive(Debug)]
pub struct IssuedWithKey {
    /// The certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: Zeroizing<String>,
}

/// A request whose signature was checked: whoever made it holds the key. The names and usages it
/// asks for are ignored.
#[derive(Debug)]
pub struct SigningRequest(CertificateSigningRequestParams);

impl SigningRequest {
    /// Reads and checks a request in PEM.
    ///
    /// # Errors
    /// When it is no request or its signature does not fit its key.
    pub fn parse(pem: &str) -> Result<Self, ControlError> {
        let parsed = CertificateSigningRequestParams::from_pem(pem);
        parsed.map(Self).map_err(|error| ControlError::SigningRequest { reason: error.to_string() })
    }

    /// A fresh key and a request for it; the key is returned as PEM.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<(Self, Zeroizing<String>), ControlError> {
        let key = KeyPair::generate().map_err(|source| failed("a new key", source))?;
        let request = CertificateParams::default().serialize_request(&key);
        let request = request.map_err(|source| failed("a new key", source))?;
        let parsed = CertificateSigningRequestParams::from_der(request.der());
        let parsed = parsed.map_err(|source| failed("a new key", source))?;
        Ok((Self(parsed), Zeroizing::new(key.serialize_pem())))
    }
}

impl CertificateAuthority {
    /// A new authority for `site`, and its key in PEM.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn create(
        site: &SiteId,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) -> Result<(Self, Zeroizing<String>), ControlError> {
        let subject = format!("certificate authority of site {site}");
        let failed = |source| failed(&subject, source);
        let key = KeyPair::generate().map_err(failed)?;
        let pem = Zeroizing::new(key.serialize_pem());
        let mut params = params(&subject, CA_LIFE, now, entropy);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        let authority = Self { issuer: Issuer::new(params, key), certificate, site: site.clone() };
        Ok((authority, pem))
    }

    /// The authority whose files the settings name.
    ///
    /// # Errors
    /// When a file cannot be read or holds something else.
    pub fn load(tls: &TlsFiles, site: &SiteId) -> Result<Self, ControlError> {
        let read = |path: &std::path::Path| {
            std::fs::read_to_string(path)
                .map_err(|source| ControlError::File { path: path.to_owned(), source })
        };
        let key = Zeroizing::new(read(&tls.ca_key)?);
        let certificate = read(&tls.ca_certificate)?;
        let key = KeyPair::from_pem(&key)
            .map_err(|_| ControlError::Pem { path: tls.ca_key.clone(), what: "private key" })?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key);
        let issuer = issuer.map_err(|_| ControlError::Pem {
            path: tls.ca_certificate.clone(),
            what: "certificate",
        })?;
        Ok(Self { issuer, certificate, site: site.clone() })
    }

    /// Its certificate, PEM: what peers trust.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A key and certificate for a server that is reached by `hosts` (DNS names, IP addresses) and
    /// by `localhost`.
    ///
    /// # Errors
    /// When a host is neither.
    pub fn issue_server(
        &self,
        hosts: &[String],
        now: Timestamp,
        entropy: &dyn Entropy,
    ) -> Result<IssuedWithKey, ControlError> {
        let subject = format!("server of site {}", self.site);
        let mut params = params(&subject, SERVER_LIFE, now, entropy);
        let local = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        for host in hosts.iter().chain(&local) {
            let name = match host.parse::<IpAddr>() {
                Ok(address) if address.is_unspecified() => continue,
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(ia5(host)?),
            };
            if !params.subject_alt_names.contains(&name) {
                params.subject_alt_names.push(name);
            }
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.with_fresh_key(params, &subject)
    }

    /// A key and certificate for the operator.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn issue_operator(
        &self,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) -> Result<IssuedWithKey, ControlError> {
        let subject = format!("operator of site {}", self.site);
        let mut params = params(&subject, SERVER_LIFE, now, entropy);
        let uri = format!("spiffe://{}/operator", self.site);
        params.subject_alt_names = vec![SanType::URI(ia5(&uri)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.with_fresh_key(params, &subject)
    }

    /// A certificate for `machine` over the key of `request`. Everything else in the request is
    /// ignored: the machine's name comes from whoever let it enrol.
    ///
    /// # Errors
    /// When the key is of a kind that cannot be signed.
    pub fn issue_machine(
        &self,
        machine: &MachineId,
        request: &SigningRequest,
        life: Duration,
        now: Timestamp,
        entropy: &dyn Entropy,
    ) -> Result<Issued, ControlError> {
        let subject = format!("machine {machine}");
        let mut params = params(&subject, life, now, entropy);
        let uri = format!("spiffe://{}/machine/{machine}", self.site);
        params.subject_alt_names = vec![SanType::URI(ia5(&uri)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let not_after = end(now, life);
        let certificate = self.sign(params, &request.0.public_key, &subject)?;
        let entry = CertificateEntry {
            fingerprint: hex::encode(Sha256::digest(certificate.der())),
            not_after,
            revoked: false,
        };
        Ok(Issued { certificate: certificate.pem(), entry })
    }

    fn with_fresh_key(
        &self,
        params: CertificateParams,
        subject: &str,
    ) -> Result<IssuedWithKey, ControlError> {
        let key = KeyPair::generate().map_err(|source| failed(subject, source))?;
        Ok(IssuedWithKey {
            certificate: self.sign(params, &key, subject)?.pem(),
            key: Zeroizing::new(key.serialize_pem()),
        })
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        subject: &str,
    ) -> Result<rcgen::Certificate, ControlError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(key, &self.issuer);
        signed.map_err(|source| failed(subject, source))
    }
}

fn params(
    subject: &str,
    life: Duration,
    now: Timestamp,
    entropy: &dyn Entropy,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    let mut serial = random16(entropy);
    serial[0] = serial[0] & 0x7f | 0x40; // positive and of full length (RFC 5280 section 4.1.2.2)
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = moment(now.plus_seconds(-SKEW_S));
    params.not_after = moment(end(now, life));
    params
}

fn end(now: Timestamp, life: Duration) -> Timestamp {
    now.plus_seconds(i64::try_from(life.as_secs()).unwrap_or(i64::MAX))
}

/// Clamped to what a certificate can say; a wall clock outside is nonsense anyway.
fn moment(time: Timestamp) -> OffsetDateTime {
    let seconds = (time.0 / 1_000_000).clamp(0, 253_402_300_799); // 1970 to 9999
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn ia5(text: &str) -> Result<Ia5String, ControlError> {
    Ia5String::try_from(text).map_err(|source| failed(text, source))
}

fn failed(subject: &str, source: rcgen::Error) -> ControlError {
    ControlError::Certificate { subject: subject.to_owned(), source: source.into() }
}
