use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::clock::{Clock, System};

fn authority() -> CertificateAuthority {
    let site = "acme".parse().unwrap();
    CertificateAuthority::create(&site, System.wall(), &System).unwrap().0
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// Alternative names of a certificate, as text.
fn names(pem: &str) -> Vec<String> {
    let der = der(pem);
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    let extension = parsed.subject_alternative_name().unwrap().unwrap();
    let names = extension.value.general_names.iter();
    let text = names.map(|name| match name {
        GeneralName::URI(uri) => (*uri).to_owned(),
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => format!("{bytes:?}"),
        other => panic!("{other:?}"),
    });
    text.collect()
}

/// Whether a TLS server that trusts `authority` takes `pem` from a client at `now`.
fn trusted(authority: &CertificateAuthority, pem: &str, now: Timestamp) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(der(authority.certificate())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = verifier.build().unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_micros(now.0 as u64));
    verifier.verify_client_cert(&der(pem), &[], now).is_ok()
}

fn machine_certificate(authority: &CertificateAuthority, request: &SigningRequest) -> Issued {
    let life = Duration::from_secs(3_600);
    let machine = "web".parse().unwrap();
    authority.issue_machine(&machine, request, life, System.wall(), &System).unwrap()
}

#[test]
fn each_certificate_names_its_holder_and_nothing_else() {
    let authority = authority();
    let (request, key) = SigningRequest::generate().unwrap();
    assert!(key.contains("PRIVATE KEY"));
    let issued = machine_certificate(&authority, &request);
    assert_eq!(names(&issued.certificate), ["spiffe://acme/machine/web"]);
    let fingerprint = hex::encode(Sha256::digest(der(&issued.certificate)));
    assert_eq!(issued.entry.fingerprint, fingerprint);
    let operator = authority.issue_operator(System.wall(), &System).unwrap();
    assert_eq!(names(&operator.certificate), ["spiffe://acme/operator"]);
    let hosts = ["ps.example.org", "10.1.2.3", "0.0.0.0", "localhost"].map(str::to_owned);
    let server = authority.issue_server(&hosts, System.wall(), &System).unwrap();
    let found = names(&server.certificate);
    assert_eq!(found[..3], ["ps.example.org", "[10, 1, 2, 3]", "localhost"]);
    assert_eq!(found.len(), 5, "each name once, no address of everything: {found:?}");
}

#[test]
fn clients_are_believed_in_time_and_from_this_authority_only() {
    let (authority, other) = (authority(), authority());
    let (request, _) = SigningRequest::generate().unwrap();
    let now = System.wall();
    let issued = machine_certificate(&authority, &request);
    assert!(trusted(&authority, &issued.certificate, now));
    assert!(!trusted(&other, &issued.certificate, now));
    assert!(!trusted(&authority, &issued.certificate, now.plus_seconds(3_700)));
    assert!(!trusted(&authority, &issued.certificate, now.plus_seconds(-7_200)));
    let server = authority.issue_server(&[], now, &System).unwrap();
    assert!(!trusted(&authority, &server.certificate, now), "a server is no client");
}

#[test]
fn a_request_gives_its_key_and_nothing_else() {
    let authority = authority();
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(["evil.example.org".to_owned()]).unwrap();
    greedy.subject_alt_names.push(SanType::URI("spiffe://acme/operator".try_into().unwrap()));
    greedy.distinguished_name.push(DnType::CommonName, "operator of site acme");
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let pem = greedy.serialize_request(&key).unwrap().pem().unwrap();
    let issued = machine_certificate(&authority, &SigningRequest::parse(&pem).unwrap());
    assert_eq!(names(&issued.certificate), ["spiffe://acme/machine/web"]);
    let der = der(&issued.certificate);
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(parsed.subject().to_string(), "CN=machine web");
    assert!(!parsed.is_ca());
    assert!(!parsed.key_usage().unwrap().unwrap().value.key_cert_sign());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    let spki = parsed.public_key().subject_public_key.data.as_ref();
    assert_eq!(spki, key.public_key_raw(), "the key is the requester's");
}

#[test]
fn a_request_that_its_key_did_not_sign_is_refused() {
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap();
    let mut forged = request.der().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1; // in the signature
    let base64 = pem_of(&forged);
    assert!(SigningRequest::parse(&request.pem().unwrap()).is_ok());
    let error = SigningRequest::parse(&base64).unwrap_err();
    assert!(error.to_string().contains("signing request"), "{error}");
    let none =
        ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n"];
    for text in none {
        assert!(SigningRequest::parse(text).is_err(), "{text}");
    }
    let certificate = authority();
    assert!(SigningRequest::parse(certificate.certificate()).is_err());
}

#[test]
fn two_certificates_never_share_a_serial() {
    let authority = authority();
    let (request, _) = SigningRequest::generate().unwrap();
    let serial = || {
        let der = der(&machine_certificate(&authority, &request).certificate);
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        parsed.raw_serial().to_vec()
    };
    assert_ne!(serial(), serial());
}

/// PEM of a request.
fn pem_of(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
    for (number, three) in der.chunks(3).enumerate() {
        let mut bits = 0u32;
        for at in 0..3 {
            bits = bits << 8 | u32::from(three.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= three.len() { digit as char } else { '=' });
        }
        if number % 16 == 15 {
            text.push('\n');
        }
    }
    text + "\n-----END CERTIFICATE REQUEST-----\n"
}
