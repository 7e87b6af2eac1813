use std::path::Path;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::clock::System;
use crate::control::ca::CertificateAuthority;
use crate::control::tls::{chain, key};
use crate::model::SiteId;

/// The files of a site in `directory`.
fn site(directory: &Path) -> TlsFiles {
    let site: SiteId = "acme".parse().unwrap();
    let now = System.wall();
    let (ca, ca_key) = CertificateAuthority::create(&site, now, &System).unwrap();
    let server = ca.issue_server(&[], now, &System).unwrap();
    let operator = ca.issue_operator(now, &System).unwrap();
    let write = |name: &str, content: &str| {
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    TlsFiles {
        ca_certificate: write("ca.crt", ca.certificate()),
        ca_key: write("ca.key", &ca_key),
        certificate: write("server.crt", &server.certificate),
        key: write("server.key", &server.key),
        operator_certificate: write("operator.crt", &operator.certificate),
        operator_key: write("operator.key", &operator.key),
    }
}

/// A TLS server that wants a client certificate of its authority and answers every request with
/// `answer`; never, when there is none.
async fn server(files: &TlsFiles, answer: Option<&'static str>) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(chain(&files.ca_certificate).unwrap().remove(0)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain(&files.certificate).unwrap(), key(&files.key).unwrap())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((socket, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(socket).await else {
                continue;
            };
            let service = hyper::service::service_fn(move |_| async move {
                let Some(answer) = answer else {
                    return std::future::pending().await;
                };
                let (status, body) = answer.split_once(' ').unwrap();
                let response = hyper::Response::builder().status(status);
                response.body(Full::new(Bytes::from(body)))
            });
            let http = hyper::server::conn::http1::Builder::new();
            http.serve_connection(TokioIo::new(stream), service).await.ok();
        }
    });
    address
}

fn client(files: &TlsFiles) -> Client {
    Client::operator(files, System::clock(), Duration::from_secs(20)).unwrap()
}

#[tokio::test]
async fn an_answer_comes_back_over_mutual_tls() {
    let directory = tempfile::tempdir().unwrap();
    let files = site(directory.path());
    let address = server(&files, Some("200 {\"fine\": true}")).await;
    let answer: serde_json::Value = client(&files).get(&address, "/x").await.unwrap();
    assert_eq!(answer["fine"], true);
    let wrong: Result<u64, _> = client(&files).get(&address, "/x").await;
    assert!(matches!(wrong, Err(ControlError::Answer { .. })));
}

#[tokio::test]
async fn a_refusal_keeps_code_message_and_cure() {
    let directory = tempfile::tempdir().unwrap();
    let files = site(directory.path());
    let refusal = "409 {\"error\":{\"code\":\"busy\",\"message\":\"no\",\"cure\":\"wait\"}}";
    let address = server(&files, Some(refusal)).await;
    let refused: Result<u64, _> = client(&files).post(&address, "/x", &1).await;
    let error = refused.unwrap_err();
    assert_eq!(error.to_string(), format!("https://{address}/x: no; wait"));
    assert!(matches!(error, ControlError::Refused { status: 409, ref code, .. } if code == "busy"));
}

#[tokio::test]
async fn strangers_are_not_talked_to() {
    let (mine, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mine, other) = (site(mine.path()), site(other.path()));
    let address = server(&other, Some("200 1")).await;
    let asked: Result<u64, _> = client(&mine).get(&address, "/x").await;
    let error = asked.unwrap_err();
    assert!(matches!(error, ControlError::Unreachable { .. }), "{error:?}");
    assert!(format!("{error:?}").contains("InvalidCertificate"), "{error:?}");
}

#[tokio::test]
async fn silence_and_absence_are_named_with_the_url() {
    let directory = tempfile::tempdir().unwrap();
    let files = site(directory.path());
    let address = server(&files, None).await;
    let impatient = client(&files).with_timeout(Duration::from_millis(50));
    let asked: Result<u64, _> = impatient.get(&address, "/x").await;
    let error = asked.unwrap_err();
    assert!(matches!(error, ControlError::Timeout { .. }), "{error:?}");
    assert!(error.to_string().contains(&address), "{error}");
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap().to_string();
    drop(gone);
    let asked: Result<u64, _> = client(&files).get(&address, "/x").await;
    let error = asked.unwrap_err();
    assert!(matches!(error, ControlError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("holdfast serve"), "{error}");
}
